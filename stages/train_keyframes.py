"""Train a network from prompts to keyframes, phase 1: by regression, or by drifting after it.

Writes models/keyframes/<training>, the best on the validation split. A minute for built-in clips.
"""

from braid.clips.shards.dataset import open_clips
from braid.common.io import read_json
from braid.drifting.training.keyframes import (
    KeyframeSplit,
    KeyframeValidation,
    keyframe_objective,
    untrained,
)
from braid.drifting.video.corruption import Corruption
from braid.drifting.video.keyframes import save_keyframe_generator
from braid.pseudo_classes.quantizer import load_quantizer
from braid.stage.card import Pace, clips_data, write_card
from braid.stage.context import open_stage
from braid.training.trainer import train


def main() -> None:
    """Run the stage."""
    with open_stage("train_keyframes") as stage:
        drift, pace, run, data = stage.params.drift, Pace(), stage.training(), stage.params.clips
        config, settings = drift.keyframes, drift.keyframes.trainings[stage.item[0]]
        folder, quantizer = stage.dep("data/clips"), load_quantizer(stage.dep("models/quantizer"))
        clips = open_clips(folder, cache_mib=data.cache_mib, text=quantizer.text)
        frames = Corruption(clips.shape[1], drift.corruption).coarsest
        splits = [KeyframeSplit(clips, split, quantizer, frames) for split in ("train", "val")]
        network = untrained(splits[0], clips.shape, quantizer.classes, settings, config.network)
        parts = settings, config.prompt_weight, drift.loss, network, splits[0]
        objective = keyframe_objective(*parts, stage.optional_dep(settings.start), run)
        best = KeyframeValidation(splits[1], network.regression, settings, run)
        result = train(
            objective,
            config.optimizer,
            run,
            steps=settings.steps,
            lr_scale=settings.lr_scale,
            outer_layers=[f"refiner.{layer}" for layer in network.outer_layers],
            stateful={"best": best, **objective.stateful()},
            hooks={"validation": best, "pace": pace},
        )
        save_keyframe_generator(stage.out("models/keyframes"), best.restored(network))
        samples = objective.clips_per_step * config.optimizer.accumulate * run.process.world_size
        stage.runtime["clips_per_second"] = pace.per_second(samples)
        stage.write_table("plots/keyframes", result.history)
        stage.write_table("plots/keyframes_validation", result.probes["validation"])
        stage.write_table("metrics/tables", best.rows(objective))
        (status, reason), results = best.status(), best.best
        counts, model = {"train": len(splits[0]), "val": len(splits[1])}, objective.card(samples)
        known = clips_data(data.source, read_json(folder / "manifest.json"), **counts)
        results = {"status": status, **results}
        write_card(stage, run.device, data=known, model=model, results=results, reason=reason)


if __name__ == "__main__":
    main()
