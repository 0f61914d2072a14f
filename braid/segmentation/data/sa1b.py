"""SA-1B: pairs of sa_<id>.jpg and sa_<id>.json, as annotations, ground-truth masks and pixels.

    images = open_images(Path("data/sa1b"), cache_mib=128)  # as the manifest lists them
    images.record(i).annotations[0].mask()                  # [height, width] bool
    normalize(images.pixels(i))                             # [3, S, S], as the teacher wants it

The format is that of Kirillov et al., "Segment Anything" (2023): an `image` with its size, and
`annotations` whose masks are COCO's compressed run lengths. SA-1B has no text. Three more keys are
read where they stand: an annotation's `noun_phrase`, the image's `captions`, and `exhaustive`:
whether every object of the image is annotated, or a list of phrases of which every object is. Such
a phrase without an object is an explicit negative, as SA-Co has them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from torch import Tensor

# ---- COCO's compressed run lengths: checked, decoded, averaged over the cells of a grid ------
# A mask's columns are laid end to end; its runs are lengths of alternately 0s and 1s. From the
# fourth on, a run is stored as its difference to the run before the last. A number is stored in
# groups of 5 bits, the lowest first; a group is the character 48 + group, + 32 if more follow; the
# last group's highest bit is the sign (cocoapi, common/maskApi.c). pycocotools trusts such a string
# blindly, and one that ends within a number is read beyond its end, so that strings from elsewhere
# have to pass `read_runs` first. To repeat values by these runs takes a tenth of the time of its
# decoder.

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


# ---- The JSON beside an SA-1B image, as far as it is read, and what must be true of it ---------

STEM = re.compile(r"sa_([0-9]{1,18})")

Pixels = Annotated[int, Field(gt=0)]


class Strict(BaseModel):
    """What is read from a file: no value is converted, no number is NaN."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class ImageEntry(Strict):
    """Which image it is."""

    image_id: int
    width: Pixels
    height: Pixels
    file_name: str


class Segmentation(Strict):
    """A mask as COCO's compressed run lengths."""

    size: tuple[Pixels, Pixels]  # height, width
    counts: str
    _empty: bool = PrivateAttr()

    @model_validator(mode="after")
    def _is_a_mask(self) -> Self:
        self._empty = not read_runs(self.model_dump())[1::2].any()
        return self

    @property
    def empty(self) -> bool:
        """No pixel is in it, as in some annotations: there is nothing to learn from."""
        return self._empty


class AnnotationEntry(Strict):
    """An object."""

    segmentation: Segmentation
    bbox: tuple[float, float, float, float]  # x, y, width, height; up to a pixel too small
    noun_phrase: str | None = Field(default=None, min_length=1)  # not in SA-1B


class Sidecar(Strict):
    """The whole file; keys that are not named here are not read."""

    image: ImageEntry
    annotations: tuple[AnnotationEntry, ...]
    captions: tuple[str, ...] = ()  # not in SA-1B
    exhaustive: bool | tuple[str, ...] = False  # or in which phrases; not in SA-1B

    @model_validator(mode="after")
    def _fits(self) -> Self:
        width, height = self.image.width, self.image.height
        for number, annotation in enumerate(self.annotations):
            size, (x, y, w, h) = annotation.segmentation.size, annotation.bbox
            if size != (height, width):
                raise ValueError(f"annotations.{number}: size {[*size]}, image {[height, width]}")
            if min(x, y, w, h) < 0 or x + w > width + 1 or y + h > height + 1:
                raise ValueError(f"annotations.{number}: bbox {[x, y, w, h]} leaves the image")
        return self

    def require_name(self, stem: str) -> None:
        """Compare with the file's name: no name out of a file ever leads elsewhere.

        Raises:
            ValueError: the file is of another image.
        """
        match = STEM.fullmatch(stem)
        if match is None or self.image.image_id != int(match[1]):
            raise ValueError(f"image_id {self.image.image_id}, expected that of the file's name")
        if self.image.file_name != f"{stem}.jpg":
            raise ValueError(f"file_name {self.image.file_name!r}, expected {stem}.jpg")


def first_fault(error: ValidationError) -> str:
    """Where the first fault is and what, on one line."""
    fault = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, fault["loc"]))
    return f"{place}: {fault['msg']}" if place else fault["msg"]


# ---- manifest.json: which images there are, where they lie, how they are split, and what was wrong

MANIFEST = "manifest.json"
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


class Entry(Strict):
    """An image that can be used."""

    id: int
    file: str = Field(pattern=r"^sa_[0-9]+\.jpg$")  # so that it leads to no other folder
    width: Pixels
    height: Pixels
    annotations: int
    split: Split


class Fault(Strict):
    """A file that is missing or broken."""

    file: str
    reason: str


class Manifest(Strict):
    """The images by their ids, and the faults."""

    root: str  # folder of the images, an absolute path or relative to the manifest
    image_size: Pixels  # they are squashed to squares of this size
    images: tuple[Entry, ...] = Field(min_length=1)
    faults: tuple[Fault, ...]


def read_manifest(folder: Path) -> Manifest:
    """Read manifest.json.

    Raises:
        ValueError: it is not there, or not what `scan.write_manifest` writes.
    """
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        reason = error.strerror
    except ValidationError as error:
        reason = first_fault(error)
    raise ValueError(f"{path}: {reason}; run `dvc repro -f prepare_sa1b` again")


