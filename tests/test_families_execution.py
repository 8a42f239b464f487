"""Every family's blocks, run one by one under block plans, give what transformers' own models give."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple

import pytest
import torch

from knobctl.controllers.two_stage import TwoStagePolicy
from knobctl.data.plans import BlockPlan
from knobctl.precompute.execution.answer_sweep import run_prompt, sweep_answers
from knobctl.precompute.execution.batch_limit import BatchLimit
from knobctl.precompute.execution.plan_tree import PlanTree
from knobctl.precompute.execution.token_pass import PromptState
from knobctl.precompute.latency.timed_request import decoder_for, run_request
from knobctl.precompute.run.live import LiveExecutor
from knobctl.serving.engine import Engine
from knobctl.tests.support.answering import controllers_of_model
from knobctl.tests.support.family_models import EVERY, IMAGE_SIZES, NUM_TOKENS, FamilyModel
from knobctl.tests.support.tiny_families import write_family
from knobctl.tests.support.two_calls import two_calls

NATIVE_TOP_K = 4


@pytest.fixture(scope="module")
def family(request, tmp_path_factory) -> FamilyModel:
    """The family of the test's parameter; its checks' result is remembered in a folder of its own."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        made = FamilyModel(request.param, write_family(request.param, folder / "model"))
        assert made.knobs.model.geometry.largest_top_k == NATIVE_TOP_K
        yield made


every_family = pytest.mark.parametrize("family", EVERY, indirect=True)


def skippable(family: FamilyModel) -> tuple[int, ...]:
    """Two blocks after those that always run, and after those whose image features the model adds."""
    assert family.knobs.model.geometry.always_run <= {0}
    return 2, 3


@every_family
def test_the_native_plan_answers_as_the_model_generates(family):
    answers = []
    for seed, size in enumerate(IMAGE_SIZES):
        prompt, state = family.prepared(size, seed=seed)
        answers.append(family.answer(state, family.knobs.native))
        assert answers[-1] == family.generated(family.plain, prompt)
    assert len(set(answers)) > 1  # the image matters


@every_family
def test_one_top_k_in_every_block_answers_as_the_model_with_that_top_k(family):
    prompt, state = family.prepared((90, 260))
    answers = {}
    for top_k in range(1, NATIVE_TOP_K + 1):
        answers[top_k] = family.answer(state, family.uniform(top_k))
        assert answers[top_k] == family.generated(family.with_top_k(top_k), prompt), top_k
    assert len(set(answers.values())) > 1


@every_family
def test_a_mixed_plan_answers_as_the_model_whose_routers_have_its_top_ks(family):
    prompt, state = family.prepared((90, 260))
    native = family.knobs.native
    answers = {family.answer(state, native)}
    for mixed in ((4, 1, 2, 3, 1), (1, 4, 1, 4, 2), (4, 4, 2, 1, 3)):
        plan = tuple(min(entry, top_k) for entry, top_k in zip(native, mixed, strict=True))
        answers.add(family.answer(state, plan))
        assert family.answer(state, plan) == family.generated(family.with_plan(plan), prompt), plan
    assert len(answers) > 1


@every_family
def test_skipped_blocks_answer_as_the_model_without_them(family):
    prompt, state = family.prepared((90, 260))
    native, answers = family.knobs.native, {family.answer(state, family.knobs.native)}
    one, other = skippable(family)
    for skipped in ((one,), (other,), (one, other)):
        plan = tuple(0 if block in skipped else top_k for block, top_k in enumerate(native))
        answers.add(family.answer(state, plan))
        assert family.answer(state, plan) == family.generated(family.without(skipped), prompt), skipped
    assert len(answers) > 1


@every_family
def test_all_settings_swept_answer_as_each_alone(family):
    knobs = family.knobs
    for tier in knobs.space.tiers:
        _, state = family.prepared((90, 260), tier)
        plans = [plan for setting, plan in knobs.plans.items() if setting.tier == tier]
        plans += [family.uniform(2), tuple(0 if block == 3 else k for block, k in enumerate(knobs.native))]
        tree = PlanTree.of(plans, native=knobs.native, num_shared=state.num_shared)
        for positions in (1, 100_000):  # one stream in each call, or all
            swept = sweep_answers(knobs.model, state, tree, BatchLimit(positions), max_new_tokens=NUM_TOKENS)
            assert len({one.token_ids for one in swept}) > 2
            for plan, one in zip(tree.plans, swept, strict=True):
                if not one.is_near_tie and not one.is_router_tie:
                    assert one.token_ids == family.answer(state, plan), plan
            assert sum(one.is_near_tie or one.is_router_tie for one in swept) <= len(swept) // 2


