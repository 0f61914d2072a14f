"""Masks as COCO's compressed run lengths: checked, decoded, and averaged over the cells of a grid.

A mask's columns are laid end to end; its runs are lengths of alternately 0s and 1s. From the fourth
on, a run is stored as its difference to the run before the last. A number is stored in groups of 5
bits, the lowest first; a group is the character 48 + group, + 32 if more follow; the last group's
highest bit is the sign (cocoapi, common/maskApi.c). pycocotools trusts such a string blindly, and
one that ends within a number is read beyond its end, so that strings from elsewhere have to pass
`read_runs` first. To repeat values by these runs takes a tenth of the time of its decoder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

_CHARACTERS = re.compile(rb"[0-o]*[0-O]")  # the last one says that no more follow
_MOST_GROUPS = 7  # of 5 bits, that a number has: 2^34 pixels are more than an image has

Rle = Mapping[str, Any]  # "size": [height, width]; "counts": str, or bytes out of pycocotools


def encode(
    mask: NDArray[np.bool_],  # [h, w]
) -> dict[str, Any]:
    """A mask as compressed run lengths."""
    encoded = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode("ascii")}


def decode(rle: Rle) -> NDArray[np.bool_]:
    """The mask, [h, w].

    Raises:
        ValueError: as `read_runs`.
    """
    height, width = rle["size"]
    runs = read_runs(rle)
    return (np.arange(len(runs)) % 2 == 1).repeat(runs).reshape(width, height).T


def pixel_box(rle: Rle) -> tuple[int, int, int, int]:
    """The tight box around a mask that is not empty: x, y, width, height."""
    x, y, width, height = coco.toBbox(rle).astype(int).tolist()
    return x, y, width, height


def tight_box(rle: Rle) -> tuple[float, float, float, float]:
    """The same as fractions of the image's width and height, xyxy."""
    height, width = rle["size"]
    x, y, w, h = pixel_box(rle)
    return x / width, y / height, (x + w) / width, (y + h) / height


def read_runs(rle: Rle) -> NDArray[np.int64]:
    """The lengths of the runs, of 0s and 1s in turn.

    Raises:
        ValueError: they are not compressed run lengths, or not as many pixels as the size says.
    """
    counts, (height, width) = rle["counts"], rle["size"]
    counts = counts.encode() if isinstance(counts, str) else counts
    if not _CHARACTERS.fullmatch(counts):
        raise ValueError("counts is not a string of compressed run lengths")
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    last = codes < 32
    starts = np.flatnonzero(np.concatenate([[True], last[:-1]]))
    groups = np.diff(starts, append=len(codes))
    if groups.max() > _MOST_GROUPS:
        raise ValueError("counts holds a number without an end")
    place = np.arange(len(codes)) - starts.repeat(groups)
    runs = np.add.reduceat((codes & 31) << 5 * place, starts)
    runs -= (codes[last] >> 4 & 1) << 5 * groups  # two's complement
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    if runs.min() < 0:
        raise ValueError(f"counts holds a run of {runs.min()} pixels")
    if runs.sum() != height * width:
        raise ValueError(f"its runs hold {runs.sum()} pixels, expected {height} x {width}")
    return runs


def coverage(rle: Rle, size: int) -> NDArray[np.float32]:
    """The exact fraction of each of ``size`` x ``size`` cells that the mask covers.

    Cells need not hold whole pixels. Only the pixels and cells of the mask's bounding box are
    visited.
    """
    x, y, width, height = pixel_box(rle)
    pixels = decode(rle)[y : y + height, x : x + width].astype(np.float32)
    rows, down = _overlaps(y, height, rle["size"][0], size)
    columns, across = _overlaps(x, width, rle["size"][1], size)
    covered = np.zeros((size, size), np.float32)
    covered[rows, columns] = down @ pixels @ across.T
    return covered.clip(0, 1)


def _overlaps(start: int, length: int, total: int, size: int) -> tuple[slice, NDArray[np.float32]]:
    """Which of ``size`` cells along a side a stretch of pixels meets, and their overlaps.

    An overlap is the fraction of the cell that the pixel takes, [cells, length].
    """
    cell = total / size
    cells = np.arange(start * size // total, -(-(start + length) * size // total))
    pixels = np.arange(start, start + length)
    upper = np.minimum.outer((cells + 1) * cell, pixels + 1)
    lower = np.maximum.outer(cells * cell, pixels)
    fractions = (upper - lower).clip(0) / cell
    return slice(cells[0], cells[-1] + 1), fractions.astype(np.float32)
