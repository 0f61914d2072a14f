"""A small ImageFolder: squares whose color depends on class and place."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ants", "bees", "cats")


def write_picture(path: Path, number: int = 0, size: tuple[int, int] = (12, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(values).save(path)
    return path


def turned_photo(entry: bytes, extra: bytes = b"") -> bytes:
    """A JPEG of 16 x 12 whose EXIF says a quarter turn, and has one more entry of the first IFD."""
    buffer = io.BytesIO()
    values = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    Image.fromarray(values).save(buffer, "JPEG")
    orientation = struct.pack("<HHIHH", 0x112, 3, 1, 6, 0)
    tiff = b"II*\0" + struct.pack("<IH", 8, 2) + orientation + entry + bytes(4) + extra
    segment = b"Exif\0\0" + tiff
    jpeg = buffer.getvalue()
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]


def write_folder(root: Path, count: int = 20) -> Path:
    for label, name in enumerate(CLASSES):
        for place in range(count):
            size = (8 + place % 5, 9 + place % 4)
            write_picture(root / name / f"{place:03d}.png", 100 * label + place, size)
    return root
