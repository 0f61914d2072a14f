"""The typed sections of params.yaml that belong to the segmentation strand."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from braid.pipeline.fields import Count, NonNegative, Positive, Section, Share, Whole

Counts = Annotated[tuple[Count, ...], Field(strict=False, min_length=1)]


class Sa1b(Section):
    """Where the images come from and how they are split."""

    source: str  # shapes: the built-in ones; or a folder of sa_<id>.jpg and sa_<id>.json
    faults: Literal["skip", "fatal"]  # what a missing or broken file does
    val: Count  # images, those with the largest ids
    image_size: Annotated[int, Field(gt=0, multiple_of=14)]  # pixels a side, squashed to a square
    cache_mib: Whole  # RAM for resized images; 0: decoded each time


class Shapes(Section):
    """The built-in images: drawn scenes with exact masks, and crops of real photos."""

    scenes: Count
    photos: Whole
    most_shapes: Count  # in a scene


class Prompts(Section):
    """What is asked of an image."""

    kinds: tuple[Literal["generic", "category", "box", "caption"], ...] = Field(
        strict=False, min_length=1
    )
    generic: Annotated[str, Field(min_length=1)]  # the text of a generic prompt
    per_image: Count  # prompts, at most; the kinds take turns
    negative_share: Annotated[float, Field(ge=0, lt=1)]  # of the category prompts
    withheld: tuple[str, ...] = Field(strict=False)  # no student sees the truth of what names them

    @model_validator(mode="after")
    def _kinds_differ(self) -> Prompts:
        if len(set(self.kinds)) < len(self.kinds):
            raise ValueError(f"kinds: {', '.join(self.kinds)}, expected each at most once")
        return self


class Sam3Teacher(Section):
    """The teacher: a tiny Sam3Model that is trained here, or a real one."""

    source: str  # tiny; or a folder that save_pretrained wrote, or a hub id
    width: Annotated[int, Field(gt=0, multiple_of=8)]
    layers: Count  # of the vision encoder, the DETR encoder and the decoder
    queries: Count
    steps: Count
    images: Count  # a step
    prompts: Count  # an image


class Sam3Cache(Section):
    """What is kept of the teacher's answers."""

    mode: Literal["online", "outputs", "full"]  # full: with features, for phase 1
    mask_size: Count  # pixels a side
    masks: Count  # a prompt, those with the highest scores
    levels: Annotated[int, Field(ge=1, le=3)]  # of the FPN, the coarsest
    shard: Count  # images a file
    images: Count  # a forward pass, with all their prompts


class Sam3Student(Section):
    """The student's architecture."""

    backbone: str  # of timm, with features at strides 4 to 32
    backbone_options: dict[str, Count | Counts]  # of timm's constructor; {}: as published
    backbone_weights: str | None  # a .safetensors or .pth file of timm's; null: random ones
    text_layers: Count
    text_width: Count
    queries: Count
    tokenizer: str | None  # a folder of its own; null: made of the prompts' words
    checkpointing: bool  # trade compute for memory in the backward pass


class Sam3Matching(Section):
    """What a pair of queries costs."""

    mask: NonNegative
    box: NonNegative
    giou: NonNegative
    logit: NonNegative
    size: Count  # pixels a side at which masks are compared, or the smaller masks' own

    @model_validator(mode="after")
    def _something_counts(self) -> Sam3Matching:
        if not any((self.mask, self.box, self.giou, self.logit)):
            raise ValueError("all weights are 0, expected one above 0")
        return self


class Sam3Losses(Section):
    """The weights of the eight terms."""

    mask: NonNegative
    box: NonNegative
    giou: NonNegative
    logit: NonNegative
    presence: NonNegative
    semantic: NonNegative
    fpn: NonNegative
    encoder: NonNegative

    @model_validator(mode="after")
    def _answers_count(self) -> Sam3Losses:
        pairs = (self.mask, self.box, self.giou, self.logit)
        if not any((*pairs, self.presence, self.semantic)):
            raise ValueError(
                "mask, box, giou, logit, presence and semantic are 0, expected one above 0: "
                "features are no answers"
            )
        return self


class Sam3Phase(Section):
    """One phase of the distillation."""

    epochs: Count
    lr: Positive  # at its height; a cosine leads to 0
    warmup: Share  # of the steps
    features: bool  # the fpn and encoder terms count


class Sam3Distill(Section):
    """How students are trained, in both phases."""

    images: Count  # a batch
    prompts: Count  # of an image, drawn anew each time
    accumulate: Count  # batches a step
    weight_decay: NonNegative
    clip_norm: Positive
    ema_decay: Annotated[float, Field(ge=0, lt=1)]


class Sam3StudentTraining(Section):
    """One student: what it learns from."""

    supervision: Literal["teacher", "truth"]
    heads: bool  # start from the teacher's heads
    features: bool  # learn from the teacher's features where a phase does


class Sam3Evaluation(Section):
    """How students are judged."""

    student: str  # of `sam3_students`
    truth_only: str  # of `sam3_students`: the control
    images: Annotated[int, Field(ge=2)]  # a batch, with all their prompts; chance needs another
    mask_size: Count  # pixels a side at which masks are compared
    score: Share  # a query above it counts as found
    bins: Count  # of the calibration error
    latency_runs: Count
    pictures: Count  # prompts that are pictured
