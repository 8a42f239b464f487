"""How a text model of transformers calls its layers: recorded once for a prompt and once for each further position.

The model itself runs, with every layer replaced by one that notes its arguments and returns zeros. So masks, position
embeddings and whatever else a family hands to its layers are the model's own, and what it adds between two layers
(image features, for some families) is what the next layer gets instead of zeros.

Shapes: N positions of one call, R rows, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import KVSharingDict

from ....data.errors import CheckpointError


@dataclass
class LayerCall:
    """The arguments of one layer, at batch 1, and what the model adds to its output."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    added_1ND: Tensor | None = None


@dataclass
class TextCall:
    """The arguments of a text model, the input of its first layer, and the calls of its layers."""

    kwargs: dict[str, Any] = field(default_factory=dict)
    first_1ND: Tensor | None = None
    layers: list[LayerCall] = field(default_factory=list)
    probe: TextCall | None = None  # the call of one position after the prompt, where its probes are
    num_probes: int = 0

    def of_rows(self, index: int, rows: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns a layer's arguments for `rows` equal rows."""
        call = self.layers[index]
        return tuple(_expanded(value, rows) for value in call.args), {
            name: _expanded(value, rows) for name, value in call.kwargs.items()
        }


class LayerRecorder:
    """Replaces the layers' forward functions while it records."""

    def __init__(self, text: nn.Module, layers: Sequence[nn.Module]) -> None:
        self._text, self._layers = text, list(layers)

    def record(self, run: Callable[[], object]) -> TextCall:
        """Returns the call of the text model that `run` makes.

        Raises:
            CheckpointError: the text model does not run its layers once each, in order.
        """
        call = TextCall()
        order: list[int] = []
        zeros: list[Tensor] = []

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            assert not args, "the text model is called by keywords"
            call.kwargs = dict(kwargs)

        def replaced(index: int) -> Callable[..., Tensor]:
            def forward(*args: Any, **kwargs: Any) -> Tensor:
                hidden, args = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), args)
                if not order:
                    call.first_1ND = hidden
                    zeros.append(torch.zeros_like(hidden))
                elif hidden is not zeros[0]:
                    call.layers[order[-1]].added_1ND = hidden
                order.append(index)
                call.layers.append(LayerCall(args, {k: v for k, v in kwargs.items() if k != "past_key_values"}))
                return zeros[0]

            return forward

        handle = self._text.register_forward_pre_hook(enter, with_kwargs=True)
        try:
            with self._replaced([replaced(index) for index in range(len(self._layers))]):
                run()
        finally:
            handle.remove()
        if order != list(range(len(self._layers))):
            raise CheckpointError(
                f"{type(self._text).__name__} runs its layers in the order {order[:8]}, not once each from first to "
                "last: its blocks cannot be run one by one."
            )
        return call

    @contextmanager
    def passing(self, hidden: Tensor) -> Iterator[None]:
        """Runs the body with layers that do nothing, the last of which returns `hidden`."""

        def forward(*args: Any, **kwargs: Any) -> Tensor:
            given: Tensor = args[0] if args else kwargs["hidden_states"]
            return given

        last = [lambda *_args, **_kwargs: hidden]
        with self._replaced([*[forward] * (len(self._layers) - 1), *last]):
            yield

    @contextmanager
    def _replaced(self, forwards: Sequence[Callable[..., Tensor]]) -> Iterator[None]:
        try:
            for layer, forward in zip(self._layers, forwards, strict=True):
                layer.forward = forward
            yield
        finally:
            for layer in self._layers:
                layer.__dict__.pop("forward", None)


def _expanded(value: Any, rows: int) -> Any:
    """Returns an argument of one row for `rows` equal rows, without copying. Shared keys and values start empty."""
    if isinstance(value, Tensor):
        return value.expand(rows, *value.shape[1:]) if value.ndim > 1 and value.shape[0] == 1 else value
    if isinstance(value, KVSharingDict):
        return KVSharingDict()
    if isinstance(value, dict):
        return {key: _expanded(inner, rows) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_expanded(inner, rows) for inner in value)
    return value
