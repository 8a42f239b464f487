"""Recorded results combined with the model: answers come from the results, latency tokens and times from the model.

A recorded outcome has no insertion position. It is used for every position whose plan runs exactly the blocks that the
recorded run ran.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...data.errors import KnobctlError
from ...data.importer import RecordedOutcomes, recorded_outcomes
from ...data.knobs import KnobSetting
from ...data.outcome import Outcome
from ...data.plans import BlockPlan
from ...data.progress import SILENT, Progress
from .config import PrecomputeConfig
from .fixed import Fixed
from .inputs import Inputs
from .sample import Known

ASSUMPTION = (
    "Recorded runs used their top-k in every block and had no latency token in the sequence; live runs use the native "
    "top-k in the blocks before the insertion position. `validate --live` shows what that costs."
)
LATENCIES = ("latency_ms", "vision_ms", "prefill_ms", "decode_ms")
_EXAMPLES = 5

Spread = dict[tuple[str, int, int, tuple[int, ...]], list[KnobSetting]]


def find_known(config: PrecomputeConfig, inputs: Inputs, fixed: Fixed, progress: Progress = SILENT) -> Known:
    """Returns the outcomes that `--from-results` provides for this run's samples and settings, if given.

    Raises:
        ResultsError: the results cannot be read, or contain errors and `strict` is set.
        KnobctlError: no recorded outcome fits any setting of any sample.
    """
    if config.from_results is None:
        return Known()
    recorded = recorded_outcomes(
        config.from_results, datasets=config.dataset_names, strict=config.strict, progress=progress
    )
    spread = settings_of_blocks(inputs.knobs.with_run(fixed.importance).plans)
    known = spread_outcomes(recorded, spread, imported_latency=config.imported_latency)
    ours = {sample.sample_id for sample in inputs.samples}
    outcomes = {sample_id: rows for sample_id, rows in known.items() if sample_id in ours}
    notes = _notes(recorded, spread, ours, outcomes)
    if not outcomes:
        raise KnobctlError(
            f"no recorded outcome of {config.from_results} fits a sample and a block plan of this run: "
            f"{notes['results']['in_words']} Check --dataset, --samples and --importance."
        )
    progress.note(notes["results"]["in_words"])
    return Known(outcomes, config.complete, notes)


def settings_of_blocks(plans: Mapping[KnobSetting, BlockPlan]) -> Spread:
    """Returns, for each (tier, top-k, num_blocks, active blocks), the settings whose plan runs exactly those blocks."""
    spread: Spread = defaultdict(list)
    for setting, plan in plans.items():
        blocks = tuple(block for block, top_k in enumerate(plan) if top_k)
        spread[setting.tier, setting.top_k, setting.num_blocks, blocks].append(setting)
    return dict(spread)


def spread_outcomes(
    recorded: RecordedOutcomes, spread: Spread, *, imported_latency: bool = False
) -> dict[str, dict[KnobSetting, Outcome]]:
    """Returns every recorded outcome under each setting that runs its blocks: sample id -> setting -> outcome.

    Outcomes without accuracy (not scored) and outcomes whose file does not name the active blocks are left out.
    """
    outcomes: dict[str, dict[KnobSetting, Outcome]] = defaultdict(dict)
    for row in recorded.table.iter_rows(named=True):
        if row["accuracy"] is None or row["active_block_indices"] is None:
            continue
        blocks = tuple(row["active_block_indices"])
        outcome = _outcome(row, with_latency=imported_latency)
        for setting in spread.get((row["tier"], row["top_k"], row["num_blocks"], blocks), ()):
            outcomes[row["sample_id"]][setting] = outcome
    return dict(outcomes)


def _outcome(row: dict[str, Any], *, with_latency: bool) -> Outcome:
    outcome = Outcome(
        row["answer"], row["accuracy"], None, output_tokens=row["output_tokens"], outcome_source="imported"
    )
    if not with_latency or row["latency_ms"] is None:
        return outcome
    return replace(outcome, **{name: row[name] for name in LATENCIES})


def digest_of_sources(recorded: RecordedOutcomes) -> str:
    """Returns one digest of all files read, by name: a resumed run must find the results that it started with."""
    lines = sorted(f"{Path(source['file']).name} {source['sha256']}\n" for source in recorded.report.sources)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _notes(
    recorded: RecordedOutcomes, spread: Spread, ours: set[str], outcomes: dict[str, dict[KnobSetting, Outcome]]
) -> dict[str, Any]:
    """Returns what was matched and what was not, as numbers and as a text."""
    theirs = set(recorded.table["sample_id"])
    unplaced = sum(
        row["active_block_indices"] is None
        or (row["tier"], row["top_k"], row["num_blocks"], tuple(row["active_block_indices"])) not in spread
        for row in recorded.table.iter_rows(named=True)
    )
    rows = sum(len(settings) for settings in outcomes.values())
    without, unknown = sorted(ours - theirs), sorted(theirs - ours)
    words = (
        f"{len(outcomes)} of {len(ours)} samples have recorded answers, spread over {rows} settings. "
        f"{unplaced} of {recorded.table.height} recorded outcomes ran other blocks than any plan of this run, or do "
        f"not name their blocks. {ASSUMPTION}"
    )
    if without:
        words += f" Not in the results: {_some(without)}."
    if unknown:
        words += f" Only in the results: {_some(unknown)}."
    return {
        "results": {
            "in_words": words,
            "samples_matched": len(outcomes),
            "samples_without_results": len(without),
            "results_without_sample": len(unknown),
            "outcomes_recorded": recorded.table.height,
            "outcomes_of_other_blocks": unplaced,
            "rows_imported": rows,
            "sources_sha256": digest_of_sources(recorded),
            "findings": [finding.to_dict() for finding in recorded.report.findings],
        }
    }


def _some(names: list[str]) -> str:
    rest = len(names) - _EXAMPLES
    return f"{len(names)} samples ({', '.join(names[:_EXAMPLES])}{', ...' if rest > 0 else ''})"
