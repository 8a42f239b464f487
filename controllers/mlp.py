"""The controllers' trainable part: a small perceptron, for one policy or for many seeds side by side.

The same functions serve one network (weights [in, out]) and N of them (weights [N, in, out], inputs [N, B, in]).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


def mlp_forward(weights: Sequence[Tensor], biases: Sequence[Tensor], x: Tensor) -> Tensor:
    """Returns the logits: SiLU between layers, none after the last. Biases are [..., 1, out]."""
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x = nn.functional.silu(x @ weight + bias)
    return x @ weights[-1] + biases[-1]


class Mlp(nn.Module):
    """Linear layers with SiLU between. Weights lie as [in, out]."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.weights = nn.ParameterList([nn.Parameter(torch.zeros(i, o)) for i, o in pairs])
        self.biases = nn.ParameterList([nn.Parameter(torch.zeros(1, o)) for _, o in pairs])

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.weights[0].shape[0], *(w.shape[1] for w in self.weights))

    def forward(self, x: Tensor) -> Tensor:
        return mlp_forward(tuple(self.weights), tuple(self.biases), x)

    def reset(self, generator: torch.Generator, head_gain: float = 0.1) -> None:
        """Draws new weights: variance-keeping, with a small head, so that every choice starts about equally likely."""
        with torch.no_grad():
            for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
                gain = head_gain if index == len(self.weights) - 1 else math.sqrt(2.0)
                weight.normal_(std=gain / math.sqrt(weight.shape[0]), generator=generator)
                bias.zero_()
