"""The mandatory evaluation of a space by how well it separates the pseudo-classes.

Pseudo-classes are evaluated in the quantizer's space, where they are cells by construction, and in
those of encoders, which know them at most from a head trained on train clips: an encoder is to be
compared with an untrained one. Each metric stands beside that of random labels (`_random`: the same
labels in random order) or beside an exact chance level (`_chance`), and where it is a mean over
clips between the ends of its 95 % bootstrap interval (`_low`, `_high`; class means and neighbors
stay as they are).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from braid.clips.config import RepresentationConfig
from braid.clips.shards.dataset import Clips
from braid.clustering.kmeans import kmeans
from braid.common.config import KMeansConfig
from braid.common.rng import generator
from braid.metrics.distances import effective_rank, silhouettes
from braid.pseudo_classes.quantizer import Pooling, PseudoClasses
from braid.representation import separation
from braid.training.distributed import shared_rows

Indices = NDArray[np.int64]
Floats = NDArray[np.float64]
Points = NDArray[np.float32]
Metrics = dict[str, float | int | str | None]

COLLAPSED_RANK = 2.0  # effective, of the features
LEAST_USAGE = 0.5  # perplexity of the class frequencies, over the number of classes


@dataclass(frozen=True)
class Space:
    """Where the clips of a sample lie."""

    features: Points  # [n, d] of the encoder, unchanged; their rank shows a collapse
    points: Points  # [n, d] that distances are measured between


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a space, and what its figures need."""

    metrics: Metrics
    neighbors: Indices  # [q, k] the clips nearest to each query, nearest first
    distances: Floats  # [q, t] in mean distances
    silhouettes: Mapping[str, Floats]  # [n], of classes and of random labels

    @property
    def headline(self) -> Metrics:
        """The metrics that are read first; retrieval at the most neighbors."""
        return {
            "silhouette": self.metrics["silhouette"],
            "retrieval": self.metrics[f"retrieval_at_{self.neighbors.shape[1]}"],
            "linear_probe": self.metrics["linear_probe"],
            "status": self.metrics["status"],
        }


def standardized(
    features: Points,  # [n, d]
    components: int,
) -> Points:
    """Each feature to mean 0 and variance 1 (a constant one to 0), then the leading components.

    Raises:
        ValueError: a feature is not finite.
    """
    _require_finite(features)
    centered = features - features.mean(axis=0, dtype=np.float64)
    spread = centered.std(axis=0)
    points = np.divide(centered, spread, out=np.zeros_like(centered), where=spread > 0)
    pca = PCA(min(components, *points.shape), svd_solver="randomized", random_state=0)
    reduced: Points = pca.fit_transform(points).astype(np.float32)
    return reduced


def make_spaces(
    h: Points,  # [n, d] condition embeddings
    features: Mapping[str, Points],  # name of an encoder to its features of the clips, [n, d]
    components: int,
) -> dict[str, Space]:
    """The quantizer's space as it is, those of encoders standardized."""
    return {"quantizer": Space(h, h), **encoder_spaces(features, components)}


def encoder_spaces(features: Mapping[str, Points], components: int) -> dict[str, Space]:
    """A standardized space for each encoder's features [n, d]."""
    return {name: Space(x, standardized(x, components)) for name, x in features.items()}


def evaluate(
    space: Space,
    sample: Sample,
    config: RepresentationConfig,
    clustering: KMeansConfig,  # whose K-means is tested for stability
    temperatures: Sequence[float],  # of the drift's kernel
    seed: int,
) -> Evaluation:
    """All metrics of a space.

    Raises:
        ValueError: features that are not finite or all the same, fewer than two classes, or fewer
            clips than the metrics need.
    """
    _require_finite(space.features)
    distances = separation.query_distances(space.points, sample.is_query)
    neighbors = separation.nearest_clips(distances, sample.is_query, max(config.neighbors))
    order = torch.randperm(len(sample.labels), generator=generator(seed, "random labels"))
    by_clip: dict[str, Floats] = {}
    metrics: Metrics = {}
    for suffix, labels in (("", sample.labels), ("_random", sample.labels[order.numpy()])):
        values = _by_clip(space.points, labels, sample.is_query, neighbors, config.neighbors)
        by_clip |= {f"{name}{suffix}": value for name, value in values.items()}
        same = labels[sample.is_query][:, None] == labels[~sample.is_query]
        scalars = separation.mass_ratios(distances, same, temperatures)
        scalars["davies_bouldin"] = separation.davies_bouldin(space.points, labels)
        metrics |= {f"{name}{suffix}": value for name, value in scalars.items()}
    agreement, chances = _agreement(sample, neighbors)

    def cluster(points: Tensor, draw: torch.Generator) -> Tensor:
        return kmeans(points, len(sample.counts), clustering, draw).labels

    metrics |= _means(by_clip | agreement, config.bootstrap, seed)
    metrics |= chances | separation.kernel_percentiles(distances, temperatures)
    metrics |= separation.stability(space.points[~sample.is_query], cluster, seed)
    metrics |= _collapse(space, sample)
    metrics["status"] = status(metrics, config.neighbors)
    silhouettes = {
        "classes": by_clip["silhouette"],
        "random labels": by_clip["silhouette_random"],
    }
    return Evaluation(metrics, neighbors, distances, silhouettes)


