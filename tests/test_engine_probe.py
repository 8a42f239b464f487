"""Probes and latency tokens do not depend on the caller's thread count or on which caller comes first."""

from __future__ import annotations

import pytest
import torch

from knobctl.controllers.budget_encoder import BudgetEncoder
from knobctl.data.errors import CheckpointError
from knobctl.devices import num_threads
from knobctl.precompute.execution.token_pass import make_probes, token_pass
from knobctl.precompute.models.backbone import EmbeddedPrompt
from knobctl.precompute.models.loading import load_model

BUDGETS_MS = tuple(float(budget) for budget in range(24, 72, 3))


@pytest.fixture(scope="module")
def nano():
    return load_model("nano", device="cpu").model


def test_probes_are_bit_equal_with_one_thread_and_two(nano):
    encoder = BudgetEncoder.from_seed(nano.geometry.d_model, 42)
    with num_threads(1):
        alone_MD = make_probes(nano, encoder, BUDGETS_MS)
    with num_threads(2):
        assert torch.equal(make_probes(nano, encoder, BUDGETS_MS), alone_MD)
        assert torch.get_num_threads() == 2  # the thread count is restored


def test_probes_have_the_median_norm_of_word_embeddings(nano):
    encoder = BudgetEncoder.from_seed(nano.geometry.d_model, 42)
    norms = nano.molmoe.embedding.weight.norm(dim=-1)
    probe_MD = make_probes(nano, encoder, BUDGETS_MS)
    torch.testing.assert_close(probe_MD.norm(dim=-1), norms[norms > 0].median().expand(len(BUDGETS_MS)))


def test_a_token_outside_the_float16_range_raises_an_error(nano):
    prompt = EmbeddedPrompt(torch.ones(1, 3, nano.geometry.d_model))
    probe_MD = torch.full((2, nano.geometry.d_model), 1e30)
    with torch.inference_mode(), pytest.raises(CheckpointError, match="prompt of 3 positions does not fit float16"):
        token_pass(nano, prompt, probe_MD, (1, 2))
