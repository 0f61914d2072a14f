"""The params models of `latent_mae`, `drift` and `image_mae`: units, ranges, meaning."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from braid.common.config import (
    Config,
    Count,
    Distinct,
    Fraction,
    Name,
    Named,
    NonNegative,
    Positive,
    Steps,
    Whole,
)
from braid.training.config import OptimizerConfig


class MaskingConfig(Config):
    """What is hidden from the masked autoencoder."""

    mode: Literal["patch", "tube", "frame", "mixed"]
    patch_ratio: Annotated[float, Field(gt=0, lt=1)]
    tube_ratio: Annotated[float, Field(gt=0, lt=1)]


class MaeConfig(Config):
    """A masked autoencoder whose features the drift is computed in, of clips or of images."""

    width: Annotated[int, Field(gt=0, multiple_of=4)]  # channels of the first stage; then doubled
    blocks: tuple[Count, ...] = Field(strict=False, min_length=1)  # residual blocks a stage
    steps: Steps
    batch: Count  # clips or images
    head_weight: Fraction  # of the (pseudo-)class head against reconstruction; 0: no head
    head_fraction: Fraction  # of the steps, at the end, that train the head
    validate_every: Count  # steps between looks at how its features separate the classes
    optimizer: OptimizerConfig


class LatentMaeConfig(MaeConfig):
    """The masked autoencoder of video latents."""

    masking: MaskingConfig


class DriftLossConfig(Config):
    """The drifting loss; symbols as in braid/drifting/loss/drift.py."""

    temperatures: Distinct[Positive] = Field(min_length=1)  # tau, mean distances
    annealing: Annotated[float, Field(ge=1)]  # times tau at first, falling exponentially to 1
    annealing_steps: Whole  # updates until it is 1
    coupling: Literal["softmax", "sinkhorn"]  # A: both softmaxes, or a scaling of both sides' sums
    normalization: Literal["joint", "separate"]  # of A's rows: over all columns, or each side's
    attraction: Positive  # times the positive force; anything but 1 is out of equilibrium
    floor: NonNegative  # of the softmaxes' product; release 1e-6, paper and peers 0
    self_mask: NonNegative  # m, in mean distances; release 100, paper 1e6 before S
    weighting: Literal["affinity", "logit"]  # of unconditional negatives: release w A; log(w) in L
    reduction: Literal["mean", "sum"]  # over the locations of a group: release mean, peers sum
    scale_scope: Literal["batch", "class"]  # of S and lambda: release batch, some peers class

    @model_validator(mode="after")
    def _annealing_takes_steps(self) -> DriftLossConfig:
        if (self.annealing > 1) != (self.annealing_steps > 0):
            wanted = "1 or more" if self.annealing > 1 else "0"
            raise ValueError(
                f"annealing_steps is {self.annealing_steps}, expected {wanted}: "
                f"annealing is {self.annealing}"
            )
        return self


Interpolator = Literal["linear", "cubic", "inverse_distance", "harmonic", "sinkhorn"]


class HarmonicConfig(Config):
    """Harmonic interpolation: Laplace's equation on a grid whose edges hold values apart."""

    sigma_feature: Positive  # units of the values; smaller: edges hold values apart
    sigma_space: Positive  # grid steps; smaller: weaker ties, above all diagonal ones
    lambda_reg: NonNegative  # pull towards the first guess


class KeyframesConfig(Config):
    """Which frames or points are given, and noise."""

    section: ClassVar[str]  # of params.yaml, for messages

    levels: Count  # beside level 0, which has every frame
    min_keyframes: Annotated[int, Field(ge=2)]  # at the coarsest level
    schedule: Literal["doubling", "linear", "geometric"]
    placement: Literal["even", "random", "selected"]  # of keyframes in training
    sigma: NonNegative  # of the noise, latent units; of a bridge over a whole clip
    keyframe_noise: Fraction  # of sigma, on interior keyframes, which are then proposals
    student_replace_prob: Fraction  # interior keyframes replaced by phase-1 anchors


class CorruptionConfig(KeyframesConfig, HarmonicConfig):
    """Keyframes, interpolation and noise."""

    section: ClassVar[str] = "drift.corruption"

    interpolator: Interpolator
    noise: Literal["none", "dist", "gauss", "bridge"]  # bridge: smooth bends, 0 at keyframes
    sinkhorn_temperature: Positive  # of the cosines between tokens
    sinkhorn_reach: Positive  # cells; standard deviation of the prior on displacements
    dustbin: float  # sinkhorn: logit of no match; a perfect one has 1 / temperature


class MazeCorruptionConfig(KeyframesConfig):
    """Keyframes, interpolation and noise of trajectories; what moves in images has no say here."""

    section: ClassVar[str] = "maze_drift.corruption"

    interpolator: Literal["linear", "cubic"]
    noise: Literal["none", "dist", "gauss", "bridge", "sides"]  # sides: a bridge of signs alone


