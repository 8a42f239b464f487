"""Ties of a router: the rows whose choice of experts another batch shape may change."""

from __future__ import annotations

from torch import Tensor

# Two experts whose probabilities at the cut differ by less than this may swap places in a batch of another shape.
ROUTER_TIE = 1e-7


class TieWatch:
    """Collects, over the calls of one pass, which rows met a tie. Shapes: R rows, S positions."""

    def __init__(self) -> None:
        self.tied_R: Tensor | None = None

    def see(self, probability_RSk: Tensor, top_k: int | Tensor) -> None:
        """Compares the last expert taken with the first one left out.

        Args:
            probability_RSk: the largest ones in descending order, at least one more than the largest k.
            top_k: of all rows, or [R].
        """
        gap_RSk = probability_RSk[..., :-1] - probability_RSk[..., 1:]
        if isinstance(top_k, int):
            gap_RS = gap_RSk[..., top_k - 1]
        else:
            gap_RS = gap_RSk.gather(-1, (top_k - 1).view(-1, 1, 1).expand(*gap_RSk.shape[:2], 1)).squeeze(-1)
        tied_R = (gap_RS < ROUTER_TIE).any(dim=-1)
        self.tied_R = tied_R if self.tied_R is None else self.tied_R | tied_R
