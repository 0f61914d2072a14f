"""The params model of images (`images` in params.yaml): units, ranges, meaning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from braid.common.config import BUILT_IN, NONE, Config, Count, KMeansConfig, Whole

NOISE = "noise"  # a source: noise of any size, to time with


class ImagesConfig(Config):
    """Where the images come from and what they are conditioned on."""

    source: str  # a folder with a folder a class; built_in: digits; noise: for timing
    noise_images: Count  # how many of noise
    faults: Literal["skip", "fatal"]  # what a broken image does
    links: Literal["inside", "follow"]  # of a folder: to images in it alone, or wherever they lead
    size: Count  # pixels a side; of digits 8; of latents eight times theirs
    crop: Literal["center", "random_resized"]  # of a folder's train images; others: center
    val_fraction: Annotated[float, Field(gt=0, lt=0.5)]  # of all images
    test_fraction: Annotated[float, Field(gt=0, lt=0.5)]
    input_space: Literal["pixel", "latent"]
    sd_vae: str  # folder of diffusers' AutoencoderKL, for latents
    conditions: Literal["labels", "kmeans"]  # what the refiner is conditioned on
    K: Count  # classes of kmeans and of noise
    kmeans: KMeansConfig
    cache_mib: Whole  # RAM for images once read; a random crop is read each time

    @model_validator(mode="after")
    def _latents_have_a_vae(self) -> ImagesConfig:
        if self.source == BUILT_IN and (self.size, self.input_space) != (8, "pixel"):
            raise ValueError("built_in images have size 8 and input_space pixel")
        if self.input_space == "latent":
            if self.size % 8:
                raise ValueError(f"size is {self.size}, expected a multiple of 8 for latents")
            if self.sd_vae == NONE and self.source != NOISE:
                raise ValueError("input_space latent needs sd_vae, a folder of AutoencoderKL")
        return self

    @property
    def encodes(self) -> bool:
        """Whether a folder's images are encoded to latents."""
        return self.input_space == "latent" and self.source != NOISE
