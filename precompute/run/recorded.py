"""Recorded results and the model together: answers come from the results, tokens and times from the model.

A recorded outcome knows no insertion position. It is spread to the positions at which our plan runs exactly the blocks
that the recorded run ran. Knows nothing of how results are read.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from pathlib import Path
from typing import Any

from ...data.errors import KnobctlError
from ...data.importer import RecordedOutcomes, recorded_outcomes
from ...data.knobs import KnobSetting, KnobSpace
from ...data.plans import ImportanceScores, block_plan
from ..latency.block_times import PlanLatency
from ..models.progress import say
from .config import PrecomputeConfig
from .inputs import Fixed, Inputs
from .sample import Answer, Known

ASSUMPTION = (
    "Recorded runs used their top-k in every block and had no latency token in the sequence; live runs use the native "
    "top-k in the blocks before the insertion position. `validate --live` shows what that costs."
)
_EXAMPLES = 5

Spread = dict[tuple[str, int, int, tuple[int, ...]], list[KnobSetting]]


def recorded_answers(config: PrecomputeConfig, inputs: Inputs, fixed: Fixed) -> Known:
    """Returns the answers that the results hold for this run's samples and settings.

    Raises:
        ResultsError: the results cannot be read, or have errors and `strict` asks for none.
        KnobctlError: no recorded outcome fits any setting of any sample.
    """
    assert config.from_results is not None, "there are results to take answers from"
    if config.complete and config.imported_latency:
        raise KnobctlError("--complete measures latencies, --latency imported keeps recorded ones: use one of them.")
    recorded = recorded_outcomes(config.from_results, datasets=config.dataset_names, strict=config.strict)
    spread = settings_of_blocks(config.space, fixed.importance, inputs.loaded.model.config.native_top_k)
    known = spread_outcomes(recorded, spread, imported_latency=config.imported_latency)
    ours = {sample.sample_id for sample in inputs.samples}
    answers = {sample_id: rows for sample_id, rows in known.items() if sample_id in ours}
    notes = _notes(recorded, spread, ours, answers)
    if not answers:
        raise KnobctlError(
            f"no recorded outcome of {config.from_results} fits a sample and a block plan of this run: "
            f"{notes['results']['in_words']} Check --dataset, --samples and --importance."
        )
    say(notes["results"]["in_words"])
    return Known(answers, config.complete, notes)


def settings_of_blocks(space: KnobSpace, importance: ImportanceScores, native_top_k: int) -> Spread:
    """Returns, for each (tier, top-k, num_blocks, blocks that run), the settings whose plan runs just those blocks."""
    spread: Spread = defaultdict(list)
    for setting in space.settings:
        plan = block_plan(
            setting.insertion_position,
            setting.top_k,
            setting.num_blocks,
            importance=importance,
            native_top_k=native_top_k,
        )
        blocks = tuple(block for block, top_k in enumerate(plan) if top_k)
        spread[setting.tier, setting.top_k, setting.num_blocks, blocks].append(setting)
    return dict(spread)


def spread_outcomes(
    recorded: RecordedOutcomes, spread: Spread, *, imported_latency: bool = False
) -> dict[str, dict[KnobSetting, Answer]]:
    """Returns every recorded outcome under each setting that runs its blocks: by sample id, by setting.

    An outcome without accuracy was not scored, one whose file does not say its blocks cannot be placed: neither counts.
    """
    answers: dict[str, dict[KnobSetting, Answer]] = defaultdict(dict)
    for row in recorded.table.iter_rows(named=True):
        if row["accuracy"] is None or row["active_block_indices"] is None:
            continue
        blocks = tuple(row["active_block_indices"])
        for setting in spread.get((row["tier"], row["top_k"], row["num_blocks"], blocks), ()):
            latency = _recorded_latency(row) if imported_latency else None
            answers[row["sample_id"]][setting] = Answer(
                row["answer"], row["accuracy"], row["output_tokens"], "imported", latency
            )
    return dict(answers)


def _recorded_latency(row: dict[str, Any]) -> PlanLatency | None:
    if row["latency_ms"] is None:
        return None
    return PlanLatency(row["latency_ms"], None, row["vision_ms"], row["prefill_ms"], row["decode_ms"], ())


def digest_of_sources(recorded: RecordedOutcomes) -> str:
    """One digest of all files read, by name: a run that goes on must find the results that it began with."""
    lines = sorted(f"{Path(source['file']).name} {source['sha256']}\n" for source in recorded.report.sources)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _notes(
    recorded: RecordedOutcomes, spread: Spread, ours: set[str], answers: dict[str, dict[KnobSetting, Answer]]
) -> dict[str, Any]:
    """What was matched and what not, in numbers and in words."""
    theirs = set(recorded.table["sample_id"])
    unplaced = sum(
        row["active_block_indices"] is None
        or (row["tier"], row["top_k"], row["num_blocks"], tuple(row["active_block_indices"])) not in spread
        for row in recorded.table.iter_rows(named=True)
    )
    rows = sum(len(settings) for settings in answers.values())
    without, unknown = sorted(ours - theirs), sorted(theirs - ours)
    words = (
        f"{len(answers)} of {len(ours)} samples have recorded answers, spread over {rows} settings. "
        f"{unplaced} of {recorded.table.height} recorded outcomes ran other blocks than any plan of this run or do not "
        f"say which. {ASSUMPTION}"
    )
    if without:
        words += f" Not in the results: {_some(without)}."
    if unknown:
        words += f" Only in the results: {_some(unknown)}."
    return {
        "results": {
            "in_words": words,
            "samples_matched": len(answers),
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
