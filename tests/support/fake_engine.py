"""An engine without a model, for tests and benchmarks of the server: answers and latencies follow from the request."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping

from knobctl.data.datasets.images import decode_image
from knobctl.data.errors import BudgetUnmet, DatasetError
from knobctl.data.knobs import KnobSetting
from knobctl.serving.answer import Answer, OnMiss, StageLatency

SETTINGS = (  # expected ms at speed 1, ascending
    (KnobSetting("low", 1, 4, 12), 4.0),
    (KnobSetting("low", 2, 8, 16), 8.0),
    (KnobSetting("medium", 3, 6, 14), 12.0),
    (KnobSetting("high", 5, 8, 16), 20.0),
)
FASTEST_MS = SETTINGS[0][1]
MAX_WORDS = 200  # of a question
SHARES = {"vision": 0.3, "prefill": 0.3, "controllers": 0.02, "decode": 0.38}  # of a request's latency


class FakeEngine:
    """Implements `serving.answer.Engine`. The text names the setting, the image and the question.

    Args:
        sleep: whether an answer takes its latency; otherwise it takes no time and reports the expected one.
        scale: multiple of the settings' latencies.
        before_answer: called in the engine's thread with the question; may wait or raise.
    """

    model_name = "fake"

    def __init__(
        self,
        *,
        tasks: Mapping[str, int] | None = None,
        sleep: bool = False,
        scale: float = 1.0,
        on_miss: OnMiss = "fastest",
        before_answer: Callable[[str], None] = lambda _question: None,
    ) -> None:
        self.tasks = {"easy_vqa": 16} if tasks is None else tasks
        self.answered: list[tuple[str, float]] = []  # question and budget of every call
        self._sleep, self._scale, self._on_miss, self._before = sleep, scale, on_miss, before_answer

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
        assert math.isfinite(budget_ms)
        assert budget_ms >= 1
        self.answered.append((question, budget_ms))
        self._before(question)
        start_s = time.perf_counter()
        pixels = decode_image(image, "of the request")
        if len(question.split()) > MAX_WORDS:
            raise DatasetError(f"the prompt has more than {MAX_WORDS} words: shorten the question.")
        fitting = [pair for pair in SETTINGS if pair[1] * self._scale <= math.floor(budget_ms)]
        if not fitting and (on_miss or self._on_miss) == "refuse":
            raise BudgetUnmet(f"no setting is expected to take at most {budget_ms:.1f} ms.")
        setting, unscaled_ms = fitting[-1] if fitting else SETTINGS[0]
        expected_ms = unscaled_ms * self._scale
        digest = hashlib.sha256(image + question.encode()).hexdigest()[:8]
        words = [str(setting), "x".join(map(str, pixels.shape[1::-1])), digest, *question.split()[:8]]
        limit = min(self.tasks[task or next(iter(self.tasks))], max_new_tokens or 1_000_000)
        pieces = [word if index == 0 else f" {word}" for index, word in enumerate(words[:limit])]
        for piece in pieces:
            if self._sleep:
                time.sleep(expected_ms / 1000 / len(pieces))
            if on_token is not None:
                on_token(piece)
        taken_ms = (time.perf_counter() - start_s) * 1000 if self._sleep else expected_ms
        latency = StageLatency(**{stage: share * taken_ms for stage, share in SHARES.items()})
        return Answer(
            text="".join(pieces),
            setting=setting,
            latency_ms=latency,
            expected_latency_ms=expected_ms,
            budget_ms=budget_ms,
            within_budget=latency.total <= budget_ms,
            prompt_tokens=10 + len(question.split()),
            output_tokens=len(pieces),
            finish_reason="length" if len(words) > limit else "stop",
            preparing_ms=0.1,
        )

    def fastest_expected_ms(
        self, question: str, image_size: tuple[int, int], *, task: str | None = None
    ) -> float | None:
        assert question
        assert min(image_size) > 0
        assert task in self.tasks
        return FASTEST_MS * self._scale

    def close(self) -> None:
        pass
