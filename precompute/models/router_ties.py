"""Router ties: rows whose choice of experts might differ in another batch shape."""

from __future__ import annotations

from torch import Tensor

# The last expert kept and the first left out may swap in a batch of another shape when their probabilities differ by
# less than this.
ROUTER_TIE = 1e-7


class TieWatch:
    """Records which rows had a tie in any call of one pass. Shapes: R rows, S positions."""

    def __init__(self) -> None:
        self.tied_R: Tensor | None = None

    def see(self, probability_RSk: Tensor, top_k: int | Tensor) -> None:
        """Compares the last expert kept with the first one left out.

        Args:
            probability_RSk: the largest probabilities in descending order, at least one more than the largest k.
            top_k: for all rows, or [R], one for each.
        """
        gap_RSk = probability_RSk[..., :-1] - probability_RSk[..., 1:]
        if isinstance(top_k, int):
            gap_RS = gap_RSk[..., top_k - 1]
        else:
            gap_RS = gap_RSk.gather(-1, (top_k - 1).view(-1, 1, 1).expand(*gap_RSk.shape[:2], 1)).squeeze(-1)
        self.note((gap_RS < ROUTER_TIE).any(dim=-1))

    def note(self, tied_R: Tensor) -> None:
        """Adds which rows [R] bool had a tie in one call."""
        self.tied_R = tied_R if self.tied_R is None else self.tied_R | tied_R
