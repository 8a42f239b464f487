"""The plan tree, the token pass, and the sweep, whose answers must equal those of each plan run separately."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from knobctl.controllers.budget_encoder import BudgetEncoder
from knobctl.data.knobs import KnobSpace
from knobctl.data.plans import BlockPlan, block_plan
from knobctl.precompute.execution import decoding as decode
from knobctl.precompute.execution.answer_sweep import answer_alone, sweep_answers
from knobctl.precompute.execution.batch_limit import BatchLimit
from knobctl.precompute.execution.plan_tree import PlanTree
from knobctl.precompute.execution.token_pass import PromptState, make_probes, token_pass
from knobctl.precompute.models import router_ties
from knobctl.precompute.models.backbone import EmbeddedPrompt
from knobctl.precompute.models.molmoe.backbone import MolmoeBackbone, probe_mask
from knobctl.precompute.models.molmoe.model import Molmoe
from knobctl.tests.support.molmoe_backbone import backbone_of
from knobctl.tests.support.reference_decoding import ModelInputs, generate
from knobctl.tests.support.tiny_model import published_order, tiny_config

NATIVE = (8,) * 16


@pytest.fixture(scope="module")
def model() -> MolmoeBackbone:
    return backbone_of(Molmoe(tiny_config(vocab_size=40)).init_weights(seed=3, std=0.35).eval())


@pytest.fixture(scope="module")
def plans() -> list[BlockPlan]:
    return default_plans()


def default_plans() -> list[BlockPlan]:
    scores = published_order()
    return [
        block_plan(
            setting.insertion_position, setting.top_k, setting.num_blocks, importance=scores, native_top_k=NATIVE
        )
        for setting in KnobSpace(tiers=("low",)).settings
    ]


def embedded(model: MolmoeBackbone, input_ids: torch.Tensor) -> EmbeddedPrompt:
    return EmbeddedPrompt(model.molmoe.embed(input_ids))


def prompt(length: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, 40, (1, length), generator=generator)


def state_of(model: MolmoeBackbone, input_ids: torch.Tensor, num_probes: int = 3) -> PromptState:
    probes = make_probes(model, BudgetEncoder.from_seed(16, seed=0), [10.0 * (row + 1) for row in range(num_probes)])
    with torch.inference_mode():
        return token_pass(model, embedded(model, input_ids), probes, (1, 2, 3, 4, 5))[1]


def test_the_published_scores_yield_111_plans_and_790_block_runs(plans):
    tree = PlanTree.of(plans, native=NATIVE, num_shared=5)
    assert len(plans) == 125
    assert sum(sum(top_k > 0 for top_k in plan) for plan in plans) == 1750
    assert len(tree.plans) == 111
    assert tree.block_runs == 790


def test_a_path_through_the_tree_has_the_top_ks_of_its_plan(plans):
    tree = PlanTree.of(plans, native=NATIVE, num_shared=5)
    for index, plan in enumerate(tree.plans):
        path = tree.path(index)
        assert tuple(level[stream].top_k for level, stream in zip(tree.levels, path, strict=True)) == plan


def test_a_stream_is_last_when_no_later_block_runs():
    tree = PlanTree.of([(8, 4, 0), (8, 4, 4), (8, 0, 0)], native=(8, 8, 8), num_shared=1)
    assert [[stream.is_last for stream in level] for level in tree.levels] == [
        [False],
        [False, False],
        [False, True, False],
    ]
    assert [stream.is_shared for stream in tree.levels[0]] == [True]


@pytest.mark.parametrize(("length", "positions"), [(7, 1), (7, 30), (19, 100_000)])
def test_the_sweep_matches_each_plan_run_separately(model, plans, length, positions):
    """`positions` limits each call to one stream or to a few, or sets no effective limit."""
    input_ids = prompt(length, seed=length)
    state = state_of(model, input_ids)
    tree = PlanTree.of(plans, native=NATIVE, num_shared=5)
    model = backbone_of(model.molmoe, end_id=common_token(model, state, tree))
    swept = sweep_answers(model, state, tree, BatchLimit(positions), max_new_tokens=6)
    assert len({len(one.token_ids) for one in swept}) > 1  # some rows end earlier than others
    assert len({one.token_ids for one in swept}) > 4
    for plan, one in zip(tree.plans, swept, strict=True):
        if not one.is_near_tie and not one.is_router_tie:
            assert one.token_ids == answer_alone(model, state, plan, max_new_tokens=6), plan


def test_a_plan_run_separately_matches_plain_decoding(model, plans):
    """Plain decoding uses transformers' cache, with no probe and no shared state."""
    input_ids = prompt(11, seed=5)
    state = state_of(model, input_ids)
    for plan in plans[::17]:
        expected = generate(
            model.molmoe,
            ModelInputs(input_ids),
            plan,
            max_new_tokens=5,
            end_id=None,
            pad_id=1,
        )[0].tolist()
        assert answer_alone(model, state, plan, max_new_tokens=5) == tuple(expected)


