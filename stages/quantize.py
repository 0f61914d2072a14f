"""Quantize text and keyframes of each clip to one of drift.K pseudo-classes.

Fitted on train clips, applied to all. Writes models/quantizer and data/pseudo_classes. Seconds.
"""

import torch

from braid.clips.shards.dataset import open_clips
from braid.clustering.kmeans import kmeans
from braid.common.rng import generator
from braid.data.splits import SPLITS
from braid.pseudo_classes.occupancy import inertia_metrics, occupancy_metrics, occupancy_table
from braid.pseudo_classes.quantizer import (
    ConditionEncoder,
    Pooling,
    PseudoClasses,
    Quantizer,
    save_pseudo_classes,
    save_quantizer,
)
from braid.stage.context import open_stage
from braid.training.distributed import working

HEADLINE = ("K", "classes", "recommended_K", "mean_occupancy", "status")


def main() -> None:
    """Run the stage."""
    with open_stage("quantize") as stage:
        seed, K = stage.params.seed, stage.params.drift.K
        conditions, config = stage.params.clips.conditions, stage.params.clips.quantizer
        stage.device()  # for threads and determinism: K-means is on the CPU
        clips = open_clips(stage.dep("data/clips"), text=conditions.text)
        splits = {name: clips.indices(name) for name in SPLITS}
        train = splits["train"]

        with working() as process:
            pooled = Pooling(conditions).read(clips, len(clips), stage.scratch())
        if not process.is_main:  # the first has what all have read
            return
        fitted = {block: values[train] for block, values in pooled.items()}
        encoder = ConditionEncoder.fit(fitted, conditions)
        h = encoder.embed(pooled)
        clusters = kmeans(h[train], K, config, generator(seed, "kmeans"))
        quantizer = Quantizer.of(encoder, clusters, config.min_count)
        pseudo = PseudoClasses(quantizer.label(h), quantizer.classes, h, splits)

        save_quantizer(stage.out("models/quantizer"), quantizer)
        save_pseudo_classes(stage.out("data/pseudo_classes"), pseudo)
        metrics = occupancy_metrics(
            torch.bincount(clusters.labels, minlength=K),
            torch.bincount(pseudo.labels[train], minlength=pseudo.classes),
        ) | inertia_metrics(pseudo, generator(seed, "shuffled labels"))
        stage.write_table("plots/quantize", occupancy_table(pseudo))
        stage.write_table("metrics/tables", [metrics])
        stage.write_metrics({name: metrics[name] for name in HEADLINE})


if __name__ == "__main__":
    main()