def status(metrics: Mapping[str, Any], neighbors: Sequence[int]) -> str:
    """The first that holds, of `collapsed`, `no_better_than_random` and `ok`.

    Collapsed: features on a line, or the clips in less than half of the classes, by perplexity. No
    better than random: the bootstrap interval of the silhouette, the probe or the retrieval at the
    most neighbors reaches down to the value of random labels.
    """
    if metrics["rank"] < COLLAPSED_RANK or metrics["usage_fraction"] < LEAST_USAGE:
        return "collapsed"
    tested = ("silhouette", "linear_probe", f"retrieval_at_{max(neighbors)}")
    if any(metrics[f"{name}_low"] <= metrics[f"{name}_random"] for name in tested):
        return "no_better_than_random"
    return "ok"


def interval(
    values: Floats,  # [n]
    resamples: int,
    draw: torch.Generator,
) -> tuple[float, float]:
    """Ends of the 95 % percentile bootstrap interval of the mean (Efron & Tibshirani 1993, 13)."""
    chosen = torch.randint(len(values), (resamples, len(values)), generator=draw)
    low, high = np.percentile(values[chosen.numpy()].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


def _by_clip(
    points: Points,
    labels: Indices,
    is_query: NDArray[np.bool_],
    neighbors: Indices,
    ks: Sequence[int],
) -> dict[str, Floats]:
    """Metrics of a labeling that are means over clips."""
    return {
        "intra_inter": separation.intra_inter(points, labels),
        "silhouette": silhouettes(points, labels),
        "linear_probe": separation.probe(points, labels, is_query),
        **{
            f"retrieval_at_{k}": separation.label_agreement(labels, is_query, neighbors[:, :k])
            for k in ks
        },
    }


def _agreement(sample: Sample, neighbors: Indices) -> tuple[dict[str, Floats], Metrics]:
    """In what neighbors agree beside their class, by query, and the levels of chance."""
    is_query = sample.is_query
    by_query: dict[str, Floats] = {}
    chances: Metrics = {}
    if sample.texts is not None:
        by_query["text_cosine"], chances["text_cosine_chance"] = separation.cosine_agreement(
            sample.texts, is_query, neighbors
        )
    if sample.keyframes is not None:
        by_query["keyframe_mse"], chances["keyframe_mse_chance"] = separation.squared_error(
            sample.keyframes, is_query, neighbors
        )
    if sample.families is not None:
        _, families = np.unique(list(sample.families), return_inverse=True)
        by_query["family_agreement"] = separation.label_agreement(families, is_query, neighbors)
        chances["family_agreement_chance"] = separation.label_chance(families, is_query)
    chances["retrieval_chance"] = separation.label_chance(sample.labels, is_query)
    chances["linear_probe_chance"] = separation.probe_chance(sample.labels, is_query)
    return by_query, chances


def _means(by_clip: Mapping[str, Floats], resamples: int, seed: int) -> Metrics:
    """The mean of each metric over clips, and its interval unless it is of random labels."""
    metrics: Metrics = {}
    for name, values in by_clip.items():
        metrics[name] = float(values.mean())
        if not name.endswith("_random"):
            low, high = interval(values, resamples, generator(seed, "bootstrap", name))
            metrics |= {f"{name}_low": low, f"{name}_high": high}
    return metrics


def _collapse(space: Space, sample: Sample) -> Metrics:
    """Usage of the classes, rank and spread of the features, and the sizes of the sample."""
    return {
        **separation.usage(sample.counts),
        "rank": effective_rank(space.features),
        "mean_cosine": separation.mean_cosine(space.features),
        "clips": len(sample.labels),
        "queries": int(sample.is_query.sum()),
        "dimensions": space.points.shape[1],
    }


def _require_finite(features: Points) -> None:
    if not np.isfinite(features).all():
        raise ValueError("features of a clip: expected finite values")


# ---- The sample ----------------------------------------------------------------------------------
# Balanced over pseudo-classes, read once.

Encode = Callable[[Tensor], Mapping[str, Tensor]]  # [B, C, T, H, W] to groups [B, L, D]

OTHER = "other"  # the family of prompts without a keyword
SIDE = 32  # pixels
_CHUNK = 32  # clips in memory at a time
_OF = "of "  # stands before an encoder's name, which may be that of something else that is read


@dataclass(frozen=True)
class Sample:
    """n clips or images, in ascending order."""

    indices: Indices  # [n] which of all they are
    labels: Indices  # [n] pseudo-classes
    counts: Indices  # [K] how many of all clips each class has
    is_query: NDArray[np.bool_]  # [n] val and test clips; train clips are retrieved
    prompts: Sequence[str]  # [n]
    families: Sequence[str] | None  # [n] of the prompts; of images their labels, if not the classes
    texts: Points | None  # [n, D] pooled text embeddings
    keyframes: Points | None  # [n, D'] pooled keyframe latents
    unit: str = "clip"  # or image, as figures name them


@torch.no_grad()
def read_sample(
    clips: Clips,
    pseudo: PseudoClasses,
    pooling: Pooling,  # the quantizer's; here of text and keyframes, whatever its mode
    encoders: Mapping[str, Encode],
    config: RepresentationConfig,
    draw: torch.Generator,
    device: torch.device,  # of the encoders
    scratch: Path | None = None,  # where several processes share the clips
) -> tuple[Sample, dict[str, Points]]:
    """Draw a sample and read it, together with each encoder's features of it, [n, d].

    Of several processes the first gets all; the others' sample is without what was read.
    """
    labels = pseudo.labels.numpy()
    indices = stratified(labels, config.clips, draw)
    pool = Pooling(pooling.config.model_copy(update={"mode": "joint"}))

    def encoded(chunk: Indices) -> dict[str, Tensor]:
        latents = clips.latents(chunk)
        return pool(clips.texts(chunk), latents) | _features(encoders, latents.to(device))

    read = _arrays(shared_rows(indices, encoded, scratch, "features", _CHUNK))
    prompts = clips.prompts(indices) if read else []
    sample = Sample(
        indices,
        labels[indices],
        np.bincount(labels, minlength=pseudo.classes),
        ~np.isin(indices, pseudo.splits["train"]),
        prompts,
        [prompt_family(prompt, config.families) for prompt in prompts],
        read.pop("text", None),
        read.pop("keyframes", None),
    )
    return sample, _by_encoder(read)


def _features(encoders: Mapping[str, Encode], batch: Tensor) -> dict[str, Tensor]:
    """Of a batch, [B, d], by the encoder's name and what tells it from other names."""
    return {f"{_OF}{name}": pool_groups(encode(batch)) for name, encode in encoders.items()}


def _by_encoder(read: Mapping[str, Points]) -> dict[str, Points]:
    return {name.removeprefix(_OF): values for name, values in read.items()}


def _arrays(values: Mapping[str, Tensor]) -> dict[str, Points]:
    return {name: tensor.numpy() for name, tensor in values.items()}


class Images(Protocol):
    """A set of images."""

    conditions: Tensor  # [N] the class of each
    labels: Tensor  # [N] its label, below 0 without one
    label_names: list[str]
    class_names: list[str]  # the labels' unless the classes are pseudo-classes
    names: list[str]

    def indices(self, split: str) -> Indices:
        """The images of a split."""

    def clips(self, indices: Indices) -> Tensor:
        """Images as clips of one frame, [B, C, 1, H, W]."""


@torch.no_grad()
def read_images(
    images: Images,
    encoders: Mapping[str, Encode],
    config: RepresentationConfig,
    draw: torch.Generator,
    device: torch.device,  # of the encoders
    scratch: Path | None = None,  # where several processes share the images
) -> tuple[Sample, dict[str, Points]]:
    """The same of images: evaluated by their conditions, which are labels or pseudo-classes."""
    conditions = images.conditions.numpy()
    indices = stratified(conditions, config.clips, draw)

    def encoded(chunk: Indices) -> dict[str, Tensor]:
        return _features(encoders, images.clips(chunk).to(device))

    read = _arrays(shared_rows(indices, encoded, scratch, "features", _CHUNK))
    names = [*images.label_names, OTHER]  # label -1 is the last one
    labels = None
    if images.class_names != images.label_names:
        labels = [names[label] for label in images.labels[indices].tolist()]
    sample = Sample(
        indices,
        conditions[indices],
        np.bincount(conditions, minlength=len(images.class_names)),
        ~np.isin(indices, images.indices("train")),
        [images.names[number] for number in indices],
        labels,
        texts=None,
        keyframes=None,
        unit="image",
    )
    return sample, _by_encoder(read)


def pixels(
    clips: Tensor,  # [B, C, 1, H, W]
) -> dict[str, Tensor]:
    """What encoders are compared with: the values, averaged down to SIDE a side, [B, 1, D]."""
    side = (min(SIDE, clips.shape[3]), min(SIDE, clips.shape[4]))
    return {"pixels": adaptive_avg_pool2d(clips[:, :, 0], side).flatten(1)[:, None]}


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
