"""The manifest of surveyed shards, the index for random access, and their figures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from braid.clips.shards import INDEX, MANIFEST
from braid.clips.survey import Survey
from braid.clips.tar_shards import KINDS, Place
from braid.splits import SPLITS, split_of


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