VanillaFamily = Literal["tokens", "pairs", "columns", "clip"]
Family = Literal["location", "clip", "frame", "patch2", "patch4", "motion", "rms"]


class DriftFeaturesConfig(Config):
    """What the drift is computed in, see braid/drifting/video/features.py."""

    vanilla: Distinct[VanillaFamily] = Field(min_length=1)
    vanilla_weight: NonNegative
    encoder_weight: NonNegative  # of the latent MAE's features; 0: it is not run
    families: Distinct[Family] = Field(min_length=1)  # of the latent MAE's features
    locations: Count  # vectors a group of them, at most

    @model_validator(mode="after")
    def _something_drifts(self) -> DriftFeaturesConfig:
        if not self.encoder_weight + self.vanilla_weight:
            raise ValueError("encoder_weight and vanilla_weight are both 0")
        return self


# Of a class's memory bank: any, the nearest to the step's refined clips, or after their own truth.
PositiveSampling = Literal["random", "nearest", "own"]
Generated = Annotated[int, Field(ge=2)]  # clips or images a class in a step


class BatchesConfig(Config):
    """What a step draws, beside the clips that it refines."""

    classes: Count
    positives: Count  # a class, from its memory bank
    positive_sampling: PositiveSampling
    negatives: Whole  # generated earlier, a class, from its memory bank
    unconditional: Count  # real clips of any class
    bank: Count  # clips kept a class
    bank_holds: Literal["latents", "positions"] = "latents"  # positions: read again when drawn
    bank_unconditional: Whole  # newest clips that those of any class come from; 0: all there are
    alpha_max: Annotated[float, Field(ge=1)]  # guidance is drawn from [1, alpha_max]
    alpha_power: NonNegative  # density ~ alpha^-power
    alpha_values: tuple[float, ...] = Field((), strict=False)  # those alone instead; []: any
    alpha_probabilities: tuple[Fraction, ...] = Field((), strict=False)  # of each of them
    no_guidance: Fraction = 0.0  # of the classes, which get alpha 1 whatever is drawn

    @model_validator(mode="after")
    def _alphas_have_probabilities(self) -> Self:
        values, probabilities = self.alpha_values, self.alpha_probabilities
        total = 1.0 if values else 0.0
        if len(values) != len(probabilities) or abs(sum(probabilities) - total) > 1e-6:
            raise ValueError(
                f"alpha_probabilities are {list(probabilities)}, expected {len(values)} that add "
                f"up to {total:g}"
            )
        if not all(1 <= value <= self.alpha_max for value in values):
            raise ValueError(
                f"alpha_values are {list(values)}, expected 1 to alpha_max: {self.alpha_max}"
            )
        return self

    @model_validator(mode="after")
    def _banks_are_large_enough(self) -> Self:
        for name, kept in (("positives", self.bank), ("negatives", self.bank)):
            if getattr(self, name) > kept:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at most bank: {kept}")
        if 0 < self.bank_unconditional < self.unconditional:
            raise ValueError(
                f"unconditional is {self.unconditional}, expected at most "
                f"bank_unconditional: {self.bank_unconditional}"
            )
        return self


class DriftBatchesConfig(BatchesConfig):
    """What a step draws."""

    generated: Generated


class WanConfig(Config):
    """The backbone `wan`, diffusers' WanTransformer3DModel, beside the sizes of a refiner."""

    base: str  # folder of its weights, transformer/ of a Diffusers checkpoint; none: fresh ones
    widening: Positive  # of the feed-forward layers, times dim; of fresh weights
    sigmas: tuple[Positive, ...] = Field(strict=False, min_length=1)  # of x = z - sigma v, by level
    mask_padding: bool  # no token attends to zero rows after a text; Wan's own training had them
    attention: Literal["full", "sparse_linear"]  # of tokens to one another
    density: Annotated[float, Field(gt=0, le=1)]  # sparse_linear: key blocks attended to exactly
    block: Count  # sparse_linear: tokens a block
    rank: Whole  # of the low-rank adapters that learn in place of the base; 0: all weights learn
    adapter_scale: Positive  # lora_alpha of peft: adapters count by it over their rank
    targets: Distinct[str] = Field(min_length=1)  # layers with an adapter, by the end of their name
    frozen: Literal["float32", "bfloat16"]  # how weights are kept that do not learn


