"""Quantise text and keyframes of each clip to one of drift.K pseudo-classes.

Fitted on train clips, applied to all. Writes models/quantizer and data/pseudo_classes; reads each
clip once. Seconds for the built-in clips.
"""

import torch

from braid.clips.shards.shards import open_clips
from braid.common.rng import generator
from braid.common.splits import SPLITS
from braid.pseudo_classes.kmeans import kmeans
from braid.pseudo_classes.occupancy import inertia_report, occupancy_report, occupancy_table
from braid.pseudo_classes.quantizer import (
    ConditionEncoder,
    Pooling,
    PseudoClasses,
    Quantizer,
    save_pseudo_classes,
    save_quantizer,
)
from braid.stage.context import open_stage
from braid.training.device import set_up


def main() -> None:
    """Run the stage."""
    with open_stage("quantize") as stage:
        seed, K = stage.params.seed, stage.params.drift.K
        set_up("cpu", stage.params.hardware.threads, seed)
        conditions = stage.params.conditions.model_dump()
        settings = stage.params.quantizer.model_dump()
        min_count = settings.pop("min_count")
        clips = open_clips(stage.dep("data/clips"))
        splits = {name: clips.indices(name) for name in SPLITS}
        train = splits["train"]

        pooling = Pooling(*(conditions.pop(name) for name in ("mode", "keyframes", "grid")))
        pooled = pooling.read(clips, len(clips))
        fitted = {block: values[train] for block, values in pooled.items()}
        encoder = ConditionEncoder.fit(pooling, fitted, **conditions)
        h = encoder.embed(pooled)
        found = kmeans(h[train], K, **settings, generator=generator(seed, "kmeans"))
        quantizer = Quantizer.of(encoder, found, min_count)
        labels, classes = quantizer.label(h), quantizer.classes

        save_quantizer(stage.out("models/quantizer"), quantizer)
        pseudo = PseudoClasses(labels, classes, h, splits)
        save_pseudo_classes(stage.out("data/pseudo_classes"), pseudo)
        stage.write_curve("plots/quantize", occupancy_table(labels, classes, splits))
        used = torch.bincount(labels[train], minlength=classes)
        draw = generator(seed, "shuffled labels")
        stage.write_metrics(
            occupancy_report(torch.bincount(found.labels, minlength=K), used)
            | inertia_report(h, labels, classes, splits, draw)
        )


if __name__ == "__main__":
    main()
