"""A small scene in the Blender format, written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ANGLE = 0.7


def pose(position: tuple[float, float, float] = (0.0, 0.0, 4.0)) -> list[list[float]]:
    """A camera that looks down the negative z axis."""
    return [[1, 0, 0, position[0]], [0, 1, 0, position[1]], [0, 0, 1, position[2]], [0, 0, 0, 1]]


def write_image(path: Path, pixels: Any, mode: str = "RGBA") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=np.uint8), mode=mode).save(path)


def write_scene(folder: Path, size: tuple[int, int] = (4, 6), frames: int = 2) -> Path:
    """A scene of `frames` images of `size` (height, width); returns its JSON."""
    rng = np.random.default_rng(0)
    for index in range(frames):
        write_image(folder / f"train/r_{index}.png", rng.integers(0, 256, (*size, 4)))
    names = [{"file_path": f"./train/r_{i}", "transform_matrix": pose()} for i in range(frames)]
    path = folder / "transforms_train.json"
    path.write_text(json.dumps({"camera_angle_x": ANGLE, "frames": names}))
    return path


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
