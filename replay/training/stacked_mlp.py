"""N copies of a controller's perceptron, one per seed, evaluated as one, with a hand-written backward pass.

In steps of 8 requests the overhead of autograd exceeds the arithmetic. Autograd differentiates a loss down to the
logits and calls `StackedMlp.backward` for the rest; a test compares it with autograd. Shapes: N seeds, B rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...controllers.mlp import Mlp

Tape = list[tuple[Tensor, Tensor]]  # input of each layer and, except for the last one, its pre-activation


class StackedMlp:
    """The parameters of N perceptrons in one flat [N, parameters] tensor, and their gradients in another."""

    def __init__(self, networks: Sequence[Mlp], device: torch.device | str = "cpu") -> None:
        self.widths = networks[0].widths
        flat = torch.stack([_flatten(network) for network in networks]).to(device)
        self.grad = torch.zeros_like(flat)
        self.weights, self.biases = self.views(flat)
        self._weight_grads, self._bias_grads = self.views(self.grad)
        self.flat = flat.detach().requires_grad_()
        self.flat.grad = self.grad  # overwritten by `backward`, so it is not zeroed between steps

    def views(self, flat: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Returns views of `flat`: weights [N, in, out] and biases [N, 1, out] of each layer."""
        weights, biases, start = [], [], 0
        for inputs, outputs in zip(self.widths[:-1], self.widths[1:], strict=True):
            weights.append(flat[:, start : start + inputs * outputs].unflatten(1, (inputs, outputs)))
            start += inputs * outputs
            biases.append(flat[:, start : start + outputs].unflatten(1, (1, outputs)))
            start += outputs
        return weights, biases

    def __call__(self, x_NBI: Tensor) -> Tensor:
        """Returns the logits [N, B, out].

        Differentiating a loss overwrites `grad`, so a loss may depend on the logits of one call only.
        """
        logits: Tensor = _Logits.apply(self, self.flat, x_NBI)
        return logits

    def forward(self, x_NBI: Tensor) -> tuple[Tensor, Tape]:
        """Returns the logits and the intermediate results that `backward` needs."""
        tape = []
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            before = torch.baddbmm(bias, x_NBI, weight)
            tape.append((x_NBI, before))
            x_NBI = torch.nn.functional.silu(before)
        tape.append((x_NBI, x_NBI))
        return torch.baddbmm(self.biases[-1], x_NBI, self.weights[-1]), tape

    def backward(self, logit_grad_NBO: Tensor, tape: Tape, *, with_input: bool = False) -> Tensor | None:
        """Writes the gradients of sum(logits * logit_grad) to `grad`; returns that of the input on request."""
        grad = logit_grad_NBO
        for layer in range(len(self.weights) - 1, -1, -1):
            x_NBI, _ = tape[layer]
            torch.bmm(x_NBI.transpose(1, 2), grad, out=self._weight_grads[layer])
            torch.sum(grad, dim=1, keepdim=True, out=self._bias_grads[layer])
            if layer:
                grad = torch.bmm(grad, self.weights[layer].transpose(1, 2))
                grad = torch.ops.aten.silu_backward(grad, tape[layer - 1][1])
        return torch.bmm(grad, self.weights[0].transpose(1, 2)) if with_input else None

    def write_to(self, network: Mlp, seed_index: int, flat: Tensor | None = None) -> None:
        """Copies the parameters of one seed, from `flat` if given, into a module."""
        weights, biases = self.views(self.flat if flat is None else flat)
        with torch.no_grad():
            for target, source in zip(network.weights, weights, strict=True):
                target.copy_(source[seed_index])
            for target, source in zip(network.biases, biases, strict=True):
                target.copy_(source[seed_index])


class _Logits(torch.autograd.Function):
    """Connects autograd, above the logits, with the hand-written backward pass below them."""

    @staticmethod
    def forward(ctx: Any, network: StackedMlp, flat: Tensor, x_NBI: Tensor) -> Tensor:  # noqa: ARG004
        logits, ctx.tape = network.forward(x_NBI)
        ctx.network = network
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, logit_grad_NBO: Tensor) -> tuple[None, None, Tensor | None]:
        # `backward` writes to `flat.grad` itself, so autograd has nothing to accumulate.
        return None, None, ctx.network.backward(logit_grad_NBO, ctx.tape, with_input=ctx.needs_input_grad[2])


def _flatten(network: Mlp) -> Tensor:
    pairs = zip(network.weights, network.biases, strict=True)
    return torch.cat([part.detach().flatten() for pair in pairs for part in pair])
