"""Pseudo-classes: the condition embedding of every clip, quantized by K-means.

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
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from scipy.linalg import eigh
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, normalize

from braid.clips.config import ConditionsConfig, PoolingConfig, TextSource
from braid.clustering.kmeans import KMeans, nearest
from braid.common.io import write_json
from braid.data.splits import SPLITS
from braid.training.distributed import shared_rows

# ---- The condition embedding h = g(text, keyframes) that is quantized ---------------------------
# The text is the mean of its embedding's rows (the shards' own, or one a token of the prompt from a
# table, words.py) without the zero rows of the padding; a mean over the padding would mix the
# prompt's length into the class. The keyframes are latent frames spread
# evenly over the clip, both ends among them, each channel average-pooled to grid x grid cells.
#
# Each block b is centered and whitened by PCA, with the kept variances shrunk towards their mean
# before (Kessy, Lewin & Strimmer 2018 on whitening; Ledoit & Wolf 2004 on shrinkage):
#
#     z_b = sqrt(w_b / e_b) L^-1/2 V^T (x_b - mean),  L = (1 - s) diag(l) + s mean(l),
#
# where e_b = sum l / L makes the block's mean square w_b on train clips, however many components
# it keeps. h is the concatenation of the blocks at unit length.

BLOCKS = {"text": ("text",), "keyframes": ("keyframes",), "joint": ("text", "keyframes")}
_ROWS = 8192  # of a covariance in float64 at a time
_CHUNK = 32  # clips read at a time: a gibibyte at Wan's size
_NOTHING = 1e-10  # variance, relative to the largest, that is rounding

Pooled = dict[str, Tensor]  # block name -> [n, D]


class ClipReader(Protocol):
    """What clips are read from."""

    def latents(self, indices: NDArray[np.int64]) -> Tensor:
        """[B, C, T, H, W] float32."""

    def texts(self, indices: NDArray[np.int64]) -> Tensor:
        """[B, L, D] float32, padded with zero rows."""


def pool_text(
    texts: Tensor,  # [B, L, D], padded with zero rows
) -> Tensor:
    """The mean of each text's non-zero rows, [B, D]; zero where there is no text at all."""
    given = (texts != 0).any(-1, keepdim=True)
    return (texts * given).sum(1) / given.sum(1).clamp_min(1)