def common_token(model: MolmoeBackbone, state: PromptState, tree: PlanTree) -> int:
    """Returns a frequent answer token; used as the end token, it ends some answers early."""
    swept = sweep_answers(model, state, tree, BatchLimit(1000), max_new_tokens=4)
    tokens = [token for one in swept for token in one.token_ids[1:3]]
    return max(set(tokens), key=tokens.count)


def test_a_probe_attends_to_the_prompt_and_itself_and_nothing_attends_to_it(model):
    input_ids = prompt(9, seed=1)
    probes = make_probes(model, BudgetEncoder.from_seed(16, seed=0), [10.0, 20.0, 40.0])
    with torch.inference_mode():
        hidden = embedded(model, input_ids)
        token_PMD, state = token_pass(model, hidden, probes, (1, 3, 5))
        alone_PMD, alone = token_pass(model, hidden, probes[1:2], (1, 3, 5))
    torch.testing.assert_close(torch.tensor(token_PMD[:, 1:2]), torch.tensor(alone_PMD), rtol=2e-3, atol=2e-3)
    for both, one in zip(state.hidden_1SD, alone.hidden_1SD, strict=True):
        torch.testing.assert_close(both, one)
    mask = probe_mask(2, 2, torch.device("cpu"))[0, 0].int().tolist()
    assert mask == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]]


def test_a_token_is_the_probes_hidden_state_before_the_final_norm(model):
    """The expected value comes from running the plain blocks with the probe appended to the prompt."""
    input_ids = prompt(6, seed=2)
    probes = make_probes(model, BudgetEncoder.from_seed(16, seed=0), [33.0])
    with torch.inference_mode():
        hidden = torch.cat([embedded(model, input_ids).hidden_1SD, probes[None]], dim=1)
        token_PMD, _ = token_pass(model, embedded(model, input_ids), probes, (2,))
        for block in range(2):
            hidden = model.molmoe.run_block(block, hidden, top_k=8, position_ids=torch.arange(7)[None])
    torch.testing.assert_close(torch.tensor(token_PMD[0, 0]).float(), hidden[0, -1], rtol=2e-3, atol=2e-3)


def test_repeated_token_passes_are_bit_equal(model):
    input_ids = prompt(13, seed=8)
    probes = make_probes(model, BudgetEncoder.from_seed(16, seed=0), [10.0, 20.0, 40.0])
    with torch.inference_mode():
        first, _ = token_pass(model, embedded(model, input_ids), probes, (1, 5))
        second, _ = token_pass(model, embedded(model, input_ids), probes, (1, 5))
    assert first.tobytes() == second.tobytes()


def test_a_batch_that_runs_out_of_memory_is_halved():
    limit, sizes = BatchLimit(80), []

    def run(batch):
        sizes.append(len(batch))
        if len(batch) > 3:
            raise torch.OutOfMemoryError("no")
        return list(batch)

    assert [item for result in limit.batches(list(range(9)), 10, run) for item in result] == list(range(9))
    assert sizes == [8, 4, 2, 2, 2, 2, 1]
    with pytest.raises(torch.OutOfMemoryError):
        list(BatchLimit(1).batches([1], 10, lambda batch: run([batch] * 4)))


def test_near_ties_and_router_ties_are_reported(model, plans, monkeypatch):
    """With thresholds above every difference, every row is both a near tie and a router tie."""
    state = state_of(model, prompt(7, seed=7))
    tree = PlanTree.of(plans[:20], native=NATIVE, num_shared=5)
    calm = sweep_answers(model, state, tree, BatchLimit(1000), max_new_tokens=3)
    assert not any(one.is_router_tie for one in calm)
    monkeypatch.setattr(decode, "NEAR_TIE", 1e9)
    monkeypatch.setattr(router_ties, "ROUTER_TIE", 2.0)
    swept = sweep_answers(model, state, tree, BatchLimit(1000), max_new_tokens=3)
    assert all(one.is_near_tie and one.is_router_tie for one in swept)
    assert [dataclasses.replace(one, is_near_tie=False, is_router_tie=False) for one in swept] == [
        dataclasses.replace(one, is_near_tie=False, is_router_tie=False) for one in calm
    ]


def test_a_batch_with_mixed_top_ks_matches_separate_calls(model):
    hidden = torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(0))
    molmoe = model.molmoe
    rotary = molmoe.position_embeddings(torch.arange(4)[None])
    with torch.inference_mode():
        mixed = molmoe.run_block(2, hidden, top_k=torch.tensor([4, 8, 6]), position_embeddings=rotary)
        for row, top_k in enumerate((4, 8, 6)):
            alone = molmoe.run_block(2, hidden[row : row + 1], top_k=top_k, position_embeddings=rotary)
            torch.testing.assert_close(mixed[row : row + 1], alone)
