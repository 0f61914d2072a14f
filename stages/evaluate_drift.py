"""Evaluate refined clips on held-out ones, beside interpolation and multi-step sampling.

Writes tables of methods and of interpolators, strips and animations. 20 s for the built-in clips.
"""

from braid.clips.decoding.decoder import decoder
from braid.clips.shards.dataset import open_clips
from braid.common.rng import generator
from braid.drifting.evaluation.clips import (
    ClipEvaluator,
    clips_of_many_classes,
    complete,
    costs,
    headline,
    interpolation_table,
    methods_table,
)
from braid.drifting.evaluation.pictures import draw_clips, tradeoff
from braid.drifting.video.corruption import Corruption
from braid.drifting.video.refiner import load_refiner
from braid.metrics.spaces import PcaSpace, RandomConvolutions
from braid.pseudo_classes.quantizer import load_pseudo_classes
from braid.stage.context import open_stage


def main() -> None:
    """Run the stage."""
    with open_stage("evaluate_drift") as stage:
        params, seed, device = stage.params.drift, stage.params.seed, stage.device()
        config = params.evaluation
        clips = open_clips(stage.dep("data/clips"))
        labels = load_pseudo_classes(stage.dep("data/pseudo_classes")).labels
        test, train = clips.indices("test"), clips.latents(clips.indices("train"))
        truth, classes = clips.latents(test), labels[test]
        corruption = Corruption(truth.shape[2], params.corruption)
        refiner = load_refiner(stage.dep(f"models/drift/{config.refiner}")).to(device)
        paired = load_refiner(stage.dep(f"models/drift/{config.paired}")).to(device)
        given, completions = complete(
            truth, classes, corruption, refiner, paired, config.alpha, generator(seed, "test")
        )

        spaces = RandomConvolutions(truth.shape[1]), PcaSpace(train, config.components)
        evaluator = ClipEvaluator(truth, given, classes.numpy(), *spaces, device)
        figures = evaluator.compare(completions, train, generator(seed, "real"))
        stage.write_metrics(headline(figures))
        stage.write_table("plots/drift_methods.csv", methods_table(figures, len(truth)))
        stage.write_table("plots/interpolators.csv", interpolation_table(truth, params.corruption))
        stage.runtime |= costs(completions)

        pictures = stage.out("plots/drift_evaluation")
        wan_vae = stage.optional_dep(stage.params.clips.wan_vae)
        decode = decoder(clips.codec, train, wan_vae)
        latents = {"truth": truth, **{name: row.clips for name, row in completions.items()}}
        shown = clips_of_many_classes(classes, config.strips)
        draw_clips(pictures, latents, given, shown, clips.prompts(test[shown]), decode)
        tradeoff(pictures / "tradeoff.png", figures, "interpolated", f"{len(truth)} held-out clips")


if __name__ == "__main__":
    main()