def keyframe_indices(frames: int, keyframes: int) -> list[int]:
    """Evenly spread latent frames, first and last among them.

    Raises:
        ValueError: fewer than two keyframes, or more than there are frames.
    """
    if not 2 <= keyframes <= frames:
        raise ValueError(
            f"clips.conditions.keyframes is {keyframes}, expected 2 to {frames} (frames)"
        )
    gaps = keyframes - 1
    return [(2 * number * (frames - 1) + gaps) // (2 * gaps) for number in range(keyframes)]


def pool_keyframes(
    latents: Tensor,  # [B, C, T, H, W]
    keyframes: int,
    grid: int,
) -> Tensor:
    """Average-pooled keyframes, [B, keyframes * C * grid * grid].

    Raises:
        ValueError: more keyframes than frames, or a grid finer than the latents.
    """
    if grid > min(latents.shape[-2:]):
        height, width = latents.shape[-2:]
        raise ValueError(f"clips.conditions.grid is {grid}, the latents are {height} x {width}")
    frames = latents[:, :, keyframe_indices(latents.shape[2], keyframes)]
    return adaptive_avg_pool2d(frames.transpose(1, 2).flatten(1, 2), grid).flatten(1)


@dataclass(frozen=True)
class Pooling:
    """Clips to one vector a block; what the mode leaves out is not read."""

    config: PoolingConfig

    @property
    def blocks(self) -> tuple[str, ...]:
        """The blocks of the mode."""
        return BLOCKS[self.config.mode]

    def __call__(self, texts: Tensor | None, latents: Tensor | None) -> Pooled:
        """Pool a batch.

        Raises:
            ValueError: a block's input is not given, not finite, or too small.
        """
        pooled = {}
        for block in self.blocks:
            values = texts if block == "text" else latents
            if values is None:
                raise ValueError(
                    f"clips.conditions.mode is {self.config.mode}, which needs the {block}"
                )
            if block == "text":
                pooled[block] = pool_text(values)
            else:
                pooled[block] = pool_keyframes(values, self.config.keyframes, self.config.grid)
            if not pooled[block].isfinite().all():
                raise ValueError(f"{block} of a clip: expected finite values")
        return pooled

    def read(self, clips: ClipReader, count: int, scratch: Path | None = None) -> Pooled:
        """Pool clips 0 to count - 1, a chunk in memory at a time.

        Several processes that see a scratch folder share the clips, and the first gets all; the
        others get nothing. What a killed run has left there is not read again.
        """

        def pooled(indices: NDArray[np.int64]) -> Pooled:
            texts = clips.texts(indices) if "text" in self.blocks else None
            latents = clips.latents(indices) if "keyframes" in self.blocks else None
            return self(texts, latents)

        return shared_rows(np.arange(count), pooled, scratch, "conditions", _CHUNK)


@dataclass(frozen=True)
class Whitening:
    """A block's affine map: (x - mean) @ projection."""

    mean: Tensor  # [D]
    projection: Tensor  # [D, components]

    def __call__(self, values: Tensor) -> Tensor:
        """[n, D] -> [n, components]."""
        return (values - self.mean) @ self.projection


@dataclass(frozen=True)
class ConditionEncoder:
    """g: texts and latents to h."""

    pooling: Pooling
    whitening: Mapping[str, Whitening]  # by block

    @classmethod
    def fit(
        cls,
        pooled: Pooled,  # of train clips only
        config: ConditionsConfig,
    ) -> ConditionEncoder:
        """Fit the whitening of the mode's blocks.

        Raises:
            ValueError: a block is the same for all clips, has fewer dimensions than components,
                or all weights are zero.
        """
        components = {"text": config.text_components, "keyframes": config.keyframe_components}
        weights = {"text": config.text_weight, "keyframes": config.keyframe_weight}
        if not any(weights[block] for block in pooled):
            raise ValueError(f"clips.conditions: the weights of {', '.join(pooled)} are all zero")
        whitening = {
            block: fit_whitening(values, block, components[block], config.shrinkage, weights[block])
            for block, values in pooled.items()
        }
        return cls(Pooling(config), whitening)

    def __call__(
        self,
        texts: Tensor | None,  # [B, L, D]; None where the mode has no text
        latents: Tensor | None,  # [B, C, T, H, W]; None where it has no keyframes
    ) -> Tensor:
        """h of a batch, [B, d] float32 of unit length."""
        return self.embed(self.pooling(texts, latents))

    def of_some(self, texts: Tensor | None, latents: Tensor | None) -> Tensor:
        """h of a batch where the joint conditions may lack a block, which is then its mean."""
        given = {"text": texts, "keyframes": latents}
        blocks = tuple(block for block in self.pooling.blocks if given[block] is not None)
        if not blocks or blocks == self.pooling.blocks:
            return self(texts, latents)
        (block,) = blocks
        (missing,) = set(self.pooling.blocks) - {block}
        config = self.pooling.config.model_copy(update={"mode": block})
        pooled = Pooling(config)(texts, latents)
        mean = self.whitening[missing].mean.expand(len(pooled[block]), -1)
        return self.embed({**pooled, missing: mean})

    def embed(self, pooled: Pooled) -> Tensor:
        """h of pooled clips, [n, d] float32 of unit length.

        Raises:
            ValueError: the clips' dimensions are not those that the encoder was fitted on.
        """
        for block, fitted in self.whitening.items():
            if pooled[block].shape[1] != len(fitted.mean):
                raise ValueError(
                    f"{block}: expected {len(fitted.mean)} pooled dimensions,"
                    f" got {pooled[block].shape[1]}"
                )
        blocks = [fitted(pooled[block].float()) for block, fitted in self.whitening.items()]
        return normalize(torch.cat(blocks, 1), dim=1)

    def state(self) -> dict[str, Tensor]:
        """All tensors by name, for safetensors."""
        return {
            f"{block}.{part}": getattr(fitted, part)
            for block, fitted in self.whitening.items()
            for part in ("mean", "projection")
        }

    @classmethod
    def from_state(cls, pooling: Pooling, state: Mapping[str, Tensor]) -> ConditionEncoder:
        """The reverse of `state`."""
        return cls(
            pooling,
            {
                block: Whitening(state[f"{block}.mean"], state[f"{block}.projection"])
                for block in pooling.blocks
            },
        )


def fit_whitening(
    values: Tensor,  # [n, D]
    block: str,
    components: int,
    shrinkage: float,
    weight: float,
) -> Whitening:
    """PCA whitening with shrinkage, scaled to a mean square of `weight`; see the module.

    Raises:
        ValueError: all rows are the same, or there are fewer dimensions than components.
    """
    dimensions = values.shape[1]
    if components > dimensions:
        name = {"text": "text_components", "keyframes": "keyframe_components"}[block]
        raise ValueError(f"clips.conditions.{name} is {components}, the {block} has {dimensions}")
    mean, covariance = _moments(values)
    if covariance.trace() <= _NOTHING * mean.square().sum():
        raise ValueError(
            f"clips.conditions: the {block} is the same in all train clips; leave it out"
        )
    kept = [dimensions - components, dimensions - 1]
    variances, vectors = eigh(covariance.numpy(), subset_by_index=kept)
    shrunk = (1 - shrinkage) * variances + shrinkage * variances.mean()
    real = variances > _NOTHING * variances.max()
    scale = np.where(real, 1 / np.sqrt(np.where(real, shrunk, 1)), 0)
    scale *= np.sqrt(weight / (variances * scale**2).sum())
    projection = torch.from_numpy(vectors * scale).float().contiguous()
    return Whitening(mean.float(), projection)


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance in float64, some rows at a time."""
    mean = values.mean(0, dtype=torch.float64)
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for rows in values.split(_ROWS):
        centered = rows.double() - mean
        covariance.addmm_(centered.T, centered)
    return mean, covariance / len(values)


# ---- Quantizer and pseudo-classes ----------------------------------------------------------------


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
    def of(cls, encoder: ConditionEncoder, clusters: KMeans, min_count: int) -> Quantizer:
        """The quantizer of K-means' clusters of the train clips."""
        counts = torch.bincount(clusters.labels, minlength=len(clusters.centroids))
        merged = merge_small_classes(clusters.centroids, counts, min_count)
        return cls(encoder, clusters.centroids, merged)

    @property
    def text(self) -> TextSource:
        """Whose text embeddings it was fitted to."""
        return self.encoder.pooling.config.text

    @property
    def classes(self) -> int:
        """How many there are after the merge."""
        return int(self.class_of.max()) + 1

    def assign(
        self,
        texts: Tensor | None,  # [B, L, D]; None where there is no text
        latents: Tensor | None,  # [B, C, T, H, W]; None where there are no keyframes
    ) -> Tensor:
        """Pseudo-classes of clips, [B] int64, of what there is of the joint conditions.

        A block that is missing is the train clips' mean.

        Raises:
            ValueError: nothing that the mode needs is given, or something is not finite.
        """
        return self.label(self.encoder.of_some(texts, latents))

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
    config = quantizer.encoder.pooling.config
    pooling = {name: getattr(config, name) for name in PoolingConfig.model_fields}
    folder.mkdir(parents=True, exist_ok=True)
    content = save({**state, **quantizer.encoder.state()})
    (folder / "model.safetensors").write_bytes(content)
    write_json(folder / "config.json", {**pooling, "classes": quantizer.classes})


def load_quantizer(folder: Path) -> Quantizer:
    """Read a quantizer.

    Raises:
        ValueError: a file is missing or broken, or the two do not belong together.
    """
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        classes = config.pop("classes")
        state = load((folder / "model.safetensors").read_bytes())
        encoder = ConditionEncoder.from_state(Pooling(PoolingConfig(**config)), state)
        quantizer = Quantizer(encoder, state["centroids"], state["class_of"])
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"{folder}: expected config.json and model.safetensors of a quantizer ({error})"
        ) from None
    if quantizer.classes != classes:
        raise ValueError(f"{folder}: config.json and model.safetensors do not belong together")
    return quantizer


def save_pseudo_classes(folder: Path, pseudo: PseudoClasses) -> None:
    """Write `classes.npz` and `config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {name: pseudo.splits[name] for name in SPLITS}
    arrays |= {"labels": pseudo.labels.numpy(), "embedding": pseudo.embedding.numpy()}
    np.savez(folder / "classes.npz", **arrays)
    write_json(folder / "config.json", {"classes": pseudo.classes, "clips": len(pseudo.labels)})


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
