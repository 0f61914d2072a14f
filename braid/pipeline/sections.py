"""The typed sections of params.yaml: every key, its unit and its range.

Models are frozen and refuse unknown keys, so a misspelt `-S` override is an error, not a no-op.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from braid.pipeline.drifting_sections import (
    Clips,
    Conditions,
    Corruption,
    Decoding,
    Digits,
    Drift,
    DriftBatches,
    DriftEvaluation,
    DriftFeatures,
    DriftField,
    LatentMae,
    Masking,
    Quantizer,
    Refiner,
    RefinerTraining,
    Representation,
    Storyboard,
)
from braid.pipeline.fields import Count, NetworkOptimisation, Section, Whole
from braid.pipeline.image_sections import (
    ImageCorruption,
    ImageEvaluation,
    ImageFeatures,
    ImageMae,
    ImageRefiner,
    Images,
    ImageTraining,
)
from braid.pipeline.radiance_sections import (
    Bricks,
    Distill,
    Evaluation,
    Features,
    FeatureVae,
    Rays,
    Renders,
    Response,
    ResponseLossParams,
    SceneSource,
    Student,
    StudentOptimisation,
    Teacher,
    Variant,
)
from braid.pipeline.segmentation_sections import (
    Prompts,
    Sa1b,
    Sam3Cache,
    Sam3Distill,
    Sam3Evaluation,
    Sam3Losses,
    Sam3Matching,
    Sam3Phase,
    Sam3Student,
    Sam3StudentTraining,
    Sam3Teacher,
    Shapes,
)


class Launch(Section):
    """How training commands are started."""

    train: str


class Hardware(Section):
    """Where stages compute."""

    device: Literal["auto", "cpu", "cuda", "mps"]
    threads: Count  # CPU threads
    precision: Literal["float32", "bfloat16", "float16"]  # halves: autocast, float32 weights


class Cadence(Section):
    """How often trainings of every strand log and save their state."""

    log_every: Count  # steps
    checkpoint_every: Count  # steps


class Params(Section):
    """The whole of params.yaml."""

    seed: Whole
    launch: Launch
    hardware: Hardware
    cadence: Cadence
    scenes: dict[str, SceneSource]
    bricks: Bricks
    teacher: Teacher
    renders: Renders
    features: Features
    feature_vae: FeatureVae
    student: Student
    rays: Rays
    response_loss: ResponseLossParams
    optimisation: StudentOptimisation
    response: Response
    distill: Distill
    variants: dict[str, Variant]
    students: tuple[str, ...] = Field(strict=False, min_length=1)
    evaluation: Evaluation
    clips: Clips
    digits: Digits
    decoding: Decoding
    conditions: Conditions
    quantizer: Quantizer
    latent_mae: LatentMae
    masking: Masking
    latent_mae_optimisation: NetworkOptimisation
    corruption: Corruption
    drift: Drift
    drift_features: DriftFeatures
    drift_batches: DriftBatches
    refiner: Refiner
    refiners: dict[str, RefinerTraining]
    refiner_optimisation: NetworkOptimisation
    representation: Representation
    drift_evaluation: DriftEvaluation
    storyboards: dict[str, Storyboard]
    images: Images
    image_mae: ImageMae
    image_mae_optimisation: NetworkOptimisation
    image_corruption: ImageCorruption
    image_drift: DriftField
    image_features: ImageFeatures
    image_batches: DriftBatches
    image_refiner: ImageRefiner
    image_refiner_optimisation: NetworkOptimisation
    image_training: ImageTraining
    image_evaluation: ImageEvaluation
    sa1b: Sa1b
    shapes: Shapes
    prompts: Prompts
    sam3_teacher: Sam3Teacher
    sam3_teacher_optimisation: NetworkOptimisation
    sam3_cache: Sam3Cache
    sam3_student: Sam3Student
    sam3_matching: Sam3Matching
    sam3_losses: Sam3Losses
    sam3_phases: dict[str, Sam3Phase]
    sam3_distill: Sam3Distill
    sam3_students: dict[str, Sam3StudentTraining]
    sam3_evaluation: Sam3Evaluation

    @model_validator(mode="after")
    def _students_are_trained(self) -> Params:
        unknown = set(self.students) - {"response", *self.variants}
        if unknown:
            raise ValueError(f"students: expected response or a variant, got {sorted(unknown)}")
        return self
