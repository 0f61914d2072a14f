"""Random access to a set of images, by the manifest and index that `prepare_images` made.

Images lie either in safetensors shards beside the manifest (digits, noise, latents) or in the
user's folder, where they are read, cropped and resized each time. Any images can be read in any
order, so a training has exact epochs and nothing to restore when it resumes. A file of the user's
that is not what was indexed is refused: its size when the set is opened, its content when read.
"""

from __future__ import annotations

import hashlib
import json
import math
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from braid.data.row_cache import RowCache
from braid.data.splits import SPLITS

MANIFEST, INDEX = "manifest.json", "index.npz"
_AGAIN = "run `dvc repro -f prepare_images` again"

Indices = NDArray[np.int64] | Sequence[int] | Tensor


@dataclass(frozen=True)
class Index:
    """What is known of n images."""

    names: NDArray[np.str_]  # [n], relative to the root where there is one
    labels: NDArray[np.int64]  # [n], -1: none
    conditions: NDArray[np.int64]  # [n], what a refiner is conditioned on
    splits: NDArray[np.uint8]  # [n], of SPLITS
    sizes: NDArray[np.int64] | None = None  # [n], bytes of the user's files
    digests: NDArray[np.uint64] | None = None  # [n], of their content


class _Source(Protocol):
    dtype: torch.dtype

    def read(self, images: NDArray[np.int64], uniforms: Tensor | None) -> Tensor:
        """Images [B, C, H, W] as they are stored; uniforms [B, 4] place a random crop."""


