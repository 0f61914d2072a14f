"""Making a set of images: what there is of them, where they lie, what training conditions on.

`index_images` leaves a folder that `open_image_set` opens: manifest.json, index.npz and, where
pixels are stored, shards. They may then be replaced by latents (`write_stored`); `condition` gives
each image the class that training conditions on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from braid.clustering.kmeans import kmeans, nearest
from braid.common.config import BUILT_IN
from braid.common.io import write_json
from braid.common.progress import progress
from braid.common.rng import generator
from braid.data.splits import SPLITS, split_of
from braid.images.config import NOISE, ImagesConfig
from braid.images.data.image_set import (
    INDEX,
    MANIFEST,
    ImageSet,
    linked_path,
    open_image_set,
    read_picture,
    shard_name,
)
from braid.images.latents.sd_vae import CHANNELS, STRIDE

NO_LABEL = -1


class Fault(NamedTuple):
    """An image that cannot be read, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Listing:
    """n images."""

    names: Sequence[str]  # [n], unique
    labels: Sequence[int]  # [n], NO_LABEL: none
    label_names: Sequence[str]
    splits: Sequence[str]  # [n], of `braid.data.splits`
    faults: Sequence[Fault] = ()  # further images, not among the n
    sizes: Sequence[int] = ()  # [n], bytes of the files, where images stay in files
    digests: Sequence[int] = ()  # [n], of the files' content


def index_images(folder: Path, config: ImagesConfig, seed: int) -> Listing:
    """Write the set of the config's source: digits, noise, or files that stay where they are.

    Raises:
        ValueError: no image can be read, one cannot though faults are fatal, or a split is empty.
    """
    if config.source == BUILT_IN:
        listing, pixels = digits(config)
        write_stored(folder, listing, [pixels], input_space=config.input_space)
    elif config.source == NOISE:
        listing, chunks = noise(config, generator(seed, "fake images"))
        write_stored(folder, listing, chunks, input_space=config.input_space)
    else:
        listing = scan_folder(config, outside=Path.cwd())
        if listing.faults and config.faults == "fatal":
            name, reason = listing.faults[0]
            raise ValueError(
                f"{Path(config.source) / name}: {reason} ({len(listing.faults)} faults in all; "
                "images.faults: skip leaves such images out)"
            )
        write_linked(folder, listing, config)
    return listing


def condition(folder: Path, config: ImagesConfig, seed: int) -> ImageSet:
    """The set, conditioned on its labels or on pseudo-classes.

    Raises:
        ValueError: a class that training could not draw from, or impossible pseudo-classes.
    """
    if config.conditions == "kmeans":
        images = open_image_set(folder, cache_mib=config.cache_mib)
        classes = pseudo_classes(images, config, seed)
        set_conditions(folder, classes, [f"pseudo-class {k}" for k in range(config.K)])
    images = open_image_set(folder)
    require_conditions(images)
    return images


def counts(images: ImageSet, faults: int) -> dict[str, int]:
    """The images of each split, the classes and the faults."""
    return {**images.counts, "classes": images.classes, "faults": faults}


def properties(images: ImageSet) -> dict[str, int]:
    """The size of the set, of its smallest class in training, and of an image."""
    train = images.conditions[images.indices("train")]
    smallest = int(torch.bincount(train, minlength=images.classes).min())
    channels, height, width = images.shape
    return {
        "images": len(images),
        "smallest_class": smallest,
        "channels": channels,
        "height": height,
        "width": width,
    }


# ---- Images that need no files: scikit-learn's handwritten digits, and noise for timing ----------

_CHUNK = 256  # images in memory at a time


