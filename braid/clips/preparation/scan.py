"""Scan shards once: which clips they have, whether these can be read, and what is wrong.

Shards stay where they are; beyond their headers, only what is to be verified is read.
"""

from __future__ import annotations

import glob
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, TypeVar

import numpy as np
from torch import Tensor

from braid.clips.shards.dataset import (
    INDEX,
    KINDS,
    MANIFEST,
    Fault,
    Layout,
    Place,
    Shard,
    read_embedding,
    read_latent,
    read_prompt,
    read_shard,
)
from braid.common.io import write_json
from braid.data.splits import SPLITS, split_of
from braid.training.distributed import is_main, shared

_Parsed = TypeVar("_Parsed")


TEXT_ROWS = 512  # to which Wan cuts umT5's output, and pads it where it is padded


class Format(NamedTuple):
    """What all clips of a data set have in common; texts may be of any length."""

    latent_shape: tuple[int, ...]  # C, T, H, W
    text_dim: int
    dtype: str  # of the latents

    def __str__(self) -> str:
        return f"{self.dtype} latents {list(self.latent_shape)}, text [L, {self.text_dim}]"


@dataclass
class Scan:
    """The shards with their clips and faults, and what was measured of the clips that were read."""

    shards: list[Shard] = field(default_factory=list)
    checksums: list[str | None] = field(default_factory=list)  # SHA-256 of each shard, or None
    formats: dict[str, Format] = field(default_factory=dict)  # by the clip's key
    text_rows: dict[str, int] = field(default_factory=dict)  # by the clip's key, as stored
    lengths: list[int] = field(default_factory=list)  # of texts, without zero rows
    anchor_shards: list[Shard] = field(default_factory=list)  # those of anchors alone
    anchor_of: dict[str, int] = field(default_factory=dict)  # which of these, by the clip's key

    @property
    def format(self) -> Format:
        """That of most of the clips that were read."""
        return Counter(self.formats.values()).most_common(1)[0][0]

    @property
    def padded_rows(self) -> int:
        """The rows to which texts are padded: those of the longest, of clips read or not."""
        keys = [key for shard in self.shards for key in shard.clips]
        rows = {self.text_rows[key] for key in keys if key in self.text_rows}
        if len(rows) > 1 and not all(key in self.text_rows for key in keys):
            rows.add(TEXT_ROWS)
        return max(rows)

    @property
    def faults(self) -> list[Fault]:
        """Of all shards, in their order."""
        every = (*self.shards, *self.anchor_shards)
        return [fault for shard in every for fault in shard.faults]

    def require_no_faults(self) -> None:
        """Refuse shards with anything wrong in them.

        Raises:
            ValueError: there is a fault; the message names the first.
        """
        if self.faults:
            raise ValueError(
                f"{self.faults[0]} ({len(self.faults)} faults in all; "
                "clips.faults: skip leaves such clips out)"
            )


def find_shards(pattern: str, outside: Path, key: str = "clips.source") -> list[Path]:
    """The plain files that a glob matches, sorted by path.

    Raises:
        ValueError: there are none, or they lie in the folder ``outside`` of which they must be.
    """
    matches = [Path(name).resolve() for name in glob.glob(pattern, recursive=True)]
    plain = sorted(path for path in matches if path.is_file())
    if not plain:
        raise ValueError(f"{key}: {pattern}: no such file, expected a glob of tar shards")
    inside = [path for path in plain if path.is_relative_to(outside.resolve())]
    if inside:
        raise ValueError(
            f"{key}: {inside[0]}: shards are read where they lie, expected a place outside "
            "of the repository"
        )
    return plain


