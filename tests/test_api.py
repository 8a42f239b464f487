"""The public interface: its names, where they are documented, and what importing them loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import knobctl

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "reference" / "api.md").read_text()


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
