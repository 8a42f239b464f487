"""The routers of a model of transformers: found by what they are, run with any k.

A router reads its k from an attribute at each call: its own `top_k`, or `top_k_experts` of its config. It computes the
weights of its k experts itself, because families renormalise, scale, group or bias them in different ways: cutting its
output to k from outside would be wrong. Where rows of one batch have different k, it is asked once for each k.

Shapes: R rows, T tokens of all rows (consecutive by row), E experts, k experts used per token.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ....data.errors import CheckpointError
from .. import router_ties
from ..router_ties import TieWatch

RouterOutput = tuple[Tensor, Tensor, Tensor]  # logits [T, E], weights [T, k], experts [T, k]
_CONFIG_FIELD = "top_k_experts"


@dataclass(frozen=True)
class _Holder:
    """An object whose attribute says how many experts a router uses."""

    owner: Any
    attribute: str

    def get(self) -> int:
        return int(getattr(self.owner, self.attribute))

    def set(self, top_k: int) -> None:
        setattr(self.owner, self.attribute, top_k)


class BlockRouters:
    """The routers of one block; more than one where image and text tokens have their own experts."""

    def __init__(self, layer: nn.Module, classes: tuple[type[nn.Module], ...]) -> None:
        """
        Args:
            classes: from `router_classes`.
        """
        holders = list(_holders(layer, classes))
        self._holders = [holder for _, holder in holders]
        owners = [module for module, _ in holders]
        self.modules = [module for module in owners if not any(inner in owners for inner in _inside(module))]
        counts = {holder.get() for holder in self._holders}
        if len(counts) > 1:
            raise CheckpointError(f"{type(layer).__name__} has routers with different top-k: {sorted(counts)}.")
        self.native_top_k = counts.pop() if counts else None
        self._forward: dict[nn.Module, Callable[..., RouterOutput]] = {
            module: module.forward for module in self.modules
        }

    @property
    def n_experts(self) -> int | None:
        """The number of experts of the block's smallest router; None without routers."""
        if not self.modules:
            return None
        return min(_num_experts(module) for module in self.modules)

    @contextmanager
    def using(self, top_k: int | Tensor, rows: int, watch: TieWatch | None) -> Iterator[None]:
        """Runs the body with this k: for all rows, or [R], one for each; restores the native k, even after an error."""
        if self.native_top_k is None:
            yield
            return
        if isinstance(top_k, Tensor) and len(top_k.unique()) == 1:
            top_k = int(top_k[0])
        try:
            if isinstance(top_k, int):
                self._set(top_k)
            if isinstance(top_k, Tensor) or watch is not None:
                for module in self.modules:
                    module.forward = self._routed(module, top_k, rows, watch)
            yield
        finally:
            for module in self.modules:
                module.__dict__.pop("forward", None)
            self._set(self.native_top_k)

    def _set(self, top_k: int) -> None:
        for holder in self._holders:
            holder.set(top_k)

    def _routed(
        self, module: nn.Module, top_k: int | Tensor, rows: int, watch: TieWatch | None
    ) -> Callable[..., RouterOutput]:
        """Returns the router's forward for rows with their own k, with a watch for ties."""

        def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> RouterOutput:
            hidden_TD = hidden.reshape(-1, hidden.shape[-1])
            if isinstance(top_k, int):
                output = self._forward[module](hidden_TD, *args, **kwargs)
                k_T = torch.full((len(hidden_TD),), top_k, device=hidden_TD.device)
            else:
                # The tokens of a row are consecutive, and every row has equally many: rows belong to one prompt.
                k_T = top_k.repeat_interleave(len(hidden_TD) // rows)  # on the CPU, so that nothing waits for a GPU
                output = self._each_k(module, hidden_TD, k_T, args, kwargs)
                k_T = k_T.to(hidden_TD.device)
            if watch is not None:
                watch.note(_tied(module, output, k_T).view(rows, -1).any(dim=-1))
            return output

        return forward

    def _each_k(
        self, module: nn.Module, hidden_TD: Tensor, k_T: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> RouterOutput:
        """Asks the router once for each k. Places beyond a token's own k repeat its first expert with weight 0."""
        distinct = sorted(set(k_T.tolist()), reverse=True)
        parts = {}
        for k in distinct:
            self._set(k)
            token = (k_T == k).nonzero()[:, 0].to(hidden_TD.device)
            parts[k] = token, self._forward[module](hidden_TD[token], *args, **kwargs)
        logits, weights, experts = parts[distinct[0]][1]
        all_logits = logits.new_zeros(len(hidden_TD), logits.shape[-1])
        all_weights = weights.new_zeros(len(hidden_TD), distinct[0])
        all_experts = experts.new_zeros(len(hidden_TD), distinct[0])
        for k, (token, (logits, weights, experts)) in parts.items():
            all_logits[token] = logits
            all_weights[token, :k] = weights
            all_experts[token] = experts[:, :1].expand(-1, distinct[0])
            all_experts[token, :k] = experts
        return all_logits, all_weights, all_experts


def router_classes(text: nn.Module) -> tuple[type[nn.Module], ...]:
    """Returns the classes whose output a text model records as `router_logits`."""
    for module in (text, *text.children()):
        recorded: Any = (getattr(module, "_can_record_outputs", None) or {}).get("router_logits")
        if recorded is not None:
            each: list[Any] = recorded if isinstance(recorded, list) else [recorded]
            return tuple(getattr(one, "target_class", one) for one in each)
    return ()


def _holders(layer: nn.Module, classes: tuple[type[nn.Module], ...]) -> Iterator[tuple[nn.Module, _Holder]]:
    """Yields the modules with a top-k. A router that reads it from its config gets a copy, as blocks may differ."""
    for module in layer.modules():
        if type(getattr(module, "top_k", None)) is int:
            yield module, _Holder(module, "top_k")
        elif isinstance(module, classes) and type(getattr(_config(module), _CONFIG_FIELD, None)) is int:
            module.config = copy.copy(module.config)
            yield module, _Holder(module.config, _CONFIG_FIELD)


def _config(module: nn.Module) -> Any:
    return getattr(module, "config", None)


def _inside(module: nn.Module) -> Iterator[nn.Module]:
    return (inner for inner in module.modules() if inner is not module)


def _num_experts(module: nn.Module) -> int:
    """Returns the width of a router's logits."""
    weight = next(parameter for parameter in module.parameters() if parameter.ndim == 2)
    return int(weight.shape[0])


def _tied(module: nn.Module, output: RouterOutput, k_T: Tensor) -> Tensor:
    """Returns which tokens [T] bool might get another expert in a batch of another shape.

    The lowest score kept is compared with the highest one left out. A score is the probability; where the family adds
    a bias for the selection, both usual kinds of probability are tried, so that rather too many tokens count as tied.
    """
    logits_TE, _, experts_Tk = output
    place = torch.arange(experts_Tk.shape[1], device=experts_Tk.device)
    is_kept_TE = torch.zeros(logits_TE.shape, dtype=torch.bool, device=logits_TE.device)
    # Places beyond a token's k repeat its first expert, so they mark nothing else.
    first_T1 = experts_Tk[:, :1]
    is_kept_TE.scatter_(1, torch.where(place < k_T[:, None], experts_Tk, first_T1), True)
    bias = next((b for name, b in _tensors(module) if name.endswith("e_score_correction_bias")), None)
    softmax_TE = logits_TE.float().softmax(dim=-1)
    scores = [softmax_TE] if bias is None else [softmax_TE + bias.float(), logits_TE.float().sigmoid() + bias.float()]
    tied_T = torch.zeros(len(logits_TE), dtype=torch.bool, device=logits_TE.device)
    for score_TE in scores:
        lowest_T = score_TE.masked_fill(~is_kept_TE, torch.inf).amin(dim=-1)
        highest_T = score_TE.masked_fill(is_kept_TE, -torch.inf).amax(dim=-1)
        tied_T |= (lowest_T - highest_T).abs() < router_ties.ROUTER_TIE
    return tied_T


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()