def scan_shards(
    paths: Sequence[Path],
    layout: Layout,
    verify: Literal["first", "all"],
    *,
    checksums: Literal["none", "first", "all"] = "none",
    scratch: Path | None = None,
) -> Scan:
    """Find all clips, and read those of every shard or of the first that has a good one.

    Several processes share the shards, and the first gets the scan; that of the others is empty.

    Args:
        paths: of the shards.
        layout: axes of a stored latent.
        verify: the shards whose clips are read.
        checksums: the shards that get a SHA-256.
        scratch: of what is known of a shard, which all processes see; what a killed run found is
            not read again, unless the shard has changed. None: for one process, and not kept.

    Raises:
        ValueError: not one clip can be read; the message names the first fault.
    """
    hashed = {"none": 0, "first": 1, "all": len(paths)}[checksums]

    def look(number: int) -> dict[str, Any]:
        shard = read_shard(paths[number])
        readings = _read_clips(shard, layout) if verify == "all" else None
        return _plain(shard, readings, _sha256(shard.path) if number < hashed else None)

    scan = Scan()
    keys: set[str] = set()
    states = shared(_names(paths, "clips"), look, scratch, "scan", "shard")
    if not is_main():
        return scan
    for path, state in zip(paths, states, strict=True):
        shard = _shard(path, state)
        scan.shards.append(shard)
        scan.checksums.append(state["sha256"])
        for key in [key for key in shard.clips if key in keys]:
            shard.drop(key, "duplicate key, an earlier shard has it")
        if verify == "all" or not scan.formats:
            _take(shard, state["readings"] or _read_clips(shard, layout), scan)
        keys.update(shard.clips)
    if not scan.formats:
        raise ValueError(f"no clip can be read; the first fault: {scan.faults[0]}")
    common = scan.format
    for shard in scan.shards:
        for key in [key for key in shard.clips if scan.formats.get(key, common) != common]:
            shard.drop(key, f"has {scan.formats[key]}, most clips {common}")
    _limit_texts(scan)
    return scan


def join_anchors(
    scan: Scan,
    paths: Sequence[Path],
    layout: Layout,
    verify: Literal["first", "all"],
    *,
    scratch: Path | None = None,
) -> None:
    """Find the anchors of scanned clips in shards of their own, by the clips' keys alone.

    Those of no clip, and of clips that have one, are faults, as are those that cannot be read.
    Several processes share the shards, and the first joins them to its scan.
    """

    def look(number: int) -> dict[str, Any]:
        shard = read_shard(paths[number], required=("anchor",))
        read = verify == "all" or number == 0
        return _plain(shard, _read_anchors(shard, layout) if read else None)

    states = shared(_names(paths, "anchors"), look, scratch, "join", "shard")
    if not is_main():
        return
    owners = {key: clip for shard in scan.shards for key, clip in shard.clips.items()}
    for number, (path, state) in enumerate(zip(paths, states, strict=True)):
        shard = _shard(path, state)
        for key in list(shard.clips):
            if "anchor" in owners.get(key, {"anchor": ""}):
                shard.drop(key, "a second anchor" if key in owners else "an anchor of no clip")
        _take_anchors(shard, state["readings"] or {}, scan.format)
        for key, places in shard.clips.items():
            owners[key]["anchor"] = places["anchor"]
            scan.anchor_of[key] = number
        scan.anchor_shards.append(shard)


# ---- What one process finds in a shard, and the first puts together ------------------------------
# Of a clip that was read: latents' shape, text's width, latents' dtype, text's rows as stored and
# without zero rows. Of an anchor: its shape. Of one that cannot be read: why.

_Clip = tuple[tuple[int, ...], int, str, int, int]
_Shape = tuple[int, ...]


def _names(paths: Sequence[Path], what: str) -> list[str]:
    """A file for what is known of each shard; another for one that has changed."""
    stats = [path.stat() for path in paths]
    marks = [f"{p} {stat.st_size} {stat.st_mtime_ns}" for p, stat in zip(paths, stats, strict=True)]
    digests = [hashlib.blake2b(mark.encode(), digest_size=8).hexdigest() for mark in marks]
    return [f"{what}{number:05d}.{digest}.pt" for number, digest in enumerate(digests)]


def _plain(
    shard: Shard,
    readings: Mapping[str, Any] | None,  # by key; None: not read
    sha256: str | None = None,
) -> dict[str, Any]:
    clips = {
        key: {kind: tuple(place) for kind, place in places.items()}
        for key, places in shard.clips.items()
    }
    values = {"size": shard.size, "latents": shard.latents, "clips": clips}
    faults = [tuple(fault) for fault in shard.faults]
    return {**values, "faults": faults, "readings": readings, "sha256": sha256}


