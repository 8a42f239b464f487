"""What the bases predict: leading principal components of the outcomes under every setting."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SMOOTH_SHARE = 3  # every third feature belongs to the smooth part


def feature_parts(features: int) -> tuple[int, int]:
    """Returns the number of features in the linear and in the smooth part of a basis."""
    smooth = features // SMOOTH_SHARE
    return features - smooth, smooth


def outcome_targets(accuracy_RX: Tensor, log_latency_RX: Tensor, linear: int, smooth: int) -> tuple[Tensor, Tensor]:
    """Returns the targets of the linear part, [R, <= linear], and the leading ones for the smooth part, [R, <= smooth].

    Two thirds of each are components of accuracy, one third of log latency.
    """
    accuracy_RC = principal_targets(accuracy_RX, linear - linear // 3)
    latency_RC = principal_targets(log_latency_RX, linear // 3)
    leading = accuracy_RC[:, : smooth - smooth // 3], latency_RC[:, : smooth // 3]
    return torch.cat([accuracy_RC, latency_RC], dim=1), torch.cat(leading, dim=1)


def principal_targets(value_RX: Tensor, count: int) -> Tensor:
    """Returns the leading principal components of the columns, [R, min(count, X)]; NaN counts as the column's mean.

    All components share one scale, chosen so that the total variance of the columns is 1.
    """
    known_RX = torch.isfinite(value_RX)
    mean_X = value_RX.nan_to_num(nan=0.0).sum(dim=0) / known_RX.sum(dim=0).clamp(min=1)
    centred_RX = torch.where(known_RX, value_RX - mean_X, torch.zeros(())).double()
    variance_C, vector_XC = torch.linalg.eigh(centred_RX.T @ centred_RX)
    vector_XC = vector_XC.flip(1)[:, :count]
    vector_XC = vector_XC * torch.where(vector_XC.sum(dim=0) < 0, -1.0, 1.0)  # fixes the arbitrary sign
    total = float(variance_C.clamp(min=0).sum()) / max(1, len(value_RX))
    return (centred_RX @ vector_XC / math.sqrt(total or 1.0)).float()
