"""Which images of an SA-1B folder can be used: each is checked, but no JPEG is decoded.

To decode the 33,558 images of a full run would take half an hour. A JPEG's header and end marker
tell nearly as much, and what they miss ends a later stage with one line that names the file. The
annotations are checked in full.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from PIL import Image

from braid.segmentation.data.sa1b import MANIFEST, STEM, Entry, Fault, Manifest, Record, read_record

_END_OF_IMAGE = b"\xff\xd9"  # 255 is followed by 0 in a JPEG's data, so that it stands nowhere else
_TAIL = 1024  # bytes at the end of a file; some writers pad it

_Read = TypeVar("_Read")


class Found(NamedTuple):
    """The images that can be used, by their ids, and the files that cannot."""

    root: Path
    images: tuple[Entry, ...]
    faults: tuple[Fault, ...]


def survey(folder: Path, *, val: int, faults: Literal["skip", "fatal"]) -> Found:
    """Find and check all pairs of sa_<id>.jpg and sa_<id>.json.

    Args:
        folder: of the pairs, which stay where they are.
        val: images for validation, those with the largest ids.
        faults: what a missing or broken file does: its pair is left out and listed, or it is an
            error.

    Raises:
        ValueError: there is no such folder, no pair in it can be read, a fault is fatal, or no
            image would be left to train on.
    """
    if not folder.is_dir():
        raise ValueError(f"sa1b.source: {folder}: no such folder")
    found: list[Fault] = []
    records: dict[int, Record] = {}
    for stem in _stems(folder):
        record = _checked_pair(folder, stem, found)
        if record is not None and record.id in records:
            reason = f"has the same id as {records[record.id].file}"
            found.append(Fault(file=record.file, reason=reason))
        elif record is not None:
            records[record.id] = record
    _require(folder, len(records), found, val, faults)
    train = len(records) - val
    images = tuple(
        _entry(records[identity], "train" if place < train else "val")
        for place, identity in enumerate(sorted(records))
    )
    return Found(folder, images, tuple(found))


def write_manifest(folder: Path, found: Found, *, image_size: int) -> None:
    """Write manifest.json; images in or below ``folder`` are found relative to it."""
    root, here = found.root.resolve(), folder.resolve()
    manifest = Manifest(
        root=str(root.relative_to(here) if root.is_relative_to(here) else root),
        image_size=image_size,
        images=found.images,
        faults=found.faults,
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")


def jpeg_size(path: Path) -> tuple[int, int]:
    """Width and height by a JPEG's header.

    Raises:
        ValueError: it is not a JPEG, or a part of one.
    """
    try:
        with path.open("rb") as file:
            with Image.open(file) as image:
                kind, size = image.format, image.size
            file.seek(-min(_TAIL, file.seek(0, os.SEEK_END)), os.SEEK_END)
            tail = file.read()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or 'is not an image'}") from None
    except (SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: {error}") from None
    if kind != "JPEG":
        raise ValueError(f"{path}: is a {kind}, expected a JPEG")
    if _END_OF_IMAGE not in tail:
        raise ValueError(f"{path}: is cut off, expected the JPEG's end marker")
    return size


def _stems(folder: Path) -> list[str]:
    """The pairs of which at least one file is there, by their ids."""
    files = [each for each in folder.iterdir() if each.suffix in (".jpg", ".json")]
    ids = {each.stem: named for each in files if (named := STEM.fullmatch(each.stem))}
    return sorted(ids, key=lambda stem: (int(ids[stem][1]), stem))


def _checked_pair(folder: Path, stem: str, found: list[Fault]) -> Record | None:
    """The annotations of a good pair; else its faults are added to ``found``."""
    image = folder / f"{stem}.jpg"
    record = _noted(folder / f"{stem}.json", read_record, found)
    size = _noted(image, jpeg_size, found)
    if record is None or size is None:
        return None
    if size != (record.width, record.height):
        told = f"{record.width} x {record.height}"
        reason = f"is {size[0]} x {size[1]} pixels, its JSON says {told}"
        found.append(Fault(file=image.name, reason=reason))
        return None
    return record


def _noted(path: Path, read: Callable[[Path], _Read], found: list[Fault]) -> _Read | None:
    try:
        return read(path)
    except ValueError as error:
        found.append(Fault(file=path.name, reason=str(error).removeprefix(f"{path}: ")))
        return None


def _require(folder: Path, good: int, found: Sequence[Fault], val: int, faults: str) -> None:
    first = f"{found[0].file}: {found[0].reason}" if found else None
    if found and faults == "fatal":
        raise ValueError(
            f"{folder}: {first} ({len(found)} faults in all; sa1b.faults: skip leaves such images "
            "out)"
        )
    if not good:
        reason = f"the first fault: {first}" if first else "expected sa_<id>.jpg and sa_<id>.json"
        raise ValueError(f"{folder}: no image can be read; {reason}")
    if val >= good:
        raise ValueError(
            f"sa1b.val is {val}, expected less than the {good} images that can be read in {folder}"
        )


def _entry(record: Record, split: Literal["train", "val"]) -> Entry:
    return Entry(
        id=record.id,
        file=record.file,
        width=record.width,
        height=record.height,
        annotations=len(record.annotations),
        split=split,
    )
