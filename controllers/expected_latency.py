"""The expected latency of each setting, from what is known before the model runs: dataset, visual and text tokens.

    latency_ms = offset of dataset and setting + vision_ms * visual tokens + text_ms * text tokens

Latency is linear in token counts to first order: each token adds its share to vision and prefill. The dataset stands
for the length of its answers. `replay/latency_fit.py` fits the coefficients; this file evaluates them.

Shapes: B requests, X settings, T tiers, G datasets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data.errors import KnobctlError
from ..data.files.json_fields import JsonFields
from ..data.knobs import KnobSpace

INPUTS = ("vision_tokens", "text_tokens")
MAX_DATASETS = 1 << 10
MAX_OFFSETS = 1 << 22


@dataclass(frozen=True)
class LatencyError:
    """How far expected latencies are from measured ones, |expected / measured - 1|, on samples not fitted to."""

    samples: int
    outcomes: int
    median: float
    p95: float


@dataclass(frozen=True)
class TypicalRequest:
    """Means over a dataset's training samples: visual tokens in the highest tier, and tokens of the answer."""

    vision_tokens: float
    output_tokens: float


class ExpectedLatency(nn.Module):
    """One linear function of the token counts for each setting.

    Args:
        inputs: the token counts that the cache recorded, of `INPUTS`; without one, its coefficients are 0 and its value
            is not read. Without both, a setting's expected latency is a constant of the dataset.
        held_out: the errors on samples that the coefficients were not fitted to; None if there were none.
        typical: the typical request of each dataset for which the cache recorded tokens; the engine's warm-up makes
            requests like it.
    """

    offset_ms_GX: Tensor
    vision_ms_X: Tensor
    text_ms_X: Tensor
    least_ms_X: Tensor  # lowest latency in training: no request is expected to take less
    known_X: Tensor  # whether any training sample has the setting

    def __init__(
        self,
        space: KnobSpace,
        datasets: Sequence[str],
        inputs: Sequence[str] = INPUTS,
        held_out: LatencyError | None = None,
        typical: Mapping[str, TypicalRequest] | None = None,
    ) -> None:
        super().__init__()
        self.datasets, self.inputs, self.held_out = tuple(datasets), tuple(inputs), held_out
        self.typical = dict(typical or {})
        self.tier_X = space.value_index_KX[0]
        settings = len(space.settings)
        self.register_buffer("offset_ms_GX", torch.zeros(len(self.datasets), settings, dtype=torch.float64))
        for name in ("vision_ms_X", "text_ms_X", "least_ms_X"):
            self.register_buffer(name, torch.zeros(settings, dtype=torch.float64))
        self.register_buffer("known_X", torch.zeros(settings, dtype=torch.bool))

    def expected_ms(
        self,
        datasets: Sequence[str],
        vision_tokens_BT: NDArray[np.floating],
        text_tokens_B: NDArray[np.floating],
    ) -> NDArray[np.float64]:
        """Returns the expected latency of every setting, [B, X]; NaN for a setting that no training sample has.

        Args:
            vision_tokens_BT: visual tokens of each request's image in each tier.
            text_tokens_B: tokens of each prompt, as the cache counts them. NaN, a count that is not known, gives NaN.

        Raises:
            KnobctlError: the controllers were not trained on one of the datasets.
        """
        unknown = sorted(set(datasets) - set(self.datasets))
        if unknown:
            raise KnobctlError(
                f"no latency is known for dataset {unknown[0]!r}: the controllers were trained on "
                f"{', '.join(self.datasets)}"
            )
        dataset_B = [self.datasets.index(name) for name in datasets]
        expected_BX = self.offset_ms_GX.numpy()[dataset_B]
        if "vision_tokens" in self.inputs:
            expected_BX = expected_BX + self.vision_ms_X.numpy() * np.asarray(vision_tokens_BT)[:, self.tier_X]
        if "text_tokens" in self.inputs:
            expected_BX = expected_BX + self.text_ms_X.numpy() * np.asarray(text_tokens_B)[:, None]
        return np.where(self.known_X.numpy(), np.maximum(expected_BX, self.least_ms_X.numpy()), np.nan)

    def to_dict(self) -> dict[str, Any]:
        """Returns the checkpoint's `expected_latency`; the coefficients are in the weights file."""
        return {
            "datasets": list(self.datasets),
            "inputs": list(self.inputs),
            "held_out": None if self.held_out is None else asdict(self.held_out),
            "typical": {name: asdict(one) for name, one in self.typical.items()},
        }

    @classmethod
    def from_fields(cls, fields: JsonFields, space: KnobSpace) -> ExpectedLatency:
        """Reads what `to_dict` writes; coefficients are still 0. Raises the error of `fields`, with file and field."""
        datasets = fields.each("datasets", JsonFields.text)
        if not 1 <= len(datasets) <= MAX_DATASETS or len(set(datasets)) != len(datasets):
            raise fields.fail("datasets", f"must name 1 to {MAX_DATASETS:,} distinct datasets, not {len(datasets):,}")
        if len(datasets) * len(space.settings) > MAX_OFFSETS:
            raise fields.fail(
                "datasets", f"has {len(datasets):,} entries, too many for {len(space.settings):,} settings"
            )
        inputs = fields.each("inputs", lambda inner, name: str(inner.one_of(name, INPUTS)))
        recorded = fields.optional("typical", JsonFields.fields)
        typical = {} if recorded is None else {name: _typical(recorded, name) for name in fields.record("typical")}
        return cls(space, datasets, inputs, fields.optional("held_out", _error), typical)

    def check(self, where: str, error: type[KnobctlError]) -> None:
        """Raises `error` unless the coefficients, just loaded, give a positive latency for every known setting."""
        known_X = self.known_X
        wrong = [
            name
            for name, fits in (
                ("least_ms_X", bool((self.least_ms_X[known_X] > 0).all())),
                ("vision_ms_X", bool((self.vision_ms_X >= 0).all())),
                ("text_ms_X", bool((self.text_ms_X >= 0).all())),
            )
            if not fits
        ]
        if wrong:
            raise error(f"{where}: tensor expected_latency.{wrong[0]} holds latencies that nothing can have")


def _typical(fields: JsonFields, name: str) -> TypicalRequest:
    entry = fields.fields(name)
    return TypicalRequest(entry.positive("vision_tokens"), entry.positive("output_tokens"))


def _error(fields: JsonFields, name: str) -> LatencyError:
    entry = fields.fields(name)
    return LatencyError(entry.count("samples"), entry.count("outcomes"), entry.number("median"), entry.number("p95"))
