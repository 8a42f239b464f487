"""One block of the text decoder: attention with normed queries and keys, then the mixture of experts.

Built of transformers' OLMoE parts. The attention is its `OlmoeAttention` with the checkpoint's fused projection kept
whole (one product instead of three) and the rotary arithmetic in float32 whatever the model's dtype.

Shapes: B batch, S positions of this call, H heads, W head width, D d_model.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers import Cache, OlmoeConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.olmoe.modeling_olmoe import OlmoeRMSNorm, apply_rotary_pos_emb

from .config import MolmoeConfig
from .experts import MixtureOfExperts


def olmoe_config(config: MolmoeConfig, experts_implementation: str) -> OlmoeConfig:
    """The same decoder in transformers' words."""
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
    olmoe._attn_implementation = "sdpa"
    olmoe._experts_implementation = experts_implementation
    return olmoe


class TextAttention(nn.Module):
    """Causal self-attention; q and k are normed over all their entries before they are split into heads."""

    is_causal = True  # read by transformers' attention functions

    def __init__(self, config: OlmoeConfig, block_index: int) -> None:
        super().__init__()
        self.config = config
        self.block_index = block_index
        self.head_width = config.hidden_size // config.num_attention_heads
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.widths = [config.hidden_size, *[config.num_key_value_heads * self.head_width] * 2]
        self.att_proj = nn.Linear(config.hidden_size, sum(self.widths), bias=False)
        self.q_norm = OlmoeRMSNorm(self.widths[0], eps=config.rms_norm_eps)
        self.k_norm = OlmoeRMSNorm(self.widths[1], eps=config.rms_norm_eps)
        self.attn_out = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self,
        hidden_BSD: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        cache: Cache | None,
    ) -> Tensor:
        shape = (*hidden_BSD.shape[:-1], -1, self.head_width)
        query, key, value = self.att_proj(hidden_BSD).split(self.widths, dim=-1)
        query_BHSW = self.q_norm(query).view(shape).transpose(1, 2)
        key_BHSW = self.k_norm(key).view(shape).transpose(1, 2)
        value_BHSW = value.view(shape).transpose(1, 2)
        dtype = value_BHSW.dtype
        query_BHSW, key_BHSW = apply_rotary_pos_emb(query_BHSW, key_BHSW, *position_embeddings)
        query_BHSW, key_BHSW = query_BHSW.to(dtype), key_BHSW.to(dtype)
        if cache is not None:
            key_BHSW, value_BHSW = cache.update(key_BHSW, value_BHSW, self.block_index)
        attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
        mixed_BSHW, _ = attend(self, query_BHSW, key_BHSW, value_BHSW, attention_mask, scaling=self.head_width**-0.5)
        return self.attn_out(mixed_BSHW.flatten(2))


class TextBlock(nn.Module):
    """A pre-norm decoder block. Called with k, because k may differ from block to block and call to call."""

    def __init__(self, config: OlmoeConfig, block_index: int) -> None:
        super().__init__()
        self.attn_norm = OlmoeRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.attn = TextAttention(config, block_index)
        self.ff_norm = OlmoeRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = MixtureOfExperts(config)

    def forward(
        self,
        hidden_BSD: Tensor,
        top_k: int,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        cache: Cache | None,
    ) -> Tensor:
        hidden_BSD = hidden_BSD + self.attn(self.attn_norm(hidden_BSD), position_embeddings, attention_mask, cache)
        return hidden_BSD + self.mlp(self.ff_norm(hidden_BSD), top_k)
