"""Headline figures as tables, and what differs between revisions."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeGuard

from report.revisions import Revision

Value = float | int | str | bool | None
_SENTENCE = 24  # characters; longer cells are no figures
NO_CHANGE = "–"  # where no difference exists: words, or a figure of one revision
NOT_METRICS = ("metrics/runtime/", "metrics/tables/")


@dataclass(frozen=True)
class Table:
    """Cells as text under a header; the first column names the row."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def figures(revision: Revision) -> dict[str, dict[str, Value]]:
    """Each metrics file's figures by dotted key."""
    return {
        path: dict(_leaves(revision.json(path)))
        for path in revision.below("metrics", ".json")
        if not path.startswith(NOT_METRICS)
    }


def headline_tables(files: Mapping[str, Mapping[str, Value]]) -> list[Table]:
    """A table of all files of a folder, a row each, or else of one file, a row a figure."""
    folders: dict[str, list[str]] = {}
    for path in files:
        folders.setdefault(str(PurePosixPath(path).parent), []).append(path)
    tables = []
    for folder, paths in folders.items():
        if folder != "metrics" and len(paths) > 1:
            keys = list(dict.fromkeys(key for path in paths for key in files[path]))
            rows = [
                (PurePosixPath(path).stem, *(text(files[path].get(key)) for key in keys))
                for path in paths
            ]
            tables.append(Table(f"{folder}/", ("", *keys), tuple(rows)))
        else:
            tables += [
                Table(path, ("", "value"), tuple((key, text(v)) for key, v in files[path].items()))
                for path in paths
            ]
    return tables


def summary_tables(revision: Revision) -> list[Table]:
    """The CSVs that stand beside the metrics; columns of sentences become notes."""
    paths = [path for path in revision.below("metrics", ".csv") if path.count("/") == 1]
    return [_summary(path, revision.files[path].decode()) for path in paths]


def _summary(path: str, content: str) -> Table:
    rows = list(csv.DictReader(io.StringIO(content)))
    values = {name: list(dict.fromkeys(row[name] for row in rows)) for name in rows[0]}
    columns = [name for name, cells in values.items() if 0 < max(map(len, cells)) <= _SENTENCE]
    cells = tuple(tuple(text(_number(row[name])) for name in columns) for row in rows)
    notes = [
        f"{name}: {'; '.join(filter(None, cells))}"
        for name, cells in values.items()
        if max(map(len, cells)) > _SENTENCE
    ]
    return Table(path, tuple(columns), cells, tuple(notes))


def differences(revisions: Sequence[Revision], strand_files: set[str]) -> Table:
    """The figures that are not alike in all revisions, with their change from the first.

    The change is that of the last revision.
    """
    values = [figures(revision) for revision in revisions]
    keys = dict.fromkeys(
        (path, key)
        for revision in values
        for path, entry in revision.items()
        if path in strand_files
        for key in entry
    )
    rows = []
    for path, key in keys:
        row = [revision.get(path, {}).get(key) for revision in values]
        if any(value != row[0] for value in row[1:]):
            place = path.removeprefix("metrics/").removesuffix(".json")
            rows.append((f"{place}: {key}", *map(text, row), change(row[0], row[-1])))
    rows.sort(key=lambda row: row[-1] == NO_CHANGE)  # figures that both have first
    names = [revision.name for revision in revisions]
    return Table("", ("metric", *names, "change"), tuple(rows))


def change(before: Value, after: Value) -> str:
    """The difference of two numbers with its sign, and in percent."""
    if not _is_number(before) or not _is_number(after):
        return NO_CHANGE
    difference = float(after) - float(before)
    percent = f" ({100 * difference / abs(float(before)):+.1f} %)" if before else ""
    return f"{difference:+.4g}{percent}"


def seconds(revision: Revision) -> dict[str, float]:
    """What each stage took, by its runtime file."""
    paths = revision.below("metrics/runtime", ".json")
    taken = {path: revision.json(path).get("seconds") for path in paths}
    return {path: float(value) for path, value in taken.items() if _is_number(value)}


def text(value: Value) -> str:
    """A value in a table: numbers to five digits, a dash where there is none."""
    if value is None or value == "":
        return "–"
    if isinstance(value, float):
        return f"{value:,.5g}" if abs(value) < 1e5 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def _leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Value]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if _is_leaf(value) else str(value)


def _is_leaf(value: Any) -> bool:
    return value is None or isinstance(value, str | float | int)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, float | int) and not isinstance(value, bool)


def _number(cell: str) -> Value:
    try:
        return int(cell) if cell.lstrip("-").isdigit() else float(cell)
    except ValueError:
        return cell
