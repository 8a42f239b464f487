"""The pages on datasets and metrics are correct: the example loads, and the tables agree with the registry."""

import re
from pathlib import Path

from knobctl.data.datasets.registry import DATASETS, parse_dataset_option
from knobctl.data.datasets.sample_set import load_samples
from knobctl.data.metrics import METRICS
from knobctl.tests.support.dataset_files import png

DOCS = Path(__file__).parent.parent / "docs"
GUIDE = (DOCS / "guides" / "datasets.md").read_text()
KNOWN = (DOCS / "reference" / "datasets.md").read_text()
SCORES = (DOCS / "reference" / "metrics.md").read_text()


def test_the_example_writes_a_dataset_that_loads(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    assert len(code.strip().splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "shop.png").write_bytes(png(0))
    exec(compile(code, "docs/guides/datasets.md", "exec"), {})
    option = re.search(r"--dataset (shops=\S+)", GUIDE)[1]
    name, source = parse_dataset_option(option)
    loaded = load_samples(name, source=source)
    assert [sample.sample_id for sample in loaded.samples] == ["shops/1", "shops/2"]
    assert loaded.samples[0].answers == ("open", "open now")


def test_the_tables_agree_with_the_registry():
    for spec in DATASETS.values():
        (row,) = re.findall(
            rf"^\| `{spec.name}` \|([^\n]*`{spec.metric}` \| {spec.max_new_tokens} \|[^\n]*)$", KNOWN, re.M
        )
        assert f"`{spec.style}:`" in row if spec.style else "none" in row
    for metric in METRICS.values():
        assert re.search(rf"^\| `{metric.name}` \|.*\| {metric.full_score_answers} answers? \|$", SCORES, re.MULTILINE)
