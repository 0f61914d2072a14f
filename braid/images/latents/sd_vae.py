"""Latents by Stable Diffusion's VAE (Rombach et al. 2022, arXiv 2112.10752), and their pictures.

diffusers' AutoencoderKL takes pixels in [-1, 1] to a distribution of latents an eighth as large.
Kept is its mean, shifted and scaled by the model's own constants to about unit variance. Without
the model, latents are shown by their first three channels; every decoder has a name, so that a
picture can say which one drew it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from braid.common.rng import generator
from braid.common.torchvision import mend_torchvision
from braid.images.data.image_set import INDEX, MANIFEST, open_image_set
from braid.training.distributed import shared

CHANNELS, STRIDE = 4, 8  # of Stable Diffusion's latents
_CHUNK = 32  # images encoded at a time


class SdVae:
    """A frozen AutoencoderKL; made by `load_sd_vae`."""

    def __init__(self, model: Any) -> None:
        self._model = model.eval().requires_grad_(False)
        self._scale: float = model.config.scaling_factor
        self._shift: float = getattr(model.config, "shift_factor", None) or 0.0

    def to(self, device: torch.device) -> SdVae:
        """Move the model."""
        self._model.to(device)
        return self

    @torch.no_grad()
    def encode(
        self,
        pixels: Tensor,  # [B, 3, H, W] in [-1, 1], on the model's device
    ) -> Tensor:
        """Normalized latents, [B, C, H / 8, W / 8] float32."""
        mean = self._model.encode(pixels).latent_dist.mode().float()
        return (mean - self._shift) * self._scale

    @torch.no_grad()
    def decode(
        self,
        latents: Tensor,  # [B, C, h, w], normalized
    ) -> Tensor:
        """Pixels, [B, 3, 8 h, 8 w], about in [-1, 1]."""
        model = self._model.to(latents.device)
        raw = latents / self._scale + self._shift
        return torch.cat(
            [model.decode(latent).sample for latent in raw.split(1)]
        )  # for memory's sake


def load_sd_vae(folder: Path) -> SdVae:
    """Load the model from a folder of config.json and safetensors weights.

    Raises:
        ValueError: diffusers is not installed, or the folder holds no such model.
    """
    if not folder.is_dir():
        raise ValueError(f"images.sd_vae: {folder}: no such folder")
    mend_torchvision()  # which diffusers imports
    try:
        from diffusers import AutoencoderKL
    except ImportError:
        raise ValueError("images.sd_vae needs diffusers: pip install -e '.[wan]'") from None
    options = {"local_files_only": True, "use_safetensors": True, "low_cpu_mem_usage": False}
    try:
        model = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32, **options)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"images.sd_vae: {folder}: no AutoencoderKL ({reason})") from None
    return SdVae(model)


def encode_shards(
    vae: SdVae,
    folder: Path,  # of the images
    device: torch.device,  # the model's
    seed: int,  # of random crops, one for each train image
    per_shard: int,  # images
    scratch: Path,  # of finished shards, which all processes see
) -> Iterator[Tensor]:
    """Latents of all images, a shard at once, [b, C, h, w] float16 in their order.

    Several processes share the shards, and the first gets them. One that a killed run left, of the
    same images, is not made again.
    """
    images, digest = open_image_set(folder), hashlib.blake2b(digest_size=8)
    for name in (INDEX, MANIFEST):
        digest.update((folder / name).read_bytes())
    rows = torch.arange(len(images)).split(per_shard)
    names = [f"{digest.hexdigest()}.{number:05d}.pt" for number in range(len(rows))]

    def encoded(number: int) -> dict[str, Tensor]:
        draw = generator(seed, "crops", number)
        parts = rows[number].split(_CHUNK)
        latents = [vae.encode(images.images(part, draw).to(device)) for part in parts]
        # Halved after it: autocast in bfloat16 has no `cat` of float16.
        return {"latents": torch.cat(latents).half().cpu()}

    shards = shared(names, encoded, scratch, "encode", "shard")
    return (shard["latents"] for shard in shards)


@dataclass(frozen=True)
class Decoder:
    """Images as they are trained on, [B, C, H, W], to pictures [B, 1 or 3, h, w] in [0, 1]."""

    name: str
    _pixels: Callable[[Tensor], Tensor]  # to [-1, 1]

    def __call__(self, images: Tensor) -> Tensor:
        """The pictures."""
        return (self._pixels(images).float() / 2 + 0.5).clamp(0, 1)


def decoder(input_space: str, sd_vae: Path | None = None) -> Decoder:
    """How images of a set become pictures.

    Args:
        input_space: of the set, ``pixel`` or ``latent``.
        sd_vae: folder of the AutoencoderKL that made the latents.

    Raises:
        ValueError: diffusers is not installed, or the folder holds no such model.
    """
    if input_space == "pixel":
        return Decoder("pixels", lambda images: images)
    if sd_vae is None:
        return Decoder("three latent channels, not the VAE", lambda images: images[:, :3] / 2)
    return Decoder("SD-VAE", load_sd_vae(sd_vae).decode)
