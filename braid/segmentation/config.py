"""The params models of the segmentation strand (`sam3` in params.yaml): units, ranges, meaning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from braid.common.config import (
    BUILT_IN,
    NONE,
    Config,
    Count,
    Distinct,
    Fraction,
    Named,
    NonNegative,
    Whole,
)
from braid.training.config import OptimizerConfig

Counts = Annotated[tuple[Count, ...], Field(strict=False, min_length=1)]


class DataConfig(Config):
    """Where the images come from and how they are split."""

    source: str  # a folder of sa_<id>.jpg and sa_<id>.json; built_in: drawn shapes and photos
    faults: Literal["skip", "fatal"]  # what a missing or broken file does
    val: Annotated[int, Field(ge=2)]  # images, those with the largest ids; chance needs another
    test: Annotated[int, Field(ge=2)]  # images, those with the largest ids below them
    image_size: Annotated[int, Field(gt=0, multiple_of=14)]  # pixels a side, squashed to a square
    cache_mib: Whole  # RAM for resized images; 0: decoded each time


class ShapesConfig(Config):
    """The built-in images: drawn scenes with exact masks, and crops of real photos."""

    scenes: Count
    photos: Whole
    most_shapes: Count  # in a scene


Kind = Literal["generic", "category", "box", "caption", "phrase"]
NegativeFraction = Annotated[float, Field(ge=0, lt=1)]
Phrase = Annotated[str, Field(min_length=1, pattern=r"\S")]


class NegativesConfig(Config):
    """Which fraction of the prompts of a kind means nothing that is in the image."""

    category: NegativeFraction  # phrases of other images
    box: NegativeFraction  # boxes around nothing, as far as an image has room for them
    caption: NegativeFraction  # captions of other images


class PromptsConfig(Config):
    """Which prompts an image has."""

    kinds: Annotated[tuple[Kind, ...], Field(strict=False, min_length=1)]  # in a round of turns
    generic: Annotated[str, Field(min_length=1)]  # the text of a generic prompt
    phrases: Distinct[Phrase]  # of kind phrase, there or not
    phrases_file: str  # more of them, a line each; none: no more
    per_image: Count  # prompts, at most; a kind that is named twice has two turns a round
    negative_fraction: NegativesConfig
    # phrases: no student is shown the ground truth of prompts that mention one
    withheld: Distinct[str]

    @model_validator(mode="after")
    def _phrases_are_a_kind(self) -> PromptsConfig:
        given = bool(self.phrases) or self.phrases_file != NONE
        if given != ("phrase" in self.kinds):
            raise ValueError(
                "phrases and phrases_file are for the kind phrase: expected all of it or nothing"
            )
        return self


class TeacherConfig(Config):
    """The teacher: a tiny Sam3Model that is trained here, or a real one."""

    source: str  # a folder that save_pretrained wrote, or a hub id; built_in: trained here
    width: Annotated[int, Field(gt=0, multiple_of=8)]
    layers: Count  # of the vision encoder, the DETR encoder and the decoder
    queries: Count
    steps: Count
    images: Count  # a step
    prompts: Count  # an image
    optimizer: OptimizerConfig


class CacheConfig(Config):
    """What is kept of the teacher's predictions."""

    mode: Literal["online", "outputs", "full"]  # full: with features, for phase 1
    mask_size: Count  # pixels a side
    masks: Count  # a prompt, those with the highest scores
    levels: Annotated[int, Field(ge=1, le=3)]  # of the FPN, the coarsest
    shard: Count  # images a file
    images: Count  # a forward pass, with all their prompts

    @property
    def kept_levels(self) -> int:
        """Of the FPN; 0: no features at all."""
        return 0 if self.mode == "outputs" else self.levels


class ArchitectureConfig(Config):
    """The student's architecture."""

    queries: Count
    backbone: str  # of timm, with features at strides 4, 8, 16 and 32
    backbone_options: dict[str, Count | Counts]  # of timm's constructor; {}: as published
    text_layers: Count
    text_width: Count
    checkpointing: bool  # compute activations again in the backward pass, to save memory


