"""Writing a set of images: manifest.json, index.npz and, where pixels are stored, shards.

Each function leaves a folder that `open_image_set` opens: images are written first, then may be
encoded, then get the conditions of training.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from braid.images.image_set import INDEX, MANIFEST, ImageSet, shard_name
from braid.images.listing import NO_LABEL, Listing
from braid.splits import SPLITS

PER_SHARD = 8192  # images


def write_linked(
    folder: Path,
    listing: Listing,
    *,
    root: Path,
    size: int,
    crop: str,
) -> None:
    """Images that stay in the files that the listing names, relative to the root.

    Raises:
        ValueError: a split is empty.
    """
    shape = (3, size, size)
    _write(folder, listing, shape, root=str(root.resolve()), crop=crop, input_space="pixel")


def write_stored(
    folder: Path,
    listing: Listing,
    chunks: Iterable[Tensor],  # [b, C, H, W], in the listing's order
    *,
    input_space: str,
    per_shard: int = PER_SHARD,
) -> None:
    """Images that are kept in shards of half floats.

    Raises:
        ValueError: a split is empty.
    """
    shards: list[int] = []
    shape: tuple[int, ...] = ()
    for number, images in enumerate(_regrouped(chunks, per_shard)):
        (folder / shard_name(number)).write_bytes(save({"images": images}))
        shards.append(len(images))
        shape = tuple(images.shape[1:])
    _write(folder, listing, shape, shards=shards, input_space=input_space)


def set_conditions(folder: Path, conditions: NDArray[np.int64], class_names: Sequence[str]) -> None:
    """Replace what training conditions on, which is the label until then."""
    with np.load(folder / INDEX, allow_pickle=False) as arrays:
        index = {**arrays, "conditions": conditions}
    np.savez(folder / INDEX, **index)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    _write_json(folder / MANIFEST, {**manifest, "class_names": list(class_names)})


def require_conditions(images: ImageSet) -> None:
    """Refuse a class that training could not draw from.

    Raises:
        ValueError: a train image has no label, or a class has no train image.
    """
    train = images.conditions[images.indices("train")]
    if (train == NO_LABEL).any():
        raise ValueError(
            f"images.conditions is labels, but {int((train == NO_LABEL).sum())} train images lie in"
            " no class folder; expected kmeans"
        )
    counts = torch.bincount(train, minlength=images.classes)
    for name, count in zip(images.class_names, counts.tolist(), strict=True):
        if not count:
            raise ValueError(f"class {name}: no train image, expected at least one")


def figures(images: ImageSet, faults: int) -> dict[str, Any]:
    """The images by count."""
    train = images.conditions[images.indices("train")]
    channels, height, width = images.shape
    return {
        "images": len(images),
        **{split: len(images.indices(split)) for split in SPLITS},
        "classes": images.classes,
        "smallest_class": int(torch.bincount(train, minlength=images.classes).min()),
        "faults": faults,
        "channels": channels,
        "height": height,
        "width": width,
    }


def _write(
    folder: Path,
    listing: Listing,
    shape: tuple[int, ...],
    *,
    input_space: str,
    root: str | None = None,
    crop: str | None = None,
    shards: Sequence[int] = (),  # images in each
) -> None:
    counts = {split: listing.splits.count(split) for split in SPLITS}
    if not all(counts.values()):
        raise ValueError(f"images.val_share and images.test_share leave a split empty: {counts}")
    manifest = {
        "input_space": input_space,
        "shape": shape,
        "root": root,
        "crop": crop,
        "shards": list(shards),
        "label_names": list(listing.label_names),
        "class_names": list(listing.label_names),
        "faults": [fault._asdict() for fault in listing.faults],
    }
    _write_json(folder / MANIFEST, manifest)
    np.savez(
        folder / INDEX,
        names=np.array(listing.names),
        labels=np.array(listing.labels, np.int64),
        conditions=np.array(listing.labels, np.int64),
        splits=np.array([SPLITS.index(split) for split in listing.splits], np.uint8),
    )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _regrouped(chunks: Iterable[Tensor], count: int) -> Iterator[Tensor]:
    """The same images in chunks of `count`, the last one shorter."""
    held: list[Tensor] = []
    for chunk in chunks:
        held.append(chunk.half().cpu())
        while sum(map(len, held)) >= count:
            joined = torch.cat(held)
            yield joined[:count].clone()
            held = [joined[count:]]
    if sum(map(len, held)):
        yield torch.cat(held)
