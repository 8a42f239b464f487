"""The typical norm of a model's input embeddings, to which probes are scaled."""

from __future__ import annotations

from torch import Tensor


def median_norm(weight_VD: Tensor) -> float:
    """Returns the median norm of the rows, without untrained rows, which are zero; 1 if all are."""
    norms = weight_VD.detach().float().norm(dim=-1)
    used = norms[norms > 0]
    return float(used.median()) if len(used) else 1.0
