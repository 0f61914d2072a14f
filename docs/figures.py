"""Render the figures of README.md and docs/*.md from committed files: `make figures`.

No figure is typed. A page holds templates in comments, which GitHub does not show, and behind each
what it gives; `--check` names pages in which the two differ.

    <!-- = {metrics/drift.json frechet_ratio .2f} -->0.22<!-- /= -->

    <!-- table
    header: [method, Frechet distance]
    rows:
    - [interpolation, "{plots/drift_methods.csv method=interpolated frechet .3f}"]
    -->
    (the rendered table)
    <!-- /table -->

    <!-- table
    csv: plots/drift_methods.csv
    rows: {method: {interpolated: linear interpolation, refined: one step}}
    columns: [[frechet, Frechet distance, .3f], [calls, calls, .0f]]
    -->

    <!-- table
    csv: docs/results/rehearsals.csv
    rows: all                              (as they stand in the file)
    columns: [[stage, stage, s], [seconds, seconds, .0f]]
    -->

    <!-- recipes drift_* maze_* -->
    (what the heads of these recipes say)
    <!-- /recipes -->

    <!-- file docs/results/diff.txt -->
    (its lines, as a block)
    <!-- /file -->

A reference in braces is a file, of a CSV the row (`column=value`, several joined by `&`), the key
(dots go into nested JSON) and a format, of which a leading `/60:` or `*100:` scales the value. A
figure that is null is rendered as a dash.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
REFERENCE = re.compile(r"\{([^{}]+)\}")
VALUE = re.compile(r"(<!-- = (.+?) -->)(.*?)(<!-- /= -->)", re.DOTALL)
TABLE = re.compile(r"(<!-- table\n(.+?)-->\n)(.*?)(<!-- /table -->)", re.DOTALL)
RECIPES = re.compile(r"(<!-- recipes (.+?) -->\n)(.*?)(<!-- /recipes -->)", re.DOTALL)
FILE = re.compile(r"(<!-- file (\S+) -->\n)(.*?)(<!-- /file -->)", re.DOTALL)
ENTRY = re.compile(r"^(command|hardware|cost|expected): *")
SCALE = re.compile(r"^([/*])(\d+(?:\.\d+)?):")


def pages(root: Path) -> list[Path]:
    """The documents that hold figures."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def render(text: str, root: Path) -> str:
    """A page with all its figures as the files have them.

    Raises:
        ValueError: a reference names no file, row or key.
    """
    text = VALUE.sub(lambda m: f"{m[1]}{filled(m[2], root)}{m[4]}", text)
    text = RECIPES.sub(lambda m: f"{m[1]}{_recipes(m[2].split(), root)}{m[4]}", text)
    text = FILE.sub(lambda m: f"{m[1]}```\n{(root / m[2]).read_text()}```\n{m[4]}", text)
    return TABLE.sub(lambda m: f"{m[1]}{_table(yaml.safe_load(m[2]), root)}{m[4]}", text)


def filled(template: str, root: Path) -> str:
    """A template with its references looked up."""
    return REFERENCE.sub(lambda match: _formatted(match[1], root), template)


def _table(spec: Mapping[str, Any], root: Path) -> str:
    """A Markdown table of the spec's header and rows, or of rows and columns of a CSV."""
    if "csv" in spec:
        spec = _of_csv(spec) if spec["rows"] != "all" else _whole_csv(spec, root)
    rows = [[filled(str(cell), root) for cell in row] for row in spec["rows"]]
    header = [str(cell) for cell in spec["header"]]
    uneven = next((row for row in rows if len(row) != len(header)), None)
    if uneven:
        raise ValueError(f"row {uneven}: expected {len(header)} cells")
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _recipes(patterns: Sequence[str], root: Path) -> str:
    """A Markdown table of the recipes that match a pattern, by name."""
    paths = {path for pattern in patterns for path in (root / "recipes").glob(f"{pattern}.yaml")}
    lines = ["| recipe | what | hardware, cost | expected |", "| --- | --- | --- | --- |"]
    for path in sorted(paths):
        head = recipe_head(path)
        cost = f"{head['hardware']}; {head['cost']}"
        lines.append(f"| `RECIPE={path.stem}` | {head['what']} | {cost} | {head['expected']} |")
    return "".join(f"{line}\n" for line in lines)


def recipe_head(path: Path) -> dict[str, str]:
    """What the comment at a recipe's head says: what, command, hardware, cost, expected."""
    head, entry = {"what": ""}, "what"
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        words = line.lstrip("#").strip()
        if found := ENTRY.match(words):
            entry, words = found[1], words[found.end() :]
            head[entry] = ""
        head[entry] = f"{head[entry]} {words}".strip().replace("|", "\\|")
    return head


def _of_csv(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The same as templates: a row of the table for each label, of the CSV for its value."""
    ((column, labels),) = spec["rows"].items()
    rows = [
        [
            label,
            *(
                f"{{{spec['csv']} {column}={value} {key} {form}}}"
                for key, _, form in spec["columns"]
            ),
        ]
        for value, label in labels.items()
    ]
    return {"header": ["", *(title for _, title, _ in spec["columns"])], "rows": rows}


def _whole_csv(spec: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """The table of every row of a CSV."""
    with (root / spec["csv"]).open(encoding="utf-8", newline="") as file:
        rows = [[_shown(row[k], form) for k, _, form in spec["columns"]] for row in csv.DictReader(file)]
    return {"header": [title for _, title, _ in spec["columns"]], "rows": rows}


def _formatted(reference: str, root: Path) -> str:
    file, *where, key, form = reference.split()
    path = root / file
    if not path.is_file():
        raise ValueError(f"{{{reference}}}: no such file")
    return _shown(_row(path, where[0])[key] if path.suffix == ".csv" else _nested(path, key), form)


def _shown(value: Any, form: str) -> str:
    if value in (None, ""):
        return "–"
    if form == "s":
        return str(value)
    number = float(value)
    if scale := SCALE.match(form):
        number = number / float(scale[2]) if scale[1] == "/" else number * float(scale[2])
        form = form[scale.end() :]
    return format(number, form)


def _row(path: Path, conditions: str) -> Mapping[str, str]:
    """The first row of a CSV that meets `column=value&...`."""
    wanted = dict(condition.split("=", 1) for condition in conditions.split("&"))
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if all(row.get(column) == value for column, value in wanted.items()):
                return row
    raise ValueError(f"{path.name}: no row with {conditions}")


def _nested(path: Path, key: str) -> Any:
    value = json.loads(path.read_text(encoding="utf-8"))
    for part in key.split("."):
        if part not in value:
            raise ValueError(f"{path.name}: no key {key}")
        value = value[part]
    return value


def stale(paths: Iterable[Path], root: Path) -> list[Path]:
    """Pages whose figures are not those of the files."""
    return [path for path in paths if render(path.read_text(), root) != path.read_text()]


def main(arguments: Sequence[str] = ()) -> None:
    """Render every page, or name those that would change."""
    if "--check" in arguments:
        names = [str(path.relative_to(ROOT)) for path in stale(pages(ROOT), ROOT)]
        sys.exit(f"figures are not those of the files, run `make figures`: {names}" if names else 0)
    for path in pages(ROOT):
        path.write_text(render(path.read_text(), ROOT))


if __name__ == "__main__":
    main(sys.argv[1:])
