"""The public interface: its names, and every example of docs/api.md, which runs as written but for its sizes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import knobctl
from knobctl.data.knobs import KnobSpace
from knobctl.tests.support.caches import make_cache

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "api.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_every_public_name_is_documented_and_loads():
    for name in knobctl.__all__:
        assert f"`{name}`" in PAGE, name
        assert callable(getattr(knobctl, name)), name
    assert set(knobctl.__all__) <= set(dir(knobctl))
    with pytest.raises(AttributeError, match="no attribute 'open_sesame'"):
        _ = knobctl.open_sesame


def test_no_public_name_is_the_name_of_a_module():
    """Importing `knobctl.precompute.x` sets `knobctl.precompute`, whatever it was before."""
    modules = {path.name for path in ROOT.iterdir() if path.is_dir()} | {path.stem for path in ROOT.glob("*.py")}
    assert {"precompute", "cli"} < modules
    assert set(knobctl.__all__) & modules == set()


def test_the_import_loads_no_heavy_library():
    code = (
        "import sys, knobctl; knobctl.PrecomputeConfig; knobctl.TrainConfig\n"
        "print(sorted({'torch', 'transformers', 'polars', 'pyarrow', 'rich', 'click'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    make_cache(Path("runs/cache"), samples=40)
    names = {"SPACE": KnobSpace(("low",), (1,), (8,), (15, 16))}
    smaller = {"samples=200": "samples=8, space=SPACE, runs=1", "epochs=60": "epochs=1", "folds=5": "folds=2"}
    assert len(EXAMPLES) > 6
    for example in EXAMPLES:
        code = example
        for there, here in smaller.items():
            code = code.replace(there, here)
        exec(compile(code, "docs/api.md", "exec"), names)
        assert capsys.readouterr().out, example
    assert Path("report.json").is_file()
