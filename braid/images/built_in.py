"""The image sets that need no files: scikit-learn's handwritten digits, and noise for timing."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from braid.images.listing import Listing
from braid.splits import split_of

_CHUNK = 256  # fake images in memory at a time


def digits(val_share: float, test_share: float) -> tuple[Listing, Tensor]:
    """The 1,797 digits of scikit-learn and their pixels, [n, 1, 8, 8], grey level x as x / 8 - 1.

    Their order says who wrote them, and the last quarter is of other writers than the rest. Split
    by their names, every writer is in training and test alike.
    """
    found = load_digits()
    names = [f"digit-{place:04d}" for place in range(len(found.target))]
    splits = [split_of(name, val_share, test_share) for name in names]
    label_names = [str(name) for name in found.target_names]
    pixels = torch.from_numpy(found.images).unsqueeze(1) / 8 - 1
    return Listing(names, found.target.tolist(), label_names, splits), pixels


def fake(
    count: int,
    classes: int,
    shape: tuple[int, int, int],
    generator: torch.Generator,
    *,
    val_share: float,
    test_share: float,
) -> tuple[Listing, Iterator[Tensor]]:
    """Noise [b, C, H, W] in [-1, 1) in chunks, labelled in turn; for timing, not for learning."""
    names = [f"fake-{place:07d}" for place in range(count)]
    splits = [split_of(name, val_share, test_share) for name in names]
    labels = [place % classes for place in range(count)]
    sizes = (min(_CHUNK, count - start) for start in range(0, count, _CHUNK))
    noise = (2 * torch.rand(size, *shape, generator=generator) - 1 for size in sizes)
    return Listing(names, labels, [str(each) for each in range(classes)], splits), noise
