"""`make gpu`: every section gives a result or a reason, and no measurement is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SECTIONS = ["tests", "molmoe", "shared", "nano", "live"]
MISSING = ("polars", "pyarrow", "pytest", "click", "rich", "psutil", "sklearn")


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def events(folder: Path) -> list[dict]:
    path = folder / "gpu-cpu.jsonl"
    return (
        [json.loads(line) for line in path.read_text().splitlines(True) if line.endswith("\n")] if path.exists() else []
    )


@pytest.mark.slow
def test_an_interrupted_run_resumes_and_needs_only_torch_and_transformers(tmp_path):
    bare, out = tmp_path / "bare", tmp_path / "out"
    bare.mkdir()
    (bare / "sitecustomize.py").write_text(f"import sys; sys.modules.update(dict.fromkeys({MISSING}))")
    options = f"--out {out} --resume"
    command = ["make", "gpu", f"PYTHON={sys.executable}", "DEVICE=cpu", f"GPU_OPTIONS={options}", "VENV=/nonexistent"]
    started = {"cwd": ROOT, "env": {**os.environ, "PYTHONPATH": str(bare)}, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, start_new_session=True, **started) as first:
        while sum(event["section"] == "molmoe" and event["event"] == "row" for event in events(out)) < 2:
            assert first.poll() is None, first.stderr.read()
            time.sleep(0.05)
        os.killpg(first.pid, signal.SIGKILL)
    kept = events(out)
    assert "| matrix product" in (out / "gpu-cpu.md").read_text()
    second = subprocess.run(command, check=False, **started)
    assert second.returncode == 0, second.stderr
    assert events(out)[: len(kept)] == kept
    rows = {name: [] for name in SECTIONS}
    for event in events(out):
        if event["event"] == "row":
            rows[event["section"]].append(event["values"])
    finished = [event["section"] for event in events(out) if event["event"] == "finished"]
    assert finished == SECTIONS  # each once: `tests` had finished before the kill and is not repeated
    assert {row["message"] for row in rows["tests"]} == {"needs a CUDA device"}
    assert {row["differing answers"] for row in rows["shared"]} == {"0 of 16"}
    assert [row["dtype"] for row in rows["live"]] == ["bfloat16", "float32"]
    assert all(row["bit-equal tokens"] == row["equal answers"] == row["requests"] for row in rows["live"])
    report = (out / "gpu-cpu.md").read_text()
    assert report.count("Measured in") == len(SECTIONS)
    assert "CUDA graphs" in report


WORKER = """
import json, sys, time
def emit(event, section=None, **values): print(json.dumps({"event": event, "section": section, **values}), flush=True)
emit("device", slug="cpu")
for name in json.loads(sys.stdin.readline()):
    emit("started", name, about="a test")
    emit("row", name, table="t", values={"pid": name})
    if name == "molmoe": raise RuntimeError("CUDA error: an illegal memory access was encountered")
    if name == "nano": time.sleep(60)
    emit("finished", name, seconds=0.1)
"""


@pytest.mark.usefixtures("benchmarks")
def test_a_section_that_fails_or_hangs_does_not_affect_the_others(tmp_path):
    from gpu import Run
    from gpu_sections.schedule import Schedule

    run = Run([sys.executable, "-c", WORKER], Schedule(time.monotonic(), 0.0, grace_s=3.0), tmp_path)
    assert run.run(SECTIONS) == 1
    ends = {event["section"]: event for event in events(tmp_path) if event["event"] not in ("started", "row")}
    assert {name: end["event"] for name, end in ends.items()} == {
        "tests": "finished",
        "molmoe": "failed",
        "shared": "finished",
        "nano": "failed",
        "live": "finished",
    }
    assert "RuntimeError: CUDA error: an illegal memory access" in ends["molmoe"]["reason"]
    assert ends["nano"]["reason"] == "the process did not end in time"
    report = (tmp_path / "gpu-cpu.md").read_text()
    assert report.count("| pid |") == len(SECTIONS)  # rows before a failure are kept
    assert "illegal memory access" in report


@pytest.mark.usefixtures("benchmarks")
def test_a_worker_that_cannot_start_ends_the_run(tmp_path, capfd):
    from gpu import Run
    from gpu_sections.schedule import Schedule

    code = "raise RuntimeError('no NVIDIA driver')"
    assert Run([sys.executable, "-c", code], Schedule(time.monotonic()), tmp_path).run(SECTIONS) == 1
    assert "no NVIDIA driver" in capfd.readouterr().err
    assert events(tmp_path) == []


@pytest.mark.usefixtures("benchmarks")
def test_results_survive_a_truncated_line_and_a_later_attempt_without_rows(tmp_path):
    from gpu_sections.results import Results

    results = Results(tmp_path, "cpu")
    for event, values in (
        ("started", {"about": "first"}),
        ("row", {"table": "t", "values": {"a": 1}}),
        ("finished", {"seconds": 1.0}),
        ("started", {"about": "second"}),
        ("skipped", {"reason": "its time was over before it started."}),
    ):
        results.add({"event": event, "section": "molmoe", **values})
    with results.lines.open("a") as file:
        file.write('{"event": "row", "sec')  # a kill in the middle of a line
    again = Results(tmp_path, "cpu")
    assert again.is_complete("molmoe")
    assert again.latest("molmoe").rows == [
        ("t", {"a": 1})
    ]  # a later attempt without rows does not replace earlier rows
    again.add({"event": "started", "section": "live", "about": "third"})
    again.add({"event": "skipped", "section": "live", "reason": "its time was over before it started."})
    report = again.report.read_text()
    assert len(events(tmp_path)) == 7
    assert "third. Skipped: its time was over before it started." in report
    assert not again.is_complete("live")


MARKED = """
import pytest
@pytest.mark.gpu
def test_passes(): assert True
@pytest.mark.gpu
@pytest.mark.parametrize(("a", "b"), [(1, 1), (1, 2)])
@pytest.mark.parametrize("c", ["x"])
def test_each(a, b, c): assert a == b, f"{a} is not {b}"
@pytest.mark.gpu
@pytest.mark.skipif(True, reason="needs two devices")
def test_skipped(): assert False
@pytest.mark.gpu
def test_with_fixture(tmp_path): assert False
@pytest.fixture
def something(): return 1
@pytest.mark.parametrize("a", [1])
def test_not_marked(a): assert False
"""


@pytest.mark.usefixtures("benchmarks")
@pytest.mark.parametrize("has_pytest", [True, False])
def test_marked_tests_are_called_with_and_without_pytest(tmp_path, monkeypatch, has_pytest):
    from gpu_sections.marked_tests import run_tests_in

    (tmp_path / "test_marked.py").write_text(MARKED)
    (tmp_path / "test_unmarked.py").write_text("def test_other(): assert False")
    (tmp_path / "test_lacking.py").write_text("import no_such_library  # mark.gpu")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "pytest", pytest if has_pytest else None)
    rows = {row["test"]: (row["outcome"], row["message"]) for _, row in run_tests_in(tmp_path)}
    assert rows.pop("test_each[x-1-2]") == ("failed", "AssertionError: 1 is not 2")
    assert rows == {
        "the whole file": ("skipped", "it needs a library that is not installed: No module named 'no_such_library'"),
        "test_passes": ("passed", ""),
        "test_each[x-1-1]": ("passed", ""),
        "test_skipped": ("skipped", "needs two devices"),
        "test_with_fixture": ("skipped", "fixtures are not available without pytest: tmp_path"),
    }
