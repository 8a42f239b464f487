"""What an engine offers, and what an answer contains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from ..data.knobs import KnobSetting

OnMiss = Literal["fastest", "refuse"]
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class StageLatency:
    """Measured ms of one request's stages, which follow each other."""

    vision: float  # vision encoder, embedding
    prefill: float  # all blocks over the prompt, with the probe
    controllers: float  # the language feature, Stage1 and Stage2
    decode: float  # from the first output token to the last

    @property
    def total(self) -> float:
        return self.vision + self.prefill + self.controllers + self.decode


@dataclass(frozen=True)
class Answer:
    """One answer, the setting it was made under, and its latency."""

    text: str
    setting: KnobSetting
    latency_ms: StageLatency
    expected_latency_ms: float | None  # of the setting, before it ran; None: no training sample had it
    budget_ms: float  # as the engine received it; the controllers get it in whole ms
    within_budget: bool  # the measured total is at most the budget
    prompt_tokens: int  # text and visual tokens
    output_tokens: int
    finish_reason: FinishReason  # `length`: the token limit ended the answer
    preparing_ms: float  # decoding the image, encoding the prompt; not part of the latency, as in a cache

    def summary(self) -> str:
        """Returns setting and latency in one line."""
        ms, met = self.latency_ms, "within" if self.within_budget else "over"
        expected = "unknown" if self.expected_latency_ms is None else f"{self.expected_latency_ms:.1f}"
        return (
            f"{self.setting}: {ms.total:.1f} ms, {met} the budget of {self.budget_ms:g} ms (expected "
            f"{expected}; vision {ms.vision:.1f}, prefill {ms.prefill:.1f}, controllers "
            f"{ms.controllers:.2f}, decode {ms.decode:.1f})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the answer as JSON values; the stages' latencies with their total."""
        return {**asdict(self), "latency_ms": {**asdict(self.latency_ms), "total": self.latency_ms.total}}


class Engine(Protocol):
    """Answers requests one at a time. Its methods are called from one thread; it need not be thread-safe."""

    @property
    def model_name(self) -> str:
        """The name that clients use for the model."""

    @property
    def tasks(self) -> Mapping[str, int]:
        """The datasets whose prompt style can be used, each with its limit of output tokens."""

    def answer(
        self,
        image: bytes,
        question: str,
        budget_ms: float,
        *,
        task: str | None = None,
        max_new_tokens: int | None = None,
        on_miss: OnMiss | None = None,
        on_token: Callable[[str], None] | None = None,
    ) -> Answer:
        """Answers one question about one image.

        Args:
            image: an encoded image (JPEG, PNG, ...).
            budget_ms: finite, at least 1; rounded down to whole ms.
            task: a name in `tasks`; may be left out if there is only one.
            max_new_tokens: a limit below the task's own, which applies in any case.
            on_miss: what to do if no setting is expected to meet the budget: answer with the fastest, or refuse; None:
                the engine's default.
            on_token: receives the text in pieces, which join to `Answer.text`. What it raises ends the request and is
                raised here.

        Raises:
            BudgetUnmet: no setting is expected to meet the budget, and `on_miss` is "refuse".
            KnobctlError: the image or the question cannot be used. The message is fit for the client.
        """

    def fastest_expected_ms(
        self, question: str, image_size: tuple[int, int], *, task: str | None = None
    ) -> float | None:
        """Returns the expected latency of the fastest setting for an image of (width, height) pixels.

        None if it is unknown before the request runs.
        """

    def close(self) -> None:
        """Frees the model. No other member is used afterwards."""
