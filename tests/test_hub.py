"""Publishing on the hub and loading from it, against a local stand-in for its HTTP API."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from knobctl.controllers.checkpoint import CONFIG_NAME, WEIGHTS_NAME, Controllers
from knobctl.controllers.publish import publish
from knobctl.data.cache.reader import open_cache
from knobctl.data.cache.verify import verify_cache
from knobctl.data.cards import CARD_NAME
from knobctl.data.errors import CacheError, CheckpointError, KnobctlError
from knobctl.replay.recipes import TUNED
from knobctl.replay.training.train import train_controllers
from knobctl.tests.support.caches import foreign_cache, generated_cache, make_cache
from knobctl.tests.support.hub_stub import HubStub, hub_stub
from knobctl.tests.support.replay_inputs import QUICK

PUSH = """
import json, sys
from pathlib import Path
from knobctl.controllers.publish import publish
options = json.loads(sys.argv[3])
print(json.dumps(publish(Path(sys.argv[1]), sys.argv[2], **options).to_dict()))
"""
OPEN = """
import json, sys
from knobctl import open_cache
cache = open_cache(sys.argv[1])
print(json.dumps([cache.fingerprint, cache.source, str(cache.path), cache.samples["question"].null_count()]))
"""
LOAD = """
import json, sys
from knobctl import Controllers
controllers = Controllers.from_pretrained(sys.argv[1], revision=sys.argv[2] or None)
print(json.dumps([controllers.source, controllers.cache_fingerprint]))
"""
COMMAND = """
import json, sys
from click.testing import CliRunner
from knobctl.cli import main
done = CliRunner().invoke(main, sys.argv[1:])
print(json.dumps({"code": done.exit_code, "stdout": done.stdout, "stderr": done.stderr}))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubStub]:
    with hub_stub(tmp_path_factory.mktemp("client")) as stub:
        yield stub


@pytest.fixture
def repo(request: pytest.FixtureRequest) -> str:
    """A repository of the test's own."""
    return f"me/{request.node.name[:60]}"


@pytest.fixture(scope="module")
def controllers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("controllers")
    train_controllers(generated_cache(root / "cache").path, root / "out", replace(TUNED, **QUICK))
    return root / "out"


def written(hub: HubStub, repository: str, directory: Path) -> Path:
    """Writes the files of a repository to a directory, as git would."""
    for path, data in hub.files(repository).items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(data)
    return directory


def test_a_published_cache_holds_no_text_of_the_datasets_and_loads_from_the_hub(
    hub: HubStub, repo: str, tmp_path: Path
):
    path = make_cache(tmp_path / "cache", budget_encoder=b"encoder")
    report = hub.run(PUSH, str(path), repo, "{}")
    assert report["left_out"] == {"samples": ["answers", "image_ref", "question"], "outcomes": ["answer"]}
    assert all(file["sent"] for file in report["files"].values())
    published = written(hub, f"datasets/{repo}", tmp_path / "published")
    assert set(hub.files(f"datasets/{repo}")) == set(report["files"])
    assert verify_cache(published) == []
    for name, data in hub.files(f"datasets/{repo}").items():
        if name.endswith(".parquet"):
            assert not {"question", "answers", "image_ref", "answer"} & set(pq.read_schema(io.BytesIO(data)).names)
    card = (published / CARD_NAME).read_text()
    assert "neither images nor questions nor answers" in card
    fingerprint, source, directory, missing = hub.run(OPEN, f"hf://datasets/{repo}")
    commit = report["commit"]
    assert (fingerprint, missing) == (open_cache(path).fingerprint, 12)
    assert source == f"hf://datasets/{repo}@{commit}"
    assert open_cache(Path(directory)).accuracy_SX.tolist() == open_cache(path).accuracy_SX.tolist()
    seen = len(hub.requests)
    assert hub.run(OPEN, source)[1] == source  # a commit that was fetched before needs no request
    assert len(hub.requests) == seen
    snippet = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    assert hub.run(snippet + "\nprint(len(cache.sample_ids))") == 12


