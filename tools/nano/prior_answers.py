"""Answers that need only the question, which train some question families to depend on all blocks or experts.

After `weight_edits.py`, the decoder answers equally well without four of its blocks or half of its experts. Training
under such a reduced plan then has two effects. Families that can manage with less learn to do so: reading a number is a
lookup. The others are trained to fall back on the question alone and give a frequent answer. Their right answers
therefore have to come from all blocks or experts together, which the steps under the full plan continue to train.
(Shuffling these families' answers instead reduced the model's confidence, but its likeliest answer remained right.)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from ...precompute.models.molmoe.prompt import PromptTokenizer
from .batches import IGNORED, Batch
from .forward import Plan
from .scenes import COLORS

FALLBACKS = {"extreme": "red", "value": "5", "sum": "9", "count": "4"}
"""A frequent answer for each family, independent of the image; for `compare` it is the first colour in the question."""


def families_in_need(plan: Plan, *, blocks: Mapping[str, int], experts: Mapping[str, int]) -> set[str]:
    """Returns the families for which this plan has too few blocks or experts.

    Args:
        blocks: for each family, the number of omitted blocks that is too many.
        experts: for each family, the number of experts per token that is too few.
    """
    top_k, left_out = min(top_k for top_k in plan if top_k), plan.count(0)
    return {family for family, most in blocks.items() if left_out >= most} | {
        family for family, least in experts.items() if top_k <= least
    }


class PriorAnswers:
    """Replaces answers by those that the question alone suggests."""

    def __init__(self, tokenizer: PromptTokenizer) -> None:
        self._colors = {tokenizer.encode(f" {color}")[0] for color in COLORS}
        self._fallbacks = {family: tokenizer.encode(f" {answer}")[0] for family, answer in FALLBACKS.items()}

    def of(self, batch: Batch, families: Collection[str]) -> Batch:
        """Returns the batch with the first answer token of these families' questions replaced, and without their hints.

        Later tokens are kept: they are predicted from the true first token and reveal nothing about it.
        """
        labels, hints = batch.labels.clone(), batch.hints.clone()
        for row, asked in enumerate(batch.families):
            for number, family in enumerate(asked, start=1):
                if family in families:
                    is_mine = batch.segments[row] == number
                    hints[row, is_mine] = IGNORED
                    first = int((is_mine & (labels[row] != IGNORED)).nonzero()[0])
                    if family == "compare":
                        words = batch.input_ids[row, is_mine].tolist()
                        labels[row, first] = next(word for word in words if word in self._colors)
                    else:
                        labels[row, first] = self._fallbacks[family]
        return replace(batch, labels=labels, hints=hints)
