"""Random access to clips in tar shards, by the manifest and index that `prepare_clips` made.

Shards are read where they lie. Any clips in any order can be asked for, so a training has exact
epochs, draws that do not depend on the process count, and nothing to restore when it resumes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from braid.clips.members import DTYPES, Layout, read_embedding, read_latent, read_prompt
from braid.clips.tar_shards import KINDS
from braid.splits import SPLITS

MANIFEST, INDEX = "manifest.json", "index.npz"
_AGAIN = "run `dvc repro -f prepare_clips` again"

Indices = NDArray[np.int64] | Sequence[int] | Tensor
_Read = TypeVar("_Read")


@dataclass(frozen=True)
class Index:
    """Where N clips' members lie."""

    keys: NDArray[np.str_]  # [N]
    shards: NDArray[np.int32]  # [N], in the manifest's order
    offsets: NDArray[np.int64]  # [N, kinds]
    sizes: NDArray[np.int64]  # [N, kinds]; 0: there is no such member
    splits: NDArray[np.uint8]  # [N], of SPLITS


class Clips:
    """Clips of one shape; made by `open_clips`."""

    def __init__(self, folder: Path, manifest: dict[str, Any], index: Index, cache: int) -> None:
        self.keys: list[str] = index.keys.tolist()
        self.shape: tuple[int, int, int, int] = tuple(manifest["latent_shape"])
        self.text_shape: tuple[int, int] = tuple(manifest["text_shape"])
        self.codec: str = manifest["codec"]
        self._layout: Layout = manifest["layout"]
        self._index = index
        self._shards = [folder / shard["path"] for shard in manifest["shards"]]
        self._dtype = DTYPES[manifest["dtype"]]
        size = self._dtype.itemsize * int(np.prod(self.shape))
        self._cache = torch.empty(min(len(self), cache // size), *self.shape, dtype=self._dtype)
        self._slots = np.full(len(self), -1)
        self._cached = 0

    def __len__(self) -> int:
        return len(self.keys)

    def indices(self, split: str) -> NDArray[np.int64]:
        """The clips of ``train``, ``val`` or ``test``, ascending."""
        return np.flatnonzero(self._index.splits == SPLITS.index(split))

    def latents(self, indices: Indices) -> Tensor:
        """Latents in the order asked for, [B, C, T, H, W] float32.

        Raises:
            ValueError: a clip cannot be read any more; the message names shard and key.
        """
        wanted = np.asarray(indices, np.int64)
        batch = torch.empty(len(wanted), *self.shape)
        cached = self._slots[wanted] >= 0
        batch[cached] = self._cache[self._slots[wanted[cached]]].float()
        absent = np.flatnonzero(~cached)
        for row, latents in self._read("latent", wanted[absent], self._latents_of):
            batch[absent[row]] = latents
            self._keep(wanted[absent[row]], latents)
        return batch

    def anchors(self, indices: Indices) -> Tensor:
        """A phase-1 model's latents for the same clips, [B, C, T, H, W] float32.

        Raises:
            ValueError: a clip has none, or it cannot be read any more.
        """
        wanted = np.asarray(indices, np.int64)
        for clip in wanted[self._index.sizes[wanted, KINDS.index("anchor")] == 0]:
            raise ValueError(f"clip {self.keys[clip]}: the shards hold no anchor of it")
        return self._stack("anchor", wanted, self._latents_of, self.shape)

    def texts(self, indices: Indices) -> Tensor:
        """Text embeddings with zero rows after the text, [B, L, D] float32.

        Raises:
            ValueError: a clip cannot be read any more.
        """
        return self._stack("embed", indices, self._text_of, self.text_shape)

    def prompts(self, indices: Indices) -> list[str]:
        """The prompts, in the order asked for.

        Raises:
            ValueError: a clip cannot be read any more.
        """
        wanted = np.asarray(indices, np.int64)
        return [prompt for _, prompt in sorted(self._read("prompt", wanted, read_prompt))]

    def _stack(
        self,
        kind: str,
        indices: Indices,
        parse: Callable[[bytes], Tensor],
        shape: tuple[int, ...],
    ) -> Tensor:
        wanted = np.asarray(indices, np.int64)
        batch = torch.empty(len(wanted), *shape)
        for row, values in self._read(kind, wanted, parse):
            batch[row] = values
        return batch

    def _read(
        self, kind: str, clips: NDArray[np.int64], parse: Callable[[bytes], _Read]
    ) -> Iterator[tuple[int, _Read]]:
        """(row, what clips[row] has of a kind), each shard opened once and read front to back."""
        column = KINDS.index(kind)
        shards = self._index.shards[clips]
        offsets, sizes = self._index.offsets[clips, column], self._index.sizes[clips, column]
        order = np.lexsort((offsets, shards)).tolist()
        for shard, rows in groupby(order, key=shards.tolist().__getitem__):
            with self._shards[shard].open("rb") as file:
                for row in rows:
                    file.seek(offsets[row])
                    try:
                        parsed = parse(file.read(sizes[row]))
                    except ValueError as error:
                        name = f"{self._shards[shard]}: {kind} of {self.keys[clips[row]]}"
                        raise ValueError(f"{name}: {error}; {_AGAIN}") from None
                    yield row, parsed

    def _latents_of(self, content: bytes) -> Tensor:
        return _of_shape(read_latent(content, self._layout), self.shape)

    def _text_of(self, content: bytes) -> Tensor:
        return _of_shape(read_embedding(content), self.text_shape)

    def _keep(self, clip: int, latents: Tensor) -> None:
        if self._cached < len(self._cache) and self._slots[clip] < 0:
            self._cache[self._cached] = latents
            self._slots[clip] = self._cached
            self._cached += 1


def _of_shape(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    if values.shape != shape:
        raise ValueError(f"its shape is {list(values.shape)}, expected {list(shape)}")
    return values


def open_clips(folder: Path, *, cache_mib: int = 0) -> Clips:
    """Open the clips that a manifest lists.

    Args:
        folder: where `prepare_clips` wrote manifest and index.
        cache_mib: RAM of this process in which latents are kept once read, as they are stored.

    Raises:
        ValueError: the folder lacks its manifest, or a shard is gone or changed since.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); {_AGAIN}") from None
    for shard in manifest["shards"]:
        _require_unchanged(folder / shard["path"], shard["bytes"])
    with np.load(folder / INDEX, allow_pickle=False) as arrays:
        index = Index(**arrays)
    return Clips(folder, manifest, index, cache_mib * 2**20)


def _require_unchanged(path: Path, size: int) -> None:
    try:
        now = path.stat().st_size
    except OSError:
        raise ValueError(f"{path}: the shard is gone; {_AGAIN}") from None
    if now != size:
        raise ValueError(f"{path}: the shard has {now} bytes, not {size} as indexed; {_AGAIN}")
