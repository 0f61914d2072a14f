"""The params model of `image_drift`: units, ranges, meaning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from braid.common.config import Config, Count, Distinct, NonNegative, Positive, Steps, Whole
from braid.drifting.config import DriftBatchesConfig, DriftLossConfig, HarmonicConfig
from braid.training.config import OptimizerConfig


class KeypatchConfig(HarmonicConfig):
    """Which patches of an image are given, and what the others start as."""

    given: Distinct[Whole] = Field(min_length=1)  # how many, level by level
    interpolator: Literal["inverse_distance", "harmonic"]
    noise: NonNegative  # standard deviation on interpolated patches; with none given it is 1


class ImageFeaturesConfig(Config):
    """What the drift of images is computed in."""

    encoder: Literal["latent_mae", "resnet"]
    resnet: str  # file of timm's weights
    resnet_name: str  # in timm: resnet18, resnet50.a1_in1k
    resnet_side: Whole  # pixels that images are resized to; 0: as they come
    families: Distinct[Literal["location", "clip", "patch2", "patch4", "rms"]] = Field(min_length=1)
    locations: Count  # vectors a group, at most
    encoder_weight: NonNegative  # of the encoder's features; 0: it is not run
    vanilla_weight: NonNegative  # of the images themselves

    @model_validator(mode="after")
    def _something_drifts(self) -> ImageFeaturesConfig:
        if not self.encoder_weight + self.vanilla_weight:
            raise ValueError("encoder_weight and vanilla_weight are both 0")
        return self


class ImageRefinerConfig(Config):
    """The one-step refiner over patch tokens."""

    patch: Count  # pixels a side
    dim: Count
    depth: Count
    heads: Count
    style: Count  # width of what modulates the tokens
    spread: Positive  # of untrained output; too little ends in one image a class
    keep_anchors_fixed: bool  # given patches are kept bit for bit


class ImageTrainingConfig(Config):
    """How the image refiner is trained."""

    steps: Steps
    validate_every: Count  # steps
    validation_images: Count  # at most
    compile: bool  # torch.compile the network: pays on long runs of one shape, needs a compiler


class ImageEvaluationConfig(Config):
    """How refined and generated images are evaluated."""

    train_images: Count  # at most: what the classifier learns from, where copies are sought
    test_images: Count  # at most; as many are refined and generated
    components: Count  # of the PCA space
    neighbors: Count  # of precision, recall, density and coverage
    alpha: Annotated[float, Field(ge=1)]  # guidance; 1: none
    alphas: Distinct[Annotated[float, Field(ge=1)]] = Field(min_length=1)
    samples: Count  # pictured, a class


class ImageDriftConfig(Config):
    """One-step refinement and generation of images."""

    loss: DriftLossConfig
    corruption: KeypatchConfig
    features: ImageFeaturesConfig
    batches: DriftBatchesConfig
    refiner: ImageRefinerConfig
    optimizer: OptimizerConfig
    training: ImageTrainingConfig
    evaluation: ImageEvaluationConfig
