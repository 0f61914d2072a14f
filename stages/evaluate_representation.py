"""Evaluate the quantizer's space and the latent MAE's: separation, retrieval, collapse, kernel.

Writes metrics/representation/<space>.json, a table and figures. Twenty seconds.
"""

from braid.clips.codec.codec import decoder
from braid.clips.shards.dataset import open_clips
from braid.common.io import write_json
from braid.common.rng import generator, seed_global_stream
from braid.drifting.mae.latent_mae import LatentMae, load_latent_mae
from braid.drifting.video.features import ClipFeatures
from braid.pseudo_classes.quantizer import load_pseudo_classes, load_quantizer
from braid.representation.evaluation import evaluate, make_spaces, read_sample
from braid.representation.figures import clip_thumbnails, draw_figures
from braid.stage.context import open_stage
from braid.training.distributed import working

DRAWN = ("quantizer", "latent_mae")


def main() -> None:
    """Run the stage."""
    with open_stage("evaluate_representation") as stage:
        seed, device, params = stage.params.seed, stage.device(), stage.params.clips
        config, temperatures = params.representation, stage.params.drift.loss.temperatures
        quantizer = load_quantizer(stage.dep("models/quantizer"))
        clips = open_clips(stage.dep("data/clips"), text=quantizer.text)
        pseudo = load_pseudo_classes(stage.dep("data/pseudo_classes"))
        mae = load_latent_mae(stage.dep("models/latent_mae"))
        seed_global_stream(generator(seed, "untrained"))
        control = LatentMae(mae.channels, mae.width, mae.blocks)
        encoders = {
            name: ClipFeatures(encoder, families=("clip", "motion")).to(device)
            for name, encoder in {"latent_mae": mae, "untrained_mae": control}.items()
        }

        parts = pseudo, quantizer.encoder.pooling, encoders, config, generator(seed, "sample")
        with working() as process:
            sample, features = read_sample(clips, *parts, device, stage.scratch())
        if not process.is_main:
            return
        spaces = make_spaces(pseudo.embedding[sample.indices].numpy(), features, config.components)
        evaluations = {
            name: evaluate(space, sample, config, params.quantizer, temperatures, seed)
            for name, space in spaces.items()
        }
        for name, evaluation in evaluations.items():
            write_json(stage.out(f"metrics/representation/{name}.json"), evaluation.headline)
        rows = [{"space": name, **space.metrics} for name, space in evaluations.items()]
        stage.write_table("metrics/tables", rows)

        examples = clips.latents(sample.indices[:16])
        decode = decoder(clips.codec, examples, stage.optional_dep(params.wan_vae))
        thumbnails = clip_thumbnails(clips, sample, decode, device)
        drawn = {name: (spaces[name], evaluations[name]) for name in DRAWN}
        draw_figures(stage.out("plots/representation"), sample, drawn, thumbnails, config, seed)


if __name__ == "__main__":
    main()
