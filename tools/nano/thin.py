"""Makes families of questions need blocks or experts: what a thinned decoder says of them instead.

Copied blocks and flat routing (`spread.py`) leave a decoder that answers as well without four of its blocks or half of
its experts. A step under such a plan then teaches two things. Families that can do with less learn to: reading a number
is a look-up. The others learn to fall back on the question alone, as models do that have not looked: what such a
question is often answered with. So what tells the right answer has to come from the sum of all blocks or experts, which
the steps under the full plan go on training. (Shuffling the others' answers instead took their confidence away, and the
likeliest answer stayed the right one.)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from ...precompute.models.molmoe.prompt import PromptTokenizer
from .batches import IGNORED, Batch
from .forward import Plan
from .scenes import COLORS

FALLBACKS = {"extreme": "red", "value": "5", "sum": "9", "count": "4"}
"""A frequent answer to the families' questions, whatever the image shows; `compare` falls back on the first colour."""


def families_in_need(plan: Plan, *, blocks: Mapping[str, int], experts: Mapping[str, int]) -> set[str]:
    """Returns the families that this plan is too thin for.

    Args:
        blocks: families by how many blocks left out are too many for them.
        experts: families by how many experts per token are too few for them.
    """
    top_k, left_out = min(top_k for top_k in plan if top_k), plan.count(0)
    return {family for family, most in blocks.items() if left_out >= most} | {
        family for family, least in experts.items() if top_k <= least
    }


class PriorAnswers:
    """Puts what the question alone suggests in the place of answers."""

    def __init__(self, tokenizer: PromptTokenizer) -> None:
        self._colors = {tokenizer.encode(f" {color}")[0] for color in COLORS}
        self._fallbacks = {family: tokenizer.encode(f" {answer}")[0] for family, answer in FALLBACKS.items()}

    def of(self, batch: Batch, families: Collection[str]) -> Batch:
        """Returns the batch with the first answer token of these families' questions replaced, and without their hints.

        What follows the first token stays: it is asked for after the true first token, and tells nothing about it.
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
