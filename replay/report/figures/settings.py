"""Accuracy and latency of the knob settings, as maps over tier, top-k and number of blocks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .budgets import setting_means
from .cells import DataTable, number, table
from .source import Absent, Basis, ReportSource

MAX_CELLS = 4000  # of all maps together; more could not be read

Map = tuple[tuple[float | None, ...], ...]  # [top-k][num_blocks]; None where no setting has outcomes


class HeatMaps(NamedTuple):
    """Means over the samples and the insertion positions."""

    tiers: tuple[str, ...]
    top_k: tuple[int, ...]
    num_blocks: tuple[int, ...]
    accuracy: tuple[Map, ...]  # by tier, 0 to 1
    latency_ms: tuple[Map, ...]  # by tier
    n_positions: int
    basis: Basis

    @property
    def caption(self) -> str:
        positions = f", and over {self.n_positions} insertion positions" if self.n_positions > 1 else ""
        return (
            "Every setting, run for every question: accuracy above, latency below, one map per image tier. Means over "
            f"the questions{positions}; without intervals. {self.basis.counted}."
        )

    @property
    def table(self) -> DataTable:
        return table(
            ("tier", "experts per token", "blocks run", "accuracy (%)", "latency (ms)"),
            (
                (
                    tier,
                    number(top_k, 0),
                    number(num_blocks, 0),
                    number(self.accuracy[t][k][n], 1, percent=True),
                    number(self.latency_ms[t][k][n], 1),
                )
                for t, tier in enumerate(self.tiers)
                for k, top_k in enumerate(self.top_k)
                for n, num_blocks in enumerate(self.num_blocks)
            ),
        )


def heat_maps(source: ReportSource) -> HeatMaps | Absent:
    space = source.report.decisions.tables.space
    cells = len(space.tiers) * len(space.top_k) * len(space.num_blocks)
    if cells > MAX_CELLS:
        return Absent(f"the knob space has {cells:,} combinations of tier, top-k and blocks, too many to draw")
    accuracy_X, latency_ms_X = setting_means(source)
    return HeatMaps(
        space.tiers,
        space.top_k,
        space.num_blocks,
        _maps(accuracy_X[space.setting_TPKN], space.setting_TPKN >= 0),
        _maps(latency_ms_X[space.setting_TPKN], space.setting_TPKN >= 0),
        len(space.insertion_positions),
        source.basis,
    )


def _maps(value_TPKN: NDArray[np.float64], exists_TPKN: NDArray[np.bool_]) -> tuple[Map, ...]:
    """Returns the means over insertion positions, of the combinations that can run and have outcomes."""
    known = exists_TPKN & np.isfinite(value_TPKN)
    total_TKN, count_TKN = np.where(known, value_TPKN, 0.0).sum(axis=1), known.sum(axis=1)
    return tuple(
        tuple(
            tuple(float(t / c) if c else None for t, c in zip(totals, counts, strict=True))
            for totals, counts in zip(total_KN, count_KN, strict=True)
        )
        for total_KN, count_KN in zip(total_TKN, count_TKN, strict=True)
    )
