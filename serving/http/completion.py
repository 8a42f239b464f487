"""Replies in OpenAI's form: a chat completion, or the events of a stream."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

from .request_queue import Served

DONE = "data: [DONE]\n\n"


def report(served: Served) -> dict[str, str | float]:
    """Returns what an answer reports beside its text: the setting, and times in ms. What is not known is left out."""
    expected_ms = served.answer.expected_latency_ms
    return {
        "setting": str(served.answer.setting),
        **({} if expected_ms is None else {"expected_ms": round(expected_ms, 3)}),
        "latency_ms": round(served.answer.latency_ms.total, 3),
        "queue_ms": round(served.queue_ms, 3),
        "budget_ms": round(served.budget_ms, 3),
    }


def report_headers(served: Served) -> dict[str, str]:
    """Returns the report as headers: `x-knobctl-setting`, `x-knobctl-expected-ms`, ..."""
    return {f"x-knobctl-{name.replace('_', '-')}": str(value) for name, value in report(served).items()}


class Completion:
    """Builds the reply to one request."""

    def __init__(self, model: str) -> None:
        self._common = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, served: Served) -> dict[str, Any]:
        """Returns the reply without streaming."""
        message = {"role": "assistant", "content": served.answer.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": served.answer.finish_reason}
        return {**self._common, "object": "chat.completion", "choices": [choice], "usage": _usage(served)}

    def first(self) -> str:
        """Returns the first event of a stream."""
        return self._event(self._choice({"role": "assistant", "content": ""}))

    def piece(self, text: str) -> str:
        """Returns the event of a piece of text."""
        return self._event(self._choice({"content": text}))

    def last(self, served: Served, include_usage: bool) -> str:
        """Returns the events after the text: the end, and the usage if asked for. The last one has the report."""
        end: dict[str, Any] = self._choice({}, served.answer.finish_reason)
        if not include_usage:
            return self._event({**end, "knobctl": report(served)})
        return self._event(end) + self._event({"choices": [], "usage": _usage(served), "knobctl": report(served)})

    def _choice(self, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        return {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]}

    def _event(self, fields: dict[str, Any]) -> str:
        return event({**self._common, "object": "chat.completion.chunk", **fields})


def event(record: dict[str, Any]) -> str:
    """Returns a record as a server-sent event."""
    return f"data: {json.dumps(record, allow_nan=False)}\n\n"


def _usage(served: Served) -> dict[str, int]:
    prompt, output = served.answer.prompt_tokens, served.answer.output_tokens
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
