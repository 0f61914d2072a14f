"""Train a refiner of interpolated clips: by regression, by drifting, or by one after the other.

Writes models/drift/<refiner>, the best on the validation split. Built-in clips: 130 s and 25 s.
"""

from braid.clips.codec.codec import decoder_of
from braid.clips.shards.dataset import open_clips
from braid.common.io import read_json
from braid.drifting.training.clips import BestOnValidation, ClipSplit, clip_objective, curves
from braid.drifting.video.corruption import Corruption
from braid.drifting.video.refiner import save_refiner
from braid.pseudo_classes.quantizer import load_pseudo_classes
from braid.stage.card import Pace, clips_data, write_card
from braid.stage.context import open_stage
from braid.training.trainer import train


def main() -> None:
    """Run the stage."""
    with open_stage("train_drift") as stage:
        config, pace, run = stage.params.drift, Pace(), stage.training()
        data, settings = stage.params.clips, config.refiners[stage.item[0]]
        encoder, start = stage.optional_dep(settings.encoder), stage.optional_dep(settings.start)
        teacher = stage.optional_dep(settings.teacher)
        cache, text = data.cache_mib, data.conditions.text
        clips = open_clips(source := stage.dep("data/clips"), cache_mib=cache, text=text)
        pseudo = load_pseudo_classes(stage.dep("data/pseudo_classes"))
        training, validation = (ClipSplit.of(clips, pseudo, s) for s in ("train", "val"))
        corruption = Corruption(clips.shape[1], config.corruption)
        refiner = training.new_refiner(pseudo.classes, corruption, config.refiner, settings.target)
        decode = decoder_of(clips, stage.optional_dep(data.wan_vae))
        parts = settings, config.batches, config.loss, refiner, corruption, training
        objective = clip_objective(*parts, encoder, start, teacher, decode, run)
        best = BestOnValidation(validation, corruption, settings, run, config.refiner.beside)
        result = train(
            objective,
            config.optimizer,
            run,
            steps=settings.steps,
            lr_scale=settings.lr_scale,
            outer_layers=[f"refiner.{layer}" for layer in refiner.outer_layers],
            stateful={"best": best, **objective.stateful()},
            hooks={"validation": best, "pace": pace},
            shard=refiner.parts if settings.shard else (),
        )
        save_refiner(stage.out("models/drift"), best.restored(refiner))
        samples = objective.clips_per_step * config.optimizer.accumulate * run.process.world_size
        stage.runtime["clips_per_second"] = pace.per_second(samples)
        for folder, rows in curves(result).items():
            stage.write_table(f"plots/{folder}", rows, ["step"])
        stage.write_table("metrics/tables", best.rows(objective))
        results, (_, reason) = best.metrics(), best.status()
        stage.write_metrics(results)
        manifest, model = read_json(source / "manifest.json"), objective.card(samples)
        known = clips_data(data.source, manifest, train=len(training), val=len(validation))
        write_card(stage, run.device, data=known, model=model, results=results, reason=reason)


if __name__ == "__main__":
    main()
