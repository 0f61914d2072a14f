"""Tiny shards in the Wan-synth layout, written with Python's tarfile, intact or damaged."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

SHAPE = (16, 3, 2, 4)  # C, T, H, W
TEXT = (6, 5)


def draw(shape: Sequence[int], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).bfloat16()


def latent(number: int) -> torch.Tensor:
    return draw(SHAPE, number)


def text(number: int) -> torch.Tensor:
    """Of 1 to 5 rows, then zeros."""
    rows = draw(TEXT, 1000 + number)
    rows[1 + number % 5 :] = 0
    return rows


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def members(number: int) -> dict[str, bytes]:
    """A good clip's members by their full names."""
    key = f"{number:09d}"
    return {
        f"{key}.latent.pt": saved(latent(number)),
        f"{key}.embed.pt": saved(text(number)),
        f"{key}.prompt.txt": f"prompt {number} é".encode(),
    }


def write_tar(path: Path, content: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in content.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def write_clips(path: Path, numbers: Sequence[int]) -> Path:
    return write_tar(path, {name: data for n in numbers for name, data in members(n).items()})
