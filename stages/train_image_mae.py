"""Train the masked autoencoder of images, in whose features the drift is computed.

Writes models/image_mae and the run's experiment card. Ten seconds for the built-in digits.
"""

import torch
from torch import Tensor

from braid.common.rng import generator
from braid.drifting.mae.latent_mae import LatentMae, save_latent_mae
from braid.drifting.mae.objective import MaeObjective, Masking
from braid.drifting.mae.report import mae_report, mae_verdict
from braid.images.data.image_set import open_image_set
from braid.stage.card import Decision, Pace, write_card
from braid.stage.context import open_stage
from braid.training.device import set_up
from braid.training.distributed import launched
from braid.training.trainer import Optimisation, optimise

MODES = ("patch",)  # images have no time to hide
AVERAGED = 1024  # training images, at most, whose mean is a trivial prediction


def main() -> None:
    """Run the stage."""
    with open_stage("train_image_mae") as stage:
        process, hardware, seed = launched(), stage.params.hardware, stage.params.seed
        device = set_up(hardware.device, hardware.threads, seed, process.local_rank)
        settings, pace = stage.params.image_mae, Pace()
        images = open_image_set(stage.dep("data/images"), cache_mib=stage.params.images.cache_mib)
        train, val = (torch.from_numpy(images.indices(each)) for each in ("train", "val"))

        def cropped(chosen: Tensor) -> Tensor:
            """Clips of one frame; where crops are random, each batch has its own."""
            return images.images(chosen, generator(seed, "crops", *chosen.tolist()))[:, :, None]

        def whole(chosen: Tensor) -> Tensor:
            return images.images(chosen)[:, :, None]

        masking = Masking("patch", settings.mask_ratio, settings.mask_ratio)
        labels, classes = images.conditions, images.classes if settings.head_weight else 0
        mae = LatentMae(images.shape[0], settings.width, settings.blocks, classes, planar=True)
        schedule = settings.model_dump(exclude={"width", "blocks", "mask_ratio"})
        objective = MaeObjective(mae.to(device), masking, cropped, train, labels, **schedule)
        optimisation = Optimisation(**stage.params.image_mae_optimisation.model_dump())
        result = optimise(
            objective,
            optimisation,
            steps=settings.steps,
            precision=hardware.precision,
            **stage.params.cadence.model_dump(),
            outer_layers=objective.outer_layers,
            seed=seed,
            device=device,
            process=process,
            checkpoint=stage.scratch() / "mae.pt",
            hooks={"pace": pace},
            on_log=stage.logger(),
        )

        average = whole(train[:: -(-len(train) // AVERAGED)]).mean(dim=0)
        report = mae_report(mae.freeze(), masking, whole, val, labels, seed, MODES, average)
        status, reason = mae_verdict(report)
        decision = Decision(status == "passed", reason)
        results = {**report, "steps": settings.steps, "status": status}
        save_latent_mae(stage.out("models/image_mae"), mae)
        stage.write_curve("plots/image_mae/train.csv", result.history)
        stage.write_metrics({**results, **decision.figures()})
        seen = settings.batch * optimisation.accumulate * process.world_size
        stage.runtime["images_per_second"] = pace.per_second(seen)
        data = {"source": stage.params.images.source, "train": len(train), "val": len(val)}
        model = {"encoder": "trained here, frozen afterwards", "sampling": "uniform over images"}
        write_card(stage, device, data=data, model=model, results=results, decision=decision)


if __name__ == "__main__":
    main()
