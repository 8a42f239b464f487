"""The output directory of training: system errors are one line and `--resume` continues; logs and trackers agree."""

from __future__ import annotations

import json
import os
import resource
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from knobctl.controllers.checkpoint import CONFIG_NAME, WEIGHTS_NAME
from knobctl.data.errors import CheckpointError, KnobctlError
from knobctl.data.progress import SILENT, Progress
from knobctl.replay.recipes import recipe
from knobctl.replay.training import train
from knobctl.replay.training.log import MetricsWriter
from knobctl.replay.training.state import STATE_NAME
from knobctl.replay.training.trackers import Trackers
from knobctl.replay.training.train import REPORT_NAME, train_tables
from knobctl.tests.support.recorded_progress import RecordedProgress
from knobctl.tests.support.replay_inputs import QUICK, SMALL_SPACE, encoder_for, small_generated, tables_of

NO_VALUES = ("seed", "step", "epoch")


@pytest.fixture(scope="module")
def tables():
    return tables_of(small_generated(space=SMALL_SPACE))


@pytest.fixture(scope="module")
def weights(tables, tmp_path_factory) -> bytes:
    """The weights of an uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "out"
    run(tables, out)
    return (out / WEIGHTS_NAME).read_bytes()


def run(tables, out, *, resume: bool = False, progress: Progress = SILENT, **trackers):
    config = recipe("tuned", **QUICK)
    return train_tables(
        tables,
        encoder_for(tables),
        out,
        config,
        where="the test's tables",
        resume=resume,
        trackers=Trackers(**trackers),
        progress=progress,
    )


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Limits files to `size` bytes in the body; larger writes fail as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def below_a_file(folder: Path) -> Path:
    (folder / "file").write_text("in the way")
    return folder / "file" / "out"


def dangling_link(folder: Path) -> Path:
    (folder / "out").symlink_to(folder / "nowhere")
    return folder / "out"


def below_a_dangling_link(folder: Path) -> Path:
    return dangling_link(folder) / "out"


def long_name(folder: Path) -> Path:
    return folder / ("x" * 300)


def not_creatable(_folder: Path) -> Path:
    return Path("/proc/knobctl")


@pytest.mark.parametrize("place", [below_a_file, dangling_link, below_a_dangling_link, long_name, not_creatable])
def test_a_directory_that_cannot_be_created_is_one_line(tables, tmp_path, place: Callable[[Path], Path]):
    out = place(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        run(tables, out)
    message = str(caught.value)
    assert "\n" not in message
    assert any(str(path) in message for path in (out, *list(out.parents)[:1]))
    assert "link to" in message or "--resume" in message


@pytest.mark.parametrize("name", ["log.csv", "log.jsonl", REPORT_NAME, STATE_NAME, CONFIG_NAME, WEIGHTS_NAME])
def test_a_file_that_cannot_be_written_is_one_line_and_the_run_resumes(tables, weights, tmp_path, name):
    out = tmp_path / "out"
    (out / name).mkdir(parents=True)
    (out / name / "in the way").touch()
    with pytest.raises(CheckpointError, match=rf"{name}.* cannot be written: .*--resume"):
        run(tables, out)
    (out / name / "in the way").unlink()
    (out / name).rmdir()
    run(tables, out, resume=True)
    assert (out / WEIGHTS_NAME).read_bytes() == weights


@pytest.mark.parametrize("size", [0, 200, 1_000, 20_000])
def test_a_full_disk_is_one_line_and_the_run_resumes(tables, weights, tmp_path, monkeypatch, size):
    """The sizes are such that the first file that does not fit is the lock, the log, the state or the weights."""
    monkeypatch.setattr(train, "SAVE_EVERY_S", 0.0)
    out = tmp_path / "out"
    with pytest.raises(CheckpointError, match=r"out.* cannot be written: File too large.*--resume"), room_for(size):
        run(tables, out)
    assert not (out / CONFIG_NAME).exists()
    run(tables, out, resume=True)
    assert (out / WEIGHTS_NAME).read_bytes() == weights


def test_a_log_on_a_full_disk_gives_a_one_line_error(tables, tmp_path):
    (tmp_path / "log.csv").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=r"cannot be written: No space left on device.*--resume"):
        run(tables, tmp_path)


class Killed(BaseException):
    """Ends a run at any point."""


def killed_then_resumed(tables, out: Path, monkeypatch, *, before: dict[str, object], after: dict[str, object]) -> None:
    """Runs until the state after epoch 2 is saved and epoch 3 is logged, is killed, and resumes."""

    def on_step(done: int) -> None:
        monkeypatch.setattr(train, "SAVE_EVERY_S", 0.0 if done < 2 else 1e9)
        if done == 3:
            raise Killed

    monkeypatch.setattr(train, "SAVE_EVERY_S", 0.0)
    with pytest.raises(Killed):
        run(tables, out, progress=RecordedProgress(on_step), **before)
    run(tables, out, resume=True, **after)


def logged(out: Path) -> Counter[tuple[str, int]]:
    """Returns how often `log.jsonl` contains each step of each value."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return Counter((f"seed-42/{name}", line["step"]) for line in lines for name in line if name not in NO_VALUES)


