"""Tables of records for a terminal. The result of every command is a JSON-able record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

Record = Mapping[str, Any]


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """Returns a table. Numbers are right-aligned; None is shown as a dash."""
    body = [list(row) for row in rows]
    shown = Table(
        title=title or None, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False
    )
    for place, name in enumerate(columns):
        is_number = all(row[place] is None or isinstance(row[place], int | float) for row in body)
        shown.add_column(name, justify="right" if is_number and body else "left", overflow="fold")
    for row in body:
        shown.add_row(*map(cell, row))
    return shown


def cell(value: Any) -> str:
    """Returns a value as text: floats with three decimals, None as a dash, lists joined by spaces."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10000 else str(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {cell(item)}" for name, item in value.items() if item is not None)
    if isinstance(value, list | tuple):
        return " ".join(map(cell, value))
    return str(value)


def render_record(title: str, record: Record) -> Table:
    """Returns a table with a line per entry; nested entries are joined on one line."""
    return table(title, ("", ""), [(name.replace("_", " "), cell(value)) for name, value in record.items()])


def render_sections(title: str, record: Record) -> Group:
    """Returns a table of the plain entries, followed by one table for each nested mapping."""
    plain = {name: value for name, value in record.items() if not isinstance(value, Mapping)}
    parts: list[RenderableType] = [render_record(title, plain)]
    for name, value in record.items():
        if isinstance(value, Mapping):
            parts += [Text(""), render_record(name.replace("_", " "), value)]
    return Group(*parts)


def render_cache(record: Record) -> Group:
    """Returns the tables of a `describe_cache` record."""
    provenance = record["provenance"]
    complete = record["completeness"]
    parts: list[RenderableType] = [
        render_record(str(record["path"]), {"fingerprint": record["fingerprint"], **record["shape"]}),
        Text(""),
        table("samples", ("dataset", "split", "samples"), [tuple(row.values()) for row in record["samples"]]),
        Text(""),
        render_record("knob space", {**record["knobs"], "budgets_ms": record["budgets_ms"]}),
        Text(""),
        render_record("completeness", complete),
        Text(""),
    ]
    columns = ("value", "outcomes", "accuracy", "latency_ms", "latency_ms_p5", "latency_ms_p50", "latency_ms_p95")
    for name, rows in record["marginals"].items():
        cells = [[str(row["value"]), *(row[column] for column in columns[1:])] for row in rows]
        parts += [table(name, columns, cells), Text("")]
    parts += [render_record("provenance", provenance), Text(""), render_record("bytes", record["size_bytes"])]
    parts += [Text(f"note: {warning}", style="yellow") for warning in record["warnings"]]
    return Group(*parts)


def render_push(record: Record) -> Group:
    """Returns the files of a push, what was left out, and where they are."""
    dry_run = record["dry_run"]
    state = {True: "sent", False: "listed" if dry_run else "already there"}
    files = [(path, file["bytes"], state[file["sent"]]) for path, file in record["files"].items()]
    total = sum(file["bytes"] for file in record["files"].values())
    title = f"{record['kind']} {record['repo_id']}{': nothing is sent (--dry-run)' if dry_run else ''}"
    parts: list[RenderableType] = [Text(title, style="bold"), table("", ("file", "bytes", ""), files)]
    parts.append(Text(f"{total:,} bytes in all"))
    parts += [Text(f"removed from the repository: {path}") for path in record["removed"]]
    for name, columns in record["left_out"].items():
        parts.append(Text(f"left out of {name}: {', '.join(columns)}"))
    if record["commit"]:
        parts.append(Text(f"{record['url']} at commit {record['commit']}"))
    return Group(*parts)


def render_importance(record: Record) -> Group:
    """Returns the scores in the order of the blocks, and the blocks from the least important."""
    std = record.get("std") or [None] * len(record["scores"])
    rows = [(block, score, std[block]) for block, score in enumerate(record["scores"])]
    ranked = sorted((score, block) for block, score in enumerate(record["scores"]) if score is not None)
    least = "least important first: " + " ".join(str(block) for _, block in ranked)
    return Group(table("accuracy lost without the block", ("block", "score", "std"), rows), Text(least))


def render_model(record: Record) -> Group:
    """Returns the tables of a `report_on_model` record."""
    plain = {name: record[name] for name in ("family", "fingerprint", "dtype", "device", "loading_seconds")}
    rows = [
        (check["name"], "passed" if check["passed"] else "FAILED", check["seconds"], check["detail"], check["meaning"])
        for check in record["checks"]
    ]
    parts: list[RenderableType] = [render_record(record["model"], plain)]
    for name in ("geometry", "memory_mib", "default_knobs"):
        parts += [Text(""), render_record(name.replace("_", " "), record[name])]
    parts += [Text(""), table("checks", ("check", "result", "seconds", "detail", "meaning"), rows)]
    if not rows:
        parts += [Text("none: the project's own code, compared with the released model by its tests")]
    return Group(*parts)


def render_explanation(record: Record) -> Group:
    """Returns what both stages considered, the most likely choices first."""

    def probability(choice: Record) -> str:
        return f"{choice['probability']:.1%}" + (" <- chosen" if choice["chosen"] else "")

    images = [
        (f"{one['tier']}/p{one['insertion_position']}", probability(one), *(one["expected_ms"] or (None, None)))
        for one in record["stage1"]
    ]
    computes = [
        (f"k{one['top_k']}/n{one['num_blocks']}", probability(one), one["expected_ms"]) for one in record["stage2"]
    ]
    return Group(
        table("Stage1, before the image: tier/position", ("choice", "probability", "fastest ms", "slowest ms"), images),
        Text(""),
        table("Stage2, at the latency token: top-k/blocks", ("choice", "probability", "expected ms"), computes),
    )


def render_import_report(record: Record) -> Group:
    """Returns the counts of an import, its configurations and its findings."""
    rows = [
        (f["level"], f.get("file") or "-", f.get("rows"), f.get("what") or f.get("code"), f.get("done"))
        for f in record["findings"]
    ]
    rest = {name: value for name, value in record.items() if name not in ("findings", "sources", "configurations")}
    parts: list[RenderableType] = [render_record("import", rest)]
    if configurations := record.get("configurations"):
        columns: tuple[str, ...] = ("dataset", "tier", "top_k", "num_blocks", "files", "questions", "questions_missing")
        columns += ("accuracy_missing", "latency_missing", "mean_accuracy", "median_latency_ms")
        shown = [tuple(configuration[column] for column in columns) for configuration in configurations]
        parts += [Text(""), table("configurations", tuple(column.replace("_", " ") for column in columns), shown)]
    if rows:
        parts += [Text(""), table("findings", ("level", "file", "rows", "what", "done"), rows)]
    return Group(*parts)
