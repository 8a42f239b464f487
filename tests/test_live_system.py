"""`validate --live` refuses controllers whose requests would not run as the cache's did, before the model is loaded."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from knobctl.commands.live import live_system
from knobctl.controllers.checkpoint import Controllers
from knobctl.data.cache.reader import Cache
from knobctl.data.errors import CacheMismatch, CheckpointError, KnobctlError
from knobctl.tests.support.answering import answering_controllers


@pytest.fixture
def controllers(tiny_cache: Cache, tmp_path: Path) -> Controllers:
    return answering_controllers(tiny_cache, tmp_path / "controllers")


def saved(controllers: Controllers, path: Path, **conditions: object) -> Path:
    controllers.conditions = dataclasses.replace(controllers.conditions, **conditions)
    controllers.save_pretrained(path)
    return path


def test_controllers_of_the_cache_are_run_on_its_model(controllers, tiny_cache, tmp_path):
    make = live_system(saved(controllers, tmp_path / "c"), tiny_cache.path, device="cpu")
    system = make(tiny_cache.sample_ids[:1])
    assert list(system.samples) == [tiny_cache.sample_ids[0]]
    assert system.time_requests is not None


def test_too_few_runs_are_refused(tiny_cache, tmp_path):
    with pytest.raises(KnobctlError, match=r"2 timed runs .* at least 3, whose median"):
        live_system(tmp_path / "nowhere", tiny_cache.path, runs=2)


def test_other_importance_scores_are_refused(controllers, tiny_cache, tmp_path):
    known = controllers.conditions.importance
    other = dataclasses.replace(known, scores=tuple(None if one is None else one + 0.5 for one in known.scores))
    with pytest.raises(CacheMismatch, match="trained with other importance scores"):
        live_system(saved(controllers, tmp_path / "c", importance=other), tiny_cache.path)


@pytest.mark.parametrize("change", [{"max_new_tokens": 1}, {"style": "vqa2"}, {"metric": "vqa_simple"}])
def test_another_task_of_the_same_name_is_refused(controllers, tiny_cache, tmp_path, change):
    task = dataclasses.replace(controllers.conditions.tasks["easy_vqa"], **change)
    path = saved(controllers, tmp_path / "c", tasks={"easy_vqa": task})
    with pytest.raises(CacheMismatch, match="another prompt, metric or token limit of easy_vqa"):
        live_system(path, tiny_cache.path)


def test_a_dataset_that_the_controllers_do_not_know_is_refused(controllers, tiny_cache, tmp_path):
    expected = controllers.expected_latency
    expected.datasets = ("other",)
    path = saved(controllers, tmp_path / "c", tasks={"other": controllers.conditions.tasks["easy_vqa"]})
    with pytest.raises(CacheMismatch, match=r"has questions of easy_vqa, but .* was trained on other"):
        live_system(path, tiny_cache.path)


def test_controllers_that_cannot_answer_are_refused(controllers, tiny_cache, tmp_path):
    controllers.expected_latency = None
    with pytest.raises(CheckpointError, match="expected latencies"):
        live_system(saved(controllers, tmp_path / "c"), tiny_cache.path)
