"""Train the masked autoencoder of video latents, in whose features the drift is computed.

Writes models/latent_mae and the run's experiment card. Half a minute for the built-in clips.
"""

import torch
from torch import Tensor

from braid.clips.shards.shards import open_clips
from braid.drifting.mae.latent_mae import LatentMae, save_latent_mae
from braid.drifting.mae.objective import MaeObjective, Masking
from braid.drifting.mae.report import mae_report, mae_verdict
from braid.pseudo_classes.quantizer import load_pseudo_classes
from braid.stage.card import Decision, Pace, clips_data, write_card
from braid.stage.context import open_stage
from braid.stage.records import read_json
from braid.training.device import set_up
from braid.training.distributed import launched
from braid.training.trainer import Optimisation, optimise


def main() -> None:
    """Run the stage."""
    with open_stage("train_latent_mae") as stage:
        process, hardware, seed = launched(), stage.params.hardware, stage.params.seed
        device = set_up(hardware.device, hardware.threads, seed, process.local_rank)
        params, pace = stage.params.latent_mae, Pace()
        clips = open_clips(stage.dep("data/clips"), cache_mib=stage.params.clips.cache_mib)
        pseudo = load_pseudo_classes(stage.dep("data/pseudo_classes"))
        train, val = (torch.from_numpy(clips.indices(each)) for each in ("train", "val"))
        labels, classes = pseudo.labels, pseudo.classes if params.head_weight else 0

        def latents(chosen: Tensor) -> Tensor:
            return clips.latents(chosen.numpy())

        masking = Masking(**stage.params.masking.model_dump())
        mae = LatentMae(clips.shape[0], params.width, params.blocks, classes).to(device)
        schedule = params.model_dump(exclude={"width", "blocks"})
        objective = MaeObjective(mae, masking, latents, train, labels, **schedule)
        optimisation = Optimisation(**stage.params.latent_mae_optimisation.model_dump())
        result = optimise(
            objective,
            optimisation,
            steps=params.steps,
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

        report = mae_report(mae.freeze(), masking, latents, val, labels, seed)
        status, reason = mae_verdict(report)
        decision = Decision(status == "passed", reason)
        results = {**report, "steps": params.steps, "status": status}
        save_latent_mae(stage.out("models/latent_mae"), mae)
        stage.write_curve("plots/latent_mae", result.history)
        stage.write_metrics({**results, **decision.figures()})
        seen = params.batch * optimisation.accumulate * process.world_size
        stage.runtime["clips_per_second"] = pace.per_second(seen)
        manifest = read_json(stage.dep("data/clips") / "manifest.json")
        data = clips_data(stage.params.clips.source, manifest, train=len(train), val=len(val))
        model = {"encoder": "trained here, frozen afterwards", "sampling": "uniform over clips"}
        write_card(stage, device, data=data, model=model, results=results, decision=decision)


if __name__ == "__main__":
    main()
