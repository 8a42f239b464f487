"""Checks of imported results."""

from __future__ import annotations

import pytest

from knobctl.data.importer import Finding, ImportReport, RecordedOutcomes
from knobctl.tests.support.results_dirs import Written


def codes(report: ImportReport, level: str | None = None) -> set[str]:
    return {finding.code for finding in report.findings if level in (None, finding.level)}


def findings(report: ImportReport, code: str) -> list[Finding]:
    return [finding for finding in report.findings if finding.code == code]


def check_against(recorded: RecordedOutcomes, written: Written) -> None:
    """Checks that every configuration has each measured question once, with the values of one measurement."""
    table = recorded.table
    found = table.partition_by("dataset", "tier", "top_k", "num_blocks", as_dict=True, include_key=False)
    assert set(found) == set(written.rows)
    for key, measured in written.rows.items():
        rows = found[key]
        assert sorted(rows["example_id"].to_list()) == sorted(map(str, measured))
        for row in rows.to_dicts():
            of_question = measured[int(row["example_id"])]
            assert any(
                row["latency_ms"] == pytest.approx(r["T_total"], rel=1e-6)
                and row["accuracy"] == pytest.approx(r["accuracy"])
                and row["answer"] == r["pred"]
                and row["vision_ms"] == pytest.approx(r["T_vision_total"], rel=1e-6)
                and row["prefill_ms"] == pytest.approx(r["T_LLM_prefill"], rel=1e-6)
                and row["decode_ms"] == pytest.approx(r["T_LLM_decode"], rel=1e-6)
                and (row["vision_tokens"], row["output_tokens"]) == (r["actual_vision_tokens"], r["output_tokens"])
                for r in of_question
            )