def _shard(path: Path, state: Mapping[str, Any]) -> Shard:
    clips = {
        key: {kind: Place(*place) for kind, place in places.items()}
        for key, places in state["clips"].items()
    }
    faults = [Fault(*fault) for fault in state["faults"]]
    return Shard(path, state["size"], clips, faults, state["latents"])


def _read_clips(shard: Shard, layout: Layout) -> dict[str, _Clip | str]:
    readings: dict[str, _Clip | str] = {}
    with shard.path.open("rb") as file:
        for key, places in shard.clips.items():
            try:
                latents, text = _read_clip(file, places, layout)
            except ValueError as error:
                readings[key] = str(error)
                continue
            dtype = str(latents.dtype).removeprefix("torch.")
            used = int((text != 0).any(1).sum())
            readings[key] = (tuple(latents.shape), text.shape[1], dtype, len(text), used)
    return readings


def _read_anchors(shard: Shard, layout: Layout) -> dict[str, _Shape | str]:
    shapes: dict[str, _Shape | str] = {}
    with shard.path.open("rb") as file:
        for key, places in shard.clips.items():
            try:
                anchor = _parsed(file, places["anchor"], lambda data: read_latent(data, layout))
                shapes[key] = tuple(anchor.shape)
            except ValueError as error:
                shapes[key] = str(error)
    return shapes


def _take(shard: Shard, readings: Mapping[str, _Clip | str], scan: Scan) -> None:
    """Note what the clips are like; drop those that cannot be read."""
    for key in list(shard.clips):
        reading = readings[key]
        if isinstance(reading, str):
            shard.drop(key, reading)
            continue
        shape, width, dtype, rows, used = reading
        scan.formats[key] = Format(shape, width, dtype)
        scan.text_rows[key] = rows
        scan.lengths.append(used)


def _take_anchors(shard: Shard, shapes: Mapping[str, _Shape | str], wanted: Format) -> None:
    """Drop anchors that cannot be read, and those of another shape than the clips."""
    for key, shape in shapes.items():
        if key not in shard.clips:  # it has been dropped
            continue
        try:
            if isinstance(shape, str):
                raise ValueError(shape)
            _require_shape(shard.clips[key]["anchor"], shape, wanted.latent_shape)
        except ValueError as error:
            shard.drop(key, str(error))


def _limit_texts(scan: Scan) -> None:
    """Drop clips whose text is longer than Wan's and most others are; padding follows the longest.

    Files of raw umT5 output are as long as their prompts, so lengths differ and none is a fault.
    """
    limit = max(TEXT_ROWS, Counter(scan.text_rows.values()).most_common(1)[0][0])
    for shard in scan.shards:
        for key in [key for key in shard.clips if scan.text_rows.get(key, 0) > limit]:
            shard.drop(key, f"has a text of {scan.text_rows[key]} rows, expected {limit} at most")


def _read_clip(
    file: BinaryIO, places: Mapping[str, Place], layout: Layout
) -> tuple[Tensor, Tensor]:
    """Latents and text embedding of a clip, all of whose members can be read."""
    latents = _parsed(file, places["latent"], lambda content: read_latent(content, layout))
    text = _parsed(file, places["embed"], read_embedding)
    _parsed(file, places["prompt"], read_prompt)
    if "anchor" in places:
        anchor = _parsed(file, places["anchor"], lambda content: read_latent(content, layout))
        _require_shape(places["anchor"], anchor.shape, latents.shape)
    return latents, text


def _parsed(file: BinaryIO, place: Place, parse: Callable[[bytes], _Parsed]) -> _Parsed:
    file.seek(place.offset)
    try:
        return parse(file.read(place.size))
    except ValueError as error:
        raise ValueError(f"{place.name} {error}") from None


def _require_shape(place: Place, anchor: Sequence[int], latents: Sequence[int]) -> None:
    if tuple(anchor) != tuple(latents):
        raise ValueError(
            f"{place.name} anchors {list(anchor)}, expected {list(latents)}, as latents"
        )


# ---- The manifest of scanned shards, and the index for random access -----------------------------


