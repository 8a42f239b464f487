"""Maps image crops to the features that are added to the text: CLIP's encoder, attention pooling, a projector.

Shapes: B batch, N crops, P patches per crop, C width of the vision tower, Q pooled features per crop, D d_model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPVisionConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from .config import MolmoeConfig


def _attend_in_float32(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: object
) -> tuple[Tensor, None]:
    """Runs SDPA on float32 copies and casts back, as the config's `float32_attention` requires."""
    mixed, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](
        module, query.float(), key.float(), value.float(), attention_mask, **options
    )
    return mixed.to(query.dtype), None


ALL_ATTENTION_FUNCTIONS.register("sdpa_float32", _attend_in_float32)


def _clip_config(config: MolmoeConfig) -> CLIPVisionConfig:
    vision = config.vision
    clip = CLIPVisionConfig(
        hidden_size=vision.width,
        intermediate_size=vision.mlp_width,
        num_hidden_layers=vision.num_layers,
        num_attention_heads=vision.num_heads,
        image_size=vision.image_height,
        patch_size=vision.patch_size,
        hidden_act="quick_gelu",
        layer_norm_eps=vision.norm_eps,
        attention_dropout=0.0,
    )
    clip._attn_implementation = "sdpa_float32" if config.float32_vision_attention else "sdpa"
    return clip


class VisionTower(nn.Module):
    """The ViT. Layers after the last one in `vit_layers` are loaded but not run."""

    def __init__(self, config: MolmoeConfig) -> None:
        super().__init__()
        vision = config.vision
        clip = _clip_config(config)
        self.layer_indices = config.vit_layer_indices
        self.class_embedding = nn.Parameter(torch.zeros(vision.width))
        self.positional_embedding = nn.Parameter(torch.zeros(vision.num_patches + 1, vision.width))
        self.patch_embedding = nn.Linear(vision.patch_width, vision.width, bias=False)
        self.pre_ln = nn.LayerNorm(vision.width, eps=vision.norm_eps)
        self.layers = nn.ModuleList([CLIPEncoderLayer(clip) for _ in range(vision.num_layers)])

    def forward(self, crops: Tensor) -> Tensor:
        """Maps crops [crops, P, 3 * patch * patch] to the chosen layers' concatenated outputs [crops, P, layers * C].

        A patch is flattened as (row, column, channel), channel fastest.
        """
        hidden = self.patch_embedding(crops.to(self.patch_embedding.weight.dtype))
        class_token = self.class_embedding.expand(hidden.shape[0], 1, -1)
        hidden = self.pre_ln(torch.cat([class_token, hidden], dim=1) + self.positional_embedding)
        outputs: dict[int, Tensor] = {}
        for index, layer in enumerate(self.layers[: max(self.layer_indices) + 1]):
            hidden = layer(hidden, attention_mask=None)
            if index in self.layer_indices:
                outputs[index] = hidden
        return torch.cat([outputs[index][:, 1:] for index in self.layer_indices], dim=-1)


class AttentionPooling(nn.Module):
    """Attention pooling: the mean of each window attends to the window's vectors."""

    is_causal = False  # read by transformers' attention functions

    def __init__(self, config: MolmoeConfig) -> None:
        super().__init__()
        width, vision = config.vision.width, config.vision
        self.head_width = width // vision.num_heads
        self.attention = "sdpa_float32" if config.float32_vision_attention else "sdpa"
        source_width = width * len(config.vit_layers)
        self.wq = nn.Linear(source_width, width)
        self.wk = nn.Linear(source_width, width)
        self.wv = nn.Linear(source_width, width)
        self.wo = nn.Linear(width, width)

    def forward(self, windows: Tensor) -> Tensor:
        """Maps windows [windows, vectors, layers * C] to [windows, C]."""

        def heads(projected: Tensor) -> Tensor:
            return projected.unflatten(-1, (-1, self.head_width)).transpose(1, 2)

        query = heads(self.wq(windows.mean(dim=1, keepdim=True)))
        mixed, _ = ALL_ATTENTION_FUNCTIONS[self.attention](
            self, query, heads(self.wk(windows)), heads(self.wv(windows)), None, scaling=self.head_width**-0.5
        )
        return self.wo(mixed.flatten(1))


class ImageProjector(nn.Module):
    """Gated MLP from the tower's width to the text decoder's."""

    def __init__(self, config: MolmoeConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.vision.width, config.projector_width, bias=False)
        self.w3 = nn.Linear(config.vision.width, config.projector_width, bias=False)
        self.w2 = nn.Linear(config.projector_width, config.d_model, bias=False)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.w2(functional.silu(self.w1(pooled)) * self.w3(pooled))


class VisionBackbone(nn.Module):
    """Tower, padding vectors, pooling and projector."""

    def __init__(self, config: MolmoeConfig) -> None:
        super().__init__()
        self.config = config
        self.image_vit = VisionTower(config)
        self.pad_embed = nn.Parameter(torch.zeros(2, config.vision.width * len(config.vit_layers)))
        self.image_pooling_2d = AttentionPooling(config)
        self.image_projector = ImageProjector(config)

    def features(self, crops_BNPX: Tensor, masks_BNP: Tensor) -> Tensor:
        """Returns the tower's features plus the padding vectors, [B, N, P, layers * C].

        A crop that is -1 everywhere is batch padding: its features are zeroed first. Patches with mask 0 get the first
        padding vector, all others with a mask below 1 (including negative ones) the second.
        """
        features = self.image_vit(crops_BNPX.flatten(0, 1)).unflatten(0, crops_BNPX.shape[:2])
        is_padding_BN11 = (crops_BNPX == -1).flatten(2).all(dim=-1)[..., None, None]
        features = features.masked_fill(is_padding_BN11, 0)
        is_empty_BNP1 = (masks_BNP == 0).unsqueeze(-1)
        is_partial_BNP1 = ((masks_BNP < 1) & (masks_BNP != 0)).unsqueeze(-1)
        empty, partial = self.pad_embed.float()
        return (features.float() + empty * is_empty_BNP1 + partial * is_partial_BNP1).to(features.dtype)

    def pool(self, features_BNPC: Tensor) -> Tensor:
        """Returns one vector per window of patches, [B, N, Q, C]; windows and their vectors are in row-major order."""
        rows, columns = self.config.pooled_grid
        height, width = self.config.pooling_height, self.config.pooling_width
        windows = features_BNPC.unflatten(2, (rows, height, columns, width)).transpose(3, 4)
        pooled = self.image_pooling_2d(windows.flatten(0, 3).flatten(1, 2))
        return pooled.unflatten(0, (*features_BNPC.shape[:2], rows * columns))

    def forward(self, crops_BNPX: Tensor, masks_BNP: Tensor) -> Tensor:
        """Maps crops [B, N, P, 3 * patch * patch] and their content masks [B, N, P] to features [B, N, Q, D]."""
        return self.image_projector(self.pool(self.features(crops_BNPX, masks_BNP)))
