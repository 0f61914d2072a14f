"""Survey a folder of images in the ImageFolder layout: root/class/any/names.jpg.

Classes are the folders in the root that hold images, in alphabetical order; an image in the root
itself has no label. Images stay where they are. Each is decoded once, so that no training meets a
broken one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from braid.images.image_files import inside, open_picture
from braid.images.listing import NO_LABEL, Fault, Listing
from braid.splits import split_of

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def survey_folder(root: Path, *, outside: Path, val_share: float, test_share: float) -> Listing:
    """The images that can be decoded, by name, and the faults of the others.

    Args:
        root: the folder; images are decoded by as many threads as PyTorch has.
        outside: a folder in which the root must not lie.
        val_share: of the images, in expectation, as split by a hash of the name.
        test_share: the same.

    Raises:
        ValueError: no such folder, in the wrong place, or without an image that can be decoded.
    """
    if not root.is_dir():
        raise ValueError(f"images.source: {root}: no such folder; expected one, digits or fake")
    root = root.resolve()
    if root.is_relative_to(outside.resolve()):
        raise ValueError(
            f"images.source: {root}: images stay where they are, expected a place outside of the "
            "repository"
        )
    found = sorted(_names(root))
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        reasons = list(threads.map(lambda name: _fault(root, name), found))
    names = [name for name, reason in zip(found, reasons, strict=True) if not reason]
    faults = [Fault(name, why) for name, why in zip(found, reasons, strict=True) if why]
    if not names:
        raise ValueError(f"images.source: {root}: no image that can be read ({len(faults)} faults)")
    classes = sorted({name.split("/")[0] for name in found if "/" in name})
    numbers = {name: number for number, name in enumerate(classes)}
    labels = [numbers[name.split("/")[0]] if "/" in name else NO_LABEL for name in names]
    splits = [split_of(name, val_share, test_share) for name in names]
    return Listing(names, labels, classes, splits, faults)


def _names(root: Path) -> Iterator[str]:
    """Image files by their path relative to the root, with slashes; links to folders are left."""
    for folder, _, files in os.walk(root):
        for name in files:
            if name.lower().endswith(SUFFIXES):
                yield (Path(folder) / name).relative_to(root).as_posix()


def _fault(root: Path, name: str) -> str | None:
    try:
        open_picture(inside(root, name))
    except ValueError as error:
        return str(error)
    return None
