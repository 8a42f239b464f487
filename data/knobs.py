"""The knobs, the values they may take, and the map from the controllers' choices to settings.

Shapes: X settings; T tiers, P insertion positions, K values of top-k, N of num_blocks; J = T*P choices of Stage1,
A = K*N choices of Stage2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import UnknownSetting
from .files.json_fields import JsonFields

if TYPE_CHECKING:  # methods import numpy themselves, so that the command line knows knob spaces without loading it
    import numpy as np
    from numpy.typing import NDArray

KNOBS = ("tier", "insertion_position", "top_k", "num_blocks")
DEFAULT_TIER_CROPS = {"low": (1, 3), "medium": (4, 8), "high": (9, 15)}

_Scalar = TypeVar("_Scalar", bound="np.generic")


@dataclass(frozen=True)
class KnobSetting:
    """One value for each knob: how a sample is run."""

    tier: str
    insertion_position: int | None  # number of blocks before the latency token is read; None in imported results
    top_k: int  # experts per token, in the blocks after the insertion position
    num_blocks: int  # total number of blocks run, including those before the insertion position

    def __str__(self) -> str:
        position = "-" if self.insertion_position is None else self.insertion_position
        return f"{self.tier}/p{position}/k{self.top_k}/n{self.num_blocks}"


@dataclass(frozen=True)
class KnobSpace:
    """The values each knob may take. Stored in the cache's manifest; nothing else repeats them.

    Stage1 chooses a pair (tier, insertion position), numbered tier-major; Stage2 chooses a pair (top-k, num_blocks),
    numbered top-k-major. `setting_JA` maps both choices to a setting.

    `insertion_positions` is `(None,)` in caches of imported results, which record no position.
    A tier is an inclusive range of image detail, in `tier_unit`: `tier_crops` holds crops, not counting the global
    view, or `tier_vision_tokens` holds visual tokens. Neither is known when another program's cache has custom tiers
    and does not state their ranges.
    """

    tiers: tuple[str, ...] = ("low", "medium", "high")
    insertion_positions: tuple[int | None, ...] = (1, 2, 3, 4, 5)
    top_k: tuple[int, ...] = (4, 5, 6, 7, 8)
    num_blocks: tuple[int, ...] = (12, 13, 14, 15, 16)
    tier_crops: tuple[tuple[int, int], ...] | None = None
    tier_vision_tokens: tuple[tuple[int, int], ...] | None = None

    def __post_init__(self) -> None:
        for name in ("tiers", "insertion_positions", "top_k", "num_blocks"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise UnknownSetting(f"knob `{name}` needs at least one value and no duplicates, not {list(values)}")
        if any(value < 1 for value in (*self.top_k, *self.num_blocks)):
            raise UnknownSetting(f"top_k and num_blocks start at 1: {list(self.top_k)}, {list(self.num_blocks)}")
        if any(value is not None and value < 1 for value in self.insertion_positions):
            raise UnknownSetting(f"insertion_positions start at 1: {list(self.insertion_positions)}")
        if self.tier_ranges is None and all(tier in DEFAULT_TIER_CROPS for tier in self.tiers):
            object.__setattr__(self, "tier_crops", tuple(DEFAULT_TIER_CROPS[tier] for tier in self.tiers))
        if self.tier_crops is not None and self.tier_vision_tokens is not None:
            raise UnknownSetting("tiers are ranges of crops or of visual tokens, not of both")
        field = f"tier_{self.tier_unit}"
        if self.tier_ranges is not None and len(self.tier_ranges) != len(self.tiers):
            raise UnknownSetting(f"{len(self.tiers)} tiers, but {field} has {len(self.tier_ranges)} ranges")
        if self.tier_ranges is not None and any(not 1 <= low <= high for low, high in self.tier_ranges):
            raise UnknownSetting(f"a range in {field} is empty or starts below 1: {self.tier_ranges}")

    @property
    def tier_unit(self) -> str:
        """What a tier's range counts: "crops" or "vision_tokens"."""
        return "crops" if self.tier_vision_tokens is None else "vision_tokens"

    @property
    def tier_ranges(self) -> tuple[tuple[int, int], ...] | None:
        """Each tier's inclusive range in `tier_unit`; None if the cache states none."""
        return self.tier_crops if self.tier_vision_tokens is None else self.tier_vision_tokens

    @property
    def values(self) -> tuple[tuple[str, ...], tuple[int | None, ...], tuple[int, ...], tuple[int, ...]]:
        """The values of each knob, in the order of `KNOBS`."""
        return self.tiers, self.insertion_positions, self.top_k, self.num_blocks

    @cached_property
    def settings(self) -> tuple[KnobSetting, ...]:
        """All combinations that can run, in the order of the cache's setting axis.

        The first p blocks always run, so a setting with insertion position p needs at least p blocks.
        """
        grid = product(*self.values)
        return tuple(KnobSetting(t, p, k, n) for t, p, k, n in grid if p is None or n >= p)

    @cached_property
    def _index(self) -> dict[KnobSetting, int]:
        return {setting: index for index, setting in enumerate(self.settings)}

    def index(self, setting: KnobSetting) -> int:
        """Returns the position of `setting` in `settings`. Raises UnknownSetting; never the nearest value."""
        if setting not in self._index:
            raise UnknownSetting(f"setting {setting} is not in the knob space: {self}")
        return self._index[setting]

    def __contains__(self, setting: object) -> bool:
        return setting in self._index

    @cached_property
    def value_index_KX(self) -> NDArray[np.int64]:
        """For each knob of `KNOBS` and each setting, the index of the setting's value, [4, X]."""
        import numpy as np

        index = [{value: place for place, value in enumerate(values)} for values in self.values]
        rows = [[index[knob][getattr(s, name)] for s in self.settings] for knob, name in enumerate(KNOBS)]
        return np.array(rows, dtype=np.int64)

    @cached_property
    def setting_TPKN(self) -> NDArray[np.int64]:
        """The setting of each combination of value indices; -1 for a combination that cannot run."""
        import numpy as np

        setting_TPKN = np.full([len(values) for values in self.values], -1, dtype=np.int64)
        setting_TPKN[tuple(self.value_index_KX)] = np.arange(len(self.settings))
        return setting_TPKN

    @property
    def setting_JA(self) -> NDArray[np.int64]:
        """The setting of each Stage1 choice and Stage2 choice; -1 for a pair of choices that cannot run."""
        return self.setting_TPKN.reshape(self.num_stage1_choices, self.num_stage2_choices)

    @property
    def num_stage1_choices(self) -> int:
        """J."""
        return len(self.tiers) * len(self.insertion_positions)

    @property
    def num_stage2_choices(self) -> int:
        """A."""
        return len(self.top_k) * len(self.num_blocks)

    @cached_property
    def stage1_choice_X(self) -> NDArray[np.int64]:
        """The Stage1 choice that each setting belongs to."""
        return self.stage1_choice(self.value_index_KX[0], self.value_index_KX[1])

    def stage1_choice(self, tier_B: NDArray[np.int64], position_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the Stage1 choices made of tier and insertion-position indices."""
        return tier_B * len(self.insertion_positions) + position_B

    def setting_index(
        self,
        tier_B: NDArray[np.int64],
        position_B: NDArray[np.int64],
        top_k_B: NDArray[np.int64],
        num_blocks_B: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Returns the setting of each combination of value indices. Raises UnknownSetting for one that cannot run."""
        import numpy as np

        index_B = self.setting_TPKN[tier_B, position_B, top_k_B, num_blocks_B]
        if (index_B < 0).any():
            row = int(np.flatnonzero(index_B < 0)[0])
            raise UnknownSetting(
                f"a policy chose {self.tiers[tier_B[row]]}/p{self.insertion_positions[position_B[row]]}"
                f"/k{self.top_k[top_k_B[row]]}/n{self.num_blocks[num_blocks_B[row]]}, which cannot run: "
                "the blocks before the insertion position always run"
            )
        return index_B

    def by_choice(self, value_BX: NDArray[_Scalar], fill: float | bool) -> NDArray[_Scalar]:
        """Returns values per setting, [..., X], as values per pair of choices, [..., J, A].

        `fill` is the value of pairs that cannot run.
        """
        import numpy as np

        value_BJA = np.take(value_BX, self.setting_JA, axis=-1)
        value_BJA[..., self.setting_JA < 0] = fill
        return value_BJA

    @cached_property
    def mean_tier_sizes(self) -> tuple[float, ...]:
        """The middle of each tier's range, in `tier_unit`; the tier's rank, from 1, if the cache states no ranges."""
        if self.tier_ranges is None:
            return tuple(float(rank) for rank in range(1, len(self.tiers) + 1))
        return tuple((low + high) / 2 for low, high in self.tier_ranges)

    def __str__(self) -> str:
        positions = ["none" if p is None else p for p in self.insertion_positions]
        return (
            f"tiers {list(self.tiers)}, insertion positions {positions}, "
            f"top-k {list(self.top_k)}, num_blocks {list(self.num_blocks)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the manifest's `knobs`. Imported results, which have no insertion position, get an empty list."""
        record: dict[str, Any] = {
            "tiers": list(self.tiers),
            "insertion_positions": [p for p in self.insertion_positions if p is not None],
            "top_k": list(self.top_k),
            "num_blocks": list(self.num_blocks),
        }
        if self.tier_vision_tokens is not None:
            record["tier_unit"] = self.tier_unit
        if self.tier_ranges is not None:
            record[f"tier_{self.tier_unit}"] = [list(ends) for ends in self.tier_ranges]
        return record

    @classmethod
    def from_options(
        cls,
        tiers: str = "",
        insertion_positions: str = "",
        top_k: str = "",
        num_blocks: str = "",
        *,
        default: KnobSpace | None = None,
    ) -> KnobSpace:
        """Returns the space given by comma-separated options; an empty option keeps the default values.

        A tier is the name of a default tier, or `NAME=MIN-MAX` with its range in the default space's `tier_unit`.

        Args:
            default: the model's default knobs; None: those of MolmoE.

        Raises:
            UnknownSetting: a tier or value cannot be parsed.
        """
        default = cls() if default is None else default
        known = dict(zip(default.tiers, default.tier_ranges or (), strict=False))
        known = {**DEFAULT_TIER_CROPS, **known} if default.tier_unit == "crops" else known
        ranges: dict[str, tuple[int, int]] = {}
        for item in _items(tiers):
            name, _, span = item.partition("=")
            low, _, high = span.partition("-")
            if span and low.isdecimal() and high.isdecimal():
                ranges[name] = (int(low), int(high))
            elif span or name not in known:
                unit = "crops" if default.tier_unit == "crops" else "visual tokens"
                raise UnknownSetting(
                    f"tier {item!r} is unknown: use {', '.join(known)}, or NAME=MIN-MAX {unit} for your own"
                )
            else:
                ranges[name] = known[name]
        if len(ranges) != len(_items(tiers)):
            raise UnknownSetting(f"{tiers!r} names a tier twice")
        sizes = {f"tier_{default.tier_unit}": tuple(ranges.values()) or default.tier_ranges}
        return cls(
            tuple(ranges) or default.tiers,
            _whole_numbers("insertion position", insertion_positions) or default.insertion_positions,
            _whole_numbers("top-k", top_k) or default.top_k,
            _whole_numbers("num_blocks", num_blocks) or default.num_blocks,
            **sizes,
        )

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> KnobSpace:
        """Returns the space that `to_dict` recorded. Raises UnknownSetting with the field that is wrong."""
        return cls.from_fields(JsonFields(record, "the knob space", UnknownSetting))

    @classmethod
    def from_fields(cls, fields: JsonFields) -> KnobSpace:
        """Reads what `to_dict` writes from part of a file; raises the error of `fields`, with file and field.

        `[]` and `[null]` both mean that no insertion position is known.
        """
        positions = fields.each("insertion_positions", lambda entry, name: entry.optional(name, JsonFields.integer))
        values = (
            tuple(fields.each("tiers", JsonFields.text)),
            tuple(position for position in positions if position is not None) or (None,),
            tuple(fields.each("top_k", JsonFields.integer)),
            tuple(fields.each("num_blocks", JsonFields.integer)),
        )
        # `tier_unit` says which of the two fields is the valid one; without it, ranges are crops.
        unit = fields.optional("tier_unit", JsonFields.text) or "crops"
        if unit not in ("crops", "vision_tokens"):
            raise fields.fail("tier_unit", f"must be crops or vision_tokens, not {unit!r}")
        ranges = fields.optional(f"tier_{unit}", lambda inner, name: tuple(inner.each(name, _tier_range)))
        crops, vision_tokens = (ranges, None) if unit == "crops" else (None, ranges)
        try:
            return cls(*values, tier_crops=crops, tier_vision_tokens=vision_tokens)
        except UnknownSetting as cause:
            raise fields.fail(None, f"cannot be a knob space: {cause}") from cause


def _items(option: str) -> list[str]:
    return [item.strip() for item in option.split(",") if item.strip()]


def _whole_numbers(name: str, option: str) -> tuple[int, ...]:
    for item in _items(option):
        if not (item.isascii() and item.isdecimal()):
            raise UnknownSetting(f"{name} {item!r} is not a whole number; give values such as 4,6,8")
    return tuple(int(item) for item in _items(option))


def _tier_range(fields: JsonFields, name: str) -> tuple[int, int]:
    ends = fields.each(name, JsonFields.integer)
    if len(ends) != 2:
        raise fields.fail(name, f"must be a range of two whole numbers, not {ends}")
    return ends[0], ends[1]