def write_manifest(
    folder: Path,
    scan: Scan,
    *,
    codec: str,
    layout: Layout,
    fractions: tuple[float, float],
    crop: tuple[int, int, int] | None = None,
) -> dict[str, Any]:
    """Write manifest.json and index.npz, and give the metrics of the data set.

    Shards in or below ``folder`` are named relative to it, others by their absolute path.

    Args:
        folder: where to write.
        scan: the shards, with at least one clip.
        codec: what the latents were encoded by.
        layout: axes of a stored latent.
        fractions: of validation and test clips.
        crop: frames, rows and columns of the latents that are used; None: all.

    Raises:
        ValueError: a split is empty, or latents are smaller than the crop.
    """
    channels, *extent = scan.format.latent_shape
    if crop and any(kept > length for kept, length in zip(crop, extent, strict=True)):
        raise ValueError(f"clips.crop is {list(crop)}, expected at most {extent}, as latents have")
    shape = [channels, *(crop or extent)]
    manifest = {
        "codec": codec,
        "layout": layout,
        "dtype": scan.format.dtype,
        "latent_shape": shape,
        "stored_shape": scan.format.latent_shape,
        "text_shape": [scan.padded_rows, scan.format.text_dim],
        "clips_read": len(scan.formats),
        "shards": [
            {
                "path": _name(shard.path, folder),
                "bytes": shard.size,
                "latents": shard.latents,  # the faulty with the good
                "clips": len(shard.clips),
                "sha256": checksum,
            }
            for shard, checksum in zip(scan.shards, scan.checksums, strict=True)
        ],
        "anchor_shards": [
            {"path": _name(shard.path, folder), "bytes": shard.size, "anchors": len(shard.clips)}
            for shard in scan.anchor_shards
        ],
        "faults": [fault._asdict() for fault in scan.faults],
    }
    splits = _write_index(folder / INDEX, scan, fractions)
    write_json(folder / MANIFEST, manifest)
    return _metrics(scan, splits, shape)


def _metrics(scan: Scan, splits: Mapping[str, int], shape: Sequence[int]) -> dict[str, Any]:
    """The clips by count, and as many as there were if every shard had as many as the first."""
    channels, frames, height, width = shape
    return {
        "clips": sum(splits.values()),
        "clips_estimated": scan.shards[0].latents * len(scan.shards),
        "clips_read": len(scan.formats),
        **splits,
        "shards": len(scan.shards),
        "bytes": sum(shard.size for shard in scan.shards),
        "faults": len(scan.faults),
        "anchors": sum("anchor" in clip for s in scan.shards for clip in s.clips.values()),
        "channels": channels,
        "frames": frames,
        "height": height,
        "width": width,
        "text_rows": scan.padded_rows,
        "text_dim": scan.format.text_dim,
        "text_rows_used_mean": round(sum(scan.lengths) / len(scan.lengths), 3),
    }


def _write_index(path: Path, scan: Scan, fractions: tuple[float, float]) -> dict[str, int]:
    """Write where each clip's members lie; how many clips each split has."""
    clips = [(n, key, clip) for n, s in enumerate(scan.shards) for key, clip in s.clips.items()]
    nowhere = Place(0, 0, "")
    places = [[clip.get(kind, nowhere) for kind in KINDS] for _, _, clip in clips]
    anchored = {key: len(scan.shards) + number for key, number in scan.anchor_of.items()}
    splits = [split_of(key, *fractions) for _, key, _ in clips]
    counts = {split: splits.count(split) for split in SPLITS}
    if not all(counts.values()):
        raise ValueError(
            f"clips.val_fraction and clips.test_fraction leave a split empty: {counts}"
        )
    np.savez(
        path,
        keys=np.array([key for _, key, _ in clips]),
        shards=np.array([shard for shard, _, _ in clips], np.int32),
        offsets=np.array([[place.offset for place in row] for row in places], np.int64),
        sizes=np.array([[place.size for place in row] for row in places], np.int64),
        anchor_shards=np.array([anchored.get(key, own) for own, key, _ in clips], np.int32),
        splits=np.array([SPLITS.index(split) for split in splits], np.uint8),
    )
    return counts


def _name(path: Path, folder: Path) -> str:
    inside = path.resolve().is_relative_to(folder.resolve())
    return str(path.resolve().relative_to(folder.resolve()) if inside else path.resolve())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
