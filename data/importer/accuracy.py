"""The accuracy of recorded rows: the scale of recorded values is checked, or values are recomputed from answers."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import polars as pl

from ..errors import ResultsError
from ..metrics import full_score_warning, get_metric, score
from ..printable import printable
from .deduplication import QUESTION
from .report import Finding

PERCENT_FROM = 2.0  # a largest accuracy of at least this indicates percent; between 1 and 2 it is an invalid value


def metrics_by_dataset(metric: str | Mapping[str, str] | None, datasets: set[str]) -> dict[str, str]:
    """Returns the metric of each dataset whose accuracy is recomputed: one NAME for all, or by dataset."""
    metrics = dict.fromkeys(datasets, metric) if isinstance(metric, str) else dict(metric or {})
    metrics = {name.replace("-", "_"): get_metric(value).name for name, value in metrics.items()}
    if unknown := sorted(set(metrics) - datasets):
        raise ResultsError(
            f"a metric was given for {', '.join(unknown)}, but the datasets imported are {', '.join(sorted(datasets))}"
        )
    return metrics


def settle_scale(rows: pl.DataFrame, recomputed: Collection[str]) -> tuple[pl.DataFrame, list[Finding]]:
    """Removes all accuracies of files that were not recorded on the scale 0 to 1, whose zeros would look valid.

    This applies to every file with an accuracy above 1, and to the other files, which may contain no value above 1 by
    chance, unless more files have values between 0 and 1 than have values in percent.

    Args:
        recomputed: datasets whose recorded accuracy is not used, and therefore not checked.

    Raises:
        ResultsError: a dataset is left without any accuracy.
    """
    judged = ~pl.col("dataset").is_in(list(recomputed))
    files = (
        rows.filter(judged)
        .group_by("file", maintain_order=True)
        .agg(
            pl.col("dataset").first(),
            pl.col("accuracy").count().alias("scored"),
            pl.col("accuracy").max().alias("largest"),
            pl.col("accuracy").is_between(0.0, 1.0, closed="none").any().alias("between"),
        )
    )
    above = files.filter(pl.col("largest") > 1.0)
    if above.is_empty():
        return rows, []
    percent = files.filter(pl.col("largest") >= PERCENT_FROM).height
    unit = files.filter(pl.col("between") & (pl.col("largest") <= 1.0)).height
    lost = files.filter(pl.col("scored") > 0) if percent and percent >= unit else above
    findings = [
        Finding("bad_accuracy", file, scored, f"in percent? The largest of {scored} is {largest:g}")
        if largest > 1.0
        else Finding("unclear_scale", file, scored)
        for file, scored, largest in lost.select("file", "scored", "largest").iter_rows()
    ]
    kept = ~pl.col("file").is_in(lost["file"].to_list())
    rows = rows.with_columns(pl.when(kept).then(pl.col("accuracy")).alias("accuracy"))
    _refuse_without_accuracy(rows, lost, findings)
    return rows, findings


def _refuse_without_accuracy(rows: pl.DataFrame, lost: pl.DataFrame, findings: list[Finding]) -> None:
    scored = set(rows.drop_nulls("accuracy")["dataset"].unique().to_list())
    without = sorted(set(lost["dataset"].unique().to_list()) - scored)
    if without:
        first = next(finding for finding in findings if finding.code == "bad_accuracy")
        raise ResultsError(
            f"accuracies of {', '.join(map(printable, without))} are not on the scale 0 to 1, so none can be imported. "
            f"{first.file}: {first.detail}. Divide the accuracies by 100, or recompute them from the stored answers: "
            f"`knobctl precompute --from-results DIR --metric {printable(without[0])}=METRIC --out CACHE`"
        )


def recompute(
    rows: pl.DataFrame, questions: pl.DataFrame, metrics: Mapping[str, str]
) -> tuple[pl.DataFrame, list[Finding]]:
    """Returns the rows with the accuracy of their dataset's metric; datasets without one keep what was recorded.

    Equal predictions for one question are scored once.
    """
    chosen = pl.col("dataset").is_in(list(metrics))
    pairs = rows.filter(chosen).select(*QUESTION, "answer").unique().join(questions, on=QUESTION)
    pairs = pairs.drop_nulls(["answer", "answers"]).filter(pl.col("answers").list.len() > 0)
    scores = [
        score(metrics[dataset], prediction, answers)
        for dataset, prediction, answers in pairs.select("dataset", "answer", "answers").iter_rows()
    ]
    pairs = pairs.select(*QUESTION, "answer", pl.Series("recomputed", scores, pl.Float32))
    rows = rows.join(pairs, on=[*QUESTION, "answer"], how="left")
    findings = []
    for dataset, metric in sorted(metrics.items()):
        findings += _changes(rows.filter(pl.col("dataset") == dataset), dataset, metric)
        answers = questions.filter(pl.col("dataset") == dataset)["answers"].drop_nulls().to_list()
        if (warning := full_score_warning(dataset, metric, answers)) is not None:
            findings.append(Finding("no_full_score", "", len(answers), warning))
    settled = pl.when(chosen).then(pl.col("recomputed")).otherwise(pl.col("accuracy")).alias("accuracy")
    return rows.with_columns(settled).drop("recomputed"), findings


def _changes(rows: pl.DataFrame, dataset: str, metric: str) -> list[Finding]:
    """Returns findings on the changes from recomputing one dataset, and on rows for which it was not possible."""
    both = rows.drop_nulls(["accuracy", "recomputed"])
    changed = both.filter((pl.col("accuracy") - pl.col("recomputed")).abs() > 1e-5).height
    before, after = (
        both.select(pl.col(name).cast(pl.Float64).mean()).item() or 0.0 for name in ("accuracy", "recomputed")
    )
    name = f"{printable(dataset)}: {metric}"
    detail = f"{name}; {changed} of {both.height} differ, mean {before:.4f} before and {after:.4f} now"
    findings = [Finding("recomputed", "", rows.height, detail)]
    if lacking := rows["recomputed"].null_count():
        findings.append(Finding("cannot_recompute", "", lacking, name))
    return findings
