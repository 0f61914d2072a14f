"""A small ImageFolder: squares whose color depends on class and place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ants", "bees", "cats")


def write_picture(path: Path, number: int = 0, size: tuple[int, int] = (12, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(values).save(path)
    return path


def write_folder(root: Path, count: int = 20) -> Path:
    for label, name in enumerate(CLASSES):
        for place in range(count):
            size = (8 + place % 5, 9 + place % 4)
            write_picture(root / name / f"{place:03d}.png", 100 * label + place, size)
    return root
