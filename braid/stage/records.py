"""Figures on disk: deterministic JSON, CSV curves, TensorBoard events for watching a run.

DVC reads metrics from JSON only (a CSV becomes one long string, without a warning), and plots
from CSV; so scalars go to JSON and curves to CSV.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, float | int | str | None]


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write `values` with sorted keys; the same values give the same bytes.

    Raises:
        ValueError: a value is NaN or infinite; a figure that cannot be had is null with a reason.
    """
    _require_finite(path, values)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(values, indent=2, sort_keys=True, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _require_finite(path: Path, values: Mapping[str, Any], prefix: str = "") -> None:
    for key, value in values.items():
        if isinstance(value, Mapping):
            _require_finite(path, value, f"{prefix}{key}.")
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(
                f"{path.name}: {prefix}{key} is {value}, expected a finite number or null"
            )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: the file is missing or no JSON object; the message names it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: expected a JSON object ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def write_csv(path: Path, rows: Sequence[Row], columns: Sequence[str] = ()) -> None:
    """Write rows under `columns` and whatever else they have, in order of first appearance."""
    columns = list(dict.fromkeys([*columns, *(column for row in rows for column in row)]))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: _cell(value) for key, value in row.items()})


def _cell(value: float | int | str | None) -> str:
    if isinstance(value, float):
        return f"{value:.7g}"
    return "" if value is None else str(value)


def tensorboard(folder: Path) -> Callable[[Mapping[str, float]], None]:
    """A callback that appends a logged row, by its `step`, to TensorBoard events in `folder`."""
    from torch.utils.tensorboard import SummaryWriter  # costs a second to import

    writer = SummaryWriter(str(folder))

    def log(row: Mapping[str, float]) -> None:
        for name, value in row.items():
            if name != "step":
                writer.add_scalar(name, value, int(row["step"]))
        writer.flush()

    return log
