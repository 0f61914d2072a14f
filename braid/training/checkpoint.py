"""Training state on disk: written whole or not at all, and read back without unpickling code."""

import os
import tempfile
from pathlib import Path
from typing import Any

import torch


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` so that a reader sees the old file or the new one, never half of either.

    Args:
        path: the file to write; missing parent folders are made.
        state: tensors and plain Python values, nested in dicts, lists and tuples.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())  # a rename may reach the disk before the data it names
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def load(path: Path) -> dict[str, Any] | None:
    """Read what :func:`save` wrote, tensors on the CPU; None where there is no file.

    Raises:
        ValueError: the file is damaged, or holds more than tensors and plain values.
    """
    try:
        with path.open("rb") as file:
            state = torch.load(file, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        return None
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ValueError(f"{path}: not a readable checkpoint; delete it to start again") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path}: expected a checkpoint dict, got {type(state).__name__}")
    return state
