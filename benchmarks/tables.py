"""Result rows of benchmarks as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Row = tuple[str, Mapping[str, object]]  # (name of the table, values by column)


def markdown(rows: Iterable[Row]) -> str:
    """Returns one Markdown table for each table name, in order of first occurrence."""
    tables: dict[str, list[Mapping[str, object]]] = {}
    for name, values in rows:
        tables.setdefault(name, []).append(values)
    return "\n".join(_table(lines) for lines in tables.values())


def _table(lines: list[Mapping[str, object]]) -> str:
    columns = list(dict.fromkeys(column for values in lines for column in values))
    body = [columns, ["---"] * len(columns), *([values.get(column, "") for column in columns] for values in lines)]
    return "".join("| " + " | ".join(_cell(value) for value in line) + " |\n" for line in body)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