def digits(config: ImagesConfig) -> tuple[Listing, Tensor]:
    """The 1,797 digits of scikit-learn and their pixels, [n, 1, 8, 8], gray level x as x / 8 - 1.

    Their order says who wrote them, and the last quarter is of other writers than the rest. Split
    by their names, every writer is in training and test alike.
    """
    data = load_digits()
    names = [f"digit-{place:04d}" for place in range(len(data.target))]
    label_names = [str(name) for name in data.target_names]
    pixels = torch.from_numpy(data.images).unsqueeze(1) / 8 - 1
    return Listing(names, data.target.tolist(), label_names, _splits(names, config)), pixels


def noise(config: ImagesConfig, draw: torch.Generator) -> tuple[Listing, Iterator[Tensor]]:
    """Noise [b, C, H, W] in [-1, 1) in chunks, labelled in turn; for timing, not for learning.

    In the shape that pixels or latents of images of the config's size have.
    """
    count, shape = config.noise_images, (3, config.size, config.size)
    if config.input_space == "latent":
        shape = (CHANNELS, config.size // STRIDE, config.size // STRIDE)
    names = [f"fake-{place:07d}" for place in range(count)]  # they decide the splits
    labels = [place % config.K for place in range(count)]
    sizes = (min(_CHUNK, count - start) for start in range(0, count, _CHUNK))
    chunks = (2 * torch.rand(size, *shape, generator=draw) - 1 for size in sizes)
    label_names = [str(label) for label in range(config.K)]
    return Listing(names, labels, label_names, _splits(names, config)), chunks


def _splits(names: Sequence[str], config: ImagesConfig) -> list[str]:
    return [split_of(name, config.val_fraction, config.test_fraction) for name in names]


# ---- A folder in the ImageFolder layout: root/class/any/names.jpg -------------------------------
# Classes are the folders in the root that hold images, in alphabetical order; an image in the root
# itself has no label. Images stay where they are. Each is decoded once, so that no training meets a
# broken one.

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
SYSTEM_FOLDERS = frozenset(  # of file systems and archives; hidden ones are skipped anyway
    ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found")
)
SPLIT_FOLDERS = frozenset(("train", "training", "val", "valid", "validation", "test", "testing"))


def scan_folder(
    config: ImagesConfig,
    *,
    outside: Path,  # a folder in which images must not lie
) -> Listing:
    """The images that can be decoded, by name, and the faults of the others.

    Images are decoded by as many threads as PyTorch has, and split by a hash of the name.

    Raises:
        ValueError: no such folder, in the wrong place, without an image that can be decoded, or
            with splits where classes belong.
    """
    root = Path(config.source)
    if not root.is_dir():
        raise ValueError(f"images.source: {root}: no such folder; expected one, built_in or noise")
    root = root.resolve()
    if root.is_relative_to(outside.resolve()):
        raise ValueError(
            f"images.source: {root}: images stay where they are, expected a place outside of the "
            "repository"
        )
    files, faults = find_pictures(root, config.links)
    classes = sorted({name.split("/")[0] for name in files if "/" in name})
    _require_no_splits(root, classes)
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        read = threads.map(lambda name: _checked(root, name, config.links), files)
        checked = list(progress(read, "scan", "image", total=len(files)))
    faults += [entry for entry in checked if isinstance(entry, Fault)]
    good = [entry for entry in checked if not isinstance(entry, Fault)]
    faults.sort()
    if not good:
        first = f", the first: {faults[0].name}: {faults[0].reason}" if faults else ""
        raise ValueError(
            f"images.source: {root}: no image that can be read ({len(faults)} faults{first})"
        )
    names, sizes, digests = map(list, zip(*good, strict=True))
    numbers = {name: number for number, name in enumerate(classes)}
    labels = [numbers[name.split("/")[0]] if "/" in name else NO_LABEL for name in names]
    return Listing(names, labels, classes, _splits(names, config), faults, sizes, digests)


def find_pictures(root: Path, links: str) -> tuple[list[str], list[Fault]]:
    """Image files by their path relative to the root, with slashes, in order; and what is no such.

    Hidden files and folders, and those of file systems, are no faults. A folder is read once, so
    links that lead in a circle end.
    """
    names: list[str] = []
    faults: list[Fault] = []
    read: set[str] = set()

    def fault(path: str, reason: str) -> None:
        faults.append(Fault(_printable(path.removeprefix(f"{root}/")), reason))

    pending = [str(root)]
    while pending:
        walk = os.walk(
            pending.pop(0), onerror=lambda error: fault(error.filename, str(error.strerror))
        )
        for folder, folders, files in walk:
            if (place := os.path.realpath(folder)) in read:
                fault(folder, "leads to a folder that is read already")
                folders.clear()
                continue
            read.add(place)
            folders[:] = sorted(name for name in folders if not _is_hidden(name))
            linked = [path for name in folders if os.path.islink(path := f"{folder}/{name}")]
            if links == "follow":
                pending += linked
            else:
                for path in linked:
                    fault(path, "a link to a folder, not followed; images.links: follow reads it")
            for path in (f"{folder}/{name}" for name in sorted(files) if not _is_hidden(name)):
                if reason := _reason_to_skip(path):
                    fault(path, reason)
                elif path.lower().endswith(SUFFIXES):
                    names.append(path.removeprefix(f"{root}/"))
    return sorted(names), faults


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in SYSTEM_FOLDERS


def _reason_to_skip(path: str) -> str | None:
    """Why a file that might be an image, or a folder of them, cannot be one; None: no reason."""
    if not path.lower().endswith(SUFFIXES):
        dangling = os.path.islink(path) and not os.path.exists(path)
        return "a link that leads nowhere" if dangling else None
    return None if _printable(path) == path else "its name is not UTF-8"


def _printable(name: str) -> str:
    """A name whose bytes may be no UTF-8, in characters that can be written anywhere."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _require_no_splits(root: Path, classes: Sequence[str]) -> None:
    """Refuse a folder of splits, of which each would be taken for a class."""
    if classes and SPLIT_FOLDERS.issuperset(name.lower() for name in classes):
        first = min(classes, key=lambda name: not name.lower().startswith("train"))
        raise ValueError(
            f"images.source: {root}: its folders ({', '.join(classes)}) are splits, expected "
            f"classes, as perhaps in {root / first}; images are split by their names"
        )


def _checked(root: Path, name: str, links: str) -> tuple[str, int, int] | Fault:
    """The name of an image, its file's size and digest."""
    try:
        path = linked_path(root, name, links)
        _, digest = read_picture(path)
        return name, path.stat().st_size, digest
    except (ValueError, OSError) as error:
        return Fault(name, str(error))


# ---- Manifest, index and shards ----------------------------------------------------------------

PER_SHARD = 8192  # images


def write_linked(folder: Path, listing: Listing, config: ImagesConfig) -> None:
    """Images that stay in the files that the listing names, relative to the config's source.

    Raises:
        ValueError: a split is empty.
    """
    shape = (3, config.size, config.size)
    _write(folder, listing, shape, input_space="pixel", linked=config)


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
        (folder / shard_name(number)).write_bytes(save({"images": images.contiguous()}))
        shards.append(len(images))
        shape = tuple(images.shape[1:])
    _write(folder, listing, shape, shards=shards, input_space=input_space)


def _write(
    folder: Path,
    listing: Listing,
    shape: tuple[int, ...],
    *,
    input_space: str,
    shards: Sequence[int] = (),  # images in each
    linked: ImagesConfig | None = None,  # of images that stay in files
) -> None:
    counts = {split: listing.splits.count(split) for split in SPLITS}
    if not all(counts.values()):
        raise ValueError(
            f"images.val_fraction and images.test_fraction leave a split empty: {counts}"
        )
    files: dict[str, str | None] = {"root": None, "crop": None}
    stamps: dict[str, Any] = {}
    if linked:
        root = str(Path(linked.source).resolve())
        files = {"root": root, "crop": linked.crop, "links": linked.links}
        stamps["sizes"] = np.array(listing.sizes, np.int64)
        stamps["digests"] = np.array(listing.digests, np.uint64)
    manifest = {
        "input_space": input_space,
        "shape": shape,
        **files,
        "shards": list(shards),
        "label_names": list(listing.label_names),
        "class_names": list(listing.label_names),
        "faults": [fault._asdict() for fault in listing.faults],
    }
    write_json(folder / MANIFEST, manifest)
    np.savez(
        folder / INDEX,
        names=np.array(listing.names),
        labels=np.array(listing.labels, np.int64),
        conditions=np.array(listing.labels, np.int64),
        splits=np.array([SPLITS.index(split) for split in listing.splits], np.uint8),
        **stamps,
    )


def _regrouped(chunks: Iterable[Tensor], count: int) -> Iterator[Tensor]:
    """The same images in chunks of `count`, the last one shorter."""
    waiting: list[Tensor] = []
    for chunk in chunks:
        waiting.append(chunk.half().cpu())
        while sum(map(len, waiting)) >= count:
            joined = torch.cat(waiting)
            yield joined[:count].clone()
            waiting = [joined[count:]]
    if sum(map(len, waiting)):
        yield torch.cat(waiting)


# ---- What training conditions on ---------------------------------------------------------------


def set_conditions(folder: Path, conditions: NDArray[np.int64], class_names: Sequence[str]) -> None:
    """Replace what training conditions on, which is the label until then."""
    with np.load(folder / INDEX, allow_pickle=False) as arrays:
        index = {**arrays, "conditions": conditions}
    np.savez(folder / INDEX, **index)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    write_json(folder / MANIFEST, {**manifest, "class_names": list(class_names)})


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
            faults = (f"; {file}: {reason}" for file, reason in images.faults.items())
            first = next((fault for fault in faults if fault.startswith(f"; {name}/")), "")
            raise ValueError(f"class {name}: no train image, expected at least one{first}")


# ---- Pseudo-classes for images without labels: K-means on principal components of their values
# Images are first averaged down to 32 pixels a side, so that the components of any image set fit in
# memory. Components and centroids are fitted on train images, and every image gets its nearest.

COMPONENTS = 64
PCA_ROWS = 16_384
SIDE = 32  # pixels


def pseudo_classes(images: ImageSet, config: ImagesConfig, seed: int) -> NDArray[np.int64]:
    """The class of each image, [n] in 0 to K - 1; none is without a train image.

    Raises:
        ValueError: more classes than train images, or than different ones.
    """
    train = images.indices("train")
    draw = generator(seed, "pseudo-classes")
    chosen = torch.randperm(len(train), generator=draw)[:PCA_ROWS].numpy()
    state = int(torch.randint(2**31, (), generator=draw))
    with threadpool_limits(1):  # several would add in any order
        rows = _pooled(images, train[chosen])
        pca = PCA(min(COMPONENTS, *rows.shape), random_state=state).fit(rows)
        parts = [pca.transform(_pooled(images, part)) for part in _chunks(images)]
        points = torch.from_numpy(np.concatenate(parts))
        clusters = kmeans(points[train], config.K, config.kmeans, draw, key="images.K")
        labels, _ = nearest(points, clusters.centroids)
    labels[train] = clusters.labels  # of which none is empty
    return labels.numpy()


def _chunks(images: ImageSet) -> list[NDArray[np.int64]]:
    return np.split(np.arange(len(images)), range(_CHUNK, len(images), _CHUNK))


def _pooled(images: ImageSet, indices: NDArray[np.int64]) -> NDArray[np.float32]:
    """Values averaged down to at most SIDE pixels a side, [B, d]."""
    _, height, width = images.shape
    side = (min(SIDE, height), min(SIDE, width))
    chunks = np.split(indices, range(_CHUNK, len(indices), _CHUNK))
    pooled = [adaptive_avg_pool2d(images.images(part), side).flatten(1) for part in chunks]
    return torch.cat(pooled).numpy()