class StudentConfig(ArchitectureConfig):
    """The student's architecture, and what it starts from."""

    backbone_weights: str  # a .safetensors or .pth file of timm's; none: random ones
    text_weights: str  # a .safetensors file of transformers' lite text encoder; none: random ones
    tokenizer: str  # a folder of its own; built_in: made of the prompts' words


class MatchingConfig(Config):
    """What a pair of queries costs."""

    mask: NonNegative
    box: NonNegative
    giou: NonNegative
    logit: NonNegative
    size: Count  # cells a side at which masks are compared, or the smaller masks' own

    @model_validator(mode="after")
    def _something_counts(self) -> MatchingConfig:
        if not any((self.mask, self.box, self.giou, self.logit)):
            raise ValueError("all weights are 0, expected one above 0")
        return self


class LossesConfig(Config):
    """The weights of the nine terms, and the form of two of them."""

    mask: NonNegative
    box: NonNegative
    giou: NonNegative
    logit: NonNegative
    presence: NonNegative
    semantic: NonNegative
    fpn: NonNegative
    encoder: NonNegative
    text: NonNegative
    presence_loss: Literal["mse", "bce"]  # mse: of the logits, as in the seed; bce: of chances
    spare: Fraction  # weight of what is nothing in the logit term, beside 1 of a sure match

    @model_validator(mode="after")
    def _predictions_count(self) -> LossesConfig:
        pairs = (self.mask, self.box, self.giou, self.logit)
        if not any((*pairs, self.presence, self.semantic)):
            raise ValueError(
                "mask, box, giou, logit, presence and semantic are 0, expected one above 0: "
                "features are no predictions"
            )
        return self


class PhaseConfig(Config):
    """One phase of the distillation."""

    epochs: Count
    features: bool  # the fpn, encoder and text terms count
    optimizer: OptimizerConfig


class DistillConfig(Config):
    """What a batch of a student's training is, in all phases."""

    images: Count
    prompts: Count  # of an image, drawn anew each time


class StudentTrainingConfig(Config):
    """One student: what it learns from."""

    supervision: Literal["teacher", "ground_truth", "both"]
    heads: bool  # start from the teacher's heads
    features: bool  # learn from the teacher's features where a phase does


class EvaluationConfig(Config):
    """How students are evaluated."""

    student: str  # of `students`
    truth_only: str  # of `students`: the control
    split: Literal["val", "test"]  # val: while settings are chosen
    images: Annotated[int, Field(ge=2)]  # a batch, with all their prompts; chance needs another
    mask_size: Count  # pixels a side at which masks are compared
    score: Fraction  # a query above it counts as detected
    bins: Count  # of the calibration error
    latency_runs: Count
    pictures: Count  # prompts that are drawn as examples


class Sam3Config(Config):
    """The strand: images and prompts, the teacher and its cache, the students."""

    data: DataConfig
    shapes: ShapesConfig
    prompts: PromptsConfig
    teacher: TeacherConfig
    cache: CacheConfig
    student: StudentConfig
    matching: MatchingConfig
    losses: LossesConfig
    phases: Named[PhaseConfig]
    distill: DistillConfig
    students: Named[StudentTrainingConfig]
    evaluation: EvaluationConfig

    @model_validator(mode="after")
    def _what_is_evaluated_is_trained(self) -> Sam3Config:
        for field in ("student", "truth_only"):
            if (name := getattr(self.evaluation, field)) not in self.students:
                known = ", ".join(self.students) or "none is in `students`"
                raise ValueError(f"evaluation.{field} is {name}, expected a student: {known}")
        return self

    @model_validator(mode="after")
    def _images_are_left_to_train_on(self) -> Sam3Config:
        images = self.shapes.scenes + self.shapes.photos
        held_out = self.data.val + self.data.test
        if self.data.source == BUILT_IN and held_out >= images:
            raise ValueError(
                f"data.val and data.test are {held_out} together, expected less than the {images} "
                "built-in images (shapes.scenes + shapes.photos)"
            )
        return self
