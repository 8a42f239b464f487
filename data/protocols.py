"""The protocols that replay and live execution share: an executor runs requests, a policy chooses their settings.

The cache and the live model both implement `Executor`; trained controllers and baselines both implement `Policy`. The
latency of a live request is measured by `TimeRequests`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

from .knobs import KnobSetting
from .outcome import Outcome
from .progress import Progress
from .samples import Sample

if TYPE_CHECKING:  # the command line reads LEAST_RUNS without loading numpy
    import numpy as np
    from numpy.typing import NDArray

Handle = TypeVar("Handle")

LEAST_RUNS = 3  # timed runs of a live request: the fewest whose median a single stalled run does not decide


class Executor(Protocol, Generic[Handle]):
    """Runs one sample in two calls, with Stage2's decision between them."""

    def session(self, budgets_ms: Sequence[float]) -> AbstractContextManager[None]:
        """Returns a context in which requests with these budgets are run."""

    def language_feature(self, sample: Sample) -> NDArray[np.float32]:
        """Returns Stage1's input: the mean of the question's word embeddings, [d_model]."""

    def latency_token(
        self, sample: Sample, tier: str, insertion_position: int, budget_ms: float
    ) -> tuple[NDArray[np.float16], Handle]:
        """Returns the latency token [d_model] and the handle from which `finish` continues."""

    def finish(self, handle: Handle, top_k: int, num_blocks: int) -> Outcome:
        """Runs the remaining blocks under (top_k, num_blocks), decodes, and returns the outcome."""


class RequestToTime(NamedTuple):
    """A request that has been run once, whose latency is to be measured."""

    sample: Sample
    budget_ms: float
    setting: KnobSetting  # that was chosen
    output_tokens: int | None  # of its answer
    controlled: bool
    """The controllers choose again while the clock runs. Otherwise the request runs under `setting`, and requests that
    differ only in their budget share one timing."""


class RequestTiming(NamedTuple):
    """Measured latencies of one request, from pixels on the device to the last token, controllers included."""

    setting: KnobSetting  # that ran
    answer: str | None  # None for a given setting
    latency_ms: float  # median of the runs
    latency_runs_ms: tuple[float, ...]
    controllers_ms: float  # the part of the controllers, median of the runs; 0 for a given setting


TimeRequests = Callable[[Sequence[RequestToTime], Progress], list[RequestTiming]]


class LiveSystem(NamedTuple):
    """What `validate --live` runs: requests in two calls, compared with replay, and the same requests whole, timed."""

    executor: Executor[Any]
    samples: Mapping[str, Sample]
    time_requests: TimeRequests | None  # None: latencies are not measured


LiveFactory = Callable[[Sequence[str]], LiveSystem]  # from the ids of the samples to run


@dataclass(frozen=True)
class Requests:
    """What is known of B requests before the model runs."""

    sample_ids: tuple[str, ...]
    datasets: tuple[str, ...]
    language_feature_BD: NDArray[np.float32]
    budget_ms_B: NDArray[np.float32]
    available_BX: NDArray[np.bool_] | None = None
    """Settings that may be chosen, in the order of `KnobSpace.settings`. In replay these are the settings with a
    recorded outcome, so that a hole in the cache is never chosen; None (as when the model runs) allows all of them."""
    vision_tokens_BT: NDArray[np.float32] | None = None
    """Visual tokens of each request's image in each tier. None, like `text_tokens_B`, where they are not known: then
    the latency of a setting cannot be expected."""
    text_tokens_B: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.sample_ids)


class Policy(Protocol):
    """Maps (sample, budget) to a setting in two calls.

    Indices refer to the knob space: `space.tiers[i]`, `space.insertion_positions[i]`, `space.top_k[i]`, ...
    """

    name: str

    @property
    def uses_latency_token(self) -> bool:
        """Whether `choose_compute` reads the latency token; if not, it is passed None."""

    def choose_image(self, requests: Requests) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Stage1's call, before the vision encoder: (tier index [B], insertion-position index [B])."""

    def choose_compute(
        self,
        requests: Requests,
        tier_B: NDArray[np.int64],
        position_B: NDArray[np.int64],
        token_BD: NDArray[np.float16] | None,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Stage2's call, from the latency token: (top-k index [B], num_blocks index [B])."""
