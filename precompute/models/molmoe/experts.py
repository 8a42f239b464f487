"""The mixture of experts of one block: the router, and further ways to compute the experts.

The weights are in transformers' `OlmoeExperts`, which dispatches to a function by name (`eager`, `grouped_mm`, ...).
This module registers `dense`, `gathered`, `segmented` and `auto`. All give the same result up to rounding.

Shapes: R rows, S positions, N tokens (R * S), D d_model, E experts, k experts used per token, W expert width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import OlmoeConfig
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.models.olmoe.modeling_olmoe import OlmoeExperts

from ..router_ties import TieWatch

EXPERTS_IMPLEMENTATIONS = ("auto", "eager", "grouped_mm", "dense", "gathered", "segmented")

# Copying an expert's matrix of up to this many entries (256 KiB in float32) is cheaper than launching its products.
_SMALL_EXPERT = 1 << 16


def dense_experts(experts: OlmoeExperts, hidden_ND: Tensor, index_Nk: Tensor, weight_Nk: Tensor) -> Tensor:
    """Runs every expert on every token as one wide MLP, with weight zero for those not chosen.

    The cost does not depend on k, so this is for training and tests: small models train several times faster with it.
    """
    num_experts, double_width, d_model = experts.gate_up_proj.shape
    weight_NE = hidden_ND.new_zeros(hidden_ND.shape[0], num_experts).scatter(1, index_Nk, weight_Nk)
    gate_up = functional.linear(hidden_ND, experts.gate_up_proj.reshape(num_experts * double_width, d_model))
    gate, up = gate_up.view(-1, num_experts, double_width).chunk(2, dim=-1)
    inner_NEW = functional.silu(gate) * up * weight_NE.unsqueeze(-1)
    down_DEW = experts.down_proj.permute(1, 0, 2).reshape(d_model, -1)
    return functional.linear(inner_NEW.flatten(1), down_DEW)


def gathered_experts(experts: OlmoeExperts, hidden_ND: Tensor, index_Nk: Tensor, weight_Nk: Tensor) -> Tensor:
    """Copies the chosen experts' weights and multiplies each token with its own copies.

    Few operations, but a copy for each token and expert: for one or two tokens of a small model, where launching an
    operation costs more than running it.
    """
    num_tokens, top_k = index_Nk.shape
    d_model, width = experts.down_proj.shape[1:]
    chosen = index_Nk.flatten()
    gate_up_weight = experts.gate_up_proj.index_select(0, chosen).view(num_tokens, -1, d_model)  # [N, k * 2W, D]
    gate_up = torch.bmm(gate_up_weight, hidden_ND.unsqueeze(-1)).view(-1, 2 * width)
    inner = functional.silu(gate_up)[:, :width] * gate_up[:, width:] * weight_Nk.view(-1, 1)
    down_weight = experts.down_proj.index_select(0, chosen)  # [N * k, D, W]
    return torch.bmm(down_weight, inner.unsqueeze(-1)).view(num_tokens, top_k, d_model).sum(dim=1)


def segmented_experts(experts: OlmoeExperts, hidden_ND: Tensor, index_Nk: Tensor, weight_Nk: Tensor) -> Tensor:
    """Sorts the (token, expert) pairs by expert and runs each chosen expert on its own rows.

    Like `grouped_mm`, but without gradients and with fewer and cheaper operations on the CPU, where the counts are
    read without synchronisation: rows are copied whole, and routing weights multiply the narrow side of the experts.
    """
    width = experts.down_proj.shape[2]
    expert_of_pair = index_Nk.flatten()
    order = expert_of_pair.argsort(stable=True)  # of the pairs, by expert
    token_of_row = order // index_Nk.shape[1]
    counts = expert_of_pair.bincount(minlength=experts.num_experts).tolist()
    rows = hidden_ND.index_select(0, token_of_row)
    gate_up = rows.new_empty(len(order), 2 * width)
    down = torch.empty_like(rows)
    _multiply_segments(rows, experts.gate_up_proj, counts, gate_up)
    # SiLU of both halves: twice the numbers in a third of the time, because only contiguous rows are vectorised.
    inner = functional.silu(gate_up)[:, :width] * gate_up[:, width:]
    inner *= weight_Nk.flatten().index_select(0, order).unsqueeze(-1)
    _multiply_segments(inner, experts.down_proj, counts, down)
    return torch.zeros_like(hidden_ND).index_add_(0, token_of_row, down)


def _multiply_segments(rows: Tensor, weights: Tensor, counts: list[int], out: Tensor) -> None:
    """out = rows @ weights[e].T for each expert's segment of rows [pairs, in]; weights [E, out, in]."""
    segments = zip(rows.split(counts), weights.transpose(1, 2).unbind(0), out.split(counts), counts, strict=True)
    for segment, weight, place, count in segments:
        if count:
            torch.mm(segment, weight, out=place)


