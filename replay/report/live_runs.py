"""The live run of a report of `validate --live`: its latencies and how often it agreed with replay. Untrusted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ...data.cache.reader import Cache
from ...data.errors import CacheMismatch, KnobctlError
from ...data.files.bounded_json import read_json_object
from ...data.files.json_fields import JsonFields
from ...data.knobs import KnobSetting


class LiveTiming(NamedTuple):
    """One sample under one setting, on the running model."""

    sample_id: str
    setting: KnobSetting
    latency_ms: float


class LiveRun(NamedTuple):
    """What figures show of a live run."""

    timings: tuple[LiveTiming, ...]
    same_setting: tuple[int, int]  # equal to replay, compared
    same_answer: tuple[int, int]


def read_live_report(path: Path, cache: Cache) -> LiveRun:
    """Returns the live run of a JSON report.

    Raises KnobctlError for a file without a live run, and CacheMismatch for a report on another cache.
    """
    report = JsonFields(read_json_object(path, KnobctlError), str(path), KnobctlError)
    found = report.fields("cache").text("fingerprint")
    if found != cache.fingerprint:
        raise CacheMismatch(
            f"{path} is a report on another cache (fingerprint {found[:12]}, not {cache.fingerprint[:12]}): "
            f"make one with `knobctl validate CONTROLLERS --cache {cache.path} --live --json`"
        )
    if report.value("live", None) is None:
        raise KnobctlError(f"{path} holds no live run: make it with `knobctl validate --live --json`")
    return live_run(report.record("live"), str(path))


def live_run(section: Mapping[str, Any], where: str) -> LiveRun:
    """Returns the same from the section `live` of a report; `where` names its origin in messages."""
    live = JsonFields(section, where, KnobctlError, "live.")
    agreement = live.fields("agreement")
    timings = live.each("timings", _timing)
    return LiveRun(
        tuple(timing for timing in timings if timing is not None),
        (agreement.integer("same_setting", 0), agreement.integer("settings_compared", 0)),
        (agreement.integer("same_answer", 0), agreement.integer("answers_compared", 0)),
    )


def _timing(fields: JsonFields, name: str) -> LiveTiming | None:
    """Returns one timing; None if the request was not timed."""
    entry = fields.fields(name)
    latency_ms = entry.optional("latency_ms", JsonFields.positive)
    if latency_ms is None:
        return None
    setting = KnobSetting(
        entry.text("tier"),
        entry.integer("insertion_position"),
        entry.integer("top_k"),
        entry.integer("num_blocks"),
    )
    return LiveTiming(entry.text("sample_id"), setting, latency_ms)
