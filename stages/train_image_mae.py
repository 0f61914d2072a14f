"""Train the masked autoencoder of images, in whose features the drift is computed.

Writes models/image_mae and the run's experiment card. Ten seconds for the built-in digits.
"""

import torch
from torch import Tensor

from braid.common.rng import generator
from braid.drifting.mae.latent_mae import LatentMae, save_latent_mae
from braid.drifting.mae.objective import fit_mae, mae_status
from braid.images.data.image_set import open_image_set
from braid.stage.card import Pace, write_card
from braid.stage.context import open_stage


def main() -> None:
    """Run the stage."""
    with open_stage("train_image_mae") as stage:
        config, run, pace = stage.params.image_mae, stage.training(), Pace()
        images = open_image_set(stage.dep("data/images"), cache_mib=stage.params.images.cache_mib)
        training, validation = (torch.from_numpy(images.indices(s)) for s in ("train", "val"))

        def cropped(chosen: Tensor) -> Tensor:  # where crops are random, each batch has its own
            return images.clips(chosen, generator(run.seed, "crops", *chosen.tolist()))

        classes = images.classes if config.head_weight else 0
        mae = LatentMae(images.shape[0], config.width, config.blocks, classes, planar=True)
        splits = (cropped, training), (images.clips, validation)
        average = images.mean("train")[:, None]  # a trivial prediction
        result, report = fit_mae(
            mae, *splits, images.conditions, config, run, pace, ["patch"], average
        )
        save_latent_mae(stage.out("models/image_mae"), mae)
        samples = config.batch * config.optimizer.accumulate * run.process.world_size
        stage.runtime["images_per_second"] = pace.per_second(samples)

        status, reason = mae_status(report)
        results = {**report.metrics(), "status": status}
        stage.write_metrics(results)
        stage.write_table("metrics/tables", report.rows())
        stage.write_table("plots/image_mae/train.csv", result.history)
        stage.write_table("plots/image_mae/separation.csv", result.probes["separation"], ["step"])
        source = {"source": stage.params.images.source, **images.counts}
        model = {"encoder": "trained here, frozen afterwards", "sampling": "uniform over images"}
        write_card(stage, run.device, data=source, model=model, results=results, reason=reason)


if __name__ == "__main__":
    main()