def test_a_repeated_push_sends_only_files_that_the_hub_lacks(hub: HubStub, repo: str, tmp_path: Path):
    path = make_cache(tmp_path / "cache")
    first = hub.run(PUSH, str(path), repo, "{}")
    sent, uploaded = len(hub.sent), hub.uploaded
    again = hub.run(PUSH, str(path), repo, "{}")
    assert [file["sent"] for file in again["files"].values()] == [False] * len(again["files"])
    assert (again["commit"], len(hub.sent), hub.uploaded) == (first["commit"], sent, uploaded)
    (path / CARD_NAME).write_text("---\nlicense: mit\n---\nMine, OWNER/NAME.")
    third = hub.run(PUSH, str(path), repo, "{}")
    assert [name for name, file in third["files"].items() if file["sent"]] == [CARD_NAME]
    assert hub.sent[sent:] == [CARD_NAME]
    assert hub.files(f"datasets/{repo}")[CARD_NAME].decode().endswith(f"Mine, {repo}.")


def test_a_smaller_cache_replaces_a_larger_one_without_leftovers(hub: HubStub, repo: str, tmp_path: Path):
    hub.run(PUSH, str(make_cache(tmp_path / "large")), repo, "{}")
    report = hub.run(PUSH, str(make_cache(tmp_path / "small", samples=5)), repo, "{}")
    assert "samples/part-0000-000002.parquet" in report["removed"]
    assert verify_cache(written(hub, f"datasets/{repo}", tmp_path / "published")) == []


def test_questions_are_published_only_if_asked_for(hub: HubStub, repo: str, tmp_path: Path):
    path = make_cache(tmp_path / "cache")
    report = hub.run(PUSH, str(path), repo, json.dumps({"include_questions": True, "private": True}))
    assert report["left_out"] == {}
    assert hub.repositories[f"datasets/{repo}"].private
    part = "samples/part-0000-000000.parquet"
    assert hub.files(f"datasets/{repo}")[part] == (path / part).read_bytes()
    assert verify_cache(written(hub, f"datasets/{repo}", tmp_path / "published")) == []
    refused = hub.failure(OPEN, f"hf://datasets/{repo}", token=None)
    assert "log in with `hf auth login`" in refused


def test_paths_of_this_machine_and_columns_of_other_programs_are_not_published(hub: HubStub, repo: str, tmp_path: Path):
    def add(table):
        return table.append_column("secret", [["x"] * table.num_rows])

    path = foreign_cache(tmp_path / "c", samples=add)
    record = json.loads((path / "cache.json").read_text())
    record["datasets"] = {"even": {"source": "/home/me/vqa", "images": "/home/me", "metric": "exact_match"}}
    (path / "cache.json").write_text(json.dumps(record))
    report = publish(path, repo, dry_run=True)
    assert "secret" in report.left_out["samples"]
    hub.run(PUSH, str(path), repo, "{}")
    manifest = json.loads(hub.files(f"datasets/{repo}")["cache.json"])
    assert manifest["datasets"] == {"even": {"metric": "exact_match"}}
    assert verify_cache(written(hub, f"datasets/{repo}", tmp_path / "published")) == []


def test_published_controllers_load_at_a_pinned_commit_and_the_cards_snippet_runs(
    hub: HubStub, repo: str, controllers: Path
):
    report = hub.run(PUSH, str(controllers), repo, "{}")
    assert sorted(report["files"]) == sorted([CARD_NAME, CONFIG_NAME, WEIGHTS_NAME])
    assert any("states no licence" in note for note in report["notes"])
    commit = report["commit"]
    mine = Controllers.from_pretrained(controllers)
    assert hub.run(LOAD, repo, "") == [f"{repo}@{commit}", mine.cache_fingerprint]
    assert hub.run(LOAD, repo, commit)[0] == hub.run(LOAD, f"{repo}@{commit}", "")[0] == f"{repo}@{commit}"
    assert "no such revision" in hub.failure(LOAD, repo, "f" * 40)
    card = hub.files(f"models/{repo}")[CARD_NAME].decode()
    snippet = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    assert hub.run(snippet + "\nprint(len(controllers.space.settings))") == len(mine.space.settings)