class RefinerConfig(Config):
    """The one-step network: the space-time transformer of this repository, or Wan's."""

    backbone: Literal["transformer", "wan"]
    patch: Count  # latent pixels a side of a token
    dim: Count
    depth: Count
    heads: Count
    clamp: bool  # given keyframes are kept bit for bit
    detail: Whole  # pixels a side of a latent cell of the pictures that are moved; 0: none are
    moments: Count  # pictures of a latent frame, each moved by its own; divides its video frames
    beside: Literal[
        "none", "text", "embedding"
    ]  # the class: rows of the text; h of text and frames
    wan: WanConfig  # of the backbone wan alone

    @model_validator(mode="after")
    def _adapters_learn_beside_a_base(self) -> RefinerConfig:
        if self.wan.rank and self.wan.base == "none":
            raise ValueError("wan.rank is positive, expected a folder as wan.base")
        return self


Target = Literal["clip", "finer"]  # of level s: the clip, in one step; or level s - 1, and so on


class RefinerTrainingConfig(Config):
    """How one refiner is trained."""

    start: str  # folder of a refiner whose weights it begins with, models/drift/paired; none: fresh
    encoder: str  # folder of the latent MAE where features of it have a weight; else none
    teacher: str  # folder of a refiner whose multi-step samples regression hits, not clips; none
    objective: Literal["drift", "paired"]
    target: Target
    generated: Generated  # regression makes more of many small steps, drifting of large classes
    steps: Steps
    lr_scale: Positive  # times optimizer.lr
    validate_every: Count  # steps between evaluations on the validation split
    validation_clips: Count  # at most
    chunk: Whole  # clips through the networks at once, which are run again for gradients; 0: all
    recompute_blocks: bool  # keep what goes into each block alone, and run it again for gradients
    read_ahead: bool  # the next step's clips, in a thread
    compile: bool  # torch.compile the network: pays on long runs of one shape, needs a compiler
    shard: bool  # split its weights over processes (FSDP2), where a copy in each (DDP) is too large
    features: DriftFeaturesConfig | None = None  # of drifting, which has no other params of its own

    @model_validator(mode="after")
    def _only_drifting_has_features(self) -> RefinerTrainingConfig:
        if (self.objective == "drift") != (self.features is not None):
            wanted = "features" if self.objective == "drift" else "no features"
            raise ValueError(f"objective is {self.objective}, expected {wanted} beside it")
        return self

    @model_validator(mode="after")
    def _a_teacher_is_regressed_on(self) -> RefinerTrainingConfig:
        if self.teacher != "none" and (self.objective, self.target) != ("paired", "clip"):
            raise ValueError(
                f"teacher is {self.teacher}, expected none: objective is {self.objective}, target "
                f"{self.target}"
            )
        return self

    @model_validator(mode="after")
    def _an_encoder_is_read_where_it_counts(self) -> RefinerTrainingConfig:
        weight = self.features.encoder_weight if self.features else 0.0
        if (self.encoder != "none") != (weight > 0):
            wanted = "models/latent_mae" if weight else "none"
            raise ValueError(
                f"encoder is {self.encoder}, expected {wanted}: features.encoder_weight is {weight}"
            )
        return self


class KeyframeNetworkConfig(Config):
    """Regression from prompts to keyframes, and the one-step transformer that corrects it."""

    clips: Count  # that the regression is fitted to, at most: it keeps their keyframes
    bandwidth: Positive  # of its kernel; prompts have unit length
    ridge: Positive
    noise: Count  # normal numbers beside a prompt

    patch: Count  # latent pixels a side of a token
    dim: Count
    depth: Count
    heads: Count


class KeyframeTrainingConfig(Config):
    """How one network of keyframes is trained."""

    start: str  # folder of a network whose weights it begins with, models/keyframes/paired; none
    objective: Literal["drift", "paired"]
    sigma: NonNegative  # of the noise beside prompts; the mean, regression, has no use for it
    steps: Steps
    lr_scale: Positive  # times optimizer.lr
    validate_every: Count  # steps between evaluations on the validation split
    batches: DriftBatchesConfig
    features: Distinct[Literal["tokens", "columns", "clip"]]  # of the drift

    @model_validator(mode="after")
    def _only_drifting_has_features(self) -> KeyframeTrainingConfig:
        if (self.objective == "drift") != bool(self.features):
            wanted = "some features" if self.objective == "drift" else "no features"
            raise ValueError(f"objective is {self.objective}, expected {wanted} beside it")
        return self


class PromptedKeyframesConfig(Config):
    """Phase 1: keyframes from a prompt, those of the corruption's coarsest level."""

    network: KeyframeNetworkConfig
    prompt_weight: NonNegative  # of prompts in the drift's features, beside latents
    trainings: Named[KeyframeTrainingConfig]
    optimizer: OptimizerConfig


class TextToClipConfig(Config):
    """How clips are made from prompts alone, and evaluated."""

    keyframes: str  # of `drift.keyframes.trainings`: phase 1
    paired: str  # the regression beside it
    prompts: str  # a .txt of one a line, or a .safetensors of embeddings; none: held-out clips' own
    test_clips: Count  # whose prompts are asked for, at most
    alpha: Annotated[float, Field(ge=1)]  # guidance of phase 1
    strips: Count  # clips that are pictured, the first of each motion; and as many of the worst


