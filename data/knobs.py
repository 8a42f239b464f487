"""The knobs and the values they may take: the one home of knob values, from which everything else takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from .errors import UnknownSetting
from .files.json_fields import JsonFields

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
            fields.optional("tier_crops", lambda inner, name: tuple(inner.each(name, _crop_range))),
        )
        try:
            return cls(*values)
        except UnknownSetting as cause:
            raise fields.fail(None, f"cannot be a knob space: {cause}") from cause


def _items(option: str) -> list[str]:
    return [item.strip() for item in option.split(",") if item.strip()]


def _whole_numbers(name: str, option: str) -> tuple[int, ...]:
    for item in _items(option):
        if not (item.isascii() and item.isdecimal()):
            raise UnknownSetting(f"{name} {item!r} is not a whole number; give values such as 4,6,8")
    return tuple(int(item) for item in _items(option))


def _crop_range(fields: JsonFields, name: str) -> tuple[int, int]:
    ends = fields.each(name, JsonFields.integer)
    if len(ends) != 2:
        raise fields.fail(name, f"must be a crop range of two whole numbers, not {ends}")
    return ends[0], ends[1]
