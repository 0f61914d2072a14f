"""The typed sections of params.yaml that belong to the drifting strand on video latents."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from braid.pipeline.fields import Count, NonNegative, Positive, Section, Share, Steps, Whole


class Clips(Section):
    """Where the clips come from and how they are split."""

    source: str  # digits: the built-in ones; or a glob of .tar shards in the Wan-synth layout
    layout: Literal["cthw", "tchw"]  # axes of a stored latent
    faults: Literal["skip", "fatal"]  # what a broken member or a NaN latent does
    verify: Literal["first", "all"]  # shards whose every clip is read once and checked
    checksums: Literal["none", "first", "all"]  # shards that get a SHA-256 in the manifest
    val_share: Annotated[float, Field(gt=0, lt=0.5)]
    test_share: Annotated[float, Field(gt=0, lt=0.5)]
    cache_mib: Whole  # RAM for decoded latents; 0: read from the shards each time


class Digits(Section):
    """The built-in clips of moving handwritten digits."""

    clips: Count
    per_shard: Count
    latent_frames: Annotated[int, Field(ge=2)]  # 4 (n - 1) + 1 video frames
    latent_size: Annotated[int, Field(ge=4)]  # of 8 pixels a side


class Decoding(Section):
    """How latents become pictures."""

    wan_vae: str | None  # folder of diffusers' AutoencoderKLWan; null: linear preview of real clips


class Conditions(Section):
    """The embedding h = g(text, keyframes) that is quantised."""

    mode: Literal["text", "keyframes", "joint"]
    keyframes: Annotated[int, Field(ge=2)]  # evenly spread, both ends among them
    grid: Count  # keyframe latents are pooled to grid x grid
    text_components: Count  # kept by the whitening of each block
    keyframe_components: Count
    shrinkage: Share  # of the variances towards their mean, before whitening
    text_weight: NonNegative
    keyframe_weight: NonNegative


class Quantizer(Section):
    """K-means on h; the number of classes is drift.K."""

    seeding_rows: Count
    projection: Count  # dimensions in which seeds are chosen and most iterations run
    candidates: Count  # greedy k-means++, a step
    projected_iterations: Whole
    exact_iterations: Count
    min_count: Count  # classes with fewer train clips are merged into the nearest


class LatentMae(Section):
    """The masked autoencoder whose features the drift is computed in."""

    width: Annotated[int, Field(gt=0, multiple_of=4)]  # channels of the first stage; then doubled
    blocks: tuple[Count, ...] = Field(strict=False, min_length=1)  # residual blocks a stage
    steps: Steps
    batch: Count  # clips
    head_weight: Share  # of the pseudo-class head against reconstruction; 0: no head
    head_share: Share  # of the steps, at the end, that train the head


class Masking(Section):
    """What the masked autoencoder does not see of a clip."""

    mode: Literal["patch", "tube", "frame", "mixed"]
    patch_ratio: Annotated[float, Field(gt=0, lt=1)]
    tube_ratio: Annotated[float, Field(gt=0, lt=1)]


class Corruption(Section):
    """Keyframes, interpolation and noise."""

    levels: Count  # beside level 0, which has every frame
    min_keyframes: Annotated[int, Field(ge=2)]  # at the coarsest level
    schedule: Literal["doubling", "linear", "geometric"]
    placement: Literal["even", "random"]  # of keyframes in training
    interpolator: Literal["linear", "cubic", "inverse_distance", "harmonic", "sinkhorn"]
    sigma_feature: Positive  # harmonic: latent units; smaller: edges hold values apart
    sigma_space: Positive  # harmonic: grid steps; smaller: weaker ties, above all diagonal ones
    lambda_reg: NonNegative  # harmonic: pull towards linear interpolation
    sinkhorn_temperature: Positive  # of the cosines between tokens
    sinkhorn_reach: Positive  # cells; standard deviation of the prior on displacements
    dustbin: float  # sinkhorn: logit of no match; a perfect one has 1 / temperature
    noise: Literal["none", "dist", "gauss"]
    sigma: NonNegative  # of the noise, latent units
    keyframe_noise: Share  # of sigma, on keyframes
    student_replace_prob: Share  # interior keyframes replaced by phase-1 anchors


class DriftField(Section):
    """The drifting loss."""

    temperatures: tuple[Positive, ...] = Field(strict=False, min_length=1)
    attraction: Positive  # 1: balanced; anything else breaks the equilibrium
    floor: NonNegative  # of the affinities' product
    self_mask: Positive  # in mean distances
    weighting: Literal["affinity", "logit"]  # where unconditional negatives are weighted
    reduction: Literal["mean", "sum"]  # over the locations of a group
    scale_scope: Literal["batch", "class"]


class Drift(DriftField):
    """The drifting loss and how many classes it tells apart."""

    K: Count  # pseudo-classes


class DriftFeatures(Section):
    """What the drift is computed in."""

    families: tuple[str, ...] = Field(strict=False)  # see braid/drifting/features.py
    locations: Count  # vectors a group, at most
    encoder_weight: NonNegative  # of the latent MAE's features; 0: it is not run
    vanilla: tuple[Literal["tokens", "pairs", "clip"], ...] = Field(strict=False, min_length=1)
    vanilla_weight: NonNegative


class DriftBatches(Section):
    """What a step draws."""

    classes: Count
    generated: Annotated[int, Field(ge=2)]  # clips a class
    positives: Count  # a class, from its queue
    negatives: Whole  # generated earlier, a class, from its queue
    unconditional: Count  # real clips of any class
    queue: Count  # clips kept a class
    queue_unconditional: Count
    alpha_max: Annotated[float, Field(ge=1)]  # guidance is drawn from [1, alpha_max]
    alpha_power: NonNegative  # density ~ alpha^-power

    @model_validator(mode="after")
    def _queues_are_long_enough(self) -> DriftBatches:
        for name, kept in (("positives", self.queue), ("negatives", self.queue)):
            if getattr(self, name) > kept:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at most queue: {kept}")
        if self.unconditional > self.queue_unconditional:
            raise ValueError(
                f"unconditional is {self.unconditional}, expected at most "
                f"queue_unconditional: {self.queue_unconditional}"
            )
        return self


class Refiner(Section):
    """The one-step space-time transformer."""

    patch: Count  # latent pixels a side of a token
    dim: Count
    depth: Count
    heads: Count
    clamp: bool  # given keyframes are kept bit for bit


class RefinerTraining(Section):
    """How one refiner is trained."""

    objective: Literal["drift", "paired"]
    steps: Steps
    validate_every: Count  # steps between looks at the validation split
    compile: bool  # torch.compile the network: pays on long runs of one shape, needs a compiler


class Representation(Section):
    """How the quantiser's space and the MAE's are judged."""

    clips: Count  # at most, as equal numbers of each class as there are
    components: Count  # of an encoder's standardised features
    neighbours: tuple[Count, ...] = Field(strict=False, min_length=1)  # retrieval at each of these
    bootstrap: Count  # resamples behind each 95 % interval
    map: Literal["tsne", "umap"]  # umap: pip install umap-learn
    map_clips: Annotated[int, Field(ge=4)]  # at most, on a map
    families: dict[str, str]  # word of a prompt to its family; the first of these words counts
    exemplar_classes: Count  # pictured, from the largest to the smallest


class DriftEvaluation(Section):
    """How refined clips are judged."""

    refiner: str  # of `refiners`: the one that is judged
    paired: str  # of `refiners`: the one that multi-step sampling runs
    components: Count  # of the PCA space
    alpha: Annotated[float, Field(ge=1)]  # guidance
    strips: Count  # clips that are pictured


class Storyboard(Section):
    """Given latent frames that the refiner makes a clip of."""

    source: str = Field(pattern=r"(\.safetensors|^data/clips)$")  # a storyboard, or held-out clips
    clip: Whole  # which of the held-out clips
    keyframes: tuple[Whole, ...] = Field(strict=False, min_length=2)  # the given latent frames
    alpha: Annotated[float, Field(ge=1)]  # guidance; 1: none
