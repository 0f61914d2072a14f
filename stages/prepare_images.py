"""Index the images: the built-in digits, noise for timing, or the user's own folder of classes.

Writes data/images: manifest.json, index.npz, and shards of pixels or latents unless the images
stay in the user's folder. A second for the digits.
"""

from braid.images.latents.sd_vae import encode_shards, load_sd_vae
from braid.images.preparation.indexing import (
    PER_SHARD,
    condition,
    counts,
    index_images,
    properties,
    write_stored,
)
from braid.stage.context import open_stage
from braid.training.device import autocast
from braid.training.distributed import barrier, launched, working


def main() -> None:
    """Run the stage."""
    with open_stage("prepare_images") as stage:
        config, seed, device = stage.params.images, stage.params.seed, stage.device()
        folder = stage.optional_dep(config.sd_vae)
        # Before hours of decoding.
        vae = load_sd_vae(folder).to(device) if folder and config.encodes else None

        out, process = stage.first_out("data/images"), launched()
        with working(process):
            if process.is_main:
                out.mkdir()
                listing = index_images(out, config, seed)
            barrier()
            if vae:
                with autocast(device, stage.params.hardware.precision):
                    place = seed, PER_SHARD, stage.scratch()
                    latents = encode_shards(vae, out, device, *place)
        if not process.is_main:
            return
        if vae:
            write_stored(out, listing, latents, input_space="latent")
        images = condition(out, config, seed)

        stage.write_metrics(counts(images, len(listing.faults)))
        stage.write_table("metrics/tables", [properties(images)])


if __name__ == "__main__":
    main()
