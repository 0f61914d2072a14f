"""Survey shards once: which clips they hold, whether these can be read, and what is wrong.

Shards stay where they are; beyond their headers, only what is to be verified is read.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, TypeVar

import numpy as np
from torch import Tensor

from braid.clips.shards.shards import (
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
from braid.common.splits import SPLITS, split_of

_Read = TypeVar("_Read")


class Form(NamedTuple):
    """What all clips must have alike."""

    latent_shape: tuple[int, ...]  # C, T, H, W
    text_shape: tuple[int, ...]  # L, D
    dtype: str  # of the latents

    def __str__(self) -> str:
        return f"{self.dtype} latents {list(self.latent_shape)}, text {list(self.text_shape)}"


@dataclass
class Survey:
    """What was found in the shards."""

    shards: list[Shard] = field(default_factory=list)
    forms: dict[str, Form] = field(default_factory=dict)  # of the clips that were read, by key
    lengths: list[int] = field(default_factory=list)  # of their texts, without zero rows

    @property
    def form(self) -> Form:
        """That of most of the clips that were read."""
        return Counter(self.forms.values()).most_common(1)[0][0]

    @property
    def faults(self) -> list[Fault]:
        """Of all shards, in their order."""
        return [fault for shard in self.shards for fault in shard.faults]


def find_shards(pattern: str, outside: Path) -> list[Path]:
    """The plain files that a glob matches, sorted by path.

    Raises:
        ValueError: there are none, or they lie in the folder ``outside`` of which they must be.
    """
    found = [Path(each).resolve() for each in glob.glob(pattern, recursive=True)]
    plain = sorted(path for path in found if path.is_file())
    if not plain:
        raise ValueError(f"clips.source: {pattern}: no such file, expected a glob of tar shards")
    inside = [path for path in plain if path.is_relative_to(outside.resolve())]
    if inside:
        raise ValueError(
            f"clips.source: {inside[0]}: shards are read where they lie, expected a place outside "
            "of the repository"
        )
    return plain


def survey_shards(
    paths: Sequence[Path],
    layout: Layout,
    verify: Literal["first", "all"],
) -> Survey:
    """Find all clips, and read those of every shard or of the first that holds a good one.

    Raises:
        ValueError: not one clip can be read; the message names the first fault.
    """
    found = Survey()
    keys: set[str] = set()
    for path in paths:
        shard = read_shard(path)
        found.shards.append(shard)
        for key in [key for key in shard.clips if key in keys]:
            shard.drop(key, "duplicate key, an earlier shard has it")
        if verify == "all" or not found.forms:
            _verify(shard, layout, found)
        keys.update(shard.clips)
    if not found.forms:
        raise ValueError(f"no clip can be read; the first fault: {found.faults[0]}")
    form = found.form
    for shard in found.shards:
        for key in [key for key in shard.clips if found.forms.get(key, form) != form]:
            shard.drop(key, f"has {found.forms[key]}, most clips {form}")
    return found


def _verify(shard: Shard, layout: Layout, found: Survey) -> None:
    """Read every clip of a shard; drop those that cannot be read."""
    with shard.path.open("rb") as file:
        for key, places in list(shard.clips.items()):
            try:
                latents = _parsed(file, places, "latent", lambda each: read_latent(each, layout))
                text = _parsed(file, places, "embed", read_embedding)
                _parsed(file, places, "prompt", read_prompt)
                if "anchor" in places:
                    anchor = _parsed(file, places, "anchor", lambda each: read_latent(each, layout))
                    _require_equal_shapes(places["anchor"], anchor, latents)
            except ValueError as error:
                shard.drop(key, str(error))
                continue
            dtype = str(latents.dtype).removeprefix("torch.")
            found.forms[key] = Form(tuple(latents.shape), tuple(text.shape), dtype)
            found.lengths.append(int((text != 0).any(1).sum()))


def _parsed(
    file: BinaryIO, places: Mapping[str, Place], kind: str, parse: Callable[[bytes], _Read]
) -> _Read:
    place = places[kind]
    file.seek(place.offset)
    try:
        return parse(file.read(place.size))
    except ValueError as error:
        raise ValueError(f"{place.name} {error}") from None


def _require_equal_shapes(place: Place, anchor: Tensor, latents: Tensor) -> None:
    if anchor.shape != latents.shape:
        raise ValueError(
            f"{place.name} anchors {list(anchor.shape)}, expected {list(latents.shape)}, as latents"
        )


# ---- The manifest of surveyed shards, the index for random access, and their figures -----------


def write_manifest(
    folder: Path,
    found: Survey,
    *,
    codec: str,
    layout: str,
    shares: tuple[float, float],
    checksums: Literal["none", "first", "all"],
) -> dict[str, Any]:
    """Write manifest.json and index.npz, and give the figures of the data set.

    Shards in or below ``folder`` are named relative to it, others by their absolute path.

    Args:
        folder: where to write.
        found: the shards, with at least one clip.
        codec: what the latents were made by.
        layout: axes of a stored latent.
        shares: of validation and test clips.
        checksums: the shards that get a SHA-256.

    Raises:
        ValueError: a split is empty.
    """
    hashed = {"none": 0, "first": 1, "all": len(found.shards)}[checksums]
    manifest = {
        "codec": codec,
        "layout": layout,
        "dtype": found.form.dtype,
        "latent_shape": found.form.latent_shape,
        "text_shape": found.form.text_shape,
        "clips_read": len(found.forms),
        "shards": [
            {
                "path": _name(shard.path, folder),
                "bytes": shard.size,
                "clips": len(shard.clips),
                "sha256": _sha256(shard.path) if number < hashed else None,
            }
            for number, shard in enumerate(found.shards)
        ],
        "faults": [fault._asdict() for fault in found.faults],
    }
    splits = _write_index(folder / INDEX, found, shares)
    text = json.dumps(manifest, indent=1, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return _figures(found, splits)


def _figures(found: Survey, splits: Mapping[str, int]) -> dict[str, Any]:
    """The clips by count, and as many as there were if each shard held what the first does."""
    channels, frames, height, width = found.form.latent_shape
    rows, dim = found.form.text_shape
    return {
        "clips": sum(splits.values()),
        "clips_estimated": found.shards[0].latents * len(found.shards),
        "clips_read": len(found.forms),
        **splits,
        "shards": len(found.shards),
        "bytes": sum(shard.size for shard in found.shards),
        "faults": len(found.faults),
        "anchors": sum("anchor" in each for s in found.shards for each in s.clips.values()),
        "channels": channels,
        "frames": frames,
        "height": height,
        "width": width,
        "text_rows": rows,
        "text_dim": dim,
        "text_rows_used_mean": round(sum(found.lengths) / len(found.lengths), 3),
    }


def _write_index(path: Path, found: Survey, shares: tuple[float, float]) -> dict[str, int]:
    """Write where each clip's members lie; how many clips each split has."""
    clips = [(n, key, each) for n, s in enumerate(found.shards) for key, each in s.clips.items()]
    nowhere = Place(0, 0, "")
    places = [[each.get(kind, nowhere) for kind in KINDS] for _, _, each in clips]
    splits = [split_of(key, *shares) for _, key, _ in clips]
    counts = {split: splits.count(split) for split in SPLITS}
    if not all(counts.values()):
        raise ValueError(f"clips.val_share and clips.test_share leave a split empty: {counts}")
    np.savez(
        path,
        keys=np.array([key for _, key, _ in clips]),
        shards=np.array([shard for shard, _, _ in clips], np.int32),
        offsets=np.array([[each.offset for each in row] for row in places], np.int64),
        sizes=np.array([[each.size for each in row] for row in places], np.int64),
        splits=np.array([SPLITS.index(split) for split in splits], np.uint8),
    )
    return counts


def _name(path: Path, folder: Path) -> str:
    inside = path.resolve().is_relative_to(folder.resolve())
    return str(path.resolve().relative_to(folder.resolve()) if inside else path.resolve())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
