"""The engine: answers one question about one image within a latency budget, in one pass.

Stage1 chooses the image tier and the insertion position; vision and the first blocks run with one probe row, whose
latency token Stage2 reads to choose the rest of the plan; the remaining blocks run, and the answer is decoded in memory
that is kept between requests. `precompute/latency/timed_request.py` runs the request, as for every latency in a cache.

Shapes: D d_model, T tiers, X settings; J (tier, position) pairs, A (top-k, num_blocks) pairs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..controllers.checkpoint import Controllers
from ..controllers.single_request import SingleRequestChooser, StageChoice
from ..data.datasets.image_input import ImageInput
from ..data.errors import BudgetUnmet, CheckpointError, KnobctlError, UnknownSetting
from ..data.plans import BlockPlan
from ..data.progress import SILENT, Progress
from ..data.samples import Sample
from ..devices import device_record
from ..precompute.execution.knob_model import KnobModel
from ..precompute.execution.request_decoder import RequestDecoder
from ..precompute.latency.clocks import quiet, request_times, stopwatch
from ..precompute.latency.timed_request import run_request
from ..precompute.models.loading import LoadedModel, load_model
from .answer import Answer, OnMiss, StageLatency
from .explanation import Explanation
from .model_check import check_model
from .request import MIN_BUDGET_MS, Request, checked_on_miss, checked_request
from .request_size import KEPT, Expected, RequestSizes
from .text_stream import TextStream
from .warm_up import SET_UP_REQUESTS, WARM_UP_REQUESTS, check_pace, enlarged, warm_up_requests

_CAPACITY_STEP = 256  # positions


class Engine:
    """Implements `serving.answer.Engine` with controllers and their model. Not thread-safe.

    Args:
        controllers: a checkpoint, its directory, or its name on the hub.
        model: a loaded model, or its name; None: the model that the checkpoint names.
        revision: branch, tag or commit of the model on the hub.
        device: cuda, cuda:0, ... or cpu; None: cuda where there is one.
        dtype: None: as the controllers were trained for.
        task: the dataset whose prompt style and token limit are used; may be left out if the checkpoint has only one,
            or if every request names one.
        on_miss: what to do if no setting is expected to meet a budget: answer with the fastest, or refuse.
        within: keep the budgets of at least this share of the requests that some setting can meet.
        warm_up: number of requests that are run now, to compare their latencies with the expected ones; 0: none, which
            `within` does not allow.
        pace_required: refuse `within` if latencies here are not those expected; otherwise that is a warning only.
        progress: receives a warning if expected latencies do not hold on this device.

    Raises:
        CheckpointError: controllers or model cannot be read, or questions cannot be answered with them.
        CacheMismatch: the controllers were trained for another model.
        KnobctlError: an argument is not possible, or `within` cannot be kept here.
    """

    def __init__(
        self,
        controllers: Controllers | Path | str,
        model: LoadedModel | str | None = None,
        *,
        revision: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        task: str | None = None,
        on_miss: OnMiss = "fastest",
        within: float | None = None,
        warm_up: int = WARM_UP_REQUESTS,
        pace_required: bool = True,
        progress: Progress = SILENT,
    ) -> None:
        if not isinstance(controllers, Controllers):
            controllers = Controllers.from_pretrained(controllers)
        where = f"the checkpoint {controllers.source}" if controllers.source else "these controllers"
        controllers.require_answerable(where)
        budget_factor = None if within is None else controllers.budget_factor(within)
        if not isinstance(model, LoadedModel):
            model = load_model(
                model or controllers.model.name,
                revision=revision,
                device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
                dtype=dtype or controllers.model.dtype or "auto",
                progress=progress,
            )
        check_model(controllers, model)
        conditions, expected = controllers.conditions, controllers.expected_latency
        assert expected is not None, "checked by require_answerable"
        self.controllers, self.within = controllers, within
        self._tasks = {name: one for name, one in conditions.tasks.items() if one is not None}
        self._task, self._on_miss = task, checked_on_miss(on_miss)
        if task is not None:
            self._task_name(task)
        self.knobs = KnobModel(
            model,
            space=controllers.space,
            encoder=controllers.budget_encoder,
            tasks=self._tasks,
            importance=conditions.importance,
        )
        self._setting_JA = controllers.space.setting_JA
        self._plans_X = list(self.knobs.plans.values())
        self._chooser = SingleRequestChooser(controllers, budget_factor=budget_factor)
        self._sizes, self._typical_requests = RequestSizes(self.knobs, self._tasks, expected), expected.typical
        self._probe = lru_cache(KEPT)(lambda budget_ms: self.knobs.probes((budget_ms,))[0])
        self._decoder = RequestDecoder(model.model, _CAPACITY_STEP)
        self.warm_up_ratio: float | None = None  # median of measured over expected latency
        if warm_up or within is not None:
            self._warm_up(warm_up, within if pace_required else None, progress)

    @property
    def model_name(self) -> str:
        """The name that clients use for the model."""
        return self.knobs.loaded.name

    @property
    def tasks(self) -> Mapping[str, int]:
        """The datasets whose prompt style can be used, each with its limit of output tokens."""
        names = self._tasks if self._task is None else (self._task,)
        return MappingProxyType({name: self._tasks[name].max_new_tokens for name in names})

    def answer(
        self,
        image: ImageInput,
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
            image: a path, encoded bytes, a Pillow image, or an array uint8 [height, width, 3].
            budget_ms: finite, at least 1; rounded down to whole ms. One outside the range of the training is met as any
                other, but the controllers choose as for the nearest end of the range.
            task: a name in `tasks`; may be left out if there is only one.
            max_new_tokens: a limit below the task's own, which applies in any case.
            on_miss: overrides the engine's `on_miss` for this request; None: no override.
            on_token: receives the text in pieces, which join to `Answer.text`. What it raises ends the request and is
                raised here.

        Raises:
            BudgetUnmet: no setting is expected to meet the budget, and `on_miss` is "refuse".
            KnobctlError: the image, the question or an option cannot be used. The next request is not affected.
        """
        request = self._request(image, question, budget_ms, task, max_new_tokens, on_miss)
        with quiet():
            return self._run(request, True, on_token).answer

    def explain(
        self,
        image: ImageInput,
        question: str,
        budget_ms: float,
        *,
        task: str | None = None,
        max_new_tokens: int | None = None,
        on_miss: OnMiss | None = None,
    ) -> tuple[Answer, Explanation]:
        """Answers as `answer` does, and also returns what the controllers considered."""
        request = self._request(image, question, budget_ms, task, max_new_tokens, on_miss)
        with quiet():
            made = self._run(request, True, None)
        return made.answer, Explanation.of(self.knobs.space, made.stage1, made.stage2, made.expected_ms_X)

    def answer_as_replayed(self, sample: Sample, rgb: NDArray[np.uint8], budget_ms: float) -> Answer:
        """Answers a sample as replay decides: without rounding the budget, and without the rule for missed ones.

        Args:
            rgb: uint8 [height, width, 3].
        """
        limit = self._tasks[self._task_name(sample.dataset)].max_new_tokens
        request = Request(sample, rgb, budget_ms, budget_ms, limit, on_miss=None, decode_ms=0.0)
        with quiet():
            return self._run(request, True, None).answer

    def expected_ms(
        self, question: str, image_size: tuple[int, int], *, task: str | None = None
    ) -> NDArray[np.float64]:
        """Returns the expected latency of every setting [X] for an image of (width, height) pixels; NaN: not known."""
        return self._expected(question, image_size, task).ms_X

    def fastest_expected_ms(
        self, question: str, image_size: tuple[int, int], *, task: str | None = None
    ) -> float | None:
        """Returns the expected latency of the fastest setting for an image of (width, height) pixels."""
        return self._expected(question, image_size, task).fastest_ms

    def _expected(self, question: str, image_size: tuple[int, int], task: str | None) -> Expected:
        width, height = image_size
        return self._sizes.expected(question, self._task_name(task), self._sizes.views(height, width))

    def close(self) -> None:
        """Frees the model. No other member is used afterwards."""
        del self.knobs, self._decoder

    def _request(
        self,
        image: ImageInput,
        question: str,
        budget_ms: float,
        task: str | None,
        max_new_tokens: int | None,
        on_miss: OnMiss | None,
    ) -> Request:
        name = self._task_name(task)
        return checked_request(
            image,
            question,
            budget_ms,
            task=name,
            limit=self._tasks[name].max_new_tokens,
            max_new_tokens=max_new_tokens,
            on_miss=self._on_miss if on_miss is None else on_miss,
        )

    @torch.inference_mode()  # also for the controllers, whose calls are shorter than autograd's bookkeeping
    def _run(self, request: Request, ends: bool, on_token: Callable[[str], None] | None) -> _Answered:
        knobs, chooser, space = self.knobs, self._chooser, self.knobs.space
        sample, height, width = request.sample, *request.rgb.shape[:2]
        budget_ms = request.whole_ms
        # Outside the trained range the networks would extrapolate: more time can then mean a worse choice.
        trained_ms = self.controllers.budgets_ms
        encoded_ms = budget_ms if request.on_miss is None else min(max(budget_ms, min(trained_ms)), max(trained_ms))
        watch = _Watch()
        views = self._sizes.views(height, width)
        expected = self._sizes.expected(sample.question, sample.dataset, views)  # encodes the prompt's text
        preparing_ms = request.decode_ms + watch.lap_ms()

        allowed_JA = chooser.allowed(expected.ms_X, budget_ms)
        if expected.fastest_ms > budget_ms and request.on_miss is not None:
            if request.on_miss == "refuse":
                raise BudgetUnmet(
                    f"no setting is expected to take at most {budget_ms:g} ms: the fastest takes "
                    f"{expected.fastest_ms:.1f} ms."
                )
            if self.within is None:  # a service level was calibrated with its own rule, in `chooser.allowed`
                allowed_JA = chooser.fastest(expected.ms_X)
        feature_D = knobs.language_feature(sample)
        first = chooser.choose_image(feature_D, encoded_ms, allowed_JA)
        tier, place = divmod(first.choice, len(space.insertion_positions))
        position = knobs.positions[place]
        probe_D = self._probe(encoded_ms)
        controllers_ms = watch.lap_ms()

        prepared = knobs.prepare(sample, request.rgb, views[tier], request.max_new_tokens)
        self._reserve(prepared.length + request.max_new_tokens + 1)
        second: list[StageChoice] = []

        def decide(token_D: NDArray[np.float16]) -> BlockPlan:
            try:
                second.append(chooser.choose_compute(token_D, first.choice, allowed_JA))
            except UnknownSetting:
                if np.isfinite(token_D).all():
                    raise
                raise CheckpointError(
                    f"the latency token of a prompt of {prepared.length} positions does not fit float16, or is not "
                    "finite: the model's activations are too large."
                ) from None
            return self._plans_X[self._setting_JA[first.choice, second[0].choice]]

        stream = None if on_token is None else TextStream(knobs.text, knobs.model.end_ids, on_token)
        preparing_ms += watch.lap_ms()
        clock = stopwatch(knobs.model.device)
        tokens = run_request(
            knobs,
            prepared,
            knobs.native,
            position,
            probe_D,
            num_tokens=request.max_new_tokens,
            decoder=self._decoder,
            decide=decide,
            ends=ends,
            mark=clock.mark_stages,
            on_token=None if stream is None else stream.add,
        )
        times = request_times(clock.spans())
        text = knobs.text(tokens)
        if stream is not None:
            stream.finish(text)
        latency = StageLatency(times.vision_ms, times.prefill_ms, controllers_ms + times.decide_ms, times.decode_ms)
        setting_index = int(self._setting_JA[first.choice, second[0].choice])
        expected_ms = float(expected.ms_X[setting_index])
        answer = Answer(
            text=text,
            setting=space.settings[setting_index],
            latency_ms=latency,
            expected_latency_ms=expected_ms if math.isfinite(expected_ms) else None,
            budget_ms=request.budget_ms,
            within_budget=latency.total <= request.budget_ms,
            prompt_tokens=prepared.length,
            output_tokens=len(tokens),
            finish_reason="stop" if tokens[-1] in knobs.model.end_ids else "length",
            preparing_ms=preparing_ms,
        )
        return _Answered(answer, first, second[0], expected.ms_X)

    def _reserve(self, positions: int) -> None:
        """Makes room for a prompt and its answer. The memory is kept for later requests."""
        if positions > self._decoder.capacity:
            capacity = _CAPACITY_STEP * math.ceil(positions / _CAPACITY_STEP)
            self._decoder = RequestDecoder(self.knobs.model, capacity)

    def _task_name(self, task: str | None) -> str:
        """Returns the dataset that a request is asked as. Raises KnobctlError if it is unknown or ambiguous."""
        known = ", ".join(self._tasks)
        name = self._task if task is None else task
        if name is None:
            if len(self._tasks) > 1:
                raise KnobctlError(f"the controllers were trained on several datasets, so name a task: {known}.")
            return next(iter(self._tasks))
        if name not in self._tasks:
            raise KnobctlError(f"task {name!r} is unknown: the controllers were trained on {known}.")
        return name

    def _warm_up(self, count: int, within: float | None, progress: Progress) -> None:
        """Runs requests and compares their latencies with the expected ones."""
        names = tuple(self._tasks) if self._task is None else (self._task,)
        ratios = []
        for number, (image, question) in enumerate(warm_up_requests(count)):
            budget_ms = self.controllers.budgets_ms[number % len(self.controllers.budgets_ms)]
            name = names[number % len(names)]
            request = self._request(image, question, max(budget_ms, MIN_BUDGET_MS), name, None, "fastest")
            with quiet():
                made = self._run(*self._typical(request), None).answer
            if number >= SET_UP_REQUESTS and made.expected_latency_ms is not None:
                ratios.append(made.latency_ms.total / made.expected_latency_ms)
        self.warm_up_ratio = median(ratios) if ratios else None
        here = device_record(self.knobs.model.device)
        check_pace(self.warm_up_ratio, self.controllers.conditions.device_name, str(here["name"]), within, progress)

    def _typical(self, request: Request) -> tuple[Request, bool]:
        """Returns the request with an image and an answer as large as usual, and whether an end token ends the answer.

        Without recorded sizes the request stays as it is.
        """
        sample, sizes = request.sample, self._sizes
        typical = self._typical_requests.get(sample.dataset)
        if typical is None:
            return request, True

        def vision_tokens(height: int, width: int) -> int:
            return sizes.vision_tokens(sample.question, sample.dataset, sizes.views(height, width)[-1])

        tokens = min(max(round(typical.output_tokens), 1), request.max_new_tokens)
        rgb = enlarged(request.rgb, vision_tokens, typical.vision_tokens)
        return replace(request, rgb=rgb, max_new_tokens=tokens), False


class _Answered(NamedTuple):
    """An answer, and how its setting was chosen."""

    answer: Answer
    stage1: StageChoice
    stage2: StageChoice
    expected_ms_X: NDArray[np.float64]


class _Watch:
    """Measures consecutive spans on the host."""

    def __init__(self) -> None:
        self._last_s = time.perf_counter()

    def lap_ms(self) -> float:
        now_s = time.perf_counter()
        ms, self._last_s = 1e3 * (now_s - self._last_s), now_s
        return ms
