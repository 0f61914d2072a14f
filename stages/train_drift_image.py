"""Train a refiner of images by drifting: from some of their patches, or from noise alone.

Writes models/drift_image, measures of the validation split outside the loss along the way, and the
run's experiment card. A good minute for the built-in digits. Pixels of a folder are cropped
centrally, latents are of the crops that they were encoded from.
"""

import torch

from braid.common.rng import generator
from braid.drifting.image.corruption import KeypatchCorruption
from braid.drifting.image.features import image_branches
from braid.drifting.image.probe import ImageProbe
from braid.drifting.image.refiner import ImageRefiner, save_image_refiner
from braid.drifting.loss.drift import DriftLoss
from braid.drifting.training.objectives import DriftObjective
from braid.images.data.image_set import open_image_set
from braid.metrics.spaces import PcaSpace
from braid.stage.card import Decision, Pace, write_card
from braid.stage.context import open_stage
from braid.training.trainer import train


def main() -> None:
    """Run the stage."""
    with open_stage("train_drift_image") as stage:
        run, pace, config = stage.training(), Pace(), stage.params.image_drift
        images = open_image_set(stage.dep("data/images"), cache_mib=stage.params.images.cache_mib)
        training, validation = (torch.from_numpy(images.indices(x)) for x in ("train", "val"))

        corruption = KeypatchCorruption(images.shape[1:], config.refiner.patch, config.corruption)
        levels, at_most = corruption.levels + 1, config.training.validation_images
        refiner = ImageRefiner(images.shape, images.classes, levels, config.refiner).to(run.device)
        if config.training.compile:
            torch.use_deterministic_algorithms(True, warn_only=True)  # of the compiler too
            refiner.compile()
        mae, resnet = stage.dep("models/image_mae"), stage.optional_dep(config.features.resnet)
        objective = DriftObjective(
            refiner,
            corruption,
            lambda positions: images.images(training[positions]),
            images.conditions[training],
            config.batches,
            branches=image_branches(config.features, mae, resnet, run.device),
            loss=DriftLoss(config.loss),
            log_every=run.log_every,
            level_of="class",  # mixed, levels would only make up for one another
        )
        shown = images.indices("val", at_most)
        probe = ImageProbe(
            images.images(shown),
            images.conditions[shown],
            corruption,
            generator(run.seed, "validation"),
            PcaSpace(images.images(images.indices("train", at_most)), config.evaluation.components),
            config.evaluation.neighbors,
            config.training,
        )

        layers = ("refiner.embed", "refiner.squeeze", "refiner.out")
        hooks, state = {"validation": probe, "pace": pace}, objective.stateful()
        result = train(
            objective,
            config.optimizer,
            run,
            steps=config.training.steps,
            outer_layers=layers,
            stateful=state,
            hooks=hooks,
        )

        save_image_refiner(stage.out("models/drift_image"), refiner)
        refined = probe.evaluate(refiner)
        status, reason = probe.status(refined)
        decision = Decision(status == "passed", reason)
        stage.write_table("plots/drift_image/train.csv", result.history)
        stage.write_table("plots/drift_image/validation.csv", result.probes["validation"])
        stage.write_table("metrics/tables", probe.table(refined))
        stage.write_metrics({**probe.headline(refined), **decision.figures()})
        seen = config.batches.classes * config.batches.generated * config.optimizer.accumulate
        stage.runtime["images_per_second"] = pace.per_second(seen * run.process.world_size)
        data = {
            "source": stage.params.images.source,
            "train": len(training),
            "val": len(validation),
        }
        write_card(
            stage, run.device, data=data, model=objective.card(), results=..., decision=decision
        )


if __name__ == "__main__":
    main()
