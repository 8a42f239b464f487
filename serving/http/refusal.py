"""Refusals: the errors that a client receives, in OpenAI's form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...data.printable import printable

MAX_MESSAGE = 500  # characters
SHOULD_NOT_RETRY = {"x-should-retry": "false"}  # OpenAI's clients obey it


class Refusal(Exception):
    """A request that gets an error as its reply.

    Args:
        status: HTTP status.
        message: what is wrong and what to do, for the client.
        param: the field or header that is wrong.
        code: what went wrong, for programs.
        outcome: label of the request in the metrics.
        headers: additional headers of the reply.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str = "invalid_request",
        outcome: str = "invalid",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.outcome = status, param, code, outcome
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        return error_body(self.status, str(self), param=self.param, code=self.code)


def error_body(status: int, message: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Returns OpenAI's error object. The message is shortened and made printable: it may quote the request."""
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    return {"error": {"message": printable(message, MAX_MESSAGE), "type": kind, "param": param, "code": code}}


def budget_unmet(message: str) -> Refusal:
    """Returns the refusal of a request whose budget can no longer be met; trying again would not help."""
    return Refusal(429, message, code="budget_unmet", outcome="refused_budget", headers=SHOULD_NOT_RETRY)