def automatic_experts(experts: OlmoeExperts, hidden_ND: Tensor, index_Nk: Tensor, weight_Nk: Tensor) -> Tensor:
    """The fastest function whose cost rises with k: grouped products on a GPU or for gradients, otherwise by size."""
    if hidden_ND.is_cuda or torch.is_grad_enabled():
        return ALL_EXPERTS_FUNCTIONS["grouped_mm"](experts, hidden_ND, index_Nk, weight_Nk)
    if hidden_ND.shape[0] == 1 and experts.down_proj[0].numel() <= _SMALL_EXPERT:
        return gathered_experts(experts, hidden_ND, index_Nk, weight_Nk)
    return segmented_experts(experts, hidden_ND, index_Nk, weight_Nk)


ALL_EXPERTS_FUNCTIONS.register("dense", dense_experts)
ALL_EXPERTS_FUNCTIONS.register("gathered", gathered_experts)
ALL_EXPERTS_FUNCTIONS.register("segmented", segmented_experts)
ALL_EXPERTS_FUNCTIONS.register("auto", automatic_experts)


class MixtureOfExperts(nn.Module):
    """Router and experts. k is an argument of every call, so that no state outlives a call."""

    def __init__(self, config: OlmoeConfig) -> None:
        super().__init__()
        self.implementation = config._experts_implementation
        self.router = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = OlmoeExperts(config)

    def route(
        self, hidden_RSD: Tensor, top_k: int | Tensor, watch: TieWatch | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns router logits [R, S, E], the k largest probabilities [R, S, k] and their experts, largest first.

        The softmax is over all experts, in float32; the probabilities kept are not renormalised. If each row has its
        own k [R], k is the largest of them, and experts beyond a row's own k get weight 0, which leaves the row's sum
        exactly as if it were run alone.
        """
        logits_RSE = self.router(hidden_RSD)
        probability_RSE = torch.softmax(logits_RSE, dim=-1, dtype=torch.float32)
        largest = (
            top_k if isinstance(top_k, int) else int(top_k.max())
        )  # on the CPU, so there is nothing to synchronise
        taken = largest if watch is None else min(largest + 1, logits_RSE.shape[-1])
        weight_RSk, index_RSk = probability_RSE.topk(taken, dim=-1)
        if not isinstance(top_k, int):
            top_k = top_k.to(hidden_RSD.device)
        if watch is not None:
            # When every expert is used, no other expert can tie with the last one.
            watch.see(weight_RSk if taken > largest else functional.pad(weight_RSk, (0, 1), value=-1.0), top_k)
            weight_RSk, index_RSk = weight_RSk[..., :largest], index_RSk[..., :largest]
        if not isinstance(top_k, int):
            weight_RSk = weight_RSk * (torch.arange(largest, device=top_k.device) < top_k.view(-1, 1, 1))
        return logits_RSE, weight_RSk.to(hidden_RSD.dtype), index_RSk

    def forward(self, hidden_RSD: Tensor, top_k: int | Tensor, watch: TieWatch | None = None) -> Tensor:
        _, weight_RSk, index_RSk = self.route(hidden_RSD, top_k, watch)
        # "eager" is the class's own method; the others are functions, called without its dispatcher to save time.
        run = ALL_EXPERTS_FUNCTIONS.get(self.implementation, OlmoeExperts.forward)
        mixed_ND = run(
            self.experts,
            hidden_RSD.reshape(-1, hidden_RSD.shape[-1]),
            index_RSk.flatten(0, 1).contiguous(),
            weight_RSk.flatten(0, 1).contiguous(),
        )
        return mixed_ND.view_as(hidden_RSD)
