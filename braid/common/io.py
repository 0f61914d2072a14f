"""JSON, CSV and trained models on disk; the same values give the same bytes.

DVC reads metrics from JSON only (a CSV becomes one long string, without a warning), and plots
from CSV; so scalars go to JSON and curves to CSV. A model is `model.safetensors` and a
`config.json` to build it from.
"""

import csv
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

Model = TypeVar("Model", bound=nn.Module)
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


def duplicate(source: Path, target: Path) -> None:
    """The same file at another place, without a second copy of its bytes where that is possible."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # on another disk, or one that knows no links
        shutil.copyfile(source, target)


def save_model(folder: Path, model: nn.Module, config: Mapping[str, Any]) -> None:
    """Write weights and config; equal models give equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    (folder / "model.safetensors").write_bytes(save(state))
    write_json(folder / "config.json", config)


def load_model(
    folder: Path, build: Callable[..., Model], what: str
) -> tuple[dict[str, Any], Model]:
    """The config and the model that `save_model` wrote; `build` takes its entries as keywords.

    Raises:
        ValueError: a file is missing or broken; the message names the folder and `what` it is.
    """
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model = build(**config)
        model.load_state_dict(load((folder / "model.safetensors").read_bytes()))
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{folder}: expected config.json and model.safetensors of a {what} ({error})"
        ) from None
    return config, model
