"""manifest.json: which images there are, where they lie, how they are split, and what was wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from braid.segmentation.sa1b_format import Pixels, Strict, first_fault

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
        ValueError: it is not there, or not what `survey.write_manifest` writes.
    """
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        reason = error.strerror
    except ValidationError as error:
        reason = first_fault(error)
    raise ValueError(f"{path}: {reason}; run `dvc repro -f prepare_sa1b` again")
