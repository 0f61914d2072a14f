"""Train the masked autoencoder of images, in whose features the drift is computed.

Writes models/image_mae and the run's experiment card. Ten seconds for the built-in digits.
"""

import torch
from torch import Tensor

from braid.common.rng import generator
from braid.drifting.config import MaskingConfig
from braid.drifting.mae.latent_mae import LatentMae, save_latent_mae
from braid.drifting.mae.objective import MaeObjective, Masking
from braid.drifting.mae.report import mae_report, mae_status
from braid.images.data.image_set import open_image_set
from braid.stage.card import Decision, Pace, write_card
from braid.stage.context import open_stage
from braid.training.trainer import train

AVERAGED = 1024  # training images, at most, whose mean is a trivial prediction


def main() -> None:
    """Run the stage."""
    with open_stage("train_image_mae") as stage:
        run, pace, config = stage.training(), Pace(), stage.params.image_mae
        images = open_image_set(stage.dep("data/images"), cache_mib=stage.params.images.cache_mib)
        training, validation = (torch.from_numpy(images.indices(x)) for x in ("train", "val"))
        labels, classes = images.conditions, images.classes if config.head_weight else 0

        def cropped(chosen: Tensor) -> Tensor:
            """Clips of one frame; where crops are random, each batch has its own."""
            return images.images(chosen, generator(run.seed, "crops", *chosen.tolist()))[:, :, None]

        def whole(chosen: Tensor) -> Tensor:
            return images.images(chosen)[:, :, None]

        ratio = config.mask_ratio
        masking = Masking(MaskingConfig(mode="patch", patch_ratio=ratio, tube_ratio=ratio))
        mae = LatentMae(images.shape[0], config.width, config.blocks, classes, planar=True)
        objective = MaeObjective(mae.to(run.device), masking, cropped, training, labels, config)
        layers = objective.outer_layers
        hooks = {"pace": pace}
        result = train(
            objective, config.optimizer, run, steps=config.steps, outer_layers=layers, hooks=hooks
        )

        average = whole(training[:: -(-len(training) // AVERAGED)]).mean(dim=0)
        report = mae_report(
            mae.freeze(), masking, whole, validation, labels, run.seed, ["patch"], average
        )
        status, reason = mae_status(report)
        decision = Decision(status == "passed", reason)
        save_latent_mae(stage.out("models/image_mae"), mae)
        stage.write_table("plots/image_mae/train.csv", result.history)
        stage.write_table("metrics/tables", report.rows())
        stage.write_metrics({**report.metrics(), "status": status, **decision.figures()})
        seen = config.batch * config.optimizer.accumulate * run.process.world_size
        stage.runtime["images_per_second"] = pace.per_second(seen)
        data = {
            "source": stage.params.images.source,
            "train": len(training),
            "val": len(validation),
        }
        model = {"encoder": "trained here, frozen afterwards", "sampling": "uniform over images"}
        write_card(
            stage, run.device, data=data, model=model, results=report.metrics(), decision=decision
        )


if __name__ == "__main__":
    main()
