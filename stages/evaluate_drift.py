"""Judge refined clips on held-out ones, beside interpolation and multi-step sampling.

Writes metrics/drift.json, tables of methods and of interpolators, clip strips and animations.
Twenty seconds for the built-in clips.
"""

import torch

from braid.clips.decoding.decoding import TIME_STRIDE, decoder
from braid.clips.shards.shards import open_clips
from braid.common.rng import generator
from braid.drifting.evaluation.evaluation import (
    Judge,
    clips_of_many_classes,
    compare,
    drift_status,
    flattened,
    interpolation_table,
)
from braid.drifting.evaluation.pictures import animation, strip, tradeoff
from braid.drifting.interpolation.interpolation import METHODS
from braid.drifting.video.corruption import Corruption
from braid.drifting.video.refiner import load_refiner
from braid.metrics.spaces import PcaSpace, RandomConvolutions
from braid.pseudo_classes.quantizer import load_pseudo_classes
from braid.stage.context import open_stage
from braid.stage.records import Row
from braid.training.device import set_up


def main() -> None:
    """Run the stage."""
    with open_stage("evaluate_drift") as stage:
        hardware, seed = stage.params.hardware, stage.params.seed
        device = set_up(hardware.device, hardware.threads, seed)
        settings = stage.params.drift_evaluation
        clips = open_clips(stage.dep("data/clips"))
        labels = load_pseudo_classes(stage.dep("data/pseudo_classes")).labels
        test, train = clips.indices("test"), clips.indices("train")
        truth, known = clips.latents(test), clips.latents(train)
        corrupting, frames = stage.params.corruption.model_dump(), truth.shape[2]
        corruption = Corruption(frames, **corrupting)
        refiner, paired = (
            load_refiner(stage.dep(f"models/drift/{name}")).to(device)
            for name in (settings.refiner, settings.paired)
        )
        draw = generator(seed, "test")
        mask, made = compare(truth, labels[test], corruption, refiner, paired, settings.alpha, draw)

        spaces = RandomConvolutions(truth.shape[1]).to(device), PcaSpace(known, settings.components)
        judge = Judge(truth, mask, labels[test].numpy(), *spaces)
        figures = {
            name: {**judge.distances(each.clips), **judge.errors(each.clips)}
            for name, each in made.items()
        }
        other = known[torch.randperm(len(known), generator=generator(seed, "real"))[: len(truth)]]
        real = judge.distances(other)  # as far as a sample of real clips is from another
        status = drift_status(figures["interpolated"], figures["refined"])
        stage.write_metrics(
            {**flattened({**figures, "real": real}), "status": status, "clips": len(truth)}
        )
        stage.runtime |= {f"milliseconds_{name}": each.milliseconds for name, each in made.items()}
        rows: list[Row] = [
            {"method": name, **row} for name, row in {**figures, "real": real}.items()
        ]
        stage.write_curve("plots/drift_methods.csv", rows)
        others = [Corruption(frames, **corrupting | {"interpolator": each}) for each in METHODS]
        errors = interpolation_table(truth, others)
        stage.write_curve("plots/interpolators.csv", errors)

        pictures = stage.out("plots/drift_evaluation")
        pictures.mkdir()
        tradeoff(pictures / "tradeoff.png", figures, "interpolated", f"{len(truth)} held-out clips")
        decode = decoder(clips.codec, examples=known, wan_vae=stage.params.decoding.wan_vae)
        shown = {"truth": truth, **{name: each.clips for name, each in made.items()}}
        keyframes = [TIME_STRIDE * each for each in mask[0].nonzero().flatten().tolist()]
        for number, clip in enumerate(clips_of_many_classes(labels[test], settings.strips)):
            decoded = {name: decode(each[clip : clip + 1])[0] for name, each in shown.items()}
            (prompt,) = clips.prompts(test[clip : clip + 1])
            title = f"«{prompt}»   decoder: {decode.name}"
            strip(pictures / f"clip_{number}.png", decoded, keyframes, TIME_STRIDE, title)
            animation(pictures / f"clip_{number}.gif", decoded)


if __name__ == "__main__":
    main()