def test_the_guides_snippet_runs(hub: HubStub, controllers: Path, tmp_path: Path):
    hub.run(PUSH, str(controllers), "OWNER/NAME", "{}")
    hub.run(PUSH, str(make_cache(tmp_path / "cache")), "OWNER/NAME", "{}")
    guide = (Path(__file__).parent.parent / "docs" / "guides" / "share.md").read_text()
    snippet = re.search(r"```python\n(.*?)```", guide, re.DOTALL)[1]
    found = hub.run(snippet + "\nimport json; print(json.dumps([controllers.source, cache.source]))")
    commits = [hub.repositories[f"{kind}/OWNER/NAME"].states[-1][0] for kind in ("models", "datasets")]
    assert found == [f"OWNER/NAME@{commits[0]}", f"hf://datasets/OWNER/NAME@{commits[1]}"]


def test_the_command_lists_what_it_publishes(hub: HubStub, repo: str, controllers: Path):
    seen = len(hub.requests)
    listed = hub.run(COMMAND, "push", str(controllers), repo, "--dry-run", token=None)
    assert (listed["code"], len(hub.requests)) == (0, seen), listed
    assert "nothing is sent" in listed["stdout"]
    refused = hub.run(COMMAND, "push", str(controllers), repo, token=None)
    assert (refused["code"], refused["stderr"].count("\n")) == (1, 1)
    assert "hf auth login" in refused["stderr"]
    done = subprocess.run(
        [sys.executable, "-m", "knobctl.cli", "push", str(controllers), repo, "--json"],
        capture_output=True,
        text=True,
        env=hub.environment(),
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == ["README.md states no licence: add `license:` to its first lines"]
    record = json.loads(done.stdout)
    assert hub.files(f"models/{repo}").keys() == record["files"].keys()
    assert record["commit"] == hub.repositories[f"models/{repo}"].states[-1][0]


def test_what_is_not_a_cache_or_controllers_is_refused(controllers: Path, tmp_path: Path):
    make_cache(tmp_path / "cache")
    with pytest.raises(KnobctlError, match="'cache' is not the name of a repository"):
        publish(tmp_path / "cache", "cache", dry_run=True)
    with pytest.raises(KnobctlError, match="is not a cache: leave --include-questions out"):
        publish(controllers, "me/x", dry_run=True, include_questions=True)
    with pytest.raises(KnobctlError, match="there is no directory"):
        publish(tmp_path / "absent", "me/x", dry_run=True)
    with pytest.raises(CheckpointError, match=r"no controllers\.json"):
        publish(tmp_path, "me/x", dry_run=True)
    (tmp_path / "seeds" / "seed-0").mkdir(parents=True)
    (tmp_path / "seeds" / "seed-0" / CONFIG_NAME).touch()
    with pytest.raises(CheckpointError, match=r"several seeds: publish one, .*seed-0"):
        publish(tmp_path / "seeds", "me/x", dry_run=True)
    part = tmp_path / "cache" / "outcomes" / "part-0000-000000.parquet"
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    with pytest.raises(CacheError, match="part-0000-000000"):
        publish(tmp_path / "cache", "me/x", dry_run=True)


@pytest.mark.parametrize("address", ["hf://models/me/x", "hf://datasets/me", "hf://datasets/../x", "hf:/datasets/a/b@"])
def test_a_malformed_address_is_refused(address: str):
    with pytest.raises(CacheError, match="write hf://datasets/OWNER/NAME"):
        open_cache(address)


def test_a_path_that_does_not_exist_is_not_looked_up_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CacheError, match="does not exist"):
        open_cache("owner/name")