class ImageSet:
    """Images of one shape; made by `open_image_set`."""

    def __init__(
        self, manifest: dict[str, Any], index: Index, source: _Source, cache_bytes: int
    ) -> None:
        self.shape: tuple[int, int, int] = tuple(manifest["shape"])
        self.input_space: str = manifest["input_space"]
        self.label_names: list[str] = manifest["label_names"]
        self.class_names: list[str] = manifest["class_names"]
        self.names: list[str] = index.names.tolist()
        self.faults: dict[str, str] = {f["name"]: f["reason"] for f in manifest["faults"]}
        self.labels = torch.from_numpy(index.labels)
        self.conditions = torch.from_numpy(index.conditions)
        self._splits = index.splits
        self._crops = manifest["crop"] == "random_resized" and manifest["root"] is not None
        self._source = source
        self._cache = RowCache(len(self), self.shape, source.dtype, cache_bytes)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def classes(self) -> int:
        """The number of conditions."""
        return len(self.class_names)

    @property
    def counts(self) -> dict[str, int]:
        """The number of images in each split."""
        return {split: len(self.indices(split)) for split in SPLITS}

    def subset(self, split: str, at_most: int | None = None) -> tuple[Tensor, Tensor]:
        """Images [n, C, H, W] of a split, as `indices` chooses them, and their conditions [n]."""
        chosen = self.indices(split, at_most)
        return self.images(chosen), self.conditions[chosen]

    def indices(self, split: str, at_most: int | None = None) -> NDArray[np.int64]:
        """The images of ``train``, ``val`` or ``test``, ascending.

        If those are too many: some, evenly spread, for a folder's images are in order of class.
        """
        members = np.flatnonzero(self._splits == SPLITS.index(split))
        count = len(members) if at_most is None else min(at_most, len(members))
        return members[np.linspace(0, len(members) - 1, count).astype(int)]

    def images(self, indices: Indices, generator: torch.Generator | None = None) -> Tensor:
        """Images in the order of the indices, [B, C, H, W] float32: pixels in [-1, 1], or latents.

        Args:
            indices: [B], with repetitions or without.
            generator: of random crops, on the CPU, for a folder whose `crop` is random: train
                images get crops of their own, all others the central square.

        Raises:
            ValueError: an image cannot be read any more; the message names it.
        """
        rows = np.asarray(indices, np.int64)
        if generator is None or not self._crops:
            return _values(self._cached_or_read(rows))
        uniforms = torch.rand(len(rows), 4, generator=generator)
        cropped = self._splits[rows] == SPLITS.index("train")
        batch = torch.empty(len(rows), *self.shape, dtype=self._source.dtype)
        batch[cropped] = self._source.read(rows[cropped], uniforms[cropped])
        batch[~cropped] = self._cached_or_read(rows[~cropped])
        return _values(batch)

    def clips(self, indices: Indices, generator: torch.Generator | None = None) -> Tensor:
        """The same as clips of one frame, [B, C, 1, H, W]."""
        return self.images(indices, generator)[:, :, None]

    def mean(self, split: str, at_most: int = 1024) -> Tensor:
        """The mean image of a split, [C, H, W]; of every k-th one where there are too many."""
        members = self.indices(split)
        return self.images(members[:: -(-len(members) // at_most)]).mean(dim=0)

    def _cached_or_read(self, rows: NDArray[np.int64]) -> Tensor:
        """Images as they are stored, each read once while the cache has room."""
        return self._cache.get(rows, lambda absent: self._source.read(absent, None))


def _values(stored: Tensor) -> Tensor:
    """Bytes to [-1, 1]; half floats are what they are."""
    return stored / 127.5 - 1 if stored.dtype == torch.uint8 else stored.float()


def open_image_set(folder: Path, *, cache_mib: int = 0) -> ImageSet:
    """Open the images that a manifest lists.

    Args:
        folder: where `prepare_images` wrote.
        cache_mib: RAM of this process that keeps images once read, as they are stored.

    Raises:
        ValueError: the folder lacks its manifest or index, or either is damaged; or a file of the
            user's is gone or has another size than when it was indexed.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        with np.load(folder / INDEX, allow_pickle=False) as arrays:
            index = Index(**arrays)
    except (OSError, EOFError, BadZipFile, ValueError, TypeError) as error:
        raise ValueError(f"{folder}: no set of images ({error}); {_AGAIN}") from None
    source: _Source
    if manifest["root"] is None:
        source = ShardImages(folder, manifest["shards"])
    else:
        root, links = Path(manifest["root"]), manifest.get("links", "inside")
        source = FileImages(root, index, size=manifest["shape"][-1], links=links)
        source.require_sizes()
    return ImageSet(manifest, index, source, cache_mib * 2**20)


# ---- Images in shards beside the manifest -------------------------------------------------------


def shard_name(number: int) -> str:
    """The name of a shard of the folder."""
    return f"images-{number:05d}.safetensors"


class ShardImages:
    """Half-float images in shards of the folder, each with a tensor ``images``."""

    dtype = torch.float16

    def __init__(self, folder: Path, counts: Sequence[int]) -> None:
        self._paths = [folder / shard_name(number) for number in range(len(counts))]
        self._starts = np.cumsum([0, *counts])
        self._open: dict[int, Any] = {}

    def read(self, images: NDArray[np.int64], uniforms: Tensor | None) -> Tensor:
        """Rows of the shards; no crop is left to place."""
        shards = np.searchsorted(self._starts, images, side="right") - 1
        rows: list[Tensor] = [torch.empty(0)] * len(images)
        for shard, members in groupby(np.argsort(images), key=shards.__getitem__):
            stored = self._slice(int(shard))
            for member in members:
                row = int(images[member] - self._starts[shard])
                rows[member] = stored[row : row + 1]
        # A training's autocast to bfloat16 cannot join what is stored in float16.
        with torch.autocast("cpu", enabled=False):
            return torch.cat(rows)

    def _slice(self, shard: int) -> Any:
        if shard not in self._open:
            try:
                self._open[shard] = safe_open(self._paths[shard], "pt")
            except (OSError, SafetensorError) as error:
                raise ValueError(f"{self._paths[shard]}: {error}; {_AGAIN}") from None
        return self._open[shard].get_slice("images")


# ---- Images in the files of a folder: decoded, cropped and resized, none of them trusted --------
# The random crop is that of Inception (Szegedy et al. 2015) without its rejection loop: an area of
# 8 to 100 % and an aspect ratio of 3/4 to 4/3, each side then cut to the image's own. A crop is so
# a function of four uniform numbers, and a batch that is read again keeps its bytes.

AREA = (0.08, 1.0)  # of the image
RATIO = (3 / 4, 4 / 3)  # width to height

_PARTS = 64  # of the files, each looked at by one thread

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels


class FileImages:
    """Images of a folder, as bytes [3, size, size]; decoded by as many threads as PyTorch has."""

    dtype = torch.uint8

    def __init__(self, root: Path, index: Index, *, size: int, links: str) -> None:
        if index.sizes is None or index.digests is None:
            raise ValueError(f"{root}: indexed without sizes and digests; {_AGAIN}")
        self._root = root
        self._names = index.names.tolist()
        self._sizes = index.sizes.tolist()
        self._digests = index.digests.tolist()
        self._size = size
        self._links = links

    def require_sizes(self) -> None:
        """Refuse files that are gone or have another size than when they were indexed.

        Raises:
            ValueError: there is one; the message names the first.
        """
        parts = np.array_split(np.arange(len(self._names)), _PARTS)
        with ThreadPoolExecutor() as threads:  # a file system over a network answers many at once
            for reason in threads.map(self._first_change, parts):
                if reason:
                    raise ValueError(f"{reason}; {_AGAIN}")

    def _first_change(self, images: NDArray[np.int64]) -> str | None:
        for image in images:
            path, size = self._root / self._names[image], self._sizes[image]
            try:
                now = path.stat().st_size
            except OSError:
                return f"{path}: the image is gone"
            if now != size:
                return f"{path}: the image has {now} bytes, not {size} as indexed"
        return None

    def read(self, images: NDArray[np.int64], uniforms: Tensor | None) -> Tensor:
        """Squares of the images, [B, 3, size, size] uint8.

        Args:
            images: [B] places in the names.
            uniforms: [B, 4] in [0, 1), one random crop a row; without them the central squares.

        Raises:
            ValueError: an image is gone, is another than was indexed, or cannot be decoded.
        """
        crops = [None] * len(images) if uniforms is None else uniforms.tolist()
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            squares = list(threads.map(self._square, images.tolist(), crops))
        shape = (len(squares), 3, self._size, self._size)
        return torch.from_numpy(np.array(squares, np.uint8).reshape(shape))

    def _square(self, image: int, uniforms: Sequence[float] | None) -> NDArray[np.uint8]:
        name = self._names[image]
        try:
            picture, digest = read_picture(linked_path(self._root, name, self._links))
            if digest != self._digests[image]:
                raise ValueError("the image is another than was indexed")
        except ValueError as error:
            raise ValueError(f"{self._root / name}: {error}; {_AGAIN}") from None
        return square(picture, self._size, uniforms)


def linked_path(root: Path, name: str, links: str) -> Path:
    """The path of a file of the folder, which is given resolved.

    Raises:
        ValueError: the name leads out of the folder, or a link does and may not (`images.links`).
    """
    path = root / name
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts:
        raise ValueError("its name leads out of its folder")
    if links == "inside" and not path.resolve().is_relative_to(root):
        raise ValueError("a link that leads out of its folder; images.links: follow reads it")
    return path


def read_picture(path: Path) -> tuple[Image.Image, int]:
    """One image and the digest of its file's content.

    Raises:
        ValueError: it cannot be read or decoded; the reason in one line.
    """
    with _one_line():
        if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe would wait for ever
            raise ValueError("not a plain file")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).digest()
            file.seek(0)
            return decode(file), int.from_bytes(digest, "big")


def decode(file: BinaryIO) -> Image.Image:
    """The image of a file, in RGB and upright as its EXIF says; of several frames the first.

    Raises:
        ValueError: it cannot be decoded; the reason in one line.
    """
    with _one_line(), Image.open(file) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"its pixels are of mode {image.mode}, expected 8 bits a channel")
        image.load()
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
        picture = image.convert("RGB")
        return picture if turn is None else picture.transpose(turn)


# By EXIF's orientation. `ImageOps.exif_transpose` writes the EXIF anew too, which is nothing we
# need and fails where a camera wrote what the standard does not allow.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@contextmanager
def _one_line() -> Iterator[None]:
    """Turn whatever Pillow's plugins raise for a damaged file, which may be anything, to a line."""
    try:
        yield
    except ValueError as error:
        raise ValueError(_words(error)) from None
    except UnidentifiedImageError:
        raise ValueError("not an image in a format that can be read") from None
    except OSError as error:
        raise ValueError(error.strerror or _words(error)) from None
    except Exception as error:
        raise ValueError(f"cannot be decoded ({type(error).__name__}: {_words(error)})") from None


def _words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def square(
    picture: Image.Image,
    size: int,
    uniforms: Sequence[float] | None = None,  # four in [0, 1); none: the central square
) -> NDArray[np.uint8]:
    """The picture cropped and resized, [3, size, size]; antialiased by Pillow where it shrinks."""
    width, height = picture.size
    box = central_box(width, height) if uniforms is None else random_box(width, height, uniforms)
    resized = picture.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized).transpose(2, 0, 1)


def central_box(width: int, height: int) -> Box:
    """The largest central square."""
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def random_box(width: int, height: int, uniforms: Sequence[float]) -> Box:
    """A box whose area, aspect ratio, left and top come from four uniform numbers in [0, 1)."""
    area = width * height * (AREA[0] + (AREA[1] - AREA[0]) * uniforms[0])
    low, high = (math.log(limit) for limit in RATIO)
    ratio = math.exp(low + (high - low) * uniforms[1])
    across = min(math.sqrt(area * ratio), width)
    down = min(math.sqrt(area / ratio), height)
    left, top = (width - across) * uniforms[2], (height - down) * uniforms[3]
    return left, top, left + across, top + down
