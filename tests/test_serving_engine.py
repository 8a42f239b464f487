"""The engine on a tiny model: one pass makes the choices and answers of two calls, and bad input is refused."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from knobctl.controllers.checkpoint import Controllers
from knobctl.controllers.two_stage import TwoStagePolicy
from knobctl.data.cache.reader import Cache
from knobctl.data.errors import BudgetUnmet, CacheMismatch, CheckpointError, DatasetError, KnobctlError
from knobctl.data.progress import Progress
from knobctl.precompute.models.loading import load_model
from knobctl.precompute.run.live import LiveExecutor
from knobctl.serving.engine import Engine
from knobctl.tests.support.answering import answering_controllers
from knobctl.tests.support.tiny_model import easy_samples, tiny_knobs, write_tiny_model
from knobctl.tests.support.two_calls import two_calls

GENEROUS_MS = 500.0
SAMPLES = easy_samples(4)
BUDGETS_MS = (40.0, 61.0, 500.0)


@pytest.fixture(scope="module")
def controllers(tiny_cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Controllers:
    return answering_controllers(tiny_cache, tmp_path_factory.mktemp("engine") / "controllers")


@pytest.fixture(scope="module")
def engine(controllers: Controllers) -> Engine:
    return Engine(controllers, device="cpu", warm_up=0)


@pytest.fixture(scope="module")
def png() -> bytes:
    return SAMPLES[0].image.read_bytes()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_pass_chooses_and_answers_as_two_calls_do(tiny_cache, tiny_model_dir, tmp_path, seed):
    controllers = answering_controllers(tiny_cache, tmp_path / "controllers", seed=seed)
    engine, policy = Engine(controllers, device="cpu", warm_up=0), TwoStagePolicy(controllers)
    knobs = tiny_knobs(tiny_model_dir, space=controllers.space, importance=controllers.conditions.importance)
    knobs.encoder = controllers.budget_encoder
    live = LiveExecutor(dataclasses.replace(knobs, tasks=controllers.conditions.tasks, budgets_ms=BUDGETS_MS))
    found = set()
    for sample in SAMPLES:
        for budget_ms in BUDGETS_MS:
            answer = engine.answer_as_replayed(sample, engine.knobs.pixels(sample), budget_ms)
            assert (dataclasses.astuple(answer.setting), answer.text) == two_calls(live, policy, sample, budget_ms)
            found.add(answer.setting)
    assert len(found) > 1


def test_an_answer_reports_its_stages_and_whether_the_budget_was_met(engine, png):
    answer = engine.answer(png, "what is the color of the shape?", GENEROUS_MS + 0.75)
    stages = answer.latency_ms
    assert min(stages.vision, stages.prefill, stages.controllers) > 0
    assert stages.total == stages.vision + stages.prefill + stages.controllers + stages.decode
    assert answer.within_budget == (stages.total <= GENEROUS_MS + 0.75)
    assert answer.budget_ms == GENEROUS_MS + 0.75
    assert answer.preparing_ms > 0
    assert 20 < answer.expected_latency_ms < 100
    assert 1 <= answer.output_tokens <= 3
    assert engine.answer(png, "what is the color of the shape?", GENEROUS_MS).setting == answer.setting


def test_an_image_may_be_a_path_bytes_a_picture_or_an_array(engine, png, tmp_path: Path):
    path = tmp_path / "image.png"
    path.write_bytes(png)
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    images = [path, str(path), png, picture, np.asarray(picture)]
    answers = [engine.answer(image, "is there a circle?", GENEROUS_MS) for image in images]
    assert len({(answer.text, answer.setting) for answer in answers}) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget_ms": float("nan")}, "a latency budget of nan ms is not possible"),
        ({"budget_ms": float("inf")}, "must be from 1 to"),
        ({"budget_ms": 0.5}, "must be from 1 to"),
        ({"question": "  "}, "the question is empty"),
        ({"question": "is there a circle? " * 300}, "the prompt has .* shorten the question"),
        ({"image": b"GIF89a"}, "cannot be decoded"),
        ({"image": b""}, "is empty"),
        ({"image": "/nowhere/x.png"}, "cannot be read|does not exist"),
        ({"image": 3}, "not int"),
        ({"image": np.zeros((4, 4), np.uint8)}, "must be uint8"),
        ({"image": np.zeros((4, 4, 3), np.float32)}, "must be uint8"),
        ({"image": Image.new("RGB", (0, 4))}, "0 x 4 pixels"),
        ({"task": "vqa2"}, "task 'vqa2' is unknown: the controllers were trained on easy_vqa"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"on_miss": "guess"}, "must be fastest or refuse"),
    ],
)
def test_bad_input_gets_one_error_and_the_next_request_an_answer(engine, png, change, message):
    request = {"image": png, "question": "is there a circle?", "budget_ms": GENEROUS_MS}
    before = engine.answer(**request).text
    with pytest.raises(KnobctlError, match=message):
        engine.answer(**{**request, **change})
    assert engine.answer(**request).text == before


def test_a_budget_that_nothing_meets_gets_the_fastest_setting_or_is_refused(engine, png):
    request = (png, "is there a circle?", 2.0)
    answer = engine.answer(*request)
    size = Image.open(io.BytesIO(png)).size
    assert answer.expected_latency_ms == engine.fastest_expected_ms("is there a circle?", size)
    with pytest.raises(BudgetUnmet, match="at most 2 ms: the fastest takes"):
        engine.answer(*request, on_miss="refuse")


def test_text_comes_in_pieces_that_join_to_the_answer(engine, png):
    pieces: list[str] = []
    answer = engine.answer(png, "what is the color of the shape?", GENEROUS_MS, on_token=pieces.append)
    assert "".join(pieces) == answer.text
    short = engine.answer(png, "what is the color of the shape?", GENEROUS_MS, max_new_tokens=1)
    assert (short.output_tokens, short.setting) == (1, answer.setting)

    def gone(_piece: str) -> None:
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        engine.answer(png, "what is the color of the shape?", GENEROUS_MS, on_token=gone)
    assert engine.answer(png, "what is the color of the shape?", GENEROUS_MS).text == answer.text


def test_the_explanation_lists_both_stages_choices(engine, controllers, png):
    answer, explanation = engine.explain(png, "is there a circle?", GENEROUS_MS)
    space = controllers.space
    assert len(explanation.stage1) == space.num_stage1_choices
    assert len(explanation.stage2) == space.num_stage2_choices
    for stage in (explanation.stage1, explanation.stage2):
        assert sum(choice.probability for choice in stage) == pytest.approx(1.0)
        assert stage[0].chosen
        assert sum(choice.chosen for choice in stage) == 1
    first, second = explanation.stage1[0], explanation.stage2[0]
    assert (first.tier, first.insertion_position) == (answer.setting.tier, answer.setting.insertion_position)
    assert (second.top_k, second.num_blocks) == (answer.setting.top_k, answer.setting.num_blocks)
    assert second.expected_ms == answer.expected_latency_ms


def test_controllers_of_another_model_are_refused(controllers, tmp_path: Path):
    other = load_model(str(write_tiny_model(tmp_path / "other", 6, native_top_k=4, seed=4)), device="cpu")
    with pytest.raises(CacheMismatch, match="fingerprint"):
        Engine(controllers, other, warm_up=0)
    with pytest.raises(CacheMismatch, match=r"in float32, but .* in bfloat16"):
        Engine(controllers, device="cpu", dtype="bfloat16", warm_up=0)


def test_controllers_that_lack_something_are_refused(controllers):
    without = dataclasses.replace(controllers, expected_latency=None)
    with pytest.raises(CheckpointError, match="expected latencies"):
        Engine(without, device="cpu", warm_up=0)


def test_a_task_must_be_named_where_there_are_several(controllers, png):
    task = controllers.conditions.tasks["easy_vqa"]
    conditions = dataclasses.replace(
        controllers.conditions, tasks={"easy_vqa": task, "other": dataclasses.replace(task, max_new_tokens=1)}
    )
    two = dataclasses.replace(controllers, conditions=conditions)
    engine = Engine(two, device="cpu", warm_up=0)
    assert dict(engine.tasks) == {"easy_vqa": 3, "other": 1}
    with pytest.raises(KnobctlError, match="name a task: easy_vqa, other"):
        engine.answer(png, "is there a circle?", GENEROUS_MS)
    assert engine.answer(png, "is there a circle?", GENEROUS_MS, task="easy_vqa").text
    assert dict(Engine(two, device="cpu", task="easy_vqa", warm_up=0).tasks) == {"easy_vqa": 3}


class Notes(Progress):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def test_a_device_of_another_speed_is_noticed_and_promises_no_level(tiny_cache, tmp_path: Path):
    """The tiny model takes milliseconds, and these controllers expect hours."""
    slow = answering_controllers(tiny_cache, tmp_path / "slow", expected_ms=1e7)
    notes = Notes()
    made = Engine(slow, device="cpu", warm_up=4, progress=notes)
    assert made.warm_up_ratio < 0.01
    (note,) = notes.texts
    assert "times the expected latency, which was measured on" in note
    assert slow.conditions.device_name in note
    with pytest.raises(KnobctlError, match=r"--within 0\.9 cannot be kept: requests take"):
        Engine(slow, device="cpu", within=0.9, warm_up=4)
    with pytest.raises(KnobctlError, match="no warm-up request had an expected latency"):
        Engine(slow, device="cpu", within=0.9, warm_up=0)
    assert len(notes.texts) == 1
    Engine(slow, device="cpu", within=0.9, warm_up=4, pace_required=False, progress=notes)
    assert len(notes.texts) == 2
    with pytest.raises(CheckpointError, match=r"no budget factor was calibrated for --within 0\.8"):
        Engine(slow, device="cpu", within=0.8)


def test_an_unreadable_image_is_named(engine, tmp_path: Path):
    path = tmp_path / "text.png"
    path.write_text("no image")
    with pytest.raises(DatasetError, match=r"text\.png cannot be decoded"):
        engine.answer(path, "is there a circle?", GENEROUS_MS)


def test_a_setting_whose_latency_is_not_known_is_answered_and_said_to_be_unknown(tiny_cache, tmp_path: Path, png):
    controllers = answering_controllers(tiny_cache, tmp_path / "controllers")
    assert controllers.expected_latency is not None
    chosen = Engine(controllers, device="cpu", warm_up=0).answer(png, "is there a circle?", GENEROUS_MS).setting
    controllers.expected_latency.known_X[controllers.space.index(chosen)] = False
    answer = Engine(controllers, device="cpu", warm_up=2).answer(png, "is there a circle?", GENEROUS_MS)
    assert (answer.setting, answer.expected_latency_ms) == (chosen, None)
    assert "expected unknown; vision" in answer.summary()
    assert '"expected_latency_ms": null' in json.dumps(answer.to_dict(), allow_nan=False)


def test_budgets_outside_the_trained_range_get_the_choice_of_its_nearest_end(tiny_cache, tmp_path: Path):
    """Networks that extrapolate could choose worse for more time."""
    controllers = answering_controllers(tiny_cache, tmp_path / "controllers", expected_ms=0.5, seed=3)
    engine = Engine(controllers, device="cpu", warm_up=0)
    lowest, highest = int(min(controllers.budgets_ms)), int(max(controllers.budgets_ms))
    changed = set()
    for sample in SAMPLES:
        rgb = engine.knobs.pixels(sample)
        settings = [
            engine.answer(rgb, sample.question, budget_ms, on_miss="fastest").setting
            for budget_ms in (highest, highest + 1, 7 * highest, 1e6)
        ]
        assert len(set(settings)) == 1
        changed |= {engine.answer_as_replayed(sample, rgb, 1e6).setting != settings[0]}
        assert (
            engine.answer(rgb, sample.question, max(lowest - 3, 1)).setting
            == engine.answer(rgb, sample.question, lowest).setting
        )
    assert True in changed  # without the limit the choices differ
