"""Evaluate the features of image encoders by the images' classes: labels, or pseudo-classes.

The image MAE beside one with random weights, plain pixels and, where its weights are named, a
ResNet. Writes a table and figures. Ten seconds for the built-in digits.
"""

from braid.common.rng import generator, seed_global_stream
from braid.drifting.image.training import ResNet
from braid.drifting.mae.latent_mae import LatentMae, load_latent_mae
from braid.drifting.video.features import ClipFeatures
from braid.images.data.image_set import open_image_set
from braid.images.latents.sd_vae import decoder
from braid.representation.evaluation import Encode, encoder_spaces, evaluate, pixels, read_images
from braid.representation.figures import draw_figures, image_thumbnails
from braid.stage.context import open_stage
from braid.training.distributed import working

CONTROLS = ("pixels", "untrained_mae")


def main() -> None:
    """Run the stage."""
    with open_stage("evaluate_image_representation") as stage:
        seed, device, params = stage.params.seed, stage.device(), stage.params.image_drift
        config = stage.params.clips.representation
        images = open_image_set(stage.dep("data/images"), cache_mib=stage.params.images.cache_mib)
        mae = load_latent_mae(stage.dep("models/image_mae"))
        seed_global_stream(generator(seed, "untrained"))
        control = LatentMae(mae.channels, mae.width, mae.blocks, planar=True)
        encoders: dict[str, LatentMae | ResNet] = {"image_mae": mae, "untrained_mae": control}
        if weights := stage.optional_dep(params.features.resnet):
            features = params.features
            encoders["resnet"] = ResNet(weights, features.resnet_name, features.resnet_side)

        encode: dict[str, Encode] = {"pixels": pixels}
        for name, encoder in encoders.items():
            encode[name] = ClipFeatures(encoder.freeze(), params.features.families).to(device)
        draw, scratch = generator(seed, "sample"), stage.scratch()
        with working() as process:
            sample, read = read_images(images, encode, config, draw, device, scratch)
        if not process.is_main:
            return
        spaces = encoder_spaces(read, config.components)
        clustering, temperatures = stage.params.images.kmeans, params.loss.temperatures
        evaluations = {
            name: evaluate(space, sample, config, clustering, temperatures, seed)
            for name, space in spaces.items()
        }
        rows = [{"space": name, **space.metrics} for name, space in evaluations.items()]
        stage.write_table("metrics/tables", rows)

        decode = decoder(images.input_space, stage.optional_dep(stage.params.images.sd_vae))
        drawn = {name: (spaces[name], evaluations[name]) for name in spaces if name not in CONTROLS}
        thumbnails = image_thumbnails(images, sample, decode)
        folder = stage.out("plots/image_representation")
        draw_figures(folder, sample, drawn, thumbnails, config, seed)


if __name__ == "__main__":
    main()
