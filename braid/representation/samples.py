"""The clips that spaces are evaluated on: a sample balanced over pseudo-classes, read once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from braid.clips.config import RepresentationConfig
from braid.clips.shards.dataset import Clips
from braid.common.progress import progress
from braid.pseudo_classes.quantizer import Pooling, PseudoClasses

Indices = NDArray[np.int64]
Points = NDArray[np.float32]
Encode = Callable[[Tensor], Mapping[str, Tensor]]  # [B, C, T, H, W] to groups [B, L, D]

OTHER = "other"  # the family of prompts without a keyword
_CHUNK = 32  # clips in memory at a time


@dataclass(frozen=True)
class Sample:
    """n clips, in ascending order."""

    indices: Indices  # [n] which of all clips they are
    labels: Indices  # [n] pseudo-classes
    counts: Indices  # [K] how many of all clips each class has
    is_query: NDArray[np.bool_]  # [n] val and test clips; train clips are retrieved
    prompts: Sequence[str]  # [n]
    families: Sequence[str]  # [n] of the prompts
    texts: Points  # [n, D] pooled text embeddings
    keyframes: Points  # [n, D'] pooled keyframe latents


@torch.no_grad()
def read_sample(
    clips: Clips,
    pseudo: PseudoClasses,
    pooling: Pooling,  # the quantizer's; here of text and keyframes, whatever its mode
    encoders: Mapping[str, Encode],
    config: RepresentationConfig,
    draw: torch.Generator,
    device: torch.device,  # of the encoders
) -> tuple[Sample, dict[str, Points]]:
    """Draw a sample and read it, together with each encoder's features of it, [n, d]."""
    labels = pseudo.labels.numpy()
    indices = stratified(labels, config.clips, draw)
    pool = Pooling(pooling.config.model_copy(update={"mode": "joint"}))
    texts, keyframes = [], []
    features: dict[str, list[Tensor]] = {name: [] for name in encoders}
    chunks = np.split(indices, range(_CHUNK, len(indices), _CHUNK))
    for chunk in progress(chunks, "features", "chunk"):
        latents = clips.latents(chunk)
        pooled = pool(clips.texts(chunk), latents)
        texts.append(pooled["text"])
        keyframes.append(pooled["keyframes"])
        for name, encode in encoders.items():
            features[name].append(pool_groups(encode(latents.to(device))))
    prompts = clips.prompts(indices)
    sample = Sample(
        indices,
        labels[indices],
        np.bincount(labels, minlength=pseudo.classes),
        ~np.isin(indices, pseudo.splits["train"]),
        prompts,
        [prompt_family(prompt, config.families) for prompt in prompts],
        torch.cat(texts).numpy(),
        torch.cat(keyframes).numpy(),
    )
    return sample, {name: torch.cat(parts).numpy() for name, parts in features.items()}


def pool_groups(
    groups: Mapping[str, Tensor],  # [B, L, D]
) -> Tensor:
    """Mean and standard deviation over the vectors of each group, side by side, [B, d] float32."""
    pooled = []
    for vectors in groups.values():
        pooled.append(vectors.float().mean(dim=1))
        if vectors.shape[1] > 1:
            pooled.append(vectors.float().std(dim=1, correction=0))
    return torch.cat(pooled, dim=1).cpu()


def stratified(
    labels: Indices,  # [n]
    count: int,
    draw: torch.Generator,
) -> Indices:
    """At most `count` clips, as equal numbers of each class as there are, in ascending order.

    A plain sample would leave rare classes with a clip or none, for which separation means nothing.
    """
    order = torch.randperm(len(labels), generator=draw).numpy()
    by_class = order[labels[order].argsort(kind="stable")]
    sizes = np.bincount(labels)
    starts = np.cumsum(sizes) - sizes
    rank = np.arange(len(labels)) - starts[labels[by_class]]  # 0 for the first of each class
    return np.sort(by_class[rank.argsort(kind="stable")][:count])


def prompt_family(
    prompt: str,
    families: Mapping[str, str],  # keyword, one word in lower case, to family
) -> str:
    """The family of the first keyword that is a word of the prompt."""
    words = "".join(letter if letter.isalnum() else " " for letter in prompt.lower()).split()
    return next((family for keyword, family in families.items() if keyword in words), OTHER)
