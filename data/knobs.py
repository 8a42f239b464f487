"""The knobs and the values they may take: the one home of knob values, from which everything else takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from .errors import UnknownSetting

DEFAULT_TIER_CROPS = {"low": (1, 3), "medium": (4, 8), "high": (9, 15)}


@dataclass(frozen=True)
class KnobSetting:
    """One point of the grid: how one sample is run."""

    tier: str
    insertion_position: int | None  # the latency token is read after this many blocks; None in imported results
    top_k: int  # experts per token, in the blocks after the insertion position
    num_blocks: int  # blocks run in all, those before the insertion position among them

    def __str__(self) -> str:
        position = "-" if self.insertion_position is None else self.insertion_position
        return f"{self.tier}/p{position}/k{self.top_k}/n{self.num_blocks}"


@dataclass(frozen=True)
class KnobSpace:
    """The values each knob may take. The cache's manifest stores it; nothing else repeats it.

    `insertion_positions` is `(None,)` in caches of imported results, which know no position.
    `tier_crops` are the inclusive crop ranges beside the global view, one per tier; None when a foreign cache of
    unusual tiers does not say.
    """

    tiers: tuple[str, ...] = ("low", "medium", "high")
    insertion_positions: tuple[int | None, ...] = (1, 2, 3, 4, 5)
    top_k: tuple[int, ...] = (4, 5, 6, 7, 8)
    num_blocks: tuple[int, ...] = (12, 13, 14, 15, 16)
    tier_crops: tuple[tuple[int, int], ...] | None = None

    def __post_init__(self) -> None:
        for name in ("tiers", "insertion_positions", "top_k", "num_blocks"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise UnknownSetting(f"knob `{name}` needs distinct values, at least one, and has {list(values)}")
        if any(value < 1 for value in (*self.top_k, *self.num_blocks)):
            raise UnknownSetting(f"top_k and num_blocks start at 1: {list(self.top_k)}, {list(self.num_blocks)}")
        if any(value is not None and value < 1 for value in self.insertion_positions):
            raise UnknownSetting(f"insertion_positions start at 1: {list(self.insertion_positions)}")
        if self.tier_crops is None and all(tier in DEFAULT_TIER_CROPS for tier in self.tiers):
            object.__setattr__(self, "tier_crops", tuple(DEFAULT_TIER_CROPS[tier] for tier in self.tiers))
        if self.tier_crops is not None and len(self.tier_crops) != len(self.tiers):
            raise UnknownSetting(f"{len(self.tiers)} tiers, but tier_crops has {len(self.tier_crops)} ranges")
        if self.tier_crops is not None and any(not 1 <= low <= high for low, high in self.tier_crops):
            raise UnknownSetting(f"tier_crops holds a range that is empty or starts below 1: {self.tier_crops}")

    @cached_property
    def settings(self) -> tuple[KnobSetting, ...]:
        """Every combination that can run, in the order of the cache's setting axis.

        The first p blocks always run, so a setting with fewer than p blocks in all cannot.
        """
        grid = product(self.tiers, self.insertion_positions, self.top_k, self.num_blocks)
        return tuple(KnobSetting(t, p, k, n) for t, p, k, n in grid if p is None or n >= p)

    @cached_property
    def _index(self) -> dict[KnobSetting, int]:
        return {setting: index for index, setting in enumerate(self.settings)}

    def index(self, setting: KnobSetting) -> int:
        """Where `setting` stands in `settings`. Outside the space is an error, never the nearest value."""
        if setting not in self._index:
            raise UnknownSetting(f"setting {setting} is not in the knob space: {self}")
        return self._index[setting]

    def __contains__(self, setting: object) -> bool:
        return setting in self._index

    @cached_property
    def mean_crops(self) -> tuple[float, ...]:
        """Each tier's mean number of crops; where the cache names no ranges, the tier's rank from 1 stands in."""
        if self.tier_crops is None:
            return tuple(float(rank) for rank in range(1, len(self.tiers) + 1))
        return tuple((low + high) / 2 for low, high in self.tier_crops)

    def __str__(self) -> str:
        positions = ["none" if p is None else p for p in self.insertion_positions]
        return (
            f"tiers {list(self.tiers)}, insertion positions {positions}, "
            f"top-k {list(self.top_k)}, num_blocks {list(self.num_blocks)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """The manifest's `knobs`. No insertion position (imports) is written as an empty list."""
        record: dict[str, Any] = {
            "tiers": list(self.tiers),
            "insertion_positions": [p for p in self.insertion_positions if p is not None],
            "top_k": list(self.top_k),
            "num_blocks": list(self.num_blocks),
        }
        if self.tier_crops is not None:
            record["tier_crops"] = [list(crops) for crops in self.tier_crops]
        return record

    @classmethod
    def from_options(
        cls, tiers: str = "", insertion_positions: str = "", top_k: str = "", num_blocks: str = ""
    ) -> KnobSpace:
        """Returns the space that options name, comma-separated; an empty option keeps the default's values.

        A tier is `low`, `medium`, `high`, or `NAME=MIN-MAX` with its crops beside the global view.
        """
        default = cls()
        crops: dict[str, tuple[int, int]] = {}
        for item in _items(tiers):
            name, _, span = item.partition("=")
            low, _, high = span.partition("-")
            if span and low.isdecimal() and high.isdecimal():
                crops[name] = (int(low), int(high))
            elif span or name not in DEFAULT_TIER_CROPS:
                raise UnknownSetting(
                    f"tier {item!r} is unknown: use {', '.join(DEFAULT_TIER_CROPS)}, or NAME=MIN-MAX crops for your own"
                )
            else:
                crops[name] = DEFAULT_TIER_CROPS[name]
        if len(crops) != len(_items(tiers)):
            raise UnknownSetting(f"a tier is named twice in {tiers!r}")
        return cls(
            tuple(crops) or default.tiers,
            _whole_numbers("insertion position", insertion_positions) or default.insertion_positions,
            _whole_numbers("top-k", top_k) or default.top_k,
            _whole_numbers("num_blocks", num_blocks) or default.num_blocks,
            tuple(crops.values()) or None,
        )

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> KnobSpace:
        """The opposite of `to_dict`; `[]` and `[null]` both mean that no insertion position is known."""
        missing = [n for n in ("tiers", "insertion_positions", "top_k", "num_blocks") if n not in record]
        if missing:
            raise UnknownSetting(f"the knob space lacks {missing}")
        tiers = tuple(_typed(record, "tiers", str))
        if not isinstance(record["insertion_positions"], list | tuple):
            raise UnknownSetting(f"insertion_positions must be a list, not {record['insertion_positions']!r}")
        positions = [p for p in record["insertion_positions"] if p is not None]
        crops = record.get("tier_crops")
        if crops is not None and not isinstance(crops, list | tuple):
            raise UnknownSetting(f"tier_crops must be a list of crop ranges, not {crops!r}")
        return cls(
            tiers,
            tuple(_typed({"insertion_positions": positions}, "insertion_positions", int)) or (None,),
            tuple(_typed(record, "top_k", int)),
            tuple(_typed(record, "num_blocks", int)),
            None if crops is None else tuple(_crop_range(item) for item in crops),
        )


def _items(option: str) -> list[str]:
    return [item.strip() for item in option.split(",") if item.strip()]


def _whole_numbers(name: str, option: str) -> tuple[int, ...]:
    for item in _items(option):
        if not (item.isascii() and item.isdecimal()):
            raise UnknownSetting(f"{name} {item!r} is not a whole number; give values such as 4,6,8")
    return tuple(int(item) for item in _items(option))


def _typed(record: Mapping[str, Any], name: str, kind: type) -> list[Any]:
    values = record[name]
    if not isinstance(values, list | tuple) or any(type(value) is not kind for value in values):
        raise UnknownSetting(f"knob `{name}` must be a list of {kind.__name__}, not {values!r}")
    return list(values)


def _crop_range(item: Any) -> tuple[int, int]:
    if not isinstance(item, list | tuple) or len(item) != 2 or any(type(value) is not int for value in item):
        raise UnknownSetting(f"a tier's crop range must be two whole numbers, not {item!r}")
    return int(item[0]), int(item[1])
