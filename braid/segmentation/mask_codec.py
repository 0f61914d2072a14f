"""Mask logits in a byte a pixel, and grids of such bytes compressed.

A probability p = sigmoid(x) is kept as the angle

    phi = arcsin(sqrt(p)) = arctan(exp(x / 2))

in 255 equal steps of [0, pi / 2]: Fisher's variance-stabilising transformation of a proportion
(Fisher 1922, On the dominance ratio). An error d of that angle costs a soft target a KL divergence
of 2 d^2 nats whatever p is, here at most 2e-5. Equal steps of p would lose the faint pixels, equal
steps of x those in doubt.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

_STEP = math.pi / 2 / 255


def quantised(
    logits: Tensor,  # [...]
) -> Tensor:
    """The nearest of 256 angles, [...] uint8; 0 and 255 are p below 1e-5 and above 1 - 1e-5."""
    return ((logits.float() / 2).exp().atan() / _STEP).round().to(torch.uint8)


def logit_table() -> Tensor:
    """The logit of each level, [256] float32: odd about the middle, finite at both ends."""
    angle = torch.arange(256, dtype=torch.float64) * _STEP
    angle = angle.clamp(_STEP / 4, math.pi / 2 - _STEP / 4)  # in the middle of the half steps
    return (2 * angle.tan().log()).float()


def packed(
    levels: Tensor,  # [N, h, w] uint8
) -> bytes:
    """Levels as differences along the rows, mostly runs of zeros in a mask, compressed."""
    left = F.pad(levels, (1, 0))[..., :-1]
    # Runs and Huffman codes alone: faster than a search for repetitions, which noise has not.
    deflate = zlib.compressobj(strategy=zlib.Z_RLE)
    return deflate.compress((levels - left).numpy().tobytes()) + deflate.flush()


def unpacked(
    blobs: Sequence[NDArray[np.uint8]],  # what `packed` gave, for each of B
    shape: tuple[int, int, int],  # N, h, w
) -> Tensor:
    """The levels, [B, N, h, w] uint8.

    Raises:
        ValueError: a blob is damaged, or of another shape.
    """
    size = math.prod(shape)
    differences = np.empty((len(blobs), size), np.uint8)
    for row, blob in zip(differences, blobs, strict=True):
        try:
            content = zlib.decompress(blob.data, bufsize=size)
        except zlib.error as error:
            raise ValueError(f"damaged masks ({error})") from None
        if len(content) != size:
            raise ValueError(f"masks of {len(content)} pixels, expected {size}")
        row[:] = np.frombuffer(content, np.uint8)
    return torch.from_numpy(differences).reshape(-1, *shape).cumsum(-1, dtype=torch.uint8)
