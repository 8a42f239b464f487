"""The loss that trains the vision tower's features to be sums of word embeddings."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from ...precompute.models.molmoe.model import Molmoe
from .vision_targets import BLANK, GROUPS, IGNORED

IDEAL_SCALE = 1.5
IDEAL_NOISE = 0.05
BLANK_WEIGHT = 4.0


class VisionLoss:
    """Cross-entropy of each group of words given the features; features of bare paper should be zero."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        vocabulary = tokenizer.get_vocab()
        self.ids = {name: torch.tensor([vocabulary[word] for word in words]) for name, words in GROUPS.items()}

    def __call__(self, model: Molmoe, features: Tensor, targets: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Returns the loss, and the accuracy of each group that has targets.

        Args:
            features: [B, N, Q, D].
            targets: [B, N * Q] for each group and for bare paper.
        """
        features_MD = features.float().flatten(0, 2)
        loss = features_MD.new_zeros(())
        accuracy = {}
        for name, ids in self.ids.items():
            target_M = targets[name].flatten()
            is_asked = target_M != IGNORED
            if not is_asked.any():
                continue
            logits = features_MD[is_asked] @ model.word_embeddings(ids).T
            loss = loss + functional.cross_entropy(logits, target_M[is_asked])
            accuracy[name] = (logits.argmax(-1) == target_M[is_asked]).float().mean().item()
        is_blank = targets[BLANK].flatten() == 1
        return loss + BLANK_WEIGHT * features_MD[is_blank].square().sum() / features_MD.numel(), accuracy

    def ideal_features(self, model: Molmoe, targets: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        """Returns the features [B, 1, N * Q, D] of a perfect tower: sums of word embeddings, plus noise.

        With them the decoder can be trained before the tower is ready.
        """
        shape = (*targets[BLANK].shape, model.config.d_model)
        features = IDEAL_NOISE * torch.randn(shape, generator=generator)
        for name, ids in self.ids.items():
            is_told = (targets[name] != IGNORED).unsqueeze(-1)
            words = model.word_embeddings(ids[targets[name].clamp(min=0)])
            features = features + IDEAL_SCALE * words * is_told
        return features.unsqueeze(1)