class DriftEvaluationConfig(Config):
    """How refined clips are evaluated."""

    refiner: str  # of `drift.refiners`: the one that is evaluated
    paired: str  # of `drift.refiners`: the one that multi-step sampling runs
    train_clips: Count  # at most: what the PCA space and the reader are fitted to
    test_clips: Count  # at most: what is refined
    read_clips: Count  # at most, of these: what is decoded and read
    reader_steps: Steps  # of each of the reader's networks
    components: Count  # of the PCA space
    alpha: Annotated[float, Field(ge=1)]  # guidance
    strips: Count  # clips that are pictured, the first of each motion; and as many of the worst


class StoryboardConfig(Config):
    """Given latent frames that the refiner makes a clip of."""

    source: str  # a .safetensors, a folder of pictures, a video file, or data/clips: held-out clips
    clip: Whole  # which of the held-out clips
    keyframes: tuple[Whole, ...] = Field(strict=False, min_length=2)  # the given latent frames
    alpha: Annotated[float, Field(ge=1)]  # guidance; 1: none
    prompt: str | None = None  # words, of the built-in clips; null: those of the source, or none

    @model_validator(mode="after")
    def _keyframes_ascend(self) -> StoryboardConfig:
        if any(later <= frame for frame, later in pairwise(self.keyframes)):
            raise ValueError(f"keyframes are {list(self.keyframes)}, expected them to ascend")
        return self


class DriftConfig(Config):
    """One-step refinement of clips."""

    K: Count  # pseudo-classes
    loss: DriftLossConfig
    corruption: CorruptionConfig
    batches: BatchesConfig
    refiner: RefinerConfig
    refiners: Named[RefinerTrainingConfig]
    optimizer: OptimizerConfig
    evaluation: DriftEvaluationConfig
    storyboards: dict[Name, StoryboardConfig]
    keyframes: PromptedKeyframesConfig
    text_to_clip: TextToClipConfig

    @model_validator(mode="after")
    def _what_makes_keyframes_is_trained(self) -> DriftConfig:
        for field in ("keyframes", "paired"):
            if (name := getattr(self.text_to_clip, field)) not in self.keyframes.trainings:
                known = ", ".join(self.keyframes.trainings)
                raise ValueError(f"text_to_clip.{field} is {name}, expected a training: {known}")
        return self

    @model_validator(mode="after")
    def _what_is_evaluated_is_trained(self) -> DriftConfig:
        for field in ("refiner", "paired"):
            if (name := getattr(self.evaluation, field)) not in self.refiners:
                known = ", ".join(self.refiners)
                raise ValueError(f"evaluation.{field} is {name}, expected a refiner: {known}")
        if self.refiners[name].target != "clip":  # the last of them: cold diffusion runs it
            raise ValueError(f"evaluation.paired is {name}, expected one whose target is clip")
        return self

    @model_validator(mode="after")
    def _banked_negatives_are_clips(self) -> DriftConfig:
        for name, settings in self.refiners.items():
            levels = settings.target == "finer" and settings.objective == "drift"
            if levels and self.batches.negatives:
                raise ValueError(
                    f"batches.negatives is {self.batches.negatives}, expected 0: "
                    f"refiners.{name}.target is finer, and steps differ in their level"
                )
        return self

    @model_validator(mode="after")
    def _each_level_has_a_sigma(self) -> DriftConfig:
        sigmas, levels = self.refiner.wan.sigmas, self.corruption.levels
        if self.refiner.backbone == "wan" and len(sigmas) != levels:
            raise ValueError(
                f"refiner.wan.sigmas are {list(sigmas)}, expected {levels}: corruption.levels"
            )
        return self


class ImageMaeConfig(MaeConfig):
    """The masked autoencoder of images."""

    mask_ratio: Annotated[float, Field(gt=0, lt=1)]

    @property
    def masking(self) -> MaskingConfig:
        """Patches alone: an image has no time to hide."""
        return MaskingConfig(mode="patch", patch_ratio=self.mask_ratio, tube_ratio=self.mask_ratio)


def trained_steps(
    refiners: Mapping[str, RefinerTrainingConfig],
    folder: str,  # that they are trained into
) -> dict[str, int | None]:
    """Updates behind each refiner's weights, those of what it starts from with them.

    None: it starts from a folder that none of these is trained into.
    """
    names = {f"{folder}/{name}": name for name in refiners}

    def steps(name: str) -> int | None:
        settings = refiners[name]
        if settings.start == "none":
            return settings.steps
        before = steps(names[settings.start]) if settings.start in names else None
        return None if before is None else before + settings.steps

    return {name: steps(name) for name in refiners}
