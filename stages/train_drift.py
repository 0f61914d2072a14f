"""Train a refiner of interpolated clips: by drifting, or paired, as multi-step sampling needs it.

Writes models/drift/<refiner>, the best on the validation split. 40 s for the built-in clips.
"""

from braid.clips.shards.dataset import open_clips
from braid.drifting.training.clips import ClipSplit, clip_objective, curves
from braid.drifting.training.selection import BestOnValidation
from braid.drifting.video.corruption import Corruption
from braid.drifting.video.refiner import Refiner, save_refiner
from braid.pseudo_classes.quantizer import load_pseudo_classes
from braid.stage.card import Decision, Pace, clips_data, write_card
from braid.stage.context import open_stage
from braid.stage.records import read_json
from braid.training.trainer import train


def main() -> None:
    """Run the stage."""
    with open_stage("train_drift") as stage:
        (name,) = stage.item
        config, run, pace = stage.params.drift, stage.training(), Pace()
        settings, mae = config.refiners[name], stage.dep("models/latent_mae")
        clips = open_clips(stage.dep("data/clips"), cache_mib=stage.params.clips.cache_mib)
        pseudo = load_pseudo_classes(stage.dep("data/pseudo_classes"))
        training, validation = (ClipSplit.of(clips, pseudo.labels, s) for s in ("train", "val"))

        corruption = Corruption(clips.shape[1], config.corruption)
        refiner = Refiner(clips.shape[0], pseudo.classes, corruption.levels + 1, config.refiner)
        parts = settings, config.batches, config.features, config.loss
        objective = clip_objective(*parts, refiner, corruption, training, mae, run)
        best = BestOnValidation(validation, corruption, settings, run)
        result = train(
            objective,
            config.optimizer,
            run,
            steps=settings.steps,
            outer_layers=("refiner.embed", "refiner.out"),
            stateful={"best": best, **objective.stateful()},
            hooks={"validation": best, "pace": pace},
        )
        refiner.load_state_dict(best.weights)
        save_refiner(stage.out("models/drift"), refiner)
        samples = objective.clips_per_step * config.optimizer.accumulate * run.process.world_size
        stage.runtime["clips_per_second"] = pace.per_second(samples)

        for folder, rows in curves(result).items():
            stage.write_table(f"plots/{folder}", rows, ["step"])
        stage.write_table("metrics/tables", best.rows(objective))
        results, (status, reason) = best.metrics(), best.status()
        decision = Decision(status == "passed", reason)
        stage.write_metrics({**results, **decision.figures()})
        manifest = read_json(stage.dep("data/clips") / "manifest.json")
        counts = {"train": len(training), "val": len(validation)}
        data, model = clips_data(stage.params.clips.source, manifest, **counts), objective.card()
        write_card(stage, run.device, data=data, model=model, results=results, decision=decision)


if __name__ == "__main__":
    main()
