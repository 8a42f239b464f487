"""Weights for transformers to load: read tensor by tensor, with a layer's experts copied into place one by one.

Many checkpoints hold one tensor for each expert, and transformers stacks them. It would hold both at once, and with its
threads, those of many layers. Here the stacked tensor is allocated once and filled.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
)

from ..checkpoint_files import open_shard, shard_tensors


class Readable:
    """A tensor in a file; `[...]` reads it, as transformers does."""

    def get_shape(self) -> list[int]: ...
    def get_dtype(self) -> str: ...
    def __getitem__(self, index: Any) -> Tensor: ...


@dataclass(frozen=True)
class StackedExperts:
    """One parameter made of one tensor for each expert, or of several that are concatenated.

    Args:
        parts: the tensors of each expert.
    """

    parts: tuple[tuple[Any, ...], ...]

    def __getitem__(self, index: Any) -> Tensor:
        assert index is Ellipsis, "read as a whole"
        rows = [part.get_shape()[0] for part in self.parts[0]]
        first = self.parts[0][0][...]
        stacked = torch.empty((len(self.parts), sum(rows), *first.shape[1:]), dtype=first.dtype)
        for expert, parts in enumerate(self.parts):
            for place, part in zip(stacked[expert].split(rows), parts, strict=True):
                place.copy_(part[...])
        return stacked


@contextmanager
def readable_weights(directory: Path, prefix: str = "") -> Iterator[dict[str, Any]]:
    """Opens every weight file and gives its tensors by name, unread.

    Args:
        prefix: gives only tensors whose names start with it, and leaves it out of the names.

    Raises:
        CheckpointError: there are no safetensors, or a file cannot be read.
    """
    with ExitStack() as files:
        tensors: dict[str, Any] = {}
        for shard, names in shard_tensors(directory).items():
            opened = files.enter_context(open_shard(shard, map_file=False))
            tensors |= {name: opened.get_slice(name) for name in names}
        yield {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def stack_experts(weights: Mapping[str, Any], model: PreTrainedModel) -> dict[str, Any]:
    """Replaces the tensors that transformers would stack into one parameter by one tensor under that parameter's name.

    Args:
        model: on the meta device; its class says how names in files become names of parameters.
    """
    conversions = get_model_conversion_mapping(model)
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns if _stacks(entry)}
    parameters = model.state_dict()
    kept: dict[str, Any] = {}
    groups: dict[str, dict[str, list[str]]] = {}
    for name in sorted(weights, key=_natural):
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, parameters)
        if pattern in by_pattern and target in parameters:
            groups.setdefault(target, {}).setdefault(pattern, []).append(name)
        else:
            kept[name] = weights[name]
    for target, sources in groups.items():
        (converter,) = {id(by_pattern[pattern]): by_pattern[pattern] for pattern in sources}.values()
        columns = [[weights[name] for name in sources.get(pattern, ())] for pattern in converter.source_patterns]
        stacked = StackedExperts(tuple(zip(*columns, strict=False)))
        shapes = {tuple(part.get_shape()) for column in columns for part in column[:1]}
        whole = len({len(column) for column in columns}) == 1 and len({shape[1:] for shape in shapes}) == 1
        if whole and target not in kept:
            kept[target] = stacked
        else:  # transformers says what is missing
            kept |= {name: weights[name] for names in sources.values() for name in names}
    return kept


def _stacks(converter: WeightConverter) -> bool:
    """Whether a conversion only stacks experts, after concatenating an expert's tensors along their rows."""
    kinds = [(type(operation), getattr(operation, "dim", None)) for operation in converter.operations]
    single = kinds == [(MergeModulelist, 0)] and len(converter.source_patterns) == 1
    return single or kinds == [(MergeModulelist, 0), (Concatenate, 1)]


def _natural(name: str) -> list[Any]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
