"""Index the images: the built-in digits, noise for timing, or the user's own folder of classes.

Writes data/images: manifest.json, index.npz, and shards of pixels or latents unless the images
stay in the user's folder. A second for the digits.
"""

from __future__ import annotations

from pathlib import Path

import torch

from braid.common.rng import generator
from braid.drifting.config import Images
from braid.images.data.image_set import ImageSet, Listing, open_image_set
from braid.images.latents.sd_vae import CHANNELS, STRIDE, encoded, load_sd_vae
from braid.images.preparation.preparation import (
    digits,
    fake,
    figures,
    pseudo_classes,
    require_conditions,
    set_conditions,
    survey_folder,
    write_linked,
    write_stored,
)
from braid.stage.context import open_stage
from braid.training.device import autocast, set_up


def main() -> None:
    """Run the stage."""
    with open_stage("prepare_images") as stage:
        settings, seed, hardware = stage.params.images, stage.params.seed, stage.params.hardware
        device = set_up(hardware.device, hardware.threads, seed)
        out = stage.out("data/images")
        out.mkdir()
        if settings.source in ("digits", "fake"):
            listing = write_built_in(out, settings, generator(seed, "fake images"))
        elif settings.input_space == "pixel":
            listing = write_folder(out, settings)
        else:
            vae = load_sd_vae(Path(settings.sd_vae or "")).to(device)  # before hours of decoding
            listing = write_folder(out, settings)
            with autocast(device, hardware.precision):
                latents = encoded(vae, open_image_set(out), device, generator(seed, "crops"))
                write_stored(out, listing, latents, input_space="latent")
        images = with_conditions(out, settings, generator(seed, "pseudo-classes"))
        stage.write_metrics(figures(images, len(listing.faults)))


def write_built_in(out: Path, settings: Images, draw: torch.Generator) -> Listing:
    """Digits or noise, the latter in the shape that pixels or latents of that size have."""
    shares = {"val_share": settings.val_share, "test_share": settings.test_share}
    if settings.source == "digits":
        listing, pixels = digits(**shares)
        write_stored(out, listing, [pixels], input_space="pixel")
        return listing
    side, latent = settings.size, settings.input_space == "latent"
    shape = (CHANNELS, side // STRIDE, side // STRIDE) if latent else (3, side, side)
    listing, chunks = fake(settings.fake_images, settings.K, shape, draw, **shares)
    write_stored(out, listing, chunks, input_space=settings.input_space)
    return listing


def write_folder(out: Path, settings: Images) -> Listing:
    """Index the user's folder."""
    root = Path(settings.source)
    shares = {"val_share": settings.val_share, "test_share": settings.test_share}
    listing = survey_folder(root, outside=Path.cwd(), **shares)
    if listing.faults and settings.faults == "fatal":
        name, reason = listing.faults[0]
        raise ValueError(
            f"{root / name}: {reason} ({len(listing.faults)} faults in all; "
            "images.faults: skip leaves such images out)"
        )
    write_linked(out, listing, root=root, size=settings.size, crop=settings.crop)
    return listing


def with_conditions(out: Path, settings: Images, draw: torch.Generator) -> ImageSet:
    """The images, conditioned as the params say."""
    if settings.conditions == "kmeans":
        found = pseudo_classes(open_image_set(out, cache_mib=settings.cache_mib), settings.K, draw)
        set_conditions(out, found, [f"pseudo-class {k}" for k in range(settings.K)])
    images = open_image_set(out)
    require_conditions(images)
    return images


if __name__ == "__main__":
    main()
