"""N copies of a controller's perceptron side by side, one per seed, with hand-written backward.

Autograd costs more than the arithmetic in steps of 8 requests; these few fused lines do not. A test holds them equal to
autograd. Shapes: N seeds, B rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..controllers.mlp import Mlp


class StackedMlp:
    """Parameters of N perceptrons in one flat [N, parameters] tensor, gradients in another; both also seen by layer."""

    def __init__(self, networks: Sequence[Mlp], device: torch.device | str = "cpu") -> None:
        self.widths = networks[0].widths
        self.flat = torch.stack([_flatten(network) for network in networks]).to(device)
        self.grad = torch.zeros_like(self.flat)
        self.weights, self.biases = self.views(self.flat)
        self._weight_grads, self._bias_grads = self.views(self.grad)

    def views(self, flat: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Returns the weights [N, in, out] and biases [N, 1, out] that lie in `flat`, without copying."""
        weights, biases, start = [], [], 0
        for inputs, outputs in zip(self.widths[:-1], self.widths[1:], strict=True):
            weights.append(flat[:, start : start + inputs * outputs].unflatten(1, (inputs, outputs)))
            start += inputs * outputs
            biases.append(flat[:, start : start + outputs].unflatten(1, (1, outputs)))
            start += outputs
        return weights, biases

    def forward(self, x_NBI: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Returns the logits [N, B, out] and what `backward` needs: each layer's input and pre-activation."""
        tape = []
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            before = torch.baddbmm(bias, x_NBI, weight)
            tape.append((x_NBI, before))
            x_NBI = torch.nn.functional.silu(before)
        tape.append((x_NBI, x_NBI))
        return torch.baddbmm(self.biases[-1], x_NBI, self.weights[-1]), tape

    def backward(self, logit_grad_NBO: Tensor, tape: list[tuple[Tensor, Tensor]]) -> None:
        """Writes the gradients of sum(logits * logit_grad) to `grad`, replacing what was there."""
        grad = logit_grad_NBO
        for layer in range(len(self.weights) - 1, -1, -1):
            x_NBI, _ = tape[layer]
            torch.bmm(x_NBI.transpose(1, 2), grad, out=self._weight_grads[layer])
            torch.sum(grad, dim=1, keepdim=True, out=self._bias_grads[layer])
            if layer:
                grad = torch.bmm(grad, self.weights[layer].transpose(1, 2))
                grad = torch.ops.aten.silu_backward(grad, tape[layer - 1][1])

    def write_to(self, network: Mlp, seed_index: int, flat: Tensor | None = None) -> None:
        """Copies one seed's parameters (or those in `flat`) into a module."""
        weights, biases = self.views(self.flat if flat is None else flat)
        with torch.no_grad():
            for target, source in zip(network.weights, weights, strict=True):
                target.copy_(source[seed_index])
            for target, source in zip(network.biases, biases, strict=True):
                target.copy_(source[seed_index])


def _flatten(network: Mlp) -> Tensor:
    pairs = zip(network.weights, network.biases, strict=True)
    return torch.cat([part.detach().flatten() for pair in pairs for part in pair])
