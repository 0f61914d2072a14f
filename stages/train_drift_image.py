"""Train a refiner of images by drifting: from some of their patches, or from noise alone.

Writes models/drift_image. A good minute for the built-in digits. Pixels of a folder are cropped
centrally, latents are of the crops that they were encoded from.
"""

from braid.drifting.image.refiner import ImageRefiner, KeypatchCorruption, save_image_refiner
from braid.drifting.image.training import OUTER_LAYERS, ImageProbe, image_branches, image_objective
from braid.images.data.image_set import open_image_set
from braid.metrics.distances import PcaSpace
from braid.stage.card import Pace, write_card
from braid.stage.context import open_stage
from braid.training.trainer import train


def main() -> None:
    """Run the stage."""
    with open_stage("train_drift_image") as stage:
        config, run, pace = stage.params.image_drift, stage.training(), Pace()
        mae, resnet = stage.dep("models/image_mae"), stage.optional_dep(config.features.resnet)
        images = open_image_set(stage.dep("data/images"), cache_mib=stage.params.images.cache_mib)

        corruption = KeypatchCorruption(images.shape[1:], config.refiner.patch, config.corruption)
        refiner = ImageRefiner(images.shape, images.classes, corruption.levels + 1, config.refiner)
        branches = image_branches(config.features, mae, resnet, run.device)
        objective = image_objective(
            refiner, corruption, images, branches, config.loss, config.batches, config.training, run
        )
        at_most, neighbors = config.training.validation_images, config.evaluation.neighbors
        space = PcaSpace(images.subset("train", at_most)[0], config.evaluation.components)
        validation = images.subset("val", at_most)
        probe = ImageProbe(*validation, corruption, space, neighbors, config.training, run.seed)
        result = train(
            objective,
            config.optimizer,
            run,
            steps=config.training.steps,
            outer_layers=OUTER_LAYERS,
            stateful=objective.stateful(),
            hooks={"validation": probe, "pace": pace},
        )
        save_image_refiner(stage.out("models/drift_image"), refiner)
        samples = objective.clips_per_step * config.optimizer.accumulate * run.process.world_size
        stage.runtime["images_per_second"] = pace.per_second(samples)
        refined = probe.evaluate(refiner)
        results, (_, reason) = probe.metrics(refined), probe.status(refined)
        stage.write_metrics(results)
        stage.write_table("metrics/tables", probe.rows(refined, objective))
        stage.write_table("plots/drift_image/train.csv", result.history)
        stage.write_table("plots/drift_image/validation.csv", result.probes["validation"])
        model = objective.card(samples)
        data = {"source": stage.params.images.source, **images.counts}
        write_card(stage, run.device, data=data, model=model, results=results, reason=reason)


if __name__ == "__main__":
    main()
