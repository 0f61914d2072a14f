"""The JSON beside an SA-1B image, as far as it is read, and what must be true of it."""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from braid.segmentation.run_lengths import read_runs

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

    @model_validator(mode="after")
    def _is_a_mask(self) -> Self:
        if not read_runs(self.model_dump())[1::2].any():
            raise ValueError("the mask is empty")
        return self


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
        for number, each in enumerate(self.annotations):
            if each.segmentation.size != (height, width):
                found = list(each.segmentation.size)
                raise ValueError(f"annotations.{number}: size {found}, image {[height, width]}")
            x, y, w, h = each.bbox
            if min(x, y, w, h) < 0 or x + w > width + 1 or y + h > height + 1:
                raise ValueError(f"annotations.{number}: bbox {list(each.bbox)} leaves the image")
        return self

    def require_name(self, stem: str) -> None:
        """Compare with the file's name: no name out of a file ever leads elsewhere.

        Raises:
            ValueError: the file is of another image.
        """
        named = STEM.fullmatch(stem)
        if named is None or self.image.image_id != int(named[1]):
            raise ValueError(f"image_id {self.image.image_id}, expected that of the file's name")
        if self.image.file_name != f"{stem}.jpg":
            raise ValueError(f"file_name {self.image.file_name!r}, expected {stem}.jpg")


def first_fault(error: ValidationError) -> str:
    """Where the first fault is and what, on one line."""
    fault = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(each) for each in fault["loc"])
    return ": ".join(each for each in (place, fault["msg"]) if each)
