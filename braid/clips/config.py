"""The params models of clips (`clips` in params.yaml): units, ranges, meaning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from braid.common.config import Config, Count, Distinct, Fraction, KMeansConfig, NonNegative, Whole


class DigitsConfig(Config):
    """The built-in clips of moving handwritten digits."""

    clips: Count
    per_shard: Count
    latent_frames: Annotated[int, Field(ge=2)]  # 4 (n - 1) + 1 video frames
    latent_size: Annotated[int, Field(ge=4)]  # of 8 pixels a side


TextSource = Literal["shards", "wordllama"]


class PoolingConfig(Config):
    """How a clip becomes one vector a block; the part of the conditions that a quantizer keeps."""

    mode: Literal["text", "keyframes", "joint"]
    text: TextSource  # of the embeddings; wordllama: an extra of pyproject.toml, of the prompts
    keyframes: Annotated[int, Field(ge=2)]  # evenly spread, both ends among them
    grid: Count  # keyframe latents are pooled to grid x grid


class ConditionsConfig(PoolingConfig):
    """The embedding h = g(text, keyframes) that is quantized."""

    text_components: Count  # kept by the whitening of each block
    keyframe_components: Count
    shrinkage: Fraction  # of the variances towards their mean, before whitening
    text_weight: NonNegative
    keyframe_weight: NonNegative


class QuantizerConfig(KMeansConfig):
    """K-means on h; the number of classes is drift.K."""

    min_count: Count  # classes with fewer train clips are merged into the nearest


class RepresentationConfig(Config):
    """How the quantizer's space and the MAE's are evaluated."""

    clips: Count  # at most, as equal numbers of each class as there are
    components: Count  # of an encoder's standardized features
    neighbors: Distinct[Count] = Field(min_length=1)  # retrieval at each of these
    bootstrap: Count  # resamples behind each 95 % interval
    map: Literal["tsne", "umap"]  # umap: an extra of pyproject.toml
    map_clips: Annotated[int, Field(ge=4)]  # at most, on a map
    families: dict[str, str]  # word of a prompt to its family; the first of these words counts
    exemplar_classes: Count  # in figures, from the largest to the smallest


class ClipsConfig(Config):
    """Where the clips come from and how they are split."""

    source: str  # a glob or URLs of .tar shards in the Wan-synth layout; built_in: moving digits
    anchors: str  # a glob of .tar shards with a phase-1 model's <key>.anchor.pt; none
    layout: Literal["cthw", "tchw"]  # axes of a stored latent
    faults: Literal["skip", "fatal"]  # what a broken file or a NaN latent does
    verify: Literal["first", "all"]  # shards whose every clip is read once and checked
    checksums: Literal["none", "first", "all"]  # shards that get a SHA-256 in the manifest
    crop: tuple[Count, Count, Count] | None = Field(strict=False)  # frames, rows, columns kept
    val_fraction: Annotated[float, Field(gt=0, lt=0.5)]
    test_fraction: Annotated[float, Field(gt=0, lt=0.5)]
    cache_mib: Whole  # RAM for latents once read; 0: read from the shards each time
    wan_vae: str  # folder of diffusers' AutoencoderKLWan; none: linear preview of real clips
    digits: DigitsConfig
    conditions: ConditionsConfig
    quantizer: QuantizerConfig
    representation: RepresentationConfig
