"""Paths and names on the command line: `~` is expanded, a mistyped path is no hub id, bundled names are bundled."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from huggingface_hub.errors import LocalEntryNotFoundError

from knobctl.cli import main
from knobctl.commands.values import HomePath, HomeText
from knobctl.data.datasets.remote_images import _cached_path
from knobctl.data.errors import CheckpointError
from knobctl.data.paths import BUNDLED_ROOT
from knobctl.data.progress import Progress
from knobctl.precompute.models.loading import load_model, model_directory
from knobctl.tests.support.caches import make_cache
from knobctl.tests.support.cli_commands import every_command
from knobctl.tests.support.dataset_files import png, write_json_lines
from knobctl.tests.support.tiny_model import write_tiny_model


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(tmp_path / "work")
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_every_option_that_takes_a_path_expands_the_home_directory():
    for option in (option for command in every_command().values() for option in command.params):
        assert not isinstance(option.type, click.Path) or isinstance(option.type, HomePath), option.name
        if option.name in ("model", "controllers", "datasets", "sources"):
            assert isinstance(option.type, HomeText), option.name


def test_home_is_where_files_are_read_and_written(home: Path):
    make_cache(home / "cache", samples=40)
    trained = run("train", "~/cache", "--out=~/controllers", "--epochs", 1)
    assert trained.exit_code == 0, trained.output
    assert (home / "controllers").is_dir()
    assert not Path("~").exists()
    assert run("validate", "~/controllers", "--cache=~/cache", "--resamples", 20).exit_code == 0
    assert run("compare", "~/cache", "~/controllers", "--resamples", 20).exit_code == 0


def test_home_in_the_path_of_a_dataset_and_of_a_model(home: Path):
    write_tiny_model(home / "tiny", 6, native_top_k=4)
    (home / "a.png").write_bytes(png(0))
    write_json_lines(home / "mine.jsonl", [{"image": "b.png", "question": "is it red?", "answers": ["yes"]}])
    knobs = ("--tiers=low", "--top-k=2", "--num-blocks=6", "--positions=1")
    tried = run("precompute", "--model=~/tiny", "--dataset=mine=~/mine.jsonl", "--out=~/cache", "--device=cpu", *knobs)
    assert tried.exit_code == 1
    assert f"image {home}/b.png cannot be read" in tried.stderr


def test_an_unknown_home_is_refused(home: Path):
    tried = run("train", home, "--out=~no-such-user/controllers")
    assert tried.exit_code == 1
    assert "~no-such-user/controllers: there is no such home directory" in tried.stderr


def test_fetched_images_may_be_kept_under_home(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KNOBCTL_IMAGE_CACHE", "~/images")
    assert _cached_path("https://example.org/a.parquet", 3).is_relative_to(home / "images")


# A directory, a bundled model or a hub repository


@pytest.mark.usefixtures("home")
def test_a_bundled_name_is_the_bundled_model_beside_a_directory_of_that_name():
    Path("nano").mkdir()
    assert model_directory("nano") == BUNDLED_ROOT / "nano"
    assert model_directory("./nano") == Path("nano")
    assert load_model("nano", device="cpu").is_bundled


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("name", ["./owner/x", "../x", "~x/y", "/nope/x", "here/nope", "here/deep/nope", "nope"])
def test_a_mistyped_path_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    def fetch(*_: object, **__: object) -> str:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    monkeypatch.setattr("knobctl.precompute.models.checkpoint_files.snapshot_download", fetch)
    Path("here").mkdir()
    cache = make_cache(tmp_path / "cache", samples=40)
    expected = "there is no such home directory" if name.startswith("~") else f"there is no directory {name}"
    validated = run("validate", name, "--cache", cache)
    assert validated.exit_code == 1
    assert expected in validated.stderr
    ran = run("precompute", "--model", name, "--dataset", "easy_vqa", "--out", "out", "--device", "cpu")
    assert ran.exit_code == 1
    assert expected in ran.stderr


class Notes(Progress):
    """Keeps the lines that a user would read."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


@pytest.mark.usefixtures("home")
def test_owner_and_name_is_a_directory_if_there_is_one_else_a_hub_id(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def fetch(name: str, **_: object) -> str:
        asked.append(name)
        raise LocalEntryNotFoundError("no hub here")

    monkeypatch.setattr("knobctl.precompute.models.checkpoint_files.snapshot_download", fetch)
    with pytest.raises(CheckpointError, match="owner/tiny is not a directory, and the hub could not be reached"):
        model_directory("owner/tiny")
    assert asked == ["owner/tiny"]
    write_tiny_model(Path("owner/tiny"), 6, native_top_k=4)
    notes = Notes()
    assert model_directory("owner/tiny", progress=notes) == Path("owner/tiny")
    assert f"the directory {Path('owner/tiny').absolute()}, not the hub repository" in notes.texts[0]
    assert asked == ["owner/tiny"]


@pytest.mark.usefixtures("home")
def test_a_report_says_which_controllers_were_taken():
    make_cache(Path("cache"), samples=40)
    assert run("train", "cache", "--out", "runs/controllers", "--epochs", 1).exit_code == 0
    report = run("validate", "runs/controllers", "--cache", "cache", "--resamples", 20, "--json")
    assert json.loads(report.stdout)["controllers"]["path"] == str(Path("runs/controllers").absolute())
    shutil.rmtree("runs/controllers")
    assert "because runs exists here" in run("validate", "runs/controllers", "--cache", "cache").stderr
