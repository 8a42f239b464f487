"""A MolmoE model without a tokenizer behind the protocol, for tests that give token ids."""

from __future__ import annotations

from collections.abc import Sequence

from knobctl.precompute.models.molmoe.backbone import MolmoeBackbone
from knobctl.precompute.models.molmoe.config import MolmoeConfig
from knobctl.precompute.models.molmoe.model import Molmoe
from knobctl.precompute.models.molmoe.prompt import PromptTokenizer, SpecialTokens


class NumberTokenizer(PromptTokenizer):
    """A tokenizer whose text is the decimal token ids, so that answers are equal only if all their tokens are."""

    def __init__(self, config: MolmoeConfig, end: int | None = None) -> None:
        self._words = config.vocab_size - 2
        last = config.vocab_size - 1
        images = range(config.embedding_size, config.embedding_size + 4)  # in the additional vocabulary
        self.special = SpecialTokens(last, last if end is None else end, config.pad_token_id, *images)

    def encode(self, text: str) -> list[int]:
        return [sum(word.encode()) % self._words for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


def backbone_of(molmoe: Molmoe, *, end_id: int = -5) -> MolmoeBackbone:
    """Returns the model behind the protocol; by default no token ends an answer."""
    return MolmoeBackbone(molmoe, NumberTokenizer(molmoe.config, end_id), name="tiny", fingerprint="tiny")
