"""MolmoE: embeddings, decoder blocks one by one, head. The caller decides which blocks run, and with how many experts.

The model keeps no state between calls: k, positions, mask and cache are arguments of each call, so every request may
have its own plan, and an error leaves no state behind.

Shapes: B batch, T text positions, S positions of the call, N crops, P patches per crop, Q features per crop, D d_model,
V rows of the head, KV cached and new positions.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from transformers import Cache

from ..router_ties import TieWatch
from .config import MolmoeConfig
from .experts import EXPERTS_IMPLEMENTATIONS
from .kv_state import KeyValueState
from .norm import RMSNorm
from .text import TextBlock, olmoe_config, rotary_embeddings
from .vision import VisionBackbone

Rotary = tuple[Tensor, Tensor]  # cosines and sines of `Molmoe.position_embeddings`


class Molmoe(nn.Module):
    """The model of one checkpoint. `Molmoe(config)` has arbitrary weights: load some, or call `init_weights`."""

    def __init__(self, config: MolmoeConfig, *, experts_implementation: str = "auto") -> None:
        """
        Args:
            experts_implementation: one of `experts.EXPERTS_IMPLEMENTATIONS`; "dense" is for training.
        """
        super().__init__()
        if experts_implementation not in EXPERTS_IMPLEMENTATIONS:
            raise ValueError(
                f"experts_implementation is {experts_implementation!r}, not one of {EXPERTS_IMPLEMENTATIONS}"
            )
        self.config = config
        self.experts_implementation = experts_implementation
        olmoe = olmoe_config(config, experts_implementation)
        num_embeddings = config.embedding_size + config.additional_vocab_size
        self.embedding = nn.Embedding(num_embeddings, config.d_model)  # the two published tables, stacked
        self.vision_backbone = VisionBackbone(config)
        self.blocks = nn.ModuleList([TextBlock(olmoe, index) for index in range(config.num_blocks)])
        self.final_norm = RMSNorm(config.d_model, eps=config.norm_eps)
        self.lm_head = nn.Linear(config.d_model, config.embedding_size, bias=False)
        self._inverse_frequencies: dict[torch.device, Tensor] = {}

    @property
    def device(self) -> torch.device:
        return self.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.lm_head.weight.dtype

    def init_weights(self, seed: int, std: float = 0.02) -> Molmoe:
        """Draws all weights from a normal distribution, on the CPU; norms get 1, biases 0. Returns the model."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for module in self.modules():
                for name, parameter in module.named_parameters(recurse=False):
                    if name == "bias":
                        parameter.zero_()
                    elif isinstance(module, RMSNorm | nn.LayerNorm) or name == "qk_norm_weight":
                        parameter.fill_(1)
                    else:
                        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
        return self

    def encode_images(self, crops: Tensor, masks: Tensor) -> Tensor:
        """Maps crops [B, N, P, 3 * patch * patch] and content masks [B, N, P] to features [B, N, Q, D]."""
        return self.vision_backbone(crops, masks)

    def word_embeddings(self, ids: Tensor) -> Tensor:
        """Returns the input embeddings [..., D] of token ids [...]; the padding id -1 reads row 0."""
        return self.embedding(ids.clamp(min=0))

    def embed(self, input_ids: Tensor, features: Tensor | None = None, image_input_idx: Tensor | None = None) -> Tensor:
        """Returns the first block's input [B, T, D]: word embeddings plus the image features at their positions.

        Args:
            input_ids: [B, T], -1 where padded.
            features: [B, N, Q, D] from `encode_images`, or None without an image.
            image_input_idx: [B, N, Q], each feature's position in its row; features at negative positions are dropped.

        Raises:
            IndexError: a position is beyond the end of its row.
        """
        hidden_BTD = self.word_embeddings(input_ids)
        if features is None or image_input_idx is None:
            return hidden_BTD
        batch, length, d_model = hidden_BTD.shape
        position = image_input_idx.reshape(batch, -1).long()
        is_used = position >= 0
        row_start = torch.arange(batch, device=position.device).unsqueeze(1) * length
        # A dropped feature adds zero to its row's first position. A position beyond its row is moved beyond the whole
        # batch, so that index_add itself fails: checking the values here would wait for the device.
        flat = torch.where(position < length, row_start + position.clamp(min=0), batch * length)
        addend = features.reshape(batch, -1, d_model).to(hidden_BTD.dtype) * is_used.unsqueeze(-1)
        summed = hidden_BTD.flatten(0, 1).index_add(0, flat.flatten(), addend.flatten(0, 1))
        return summed.view(batch, length, d_model)

    def position_embeddings(self, position_ids: Tensor) -> Rotary:
        """Returns what `run_block` rotates queries and keys with at positions [B, S]; one call serves all blocks.

        In float32 if the config asks for full precision, otherwise in the model's dtype. Opaque to the caller.
        """
        device = position_ids.device
        if device not in self._inverse_frequencies:
            exponent = torch.arange(0, self.config.head_width, 2, dtype=torch.float32, device=device)
            self._inverse_frequencies[device] = 1.0 / self.config.rope_theta ** (exponent / self.config.head_width)
        cos, sin = rotary_embeddings(position_ids, self._inverse_frequencies[device])
        if self.config.rope_full_precision:
            return cos, sin
        return cos.to(self.dtype), sin.to(self.dtype)

    def run_block(
        self,
        index: int,
        hidden: Tensor,
        *,
        top_k: int | Tensor,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: Cache | KeyValueState | None = None,
        position_embeddings: Rotary | None = None,
        watch: TieWatch | None = None,
    ) -> Tensor:
        """Runs one block on hidden [B, S, D] and returns [B, S, D]. To skip a block, do not call it.

        Args:
            top_k: experts per token in this block, 1 to the number of experts: for all rows, or [B] int64 on the CPU,
                one for each, so that plans that differ in top-k alone run in one batch. Applies to this call only.
            position_ids: [B, S]. May be omitted when `position_embeddings` is given.
            attention_mask: [B or 1, 1, S, KV], bool (True = attend) or additive. None means causal attention over S
                positions without a past, or, for S = 1, attention to everything cached.
            cache: extended by this call's keys and values under `index`; a skipped block adds nothing.
            position_embeddings: the result of `position_embeddings(position_ids)`, to compute it once per pass.
            watch: records the router's ties, without changing the result.

        Raises:
            ValueError: top_k is out of range, positions are missing, or several positions follow a cached past without
                a mask.
        """
        if isinstance(top_k, int) and not 1 <= top_k <= self.config.num_experts:
            raise ValueError(f"top_k is {top_k}, not from 1 to {self.config.num_experts}")
        if position_embeddings is None:
            if position_ids is None:
                raise ValueError("run_block needs position_ids or position_embeddings")
            position_embeddings = self.position_embeddings(position_ids)
        if attention_mask is None and cache is not None and hidden.shape[1] > 1 and cache.get_seq_length(index):
            raise ValueError("several positions after a cached past need an attention_mask")
        return self.blocks[index](hidden, top_k, position_embeddings, attention_mask, cache, watch)

    def keys_values(self, index: int, hidden: Tensor, position_embeddings: Rotary) -> tuple[Tensor, Tensor]:
        """Returns a block's keys and values [B, K, S, W] for hidden [B, S, D], without running the block.

        In a plan's last block, positions before the last one need nothing else.
        """
        block = cast(TextBlock, self.blocks[index])
        return block.attn.keys_values(block.attn_norm(hidden), position_embeddings)

    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and head: [B, S, D] -> [B, S, V]."""
        return self.lm_head(self.final_norm(hidden))
