"""Tables of records for a terminal. The result of every command is a JSON-able record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..data.schema import SPLITS

Record = Mapping[str, Any]
LIST_ITEMS = 20  # shown of a list
NAMES = {
    "datasets",
    "max_new_tokens",
    "questions",
    "files",
}  # entries whose keys are names from outside, shown as they are


def table(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> RenderableType:
    """Returns a table below its title. Numbers are right-aligned; None is shown as a dash."""
    body = [list(row) for row in rows]
    shown = Table(header_style="bold", box=None, pad_edge=False)
    for place, name in enumerate(columns):
        is_number = all(row[place] is None or isinstance(row[place], int | float) for row in body)
        is_figure = is_number and bool(body)
        shown.add_column(name, justify="right" if is_figure else "left", overflow="fold", no_wrap=is_figure)
    for row in body:
        shown.add_row(*(Text(cell(value)) for value in row))  # as Text, since a name is not markup
    return shown if title is None else Group(Text(title, style="bold"), shown)  # a Table would wrap it to its width


def cell(value: Any) -> str:
    """Returns a value as text: floats with three decimals, None as a dash, long lists shortened."""
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
        shown = [cell(item) for item in value[:LIST_ITEMS]]
        if all(isinstance(item, float) for item in value):  # 12.000 16.500 reads worse than 12 16.5
            shown = [text.rstrip("0").rstrip(".") if "." in text else text for text in shown]
        return " ".join(shown) + (f" ... ({len(value)} in all)" if len(value) > LIST_ITEMS else "")
    return str(value)


def render_record(title: str, record: Record) -> Group:
    """Returns a title and a line per entry, with nested entries indented below it.

    Records that share their fields become a table: a list of them with a line each, a mapping with a line per name.
    """
    shown = _nested(record, keep_names=title in NAMES) or Text("-")
    return Group(Text(title, style="bold"), Padding(shown, (0, 0, 0, 2)))


def _entries(record: Record, *, keep_names: bool = False) -> Group:
    parts: list[RenderableType] = []
    lines = _lines()
    for key, value in record.items():
        name = key if keep_names else key.replace("_", " ")
        if value is None or value in ([], (), {}):
            continue
        nested = _nested(value, keep_names=key in NAMES)
        if nested is None:
            lines.add_row(Text(name), Text(cell(value)))
            continue
        if lines.row_count:
            parts.append(lines)
            lines = _lines()
        parts += [Text(name), Padding(nested, (0, 0, 0, 2))]
    return Group(*parts, *([lines] if lines.row_count else []))


def _lines() -> Table:
    """Returns an empty table of names and values. Long values continue below themselves."""
    lines = Table.grid(padding=(0, 2))
    lines.add_column(no_wrap=True)
    lines.add_column(overflow="fold")
    return lines


def _nested(value: Any, *, keep_names: bool) -> RenderableType | None:
    """Returns a mapping, or a list of mappings, as a table or as indented entries; None for any other value."""
    is_list = isinstance(value, list | tuple)
    rows = list(value) if is_list else list(value.values()) if isinstance(value, Mapping) else []
    if not rows or (is_list and not all(isinstance(row, Mapping) for row in rows)):
        return None
    if all(isinstance(row, Mapping) and row.keys() == rows[0].keys() and _is_flat(row) for row in rows):
        columns = [name.replace("_", " ") for name in rows[0]]
        if is_list:
            return table(None, columns, [tuple(row.values()) for row in rows])
        return table(None, ["", *columns], [(name, *row.values()) for name, row in value.items()])
    if is_list:
        return _entries({str(number): row for number, row in enumerate(rows, start=1)})
    return _entries(value, keep_names=keep_names)


def _is_flat(row: Record) -> bool:
    return not any(isinstance(item, Mapping | list | tuple) for item in row.values())


def render_cache(record: Record) -> Group:
    """Returns a `describe_cache` record as sections that fit a terminal of 80 columns."""
    shape, knobs = record["shape"], dict(record["knobs"])
    if crops := knobs.pop("tier_crops", None):
        ranges = [f"{tier} ({low}-{high} crops)" for tier, (low, high) in zip(knobs["tiers"], crops, strict=True)]
        knobs["tiers"] = ", ".join(ranges)
    splits: dict[str, dict[str, int]] = {}
    for row in record["samples"]:
        splits.setdefault(row["dataset"], {})[row["split"]] = row["samples"]
    counts = [(name, *(split.get(column, 0) for column in SPLITS)) for name, split in splits.items()]
    complete = record["completeness"]
    there = [
        (name.replace("_", " "), row["there"], row["of"]) for name, row in complete.items() if isinstance(row, Mapping)
    ]
    rest = {name: value for name, value in complete.items() if value is not None and not isinstance(value, Mapping)}
    parts: list[RenderableType] = [
        Text(str(record["path"]), style="bold"),
        Text(
            f"{shape['samples']} samples x {shape['settings']} settings, {shape['budgets']} budgets, "
            f"d_model {shape['d_model']}"
        ),
        Text(f"fingerprint {record['fingerprint']}"),
        table("samples", ("dataset", *SPLITS), counts),
        render_record("knobs", {**knobs, "budgets_ms": record["budgets_ms"]}),
        table("completeness", ("", "there", "of"), there),
        render_record("", rest) if any(rest.values()) else Text("every sample and every setting has outcomes"),
        _marginals(record["marginals"]),
    ]
    parts += [
        render_record(name if name in NAMES else name.replace("_", " "), value)
        for name, value in _provenance_sections(record["provenance"]).items()
    ]
    parts += [render_record("bytes", record["size_bytes"])]
    parts += [Text(f"note: {warning}", style="yellow") for warning in record["warnings"]]
    return Group(*[line for part in parts for line in (part, Text(""))][:-1])


def _marginals(marginals: Record) -> RenderableType:
    """Returns accuracy and latency for each value of each knob, over all values of the others."""
    columns = ("accuracy", "latency_ms", "latency_ms_p5", "latency_ms_p50", "latency_ms_p95")
    rows = [
        (name.replace("_", " ") if place == 0 else "", cell(row["value"]), *(row[column] for column in columns))
        for name, values in marginals.items()
        for place, row in enumerate(values)
    ]
    shown = ("knob", "value", "accuracy", "mean ms", "p5 ms", "p50 ms", "p95 ms")
    return table("accuracy and latency by knob, over all values of the others", shown, rows)


def _provenance_sections(provenance: Record) -> dict[str, Any]:
    """Returns the nested entries as sections of their own, and the plain ones together as the first."""
    plain = {name: value for name, value in provenance.items() if not isinstance(value, Mapping)}
    return {"made": plain, **{name: value for name, value in provenance.items() if isinstance(value, Mapping)}}


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
    geometry = {**record["geometry"], "always_run": record["geometry"]["always_run"] or "none"}
    for name, shown in (("geometry", geometry), *((name, record[name]) for name in ("memory_mib", "default_knobs"))):
        parts += [Text(""), render_record(name.replace("_", " "), shown)]
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
        columns = ["dataset", "tier", "top_k", "num_blocks", "files", "questions"]
        gaps = ("questions_missing", "accuracy_missing", "latency_missing")
        columns += [name for name in gaps if any(configuration[name] for configuration in configurations)]
        columns += ["mean_accuracy", "median_latency_ms"]
        shown = [tuple(configuration[column] for column in columns) for configuration in configurations]
        heads = [column.replace("_latency", "").replace("num_", "").replace("_", "\n") for column in columns]
        parts += [Text(""), table("configurations", heads, shown)]
    if rows:
        parts += [Text(""), table("findings", ("level", "file", "rows", "what", "done"), rows)]
    return Group(*parts)
