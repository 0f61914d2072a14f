"""SA-1B: pairs of sa_<id>.jpg and sa_<id>.json, as annotations, ground-truth masks and pixels.

    images = open_images(Path("data/sa1b"), cache_mib=128)  # as the manifest lists them
    images.record(i).annotations[0].mask()                  # [height, width] bool
    normalize(images.pixels(i))                             # [3, S, S], as the teacher wants it

The format is that of Kirillov et al., "Segment Anything" (2023): an `image` with its size, and
`annotations` whose masks are COCO's compressed run lengths. SA-1B has no text. Three more keys are
read where they stand: an annotation's `noun_phrase`, the image's `captions`, and `exhaustive`: is
every object of the image annotated.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from torch import Tensor

from braid.segmentation.data.run_lengths import Rle, coverage, decode, read_runs, tight_box

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
    exhaustive: bool = False  # not in SA-1B

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


class Entry(Strict):
    """An image that can be used."""

    id: int
    file: str = Field(pattern=r"^sa_[0-9]+\.jpg$")  # so that it leads to no other folder
    width: Pixels
    height: Pixels
    annotations: int
    split: Literal["train", "val"]


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
        """The images of ``train`` or ``val``, ascending."""
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

    The decoder itself leaves out the frequencies that a much smaller square has no use for.

    Raises:
        ValueError: it cannot be decoded.
    """
    try:
        with path.open("rb") as file, Image.open(file) as image:
            image.draft("RGB", (size, size))
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
            exhaustive=sidecar.exhaustive,
            empty=sum(entry.segmentation.empty for entry in sidecar.annotations),
        )
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except ValidationError as error:
        raise ValueError(f"{path}: {first_fault(error)}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
