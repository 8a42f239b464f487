"""Where a setting stands on each knob's axis, as arrays. Knows the knob space and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...data.errors import UnknownSetting
from ...data.knobs import KnobSpace

KNOBS = ("tier", "insertion_position", "top_k", "num_blocks")


@dataclass(frozen=True)
class SettingAxes:
    """The settings of a `KnobSpace`, X of them, as indices into the values of each knob."""

    space: KnobSpace
    axis_KX: NDArray[np.int64]
    """[4, X]: each setting's index on the axes of `KNOBS`."""
    index_TPKN: NDArray[np.int64]
    """[tiers, positions, top-k values, num_blocks values]: the setting's index, -1 where the combination cannot run."""

    @classmethod
    def of(cls, space: KnobSpace) -> SettingAxes:
        values = (space.tiers, space.insertion_positions, space.top_k, space.num_blocks)
        place = [{value: index for index, value in enumerate(axis)} for axis in values]
        axis_KX = np.array(
            [
                [place[0][s.tier], place[1][s.insertion_position], place[2][s.top_k], place[3][s.num_blocks]]
                for s in space.settings
            ],
            dtype=np.int64,
        ).T
        index_TPKN = np.full([len(axis) for axis in values], -1, dtype=np.int64)
        index_TPKN[tuple(axis_KX)] = np.arange(len(space.settings))
        return cls(space, axis_KX, index_TPKN)

    def __len__(self) -> int:
        return self.axis_KX.shape[1]

    @property
    def pair_X(self) -> NDArray[np.int64]:
        """Each setting's (tier, insertion position) as one number: what Stage1 chooses."""
        return self.axis_KX[0] * len(self.space.insertion_positions) + self.axis_KX[1]

    def setting_index(
        self,
        tier_B: NDArray[np.int64],
        position_B: NDArray[np.int64],
        top_k_B: NDArray[np.int64],
        num_blocks_B: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Returns which setting each combination is, [B]. One that cannot run raises UnknownSetting."""
        index_B = self.index_TPKN[tier_B, position_B, top_k_B, num_blocks_B]
        if (index_B < 0).any():
            row = int(np.flatnonzero(index_B < 0)[0])
            space = self.space
            raise UnknownSetting(
                f"a policy chose {space.tiers[tier_B[row]]}/p{space.insertion_positions[position_B[row]]}"
                f"/k{space.top_k[top_k_B[row]]}/n{space.num_blocks[num_blocks_B[row]]}, which cannot run: "
                "the blocks before the insertion position always do"
            )
        return index_B