@every_family
def test_live_tokens_are_bit_equal_and_differ_between_budgets_positions_and_tiers(family):
    knobs, sample = family.knobs, family.sample((90, 260))
    live = LiveExecutor(knobs)
    seen: dict[int, set[bytes]] = {position: set() for position in knobs.positions}
    with live.session(knobs.budgets_ms):
        for tier in knobs.space.tiers:
            token_PMD, _ = knobs.token_pass(knobs.prompts(sample)[tier])
            for place, position in enumerate(knobs.positions):
                for row, budget_ms in enumerate(knobs.budgets_ms):
                    token_D, _ = live.latency_token(sample, tier, position, budget_ms)
                    assert token_D.tobytes() == token_PMD[place, row].tobytes()
                    seen[position].add(token_D.tobytes())
    views = {knobs.prompts(sample)[tier].view for tier in knobs.space.tiers}
    # Linear attention in the first blocks of tiny random models forgets the image before the probe.
    assert len(seen[3]) == len(views) * len(knobs.budgets_ms)
    assert len(seen[1]) >= len(knobs.budgets_ms)
    assert not seen[1] & seen[3]


@every_family
def test_probes_leave_no_trace(family):
    """The states after a pass with probes are those that the prompt alone leaves."""
    knobs = family.knobs
    prompt, state = family.prepared((90, 260))
    with torch.inference_mode():
        hidden = knobs.embed(prompt).hidden_1SD
        positions = knobs.model.positions(state.prompt, 0, state.length)
        for block in range(state.num_shared):
            hidden = knobs.model.run_block(block, hidden, top_k=knobs.native[block], positions=positions)
            assert torch.equal(hidden, state.hidden_1SD[block + 1])


def tokens_one_by_one(family: FamilyModel, state: PromptState, plan: BlockPlan) -> Iterator[int]:
    """Decodes step by step, so that two requests can be interleaved."""
    model = family.knobs.model
    branch = run_prompt(model, state, plan)
    states = {block: model.stack([one], NUM_TOKENS) for block, one in branch.states.items()}
    hidden = branch.last_D[None, None]
    for step in range(NUM_TOKENS):
        token_11 = model.logits(hidden).argmax(dim=-1)
        yield int(token_11)
        hidden, positions = model.word_embeddings(token_11), model.positions(state.prompt, state.length + step, 1)
        for block, one in states.items():
            hidden = model.run_block(block, hidden, top_k=plan[block], positions=positions, state=one)


@every_family
def test_interleaved_requests_do_not_disturb_each_other(family):
    knobs = family.knobs
    sizes, plans = ((64, 64), (300, 170)), (knobs.native, family.uniform(1))
    alone = []
    for size, plan in zip(sizes, plans, strict=True):
        _, state = family.prepared(size)
        alone.append(family.answer(state, plan))
    with torch.inference_mode():
        embedded = [knobs.embed(knobs.prompts(family.sample(size))[knobs.space.tiers[-1]]) for size in sizes]
        assert embedded[0].length != embedded[1].length or family.name in ("aria", "deepseek_ocr2", "internvl")
        states = [family.prepared(size)[1] for size in sizes]
        requests = [tokens_one_by_one(family, state, plan) for state, plan in zip(states, plans, strict=True)]
        together = list(zip(*requests, strict=True))
    for tokens, expected in zip(zip(*together, strict=True), alone, strict=True):
        assert tokens[: len(expected)] == expected


@every_family
def test_a_timed_request_runs_its_plan(family):
    knobs = family.knobs
    prompt, state = family.prepared((90, 260))
    decoder = decoder_for(knobs, prompt, NUM_TOKENS)
    for setting, plan in knobs.plans.items():
        if setting.tier == knobs.space.tiers[-1]:
            tokens = run_request(
                knobs,
                prompt,
                plan,
                setting.insertion_position,
                knobs.probe_MD[0],
                num_tokens=NUM_TOKENS,
                decoder=decoder,
            )
            expected = family.answer(state, plan)
            assert tokens[: len(expected)] == expected


@every_family
def test_the_engine_chooses_and_answers_as_two_calls_do(family, tmp_path):
    live, found = LiveExecutor(family.knobs), set()
    for seed, size in enumerate(IMAGE_SIZES):
        controllers = controllers_of_model(family.knobs, tmp_path / str(seed), seed=seed)
        engine, policy = Engine(controllers, family.knobs.loaded, warm_up=0), TwoStagePolicy(controllers)
        sample = family.sample(size, seed=seed)
        for budget_ms in (40.0, 500.0):
            answer = engine.answer_as_replayed(sample, engine.knobs.pixels(sample), budget_ms)
            assert (astuple(answer.setting), answer.text) == two_calls(live, policy, sample, budget_ms)
            found.add(answer.setting)
    assert len(found) > 1
