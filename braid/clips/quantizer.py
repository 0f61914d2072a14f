"""Pseudo-classes: the condition embedding of every clip, quantised by K-means.

A class with fewer than `min_count` train clips is merged into the one with the nearest mean, the
smallest first. A merged class is a union of K-means' cells, so a clip's class is still decided by
its nearest centroid. Classes are numbered by train clips, the largest first.

    models/quantizer/       model.safetensors, config.json
    data/pseudo_classes/    classes.npz: labels, embedding, train, val, test; config.json
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from braid.clips.conditions import BLOCKS, ConditionEncoder, Pooling
from braid.clips.kmeans import KMeans, nearest
from braid.splits import SPLITS


def merge_small_classes(
    centroids: Tensor,  # [K, d]
    counts: Tensor,  # [K] train clips
    min_count: int,
) -> Tensor:
    """The class of each of K-means' cells, [K] int64 in [0, occupied); see the module."""
    means, sizes = centroids.double().clone(), counts.double().clone()
    owner = torch.arange(len(sizes))
    while True:
        alive = torch.unique(owner)
        small = alive[sizes[alive].argmin()]
        if sizes[small] >= min_count or len(alive) == 1:
            break
        others = alive[alive != small]
        into = others[(means[others] - means[small]).square().sum(1).argmin()]
        total = sizes[into] + sizes[small]
        means[into] = (sizes[into] * means[into] + sizes[small] * means[small]) / total
        sizes[into] = total
        owner[owner == small] = into
    ordered = alive[sizes[alive].argsort(descending=True, stable=True)]
    number = torch.empty_like(owner)
    number[ordered] = torch.arange(len(ordered))
    return number[owner]


@dataclass(frozen=True)
class Quantizer:
    """From a clip's text and keyframes to its pseudo-class."""

    encoder: ConditionEncoder
    centroids: Tensor  # [K, d]
    class_of: Tensor  # [K] int64, in [0, classes)

    @classmethod
    def of(cls, encoder: ConditionEncoder, found: KMeans, min_count: int) -> Quantizer:
        """A quantiser out of K-means on the train clips."""
        counts = torch.bincount(found.labels, minlength=len(found.centroids))
        merged = merge_small_classes(found.centroids, counts, min_count)
        return cls(encoder, found.centroids, merged)

    @property
    def classes(self) -> int:
        """How many there are after the merge."""
        return int(self.class_of.max()) + 1

    def assign(
        self,
        texts: Tensor | None,  # [B, L, D]; None where the mode has no text
        latents: Tensor | None,  # [B, C, T, H, W]; None where it has no keyframes
    ) -> Tensor:
        """Pseudo-classes of clips, [B] int64."""
        return self.label(self.encoder(texts, latents))

    def label(
        self,
        h: Tensor,  # [n, d]
    ) -> Tensor:
        """Pseudo-classes of embedded clips, [n] int64."""
        return self.class_of[nearest(h, self.centroids)[0]]


@dataclass(frozen=True)
class PseudoClasses:
    """The stored classes of all clips, in the order of the clips."""

    labels: Tensor  # [n] int64
    classes: int  # labels are in [0, classes)
    embedding: Tensor  # [n, d] float32, h
    splits: Mapping[str, NDArray[np.int64]]  # the clips of train, val and test, ascending


def save_quantizer(folder: Path, quantizer: Quantizer) -> None:
    """Write `model.safetensors` and `config.json`."""
    state = {"centroids": quantizer.centroids, "class_of": quantizer.class_of}
    pooling = quantizer.encoder.pooling
    config = {"mode": pooling.mode, "keyframes": pooling.keyframes, "grid": pooling.grid}
    folder.mkdir(parents=True, exist_ok=True)
    content = save({**state, **quantizer.encoder.state()})
    (folder / "model.safetensors").write_bytes(content)
    _write_json(folder / "config.json", {**config, "classes": quantizer.classes})


def load_quantizer(folder: Path) -> Quantizer:
    """Read a quantiser.

    Raises:
        ValueError: a file is missing or broken, or the two do not belong together.
    """
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        pooling = Pooling(config["mode"], config["keyframes"], config["grid"])
        state = load((folder / "model.safetensors").read_bytes())
        encoder = ConditionEncoder.from_state(pooling, state)
        quantizer = Quantizer(encoder, state["centroids"], state["class_of"])
        fitting = quantizer.classes == config["classes"]
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"{folder}: expected config.json and model.safetensors of a quantiser ({error})"
        ) from None
    if not fitting or pooling.mode not in BLOCKS:
        raise ValueError(f"{folder}: config.json and model.safetensors do not belong together")
    return quantizer


def save_pseudo_classes(folder: Path, pseudo: PseudoClasses) -> None:
    """Write `classes.npz` and `config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {name: pseudo.splits[name] for name in SPLITS}
    arrays |= {"labels": pseudo.labels.numpy(), "embedding": pseudo.embedding.numpy()}
    np.savez(folder / "classes.npz", **arrays)
    _write_json(folder / "config.json", {"classes": pseudo.classes, "clips": len(pseudo.labels)})


def load_pseudo_classes(folder: Path) -> PseudoClasses:
    """Read the classes of all clips.

    Raises:
        ValueError: a file is missing or broken, or the two do not belong together.
    """
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        with np.load(folder / "classes.npz", allow_pickle=False) as stored:
            labels = torch.from_numpy(stored["labels"])
            embedding = torch.from_numpy(stored["embedding"])
            splits = {name: stored[name] for name in SPLITS}
        classes, clips = int(config["classes"]), int(config["clips"])
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{folder}: expected config.json and classes.npz of pseudo-classes ({error})"
        ) from None
    if not len(labels) == len(embedding) == clips == sum(map(len, splits.values())):
        raise ValueError(f"{folder}: expected {clips} clips, classes.npz holds {len(labels)}")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"{folder}: expected labels in [0, {classes})")
    return PseudoClasses(labels, classes, embedding, splits)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
