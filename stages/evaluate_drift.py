"""Evaluate refined clips on held-out ones, beside interpolation and multi-step sampling.

Writes tables of methods and of interpolators, strips and animations. 60 s for the built-in clips.
"""

from braid.clips.codec.codec import decoder
from braid.clips.preparation.moving_digits import read_words
from braid.clips.shards.dataset import open_clips
from braid.common.rng import generator
from braid.drifting.config import trained_steps
from braid.drifting.evaluation.clips import (
    Sample,
    compare,
    complete,
    costs,
    headline,
    interpolation_table,
    methods_table,
)
from braid.drifting.evaluation.pictures import draw_evaluation
from braid.drifting.video.corruption import Corruption
from braid.drifting.video.refiner import load_refiner
from braid.pseudo_classes.quantizer import load_quantizer
from braid.stage.context import open_stage


def main() -> None:
    """Run the stage."""
    with open_stage("evaluate_drift") as stage:
        params, seed, device = stage.params.drift, stage.params.seed, stage.device()
        config, quantizer = params.evaluation, load_quantizer(stage.dep("models/quantizer"))
        clips = open_clips(stage.dep("data/clips"), text=quantizer.text)
        train = Sample.of(clips, "train", config.train_clips, read_words)
        test = Sample.of(clips, "test", config.test_clips, read_words)
        corruption = Corruption(clips.shape[1], params.corruption)
        refiner = load_refiner(stage.dep(f"models/drift/{config.refiner}")).to(device)
        paired = load_refiner(stage.dep(f"models/drift/{config.paired}")).to(device)
        parts = test, quantizer.assign, corruption, refiner, paired, config
        completed = complete(*parts, generator(seed, "test"), quantizer.encoder.of_some)
        decode = decoder(clips.codec, train.latents, stage.optional_dep(stage.params.clips.wan_vae))
        figures = compare(completed, test, train, decode, config, device, seed)

        stage.write_metrics(headline(figures))
        steps = trained_steps(params.refiners, "models/drift")
        methods = methods_table(figures, completed, steps, config.read_clips)
        stage.write_table("plots/drift_methods.csv", methods)
        table = interpolation_table(test.latents, params.corruption)
        stage.write_table("plots/interpolators.csv", table)
        stage.runtime |= costs(completed)
        folder = stage.out("plots/drift_evaluation")
        draw_evaluation(folder, completed, test, figures, config.strips, decode)


if __name__ == "__main__":
    main()
