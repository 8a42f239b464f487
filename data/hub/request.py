"""Requests to the hub: errors as one line that says what to do, no progress bars outside a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import KnobctlError
from ..printable import printable


@contextmanager
def hub_request(what: str, error: type[KnobctlError]) -> Iterator[None]:
    """Raises `error` for a failed request; `what` begins the message, such as "owner/name cannot be fetched"."""
    from huggingface_hub import errors, get_token
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    quiet = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if quiet:
        disable_progress_bars()
    try:
        yield
    except (errors.HfHubHTTPError, errors.HTTPError, errors.HFValidationError, OSError, ValueError) as cause:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(cause, errors.RevisionNotFoundError):
            reason = "it has no such revision"
        elif isinstance(cause, errors.RepositoryNotFoundError) or status in (401, 403):
            login = "" if get_token() else ", or log in with `hf auth login` (or set HF_TOKEN) if it is private"
            reason = f"{ENDPOINT} has no such repository for this login (HTTP {status}): check the name{login}"
        else:
            reason = printable(" ".join(str(cause).split()) or type(cause).__name__, 300)
        raise error(f"{what}: {reason}.") from cause
    finally:
        if quiet:
            enable_progress_bars()
