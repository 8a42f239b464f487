"""One block of the text decoder: attention with normalised queries and keys, then the mixture of experts.

Built from transformers' OLMoE parts and cache. The attention is its `OlmoeAttention`, rewritten for the checkpoint's
fused projection (one product instead of three), for rotary arithmetic in float32 in any dtype of the model, and for few
operations: launching them is most of the cost of decoding with a small model on the CPU.

Shapes: B batch, S positions of this call, H query heads, K key heads, W head width, D d_model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Cache, OlmoeConfig

from ..router_ties import TieWatch
from .config import MolmoeConfig
from .experts import MixtureOfExperts
from .kv_state import KeyValueState
from .norm import RMSNorm, normalise


def olmoe_config(config: MolmoeConfig, experts_implementation: str) -> OlmoeConfig:
    """Returns the config of the same decoder in transformers."""
    olmoe = OlmoeConfig(
        vocab_size=config.embedding_size,
        hidden_size=config.d_model,
        intermediate_size=config.expert_width,
        num_hidden_layers=config.num_blocks,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=config.norm_eps,
        num_experts_per_tok=config.native_top_k,
        num_experts=config.num_experts,
        norm_topk_prob=False,
        pad_token_id=None,
        eos_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
    )
    olmoe._experts_implementation = experts_implementation
    return olmoe


def rotary_embeddings(position_ids: Tensor, inverse_frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Returns float32 cosines and signed sines [B, S, 1, W] for `rotate`.

    Entries i and i + W/2 of a head form a pair. The sines of the first half are negated, so that the rotation is
    x * cos + (x with its halves swapped) * sin.
    """
    angle = (position_ids.unsqueeze(-1).float() * inverse_frequencies).unsqueeze(2)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(heads_BSHW: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates each head by its position in the dtype of the embeddings, then casts back."""
    cos, sin = position_embeddings
    heads = heads_BSHW.to(cos.dtype)
    return torch.addcmul(heads * cos, heads.roll(heads.shape[-1] // 2, -1), sin).to(heads_BSHW.dtype)


class TextAttention(nn.Module):
    """Causal self-attention; q and k are each normalised over all their entries before the split into heads."""

    def __init__(self, config: OlmoeConfig, block_index: int) -> None:
        super().__init__()
        self.block_index = block_index
        self.head_width = config.hidden_size // config.num_attention_heads
        self.heads = [config.num_attention_heads, config.num_key_value_heads or config.num_attention_heads]
        query_width, key_width = (heads * self.head_width for heads in self.heads)
        self.widths = [query_width, key_width, key_width]
        self.att_proj = nn.Linear(config.hidden_size, sum(self.widths), bias=False)
        self.qk_norm_weight = nn.Parameter(torch.ones(query_width + key_width))  # q_norm's, then k_norm's
        self.eps = config.rms_norm_eps
        self.attn_out = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self,
        hidden_BSD: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        cache: Cache | KeyValueState | None,
    ) -> Tensor:
        batch, length, _ = hidden_BSD.shape
        projected = self.att_proj(hidden_BSD)
        both_BSHW = self.norm_queries_and_keys(projected).view(batch, length, -1, self.head_width)
        query_BHSW, key_BKSW = rotate(both_BSHW, position_embeddings).transpose(1, 2).split(self.heads, dim=1)
        value_BKSW = projected[..., -self.widths[2] :].view(batch, length, -1, self.head_width).transpose(1, 2)
        if cache is not None:
            key_BKSW, value_BKSW = cache.update(key_BKSW, value_BKSW, self.block_index)
        mixed_BHSW = functional.scaled_dot_product_attention(
            query_BHSW,
            key_BKSW,
            value_BKSW,
            attn_mask=attention_mask,
            is_causal=attention_mask is None and length > 1,
            enable_gqa=self.heads[0] != self.heads[1],
        )
        return self.attn_out(mixed_BHSW.transpose(1, 2).reshape(batch, length, -1))

    def keys_values(self, hidden_BSD: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Returns the keys and values [B, K, S, W] of normalised hidden states, without queries and attention."""
        query_width, *key_value_widths = self.widths
        projected = functional.linear(hidden_BSD, self.att_proj.weight[query_width:])
        key, value = projected.split(key_value_widths, dim=-1)
        heads = (*hidden_BSD.shape[:-1], -1, self.head_width)
        key = normalise(key, self.eps) * self.qk_norm_weight[query_width:]
        return rotate(key.view(heads), position_embeddings).transpose(1, 2), value.view(heads).transpose(1, 2)

    def norm_queries_and_keys(self, projected: Tensor) -> Tensor:
        """Maps projected [B, S, q | k | v] to the normalised q | k, [B, S, (H + K) * W]."""
        query_width, key_width, _ = self.widths
        both = projected[..., : query_width + key_width]
        if query_width == key_width:
            normed = normalise(both.unflatten(-1, (2, query_width)), self.eps).flatten(-2)
        else:
            normed = torch.cat([normalise(part, self.eps) for part in both.split(self.widths[:2], dim=-1)], dim=-1)
        return normed * self.qk_norm_weight


class TextBlock(nn.Module):
    """A pre-norm decoder block. k is an argument, because it may differ between blocks and calls."""

    def __init__(self, config: OlmoeConfig, block_index: int) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.attn = TextAttention(config, block_index)
        self.ff_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = MixtureOfExperts(config)

    def forward(
        self,
        hidden_BSD: Tensor,
        top_k: int | Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        cache: Cache | KeyValueState | None,
        watch: TieWatch | None = None,
    ) -> Tensor:
        hidden_BSD = hidden_BSD + self.attn(self.attn_norm(hidden_BSD), position_embeddings, attention_mask, cache)
        return hidden_BSD + self.mlp(self.ff_norm(hidden_BSD), top_k, watch)