def tensorboard_steps(out: Path) -> Counter[tuple[str, int]]:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return Counter((name, event.step) for name in events.Tags()["scalars"] for event in events.Scalars(name))


def wandb_runs(out: Path) -> list[tuple[str, Counter[tuple[str, int]]]]:
    """Returns the id of each offline run, and how often it contains each step of each value."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for path in sorted((out / "wandb").glob("offline-run-*/run-*.wandb")):
        steps: Counter[tuple[str, int]] = Counter()
        for data in leveldb_records(path.read_bytes()[7:]):  # after the header of the file
            history = Record.FromString(data).history
            names = [item.key or "/".join(item.nested_key) for item in history.item]
            steps.update((name, history.step.num) for name in names if name.startswith("seed-"))
        found.append((path.stem.removeprefix("run-"), steps))
    return found


def trackio_runs(folder: Path) -> list[tuple[str, Counter[tuple[str, int]]]]:
    """Returns the name of each run in Trackio's database, and how often it contains each step of each value."""
    rows = sqlite3.connect(folder / "knobctl-test.db").execute("SELECT run_name, step, metrics FROM metrics").fetchall()
    steps: dict[str, Counter[tuple[str, int]]] = {}
    for name, step, metrics in rows:
        steps.setdefault(name, Counter()).update((value, step) for value in json.loads(metrics))
    return list(steps.items())


