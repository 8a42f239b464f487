"""Random Fourier features (Rahimi and Recht, 2007) of the leading components of an input."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...controllers.bases import COMPONENTS

LEADING = 8  # components that the first half of the waves is restricted to


@dataclass(frozen=True)
class Directions:
    """Leading principal components: orthonormal columns [D, C], zero beyond the input's rank, and variances [C]."""

    vector_DC: Tensor
    variance_C: Tensor


def leading_directions(xx_DD: Tensor, rows: int, without_BD: Tensor | None = None) -> Directions:
    """Returns the directions of largest variance of centred inputs.

    Args:
        xx_DD: sum of x x' over the inputs.
        rows: number of inputs in the sum.
        without_BD: vectors whose span the directions must be orthogonal to.
    """
    if without_BD is not None:
        _, strength_B, span_BD = torch.linalg.svd(without_BD, full_matrices=False)
        span_BD = span_BD[strength_B > 1e-4 * strength_B.max().clamp(min=1e-12)]
        kept_DD = torch.eye(len(xx_DD)) - span_BD.T @ span_BD
        xx_DD = kept_DD @ xx_DD @ kept_DD
    value_D, vector_DD = torch.linalg.eigh(xx_DD)
    count = min(COMPONENTS, len(xx_DD))
    vector_DC, variance_C = torch.zeros(len(xx_DD), COMPONENTS), torch.zeros(COMPONENTS)
    vector_DC[:, :count] = vector_DD.flip(1)[:, :count]
    variance_C[:count] = value_D.flip(0)[:count].clamp(min=0.0) / max(1, rows)
    significant_C = variance_C > 1e-6 * variance_C.max()  # the others are rounding error, or in the excluded span
    return Directions(vector_DC * significant_C, variance_C * significant_C)


def draw_waves(variance_C: Tensor, waves: int) -> tuple[Tensor, Tensor]:
    """Returns frequencies [C, W] and phases [W], which approximate the mean of two Gaussian kernels.

    Half of the waves read the 8 leading components only, which serves inputs with few relevant directions; the other
    half reads all of them. The width of each kernel is the root mean square distance of two samples in its components.
    """
    generator = torch.Generator().manual_seed(0)  # part of the basis: every run uses the same waves
    wave_CW = torch.randn(len(variance_C), waves, generator=generator)
    wave_CW[LEADING:, : waves // 2] = 0.0
    for part, used in ((slice(0, waves // 2), LEADING), (slice(waves // 2, None), len(variance_C))):
        wave_CW[:, part] /= (2.0 * variance_C[:used].sum()).sqrt().clamp(min=1e-6)
    return wave_CW, torch.rand(waves, generator=generator) * (2 * math.pi)
