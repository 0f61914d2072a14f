"""The typed sections of params.yaml that belong to the image pivot of the drifting strand."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from braid.pipeline.fields import Count, NonNegative, Positive, Section, Share, Steps, Whole


class Images(Section):
    """Where the images come from and what they are conditioned on."""

    source: str  # digits: built in; fake: noise for timing; or a folder with a folder a class
    fake_images: Count  # how many of noise
    faults: Literal["skip", "fatal"]  # what a broken image does
    size: Count  # pixels a side; of digits 8; of latents eight times theirs
    crop: Literal["centre", "random_resized"]  # of a folder's train images; others: centre
    val_share: Annotated[float, Field(gt=0, lt=0.5)]  # of all images
    test_share: Annotated[float, Field(gt=0, lt=0.5)]
    input_space: Literal["pixel", "latent"]
    sd_vae: str | None  # folder of diffusers' AutoencoderKL, for latents
    conditions: Literal["labels", "kmeans"]  # what the refiner is conditioned on
    K: Count  # classes of kmeans and of noise
    cache_mib: Whole  # RAM for images once read; a random crop is read each time

    @model_validator(mode="after")
    def _latents_can_be_made(self) -> Images:
        if self.source == "digits" and (self.size, self.input_space) != (8, "pixel"):
            raise ValueError("digits have size 8 and input_space pixel")
        if self.input_space == "latent":
            if self.size % 8:
                raise ValueError(f"size is {self.size}, expected a multiple of 8 for latents")
            if self.sd_vae is None and self.source != "fake":
                raise ValueError("input_space latent needs sd_vae, a folder of AutoencoderKL")
        return self


class ImageMae(Section):
    """The masked autoencoder of images whose features the drift is computed in."""

    width: Annotated[int, Field(gt=0, multiple_of=4)]
    blocks: tuple[Count, ...] = Field(strict=False, min_length=1)
    steps: Steps
    batch: Count
    head_weight: Share  # of the class head; 0: none
    head_share: Share  # of the steps, at the end
    mask_ratio: Annotated[float, Field(gt=0, lt=1)]


class ImageCorruption(Section):
    """Which patches of an image are known, and what the others start as."""

    known: tuple[Whole, ...] = Field(strict=False, min_length=1)  # patches, level by level
    interpolator: Literal["inverse_distance", "harmonic"]
    sigma_feature: Positive
    sigma_space: Positive
    lambda_reg: NonNegative
    noise: NonNegative  # standard deviation on interpolated patches; with none known it is 1


class ImageFeatures(Section):
    """What the drift of images is computed in."""

    encoder: Literal["latent_mae", "resnet"]
    resnet: str | None  # file of timm's weights
    resnet_name: str  # in timm: resnet18, resnet50.a1_in1k
    resnet_side: Count | None  # pixels that images are resized to; none: as they come
    families: tuple[str, ...] = Field(strict=False)
    locations: Count
    encoder_weight: NonNegative  # 0: the encoder is not run
    vanilla_weight: NonNegative

    @model_validator(mode="after")
    def _something_drifts(self) -> ImageFeatures:
        if not self.encoder_weight + self.vanilla_weight:
            raise ValueError("encoder_weight and vanilla_weight are both 0")
        return self


class ImageRefiner(Section):
    """The one-step refiner over patch tokens."""

    patch: Count  # pixels a side
    dim: Count
    depth: Count
    heads: Count
    style: Count  # width of what modulates the tokens
    spread: Positive  # of untrained output; too little ends in one image a class
    keep_anchors_fixed: bool  # known patches are kept bit for bit
    compile: bool


class ImageTraining(Section):
    """How long the image refiner is trained, and how often it is looked at."""

    steps: Steps
    validate_every: Count
    validation_images: Count  # looked at, at most


class ImageEvaluation(Section):
    """How refined and generated images are judged."""

    train_images: Count  # at most: what the classifier learns from, where copies are sought
    test_images: Count  # at most, as many are made
    components: Count  # of the PCA space
    neighbours: Count  # of precision, recall, density and coverage
    alpha: Annotated[float, Field(ge=1)]  # guidance; 1: none
    alphas: tuple[Annotated[float, Field(ge=1)], ...] = Field(strict=False, min_length=1)
    samples: Count  # pictured, a class