_OBJECTS = 1024  # bytes of an annotation's Python objects
_Cached = TypeVar("_Cached", "Record", Tensor)


@dataclass(frozen=True)
class Annotation:
    """An object: its mask, as run lengths, and what it is called."""

    rle: Rle
    box: tuple[float, float, float, float]  # tight around the mask, xyxy in [0, 1]
    name: str | None  # SA-1B has no names

    def mask(self) -> NDArray[np.bool_]:
        """The object's pixels, [height, width] of the image."""
        return decode(self.rle)

    def coverage(self, size: int) -> NDArray[np.float32]:
        """The fraction of each cell of a grid that the object covers, [size, size] in [0, 1]."""
        return coverage(self.rle, size)


@dataclass(frozen=True)
class Record:
    """What the JSON beside an image says."""

    id: int
    file: str
    width: int
    height: int
    annotations: tuple[Annotation, ...]
    captions: tuple[str, ...]
    exhaustive: bool  # every object is annotated, so what is not named is not there
    complete: tuple[str, ...] = ()  # phrases of which every object is annotated, or none is there
    empty: int = 0  # annotations that were left out, as their masks have no pixel


class Images:
    """The images of a manifest, in the order of their ids; made by `open_images`."""

    def __init__(self, root: Path, manifest: Manifest, cache: int) -> None:
        self.size = manifest.image_size
        self._root = root
        self._entries = manifest.images
        self._records: dict[int, Record] = {}
        self._pixels: dict[int, Tensor] = {}
        self._cache = cache  # bytes that are left

    def __len__(self) -> int:
        return len(self._entries)

    def indices(self, split: str) -> NDArray[np.int64]:
        """The images of ``train``, ``val`` or ``test``, ascending."""
        return np.flatnonzero([entry.split == split for entry in self._entries])

    def record(self, index: int) -> Record:
        """What is known of an image.

        Raises:
            ValueError: its JSON cannot be read any more.
        """
        path = self._path(index).with_suffix(".json")
        return self._once(self._records, index, lambda: read_record(path), _bytes_of)

    def pixels(self, index: int) -> Tensor:
        """An image squashed to a square, [3, S, S] uint8.

        Raises:
            ValueError: it cannot be decoded any more.
        """
        path = self._path(index)
        return self._once(self._pixels, index, lambda: read_pixels(path, self.size), Tensor.numel)

    def _path(self, index: int) -> Path:
        return self._root / self._entries[index].file

    def _once(
        self,
        cached: dict[int, _Cached],
        index: int,
        read: Callable[[], _Cached],
        size_of: Callable[[_Cached], int],
    ) -> _Cached:
        """Read, and keep while there is room.

        What is kept stays: epochs through more images than there is room for would find nothing
        in a cache that drops the oldest.
        """
        if index in cached:
            return cached[index]
        value = read()
        if size_of(value) <= self._cache:
            cached[index] = value
            self._cache -= size_of(value)
        return value


def open_images(folder: Path, *, cache_mib: int) -> Images:
    """Open the images that a manifest lists.

    Args:
        folder: has the manifest; the images are where that says.
        cache_mib: RAM for decoded images and annotations; 0: read each time.

    Raises:
        ValueError: there is no manifest, or it is broken, or it names a file elsewhere.
    """
    manifest = read_manifest(folder)
    return Images(folder / manifest.root, manifest, cache_mib * 2**20)


def _bytes_of(record: Record) -> int:
    """What a record takes in memory, about."""
    return sum(_OBJECTS + len(annotation.rle["counts"]) for annotation in record.annotations)


def normalize(
    pixels: Tensor,  # [..., 3, S, S] uint8
) -> Tensor:
    """Pixels as SAM3's processor gives them to the teacher, float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def read_pixels(path: Path, size: int) -> Tensor:
    """Decode a JPEG and squash it to a square, bilinear and antialiased, [3, S, S] uint8.

    The decoder leaves no frequencies out (`Image.draft`), as it could for a much smaller square: a
    released student gets its pictures decoded, whole.

    Raises:
        ValueError: it cannot be decoded.
    """
    try:
        with path.open("rb") as file, Image.open(file) as image:
            squashed = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot be decoded ({error})") from None
    return torch.from_numpy(np.array(squashed)).permute(2, 0, 1).contiguous()


def read_record(path: Path) -> Record:
    """Read sa_<id>.json.

    Raises:
        ValueError: it cannot be read, a field is missing or wrong, a mask or box does not fit the
            image, or it belongs to another image than its name says.
    """
    try:
        sidecar = Sidecar.model_validate_json(path.read_bytes())
        sidecar.require_name(path.stem)
        return Record(
            id=sidecar.image.image_id,
            file=sidecar.image.file_name,
            width=sidecar.image.width,
            height=sidecar.image.height,
            annotations=tuple(
                Annotation(rle, tight_box(rle), entry.noun_phrase)
                for entry in sidecar.annotations
                if not entry.segmentation.empty
                for rle in [entry.segmentation.model_dump()]
            ),
            captions=sidecar.captions,
            exhaustive=sidecar.exhaustive is True,
            complete=sidecar.exhaustive if isinstance(sidecar.exhaustive, tuple) else (),
            empty=sum(entry.segmentation.empty for entry in sidecar.annotations),
        )
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except ValidationError as error:
        raise ValueError(f"{path}: {first_fault(error)}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
