"""Which images of an SA-1B folder can be used: each is checked, but no JPEG is decoded.

To decode the 33,558 images of a full run would take half an hour. A JPEG's header and end marker
tell nearly as much, and what they miss ends a later stage with one line that names the file. The
annotations are checked in full.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from PIL import Image

from braid.common.config import BUILT_IN, external_path
from braid.common.progress import progress
from braid.segmentation.data.sa1b import (
    MANIFEST,
    SPLITS,
    STEM,
    Entry,
    Fault,
    Manifest,
    Record,
    Split,
    read_record,
)

_END_OF_IMAGE = b"\xff\xd9"  # 255 is followed by 0 in a JPEG's data, so that it stands nowhere else
_NO_MASK: Mapping[str, Any] = {}
_TAIL = 1024  # bytes at the end of a file; some writers pad it

_Read = TypeVar("_Read")


class Scan(NamedTuple):
    """The images of a folder that can be used, by their ids, and the files that cannot."""

    root: Path
    images: tuple[Entry, ...]
    faults: tuple[Fault, ...]
    sketches: Sketches


class Sketches:
    """What the JSONs of the images say, but for the masks: all of it fits into memory.

    Each file is read and checked once; at full size that takes minutes, and the masks gigabytes.
    """

    def __init__(self, images: Sequence[Entry], records: Sequence[Record]) -> None:
        self._splits, self._records = [entry.split for entry in images], records

    def __len__(self) -> int:
        return len(self._records)

    def record(self, index: int) -> Record:
        """What is known of an image; its annotations have no pixels."""
        return self._records[index]

    def indices(self, split: str) -> list[int]:
        """The images of ``train``, ``val`` or ``test``, ascending."""
        return [index for index, own in enumerate(self._splits) if own == split]


def _sketched(record: Record) -> Record:
    """A record without its masks."""
    return replace(
        record, annotations=tuple(replace(part, rle=_NO_MASK) for part in record.annotations)
    )


def source_folder(source: str) -> Path:
    """The folder that `sam3.data.source` names.

    Raises:
        ValueError: there is none, or it lies in the repository.
    """
    if not Path(source).is_dir():
        raise ValueError(
            f"sam3.data.source: {source}: no such folder, expected one with SA-1B pairs, or "
            f"{BUILT_IN}"
        )
    return external_path(source, "sam3.data.source")


def scan(folder: Path, *, val: int, test: int, faults: Literal["skip", "fatal"]) -> Scan:
    """Find and check all pairs of sa_<id>.jpg and sa_<id>.json.

    Args:
        folder: of the pairs, which stay where they are.
        val: images for validation, those with the largest ids.
        test: images for the figures, those with the largest ids below them.
        faults: what a missing or broken file does: its pair is left out and listed, or it is an
            error.

    Raises:
        ValueError: there is no such folder, no pair in it can be read, a fault is fatal, or no
            image would be left to train on.
    """
    if not folder.is_dir():
        raise ValueError(f"sam3.data.source: {folder}: no such folder")
    stems = _stems(folder)
    if stems:  # before minutes of reading
        _require_training(folder, len(stems), val, test)
    all_faults: list[Fault] = []
    records: dict[int, Record] = {}
    for stem in progress(stems, "scan", "image"):
        record = _checked_pair(folder, stem, all_faults)
        if record is not None and record.id in records:
            reason = f"has the same id as {records[record.id].file}"
            all_faults.append(Fault(file=record.file, reason=reason))
        elif record is not None:
            records[record.id] = _sketched(record)
            if record.empty:
                reason = f"{record.empty} annotations with empty masks, which are left out"
                all_faults.append(Fault(file=Path(record.file).stem + ".json", reason=reason))
    _require(folder, len(records), all_faults, faults)
    _require_training(folder, len(records), val, test)
    train = len(records) - val - test
    counts: dict[Split, int] = {"train": train, "test": test, "val": val}
    splits = (split for split, count in counts.items() for _ in range(count))
    images = tuple(
        _entry(records[identity], split)
        for identity, split in zip(sorted(records), splits, strict=True)
    )
    sketches = Sketches(images, [records[entry.id] for entry in images])
    return Scan(folder, images, tuple(all_faults), sketches)


def write_manifest(folder: Path, scan: Scan, *, image_size: int) -> None:
    """Write manifest.json; images in or below ``folder`` are found relative to it."""
    root, here = scan.root.resolve(), folder.resolve()
    manifest = Manifest(
        root=str(root.relative_to(here) if root.is_relative_to(here) else root),
        image_size=image_size,
        images=scan.images,
        faults=scan.faults,
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
    files = [path for path in folder.iterdir() if path.suffix in (".jpg", ".json")]
    matches = {path.stem: match for path in files if (match := STEM.fullmatch(path.stem))}
    return sorted(matches, key=lambda stem: (int(matches[stem][1]), stem))


def _checked_pair(folder: Path, stem: str, faults: list[Fault]) -> Record | None:
    """The annotations of a good pair; else its faults are added to ``faults``."""
    image = folder / f"{stem}.jpg"
    record = _noted(folder / f"{stem}.json", read_record, faults)
    size = _noted(image, jpeg_size, faults)
    if record is None or size is None:
        return None
    if size != (record.width, record.height):
        expected = f"{record.width} x {record.height}"
        reason = f"is {size[0]} x {size[1]} pixels, its JSON says {expected}"
        faults.append(Fault(file=image.name, reason=reason))
        return None
    return record


def _noted(path: Path, read: Callable[[Path], _Read], faults: list[Fault]) -> _Read | None:
    try:
        return read(path)
    except ValueError as error:
        faults.append(Fault(file=path.name, reason=str(error).removeprefix(f"{path}: ")))
        return None


def _require(folder: Path, good: int, faults: Sequence[Fault], mode: str) -> None:
    first = f"{faults[0].file}: {faults[0].reason}" if faults else None
    if faults and mode == "fatal":
        raise ValueError(
            f"{folder}: {first} ({len(faults)} faults in all; sam3.data.faults: skip leaves such "
            "images out)"
        )
    if not good:
        reason = f"the first fault: {first}" if first else "expected sa_<id>.jpg and sa_<id>.json"
        raise ValueError(f"{folder}: no image can be read; {reason}")


def _require_training(folder: Path, images: int, val: int, test: int) -> None:
    """Some images are left to train on."""
    if val + test >= images:
        raise ValueError(
            f"sam3.data.val and sam3.data.test are {val} and {test}, expected less than the "
            f"{images} images of {folder} together"
        )


def _entry(record: Record, split: Split) -> Entry:
    return Entry(
        id=record.id,
        file=record.file,
        width=record.width,
        height=record.height,
        annotations=len(record.annotations),
        split=split,
    )


def image_rows(images: Sketches) -> list[dict[str, Any]]:
    """How many images there are, all and in each split, and what their annotations tell."""
    splits: dict[str, Sequence[int]] = {split: images.indices(split) for split in SPLITS}
    return [
        _counts(split, [images.record(index) for index in indices])
        for split, indices in {"all": range(len(images)), **splits}.items()
    ]


def _counts(split: str, records: Sequence[Record]) -> dict[str, Any]:
    annotations = [annotation for record in records for annotation in record.annotations]
    return {
        "split": split,
        "images": len(records),
        "exhaustive": sum(record.exhaustive for record in records),
        "annotations": len(annotations),
        "named": sum(annotation.name is not None for annotation in annotations),
        "masks_per_image": round(len(annotations) / len(records), 3),
    }