def leveldb_records(log: bytes, block: int = 32768) -> Iterator[bytes]:
    """Yields the records of a LevelDB log: pieces of at most a block, each after its checksum, length and kind."""
    place, record = 7, b""  # the header is part of the first block
    log = bytes(7) + log
    while place < len(log):
        if block - place % block < 7:  # too short for a piece: padding
            place += block - place % block
            continue
        length, kind = int.from_bytes(log[place + 4 : place + 6], "little"), log[place + 6]
        record += log[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or its last piece
            yield record
            record = b""


@pytest.fixture
def wandb_offline(monkeypatch) -> None:
    """Weights & Biases in offline mode. It reads the environment only once, unless it is torn down."""
    wandb = pytest.importorskip("wandb.sdk")
    wandb.teardown()
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_CONSOLE": "off"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("before", [{"tensorboard": True}, {}], ids=["from the start", "since the resume"])
def test_tensorboard_shows_each_step_once_after_a_kill_and_resume(tables, tmp_path, monkeypatch, before):
    pytest.importorskip("tensorboard")
    killed_then_resumed(tables, tmp_path, monkeypatch, before=before, after={"tensorboard": True})
    assert tensorboard_steps(tmp_path) == logged(tmp_path)
    assert set(logged(tmp_path).values()) == {1}


@pytest.mark.parametrize("again", [True, False])
def test_a_new_run_removes_the_events_of_an_earlier_one(tables, tmp_path, again):
    pytest.importorskip("tensorboard")
    run(tables, tmp_path, tensorboard=True)
    run(tables, tmp_path, tensorboard=again)
    assert tensorboard_steps(tmp_path) == (logged(tmp_path) if again else Counter())


@pytest.mark.usefixtures("wandb_offline")
def test_resuming_continues_the_wandb_run_and_a_new_run_gets_its_own(tables, tmp_path, monkeypatch):
    project = {"wandb_project": "knobctl-test"}
    killed_then_resumed(tables, tmp_path, monkeypatch, before=project, after=project)
    (first, _), (second, steps) = wandb_runs(tmp_path)
    assert first == second
    assert steps == logged(tmp_path)  # the resumed part is complete: offline, the service's last step is unknown
    run(tables, tmp_path, **project)
    assert len({run_id for run_id, _ in wandb_runs(tmp_path)}) == 2


TRAINED_TWICE = """
import sys
from pathlib import Path
import pytest
from knobctl.tests.test_replay_output import SMALL_SPACE, killed_then_resumed, run, small_generated, tables_of
tables, out = tables_of(small_generated(space=SMALL_SPACE)), Path(sys.argv[1])
project = {"trackio_project": "knobctl-test"}
with pytest.MonkeyPatch.context() as patch:
    killed_then_resumed(tables, out, patch, before=project, after=project)
print("RESULT")
if sys.argv[2] == "again":
    run(tables, out, **project)
"""


@pytest.mark.parametrize("again", ["once", "again"])
def test_a_resumed_trackio_run_has_each_step_once_and_a_new_run_is_another_one(tmp_path, again):
    """In a process of its own, because Trackio reads the place of its files when it is imported."""
    pytest.importorskip("trackio")
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", TRAINED_TWICE, str(tmp_path / "out"), again],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "RESULT\n"  # nothing of Trackio on stdout
    runs = trackio_runs(tmp_path / "trackio")
    assert len(runs) == (2 if again == "again" else 1)
    assert logged(tmp_path / "out") in [steps for _, steps in runs]
    assert all(set(steps.values()) == {1} for _, steps in runs)


def test_wandb_receives_each_line_once(tables, tmp_path, monkeypatch):
    """The service already has steps of the killed run beyond its saved state, and continues after them."""
    asked, sent = [], []

    class Run:
        id = "an id"

        def __init__(self):
            self.step = sent[-1] + 1 if sent else 0

        def log(self, _values, step):
            sent.append(step)
            self.step = step

        def finish(self, exit_code):
            pass

    def init(**options):
        asked.append((options["id"], options["resume"]))
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Error=RuntimeError, init=init))
    project = {"wandb_project": "mine"}
    killed_then_resumed(tables, tmp_path, monkeypatch, before=project, after=project)
    assert asked == [(None, None), ("an id", "allow")]
    assert sent == [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("wandb_offline")
@pytest.mark.parametrize(
    ("environment", "project", "reason"),
    [
        ({"WANDB_MODE": "online", "WANDB_API_KEY": ""}, "mine", "No API key"),
        ({"WANDB_MODE": "online", "WANDB_API_KEY": "bad"}, "mine", "40"),
        ({}, "a/b", "Invalid project name"),
    ],
)
def test_an_error_of_wandb_is_one_line_and_keeps_the_earlier_run(
    tables, tmp_path, monkeypatch, environment, project, reason
):
    run(tables, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setenv("HOME", str(tmp_path))  # no ~/.netrc
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(KnobctlError, match=rf"--wandb-project {project}: .*{reason}.*WANDB_MODE=offline") as caught:
        run(tables, tmp_path, wandb_project=project)
    assert "\n" not in str(caught.value)
    assert before.items() <= {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}.items()


def test_a_folder_named_wandb_is_not_taken_for_the_package(tables, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", ModuleType("wandb"))
    with pytest.raises(KnobctlError, match="needs the package `wandb`"):
        run(tables, tmp_path, wandb_project="mine")


@pytest.mark.parametrize(
    ("package", "options"),
    [
        ("tensorboard", {"tensorboard": True}),
        ("wandb", {"wandb_project": "mine"}),
        ("trackio", {"trackio_project": "mine"}),
    ],
)
def test_a_missing_tracker_package_is_named_and_keeps_the_earlier_run(tables, tmp_path, monkeypatch, package, options):
    run(tables, tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == package or name.startswith("torch.utils.tens")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(KnobctlError, match=rf"needs the package `{package}`.*pip install 'knobctl\[logging\]'"):
        run(tables, tmp_path, **options)
    assert (tmp_path / CONFIG_NAME).exists()


def test_a_kill_while_resuming_loses_no_line_of_the_log(tables, tmp_path):
    """The lines that a resumed run keeps are written before anything new is logged."""
    run(tables, tmp_path)
    text = (tmp_path / "log.jsonl").read_text()
    MetricsWriter(tmp_path, {}, resume_step=10_000)  # opened, never closed
    assert (tmp_path / "log.jsonl").read_text() == text
