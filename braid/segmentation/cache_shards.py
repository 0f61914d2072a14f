"""Shards of the teacher's cached answers: safetensors files of a few hundred images each.

A shard holds, of P prompts on I images, K queries kept of Q, g pixels a side,

    boxes [P, K, 4], logits [P, K], presence [P, 1]    float32
    grids [bytes], sizes [P]        K masks and the semantic map, [K + 1, g, g], of `mask_codec`
    used [P, Q]                     the queries of a score above .5, and the best
    encoder [P, C, h, w], fpn.0 [I, C, h, w], ...      float16, the finest level first

or, of these, what the cache's mode keeps. Tensors are mapped into memory: what is not read takes
none.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from braid.segmentation.mask_codec import packed, quantised
from braid.segmentation.prompted import Pair
from braid.segmentation.teacher_answers import OnlineTeacher

SURVEY = ("logits", "presence", "used")
OUTPUTS = (*SURVEY, "boxes", "grids", "sizes")
FEATURES = ("encoder", "fpn.0", "fpn.1", "fpn.2")

_LIKELY = 0.5  # a query of a higher score is in use


class Shard:
    """A shard on disk.

    Raises:
        ValueError: the file is missing or damaged, or of a cache with another key.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        try:
            with safe_open(path, "pt") as file:
                found = (file.metadata() or {}).get("key")
                names: list[str] = file.keys()
                self.tensors: dict[str, Tensor] = {each: file.get_tensor(each) for each in names}
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path}: cannot be read ({error})") from None
        if found != key:
            raise ValueError(f"{path}: of a cache with key {found}, expected {key}")
        sizes = self.tensors.get("sizes", torch.zeros(0, dtype=torch.int64))
        self._ends = sizes.cumsum(0).tolist()

    def row(self, name: str, row: int) -> Tensor:
        """What is held of one prompt, or of one image."""
        try:
            return self.tensors[name][row]
        except (KeyError, IndexError):
            raise ValueError(f"{self.path}: holds no {name} of row {row}") from None

    def grids(self, row: int) -> NDArray[np.uint8]:
        """The packed masks of one prompt."""
        size = int(self.row("sizes", row))
        return self.tensors["grids"][self._ends[row] - size : self._ends[row]].numpy()

    def bytes_of(self, names: Sequence[str]) -> int:
        """What these of its tensors take."""
        return sum(self.tensors[name].nbytes for name in names if name in self.tensors)


def ask(
    teacher: OnlineTeacher,
    images: Sequence[int],
    names: Sequence[str],  # of the tensors to keep
    batch: int,  # images
) -> dict[str, Tensor]:
    """The tensors of a shard: the teacher's answers to all prompts of the images."""
    parts = []
    for start in range(0, len(images), batch):
        pairs = [
            (image, place)
            for image in images[start : start + batch]
            for place in range(len(teacher.prompted.prompts[image]))
        ]
        parts.append(_answers(teacher, pairs))
    return {name: torch.cat([part[name] for part in parts]) for name in names if name in parts[0]}


def _answers(teacher: OnlineTeacher, pairs: Sequence[Pair]) -> dict[str, Tensor]:
    scores, kept = teacher.answers(pairs)
    levels = quantised(torch.cat([kept.masks, kept.semantic], dim=1)).cpu()
    blobs = [packed(each) for each in levels]
    used = (scores > _LIKELY).scatter(1, scores.argmax(1, keepdim=True), True)
    tensors = {
        "boxes": kept.boxes,
        "logits": kept.logits,
        "presence": kept.presence,
        "grids": torch.frombuffer(bytearray(b"".join(blobs)), dtype=torch.uint8),
        "sizes": torch.tensor([len(blob) for blob in blobs]),
        "used": used.to(torch.uint8),
        **{f"fpn.{place}": level for place, level in enumerate(kept.fpn)},
    }
    if kept.encoder is not None:
        tensors["encoder"] = kept.encoder
    return {name: each.cpu().contiguous() for name, each in tensors.items()}


def write_shard(path: Path, tensors: dict[str, Tensor], key: str) -> None:
    """Write a shard so that there is a whole one or none."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(save(tensors, {"key": key}))
        file.flush()
        os.fsync(file.fileno())  # a rename may reach the disk before the data it names
    partial.replace(path)


def duplicate(source: Path, target: Path) -> None:
    """The same file at another place, without a second copy of its bytes where that is possible."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # on another disk, or one that knows no links
        shutil.copyfile(source, target)
