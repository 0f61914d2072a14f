"""Train a refiner of interpolated clips: by drifting, or paired, as multi-step sampling needs it.

Writes models/drift/<refiner>, the checkpoint that is best on the validation split, and the run's
experiment card. Forty seconds for the built-in clips.
"""

from typing import Any

import torch

from braid.clips.shards.shards import open_clips
from braid.common.rng import generator
from braid.drifting.loss.drift import DriftLoss
from braid.drifting.mae.latent_mae import load_latent_mae
from braid.drifting.training.objectives import (
    Draws,
    DriftObjective,
    Features,
    PairedObjective,
    Refinement,
)
from braid.drifting.training.selection import BestOnValidation
from braid.drifting.video.corruption import Corruption
from braid.drifting.video.features import ClipFeatures, vanilla
from braid.drifting.video.refiner import Refiner, save_refiner
from braid.pseudo_classes.quantizer import load_pseudo_classes
from braid.stage.card import Decision, Pace, clips_data, write_card
from braid.stage.context import Stage, open_stage
from braid.stage.records import read_json
from braid.training.device import set_up
from braid.training.distributed import launched
from braid.training.trainer import Optimisation, TrainResult, optimise


def main() -> None:
    """Run the stage."""
    with open_stage("train_drift") as stage:
        process, hardware, seed = launched(), stage.params.hardware, stage.params.seed
        device = set_up(hardware.device, hardware.threads, seed, process.local_rank)
        recipe, pace = stage.params.refiners[stage.item[0]], Pace()
        clips = open_clips(stage.dep("data/clips"), cache_mib=stage.params.clips.cache_mib)
        pseudo = load_pseudo_classes(stage.dep("data/pseudo_classes"))
        train, val = (torch.from_numpy(clips.indices(each)) for each in ("train", "val"))
        corruption = Corruption(clips.shape[1], **stage.params.corruption.model_dump())
        replaced = corruption.student_replace_prob > 0
        shape = stage.params.refiner.model_dump()
        refiner = Refiner(clips.shape[0], pseudo.classes, corruption.levels + 1, **shape)
        refiner = refiner.to(device)
        if recipe.compile:
            torch.use_deterministic_algorithms(True, warn_only=True)  # of the compiler too
            refiner.compile()
        draws = Draws(**stage.params.drift_batches.model_dump())
        objective = _objective(
            stage,
            recipe.objective,
            device,
            refiner=refiner,
            corruption=corruption,
            latents=lambda positions: clips.latents(train[positions]),
            anchors=(lambda positions: clips.anchors(train[positions])) if replaced else None,
            labels=pseudo.labels[train],
            draws=draws,
        )
        best = BestOnValidation(
            clips.latents(val),
            pseudo.labels[val],
            corruption,
            generator(seed, "validation"),
            every=min(recipe.validate_every, recipe.steps),
            score="mse_missing" if recipe.objective == "paired" else "frechet",
            device=device,
        )
        optimisation = Optimisation(**stage.params.refiner_optimisation.model_dump())
        result = optimise(
            objective,
            optimisation,
            steps=recipe.steps,
            precision=hardware.precision,
            **stage.params.cadence.model_dump(),
            seed=seed,
            device=device,
            process=process,
            checkpoint=stage.scratch() / "refiner.pt",
            outer_layers=("refiner.embed", "refiner.out"),
            stateful={"best": best, **objective.stateful()},
            hooks={"validation": best, "pace": pace},
            on_log=stage.logger(),
        )

        refiner.load_state_dict(best.weights)
        save_refiner(stage.out("models/drift"), refiner)
        seen = draws.classes * draws.generated * optimisation.accumulate * process.world_size
        stage.runtime["clips_per_second"] = pace.per_second(seen)
        _report(stage, device, objective, best, result, {"train": len(train), "val": len(val)})


def _objective(stage: Stage, kind: str, device: torch.device, **base: Any) -> Refinement:
    """Regression, or drifting on the frozen encoder's features and on the latents themselves."""
    if kind == "paired":
        return PairedObjective(**base)
    phi = stage.params.drift_features
    mae = load_latent_mae(stage.dep("models/latent_mae"))
    encoder = ClipFeatures(mae, phi.families, phi.locations).to(device)
    branches: dict[str, tuple[float, Features]] = {
        "encoder": (phi.encoder_weight, encoder),
        "vanilla": (phi.vanilla_weight, vanilla(phi.vanilla)),
    }
    loss = DriftLoss(**stage.params.drift.model_dump(exclude={"K"}))
    return DriftObjective(
        **base, branches=branches, loss=loss, log_every=stage.params.cadence.log_every
    )


def _report(
    stage: Stage,
    device: torch.device,
    objective: Refinement,
    best: BestOnValidation,
    result: TrainResult,
    counts: dict[str, int],  # clips of each split
) -> None:
    """Curves, metrics and the experiment card."""
    stage.write_curve("plots/drift", result.history)
    stage.write_curve("plots/drift_validation", result.probes["validation"])
    results = {
        "classes": len(objective.batches.occupied),
        "parameters": sum(each.numel() for each in objective.refiner.parameters()),
        **best.report(),
    }
    decision = Decision(*best.verdict())
    stage.write_metrics({**results, **decision.figures()})
    manifest = read_json(stage.dep("data/clips") / "manifest.json")
    data = clips_data(stage.params.clips.source, manifest, **counts)
    write_card(stage, device, data=data, model=objective.card(), results=results, decision=decision)


if __name__ == "__main__":
    main()
