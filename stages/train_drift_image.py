"""Train a refiner of images by drifting: from some of their patches, or from noise alone.

Writes models/drift_image, measures of the validation split outside the loss along the way, and the
run's experiment card. A good minute for the built-in digits. Pixels of a folder are cropped
centrally, latents are of the crops that they were encoded from.
"""

from collections.abc import Mapping

import torch

from braid.common.rng import generator
from braid.drifting.image.corruption import KeypatchCorruption
from braid.drifting.image.features import image_features
from braid.drifting.image.probe import ImageProbe
from braid.drifting.image.refiner import ImageRefiner, save_image_refiner
from braid.drifting.loss.drift import DriftLoss
from braid.drifting.training.objectives import Draws, DriftObjective, Features
from braid.drifting.video.features import vanilla
from braid.images.data.image_set import ImageSet, open_image_set
from braid.metrics.spaces import PcaSpace
from braid.stage.card import Decision, Pace, write_card
from braid.stage.context import Stage, open_stage
from braid.training.device import set_up
from braid.training.distributed import launched
from braid.training.trainer import Optimisation, TrainResult, optimise


def main() -> None:
    """Run the stage."""
    with open_stage("train_drift_image") as stage:
        process, hardware, seed = launched(), stage.params.hardware, stage.params.seed
        device = set_up(hardware.device, hardware.threads, seed, process.local_rank)
        settings, pace = stage.params.image_training, Pace()
        images = open_image_set(stage.dep("data/images"), cache_mib=stage.params.images.cache_mib)
        train, val = (torch.from_numpy(images.indices(each)) for each in ("train", "val"))
        shape = stage.params.image_refiner.model_dump(exclude={"compile"})
        corrupting = stage.params.image_corruption.model_dump()
        corruption = KeypatchCorruption(images.shape[1:], shape["patch"], **corrupting)
        refiner = ImageRefiner(images.shape, images.classes, corruption.levels + 1, **shape)
        refiner = refiner.to(device)
        if stage.params.image_refiner.compile:
            torch.use_deterministic_algorithms(True, warn_only=True)  # of the compiler too
            refiner.compile()
        draws = Draws(**stage.params.image_batches.model_dump())
        objective = DriftObjective(
            refiner,
            corruption,
            lambda positions: images.images(train[positions]),
            images.conditions[train],
            draws,
            branches=_branches(stage, device),
            loss=DriftLoss(**stage.params.image_drift.model_dump()),
            log_every=stage.params.cadence.log_every,
            level_of="class",  # mixed, levels would only make up for one another
        )
        probe = _probe(stage, images, corruption)
        optimisation = Optimisation(**stage.params.image_refiner_optimisation.model_dump())
        result = optimise(
            objective,
            optimisation,
            steps=settings.steps,
            precision=hardware.precision,
            **stage.params.cadence.model_dump(),
            seed=seed,
            device=device,
            process=process,
            checkpoint=stage.scratch() / "refiner.pt",
            outer_layers=("refiner.embed", "refiner.squeeze", "refiner.out"),
            stateful=objective.stateful(),
            hooks={"validation": probe, "pace": pace},
            on_log=stage.logger(),
        )
        save_image_refiner(stage.out("models/drift_image"), refiner)
        seen = draws.classes * draws.generated * optimisation.accumulate * process.world_size
        stage.runtime["images_per_second"] = pace.per_second(seen)
        _report(stage, device, objective, probe, result, {"train": len(train), "val": len(val)})


def _branches(stage: Stage, device: torch.device) -> dict[str, tuple[float, Features]]:
    """Drift on the flattened images themselves, and on the frozen encoder's features."""
    settings = stage.params.image_features
    branches: dict[str, tuple[float, Features]] = {
        "vanilla": (settings.vanilla_weight, vanilla(["clip"]))
    }
    if settings.encoder_weight:
        encoder = settings.model_dump(exclude={"encoder_weight", "vanilla_weight"})
        features = image_features(**encoder, mae=stage.dep("models/image_mae")).to(device)
        branches["encoder"] = (settings.encoder_weight, features)
    return branches


def _probe(stage: Stage, images: ImageSet, corruption: KeypatchCorruption) -> ImageProbe:
    """Validation images, judged in the space of the leading components of training images."""
    settings, judging = stage.params.image_training, stage.params.image_evaluation
    train, val = (images.indices(each, settings.validation_images) for each in ("train", "val"))
    return ImageProbe(
        images.images(val),
        images.conditions[val],
        corruption,
        generator(stage.params.seed, "validation"),
        PcaSpace(images.images(train), judging.components),
        neighbours=judging.neighbours,
        every=min(settings.validate_every, settings.steps),
    )


def _report(
    stage: Stage,
    device: torch.device,
    objective: DriftObjective,
    probe: ImageProbe,
    result: TrainResult,
    counts: Mapping[str, int],  # images of each split
) -> None:
    """Curves, metrics and the experiment card."""
    stage.write_curve("plots/drift_image/train.csv", result.history)
    stage.write_curve("plots/drift_image/validation.csv", result.probes["validation"])
    figures = probe.look(objective.refiner)
    results = {
        "classes": len(objective.batches.occupied),
        "parameters": sum(each.numel() for each in objective.refiner.parameters()),
        **figures,
        **{f"{name}_plain": value for name, value in probe.plain.items()},
    }
    decision = Decision(*probe.verdict(figures))
    stage.write_metrics({**results, **decision.figures()})
    data = {"source": stage.params.images.source, **counts}
    write_card(stage, device, data=data, model=objective.card(), results=results, decision=decision)


if __name__ == "__main__":
    main()
