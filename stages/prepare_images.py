"""Index the images: the built-in digits, noise for timing, or the user's own folder of classes.

Writes data/images: manifest.json, index.npz, and shards of pixels or latents unless the images
stay in the user's folder. A second for the digits.
"""

from braid.common.rng import generator
from braid.images.data.image_set import open_image_set
from braid.images.latents.sd_vae import encoded, load_sd_vae
from braid.images.preparation.indexing import (
    condition,
    counts,
    index_images,
    properties,
    write_stored,
)
from braid.stage.context import open_stage
from braid.training.device import autocast


def main() -> None:
    """Run the stage."""
    with open_stage("prepare_images") as stage:
        config, seed, device = stage.params.images, stage.params.seed, stage.device()
        folder = stage.optional_dep(config.sd_vae)
        # Before hours of decoding.
        vae = load_sd_vae(folder).to(device) if folder and config.encodes else None

        out = stage.out("data/images")
        out.mkdir()
        listing = index_images(out, config, seed)
        if vae:
            with autocast(device, stage.params.hardware.precision):
                latents = encoded(vae, open_image_set(out), device, generator(seed, "crops"))
                write_stored(out, listing, latents, input_space="latent")
        images = condition(out, config, seed)

        stage.write_metrics(counts(images, len(listing.faults)))
        stage.write_table("metrics/tables", [properties(images)])


if __name__ == "__main__":
    main()
