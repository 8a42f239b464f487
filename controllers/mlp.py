"""The controllers' trainable part: a small perceptron, and the log-probabilities of choices that it gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


def log_probs(network: Callable[[Tensor], Tensor], feature: Tensor, allowed: Tensor | None) -> Tensor:
    """Returns log-probabilities over choices, [..., C]: the masked log-softmax of the network's logits.

    The only place where they are computed: in training, in evaluation and in the deployed controllers.

    Args:
        feature: [..., F].
        allowed: [..., C] bool; a choice that is not allowed gets -inf, probability exactly 0. None allows all.
    """
    logits = network(feature)
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -math.inf)
    return torch.log_softmax(logits, dim=-1)


class Mlp(nn.Module):
    """Linear layers with SiLU between. Weights have shape [in, out]."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.weights = nn.ParameterList([nn.Parameter(torch.zeros(i, o)) for i, o in pairs])
        self.biases = nn.ParameterList([nn.Parameter(torch.zeros(1, o)) for _, o in pairs])

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.weights[0].shape[0], *(w.shape[1] for w in self.weights))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits [..., out] of inputs [..., in]."""
        *hidden, last = zip(self.weights, self.biases, strict=True)
        for weight, bias in hidden:
            x = nn.functional.silu(x @ weight + bias)
        return x @ last[0] + last[1]

    def reset(self, generator: torch.Generator, head_gain: float = 0.1) -> None:
        """Draws new weights: variance-preserving, with a small head, so that all choices start about equally likely."""
        with torch.no_grad():
            for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
                gain = head_gain if index == len(self.weights) - 1 else math.sqrt(2.0)
                weight.normal_(std=gain / math.sqrt(weight.shape[0]), generator=generator)
                bias.zero_()
