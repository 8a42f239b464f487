"""Accuracy of nano on packed questions: an answer is right if each of its tokens and the end token are the likeliest.

This equals exact match under greedy decoding and needs a single pass without decoding.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ...precompute.models.molmoe.model import Molmoe
from .batches import IGNORED, Batch
from .forward import Plan, answer_logits


@torch.inference_mode()
def correct_answers(
    model: Molmoe, batch: Batch, features: Tensor, plan: Plan, *, bfloat16: bool = False
) -> list[tuple[str, bool]]:
    """Returns (family, whether the answer is right) of every packed question.

    Args:
        features: image features [B, N, Q, D], or ideal ones [B, 1, N * Q, D].
    """
    logits = answer_logits(model, batch, features, plan, bfloat16=bfloat16)
    is_answer = batch.labels != IGNORED
    rows = torch.arange(len(batch.labels)).unsqueeze(1).expand_as(batch.labels)[is_answer]
    segments = batch.segments[is_answer]
    is_right = logits.argmax(-1) == batch.labels[is_answer]
    outcomes = []
    for row, families in enumerate(batch.families):
        for number, family in enumerate(families, start=1):
            outcomes.append((family, bool(is_right[(rows == row) & (segments == number)].all())))
    return outcomes


def accuracy_by_family(outcomes: Iterable[tuple[str, bool]]) -> dict[str, float]:
    """Returns the share of right answers in each family, and over all families of `small_print`."""
    groups: dict[str, list[bool]] = {}
    for family, is_right in outcomes:
        groups.setdefault(family, []).append(is_right)
        if family != "easy":
            groups.setdefault("small_print", []).append(is_right)
    return {family: sum(rights) / len(rights) for family, rights in sorted(groups.items())}
