"""Train the masked autoencoder of video latents, in whose features the drift is computed.

Half a minute for the built-in clips.
"""

import torch

from braid.clips.shards.dataset import open_clips
from braid.common.io import read_json
from braid.drifting.mae.latent_mae import LatentMae, save_latent_mae
from braid.drifting.mae.objective import fit_mae, mae_status
from braid.pseudo_classes.quantizer import load_pseudo_classes
from braid.stage.card import Pace, clips_data, write_card
from braid.stage.context import open_stage


def main() -> None:
    """Run the stage."""
    with open_stage("train_latent_mae") as stage:
        config, run, pace = stage.params.latent_mae, stage.training(), Pace()
        clips = open_clips(stage.dep("data/clips"), cache_mib=stage.params.clips.cache_mib)
        splits = {name: torch.from_numpy(clips.indices(name)) for name in ("train", "val")}
        pseudo = load_pseudo_classes(stage.dep("data/pseudo_classes"))
        classes = pseudo.classes if config.head_weight else 0

        mae = LatentMae(clips.shape[0], config.width, config.blocks, classes)
        training, validation = ((clips.latents, indices) for indices in splits.values())
        result, report = fit_mae(mae, training, validation, pseudo.labels, config, run, pace)
        save_latent_mae(stage.out("models/latent_mae"), mae)
        samples = config.batch * config.optimizer.accumulate * run.process.world_size
        stage.runtime["clips_per_second"] = pace.per_second(samples)

        status, reason = mae_status(report)
        results = {**report.metrics(), "status": status}
        stage.write_metrics(results)
        stage.write_table("metrics/tables", report.rows())
        stage.write_table("plots/latent_mae/train.csv", result.history)
        stage.write_table("plots/latent_mae/separation.csv", result.probes["separation"], ["step"])
        stage.write_table("plots/latent_mae/separation.csv", result.probes["separation"], ["step"])
        manifest = read_json(stage.dep("data/clips") / "manifest.json")
        counts = {name: len(indices) for name, indices in splits.items()}
        data = clips_data(stage.params.clips.source, manifest, **counts)
        model = {"encoder": "trained here, frozen afterwards", "sampling": "uniform over clips"}
        write_card(stage, run.device, data=data, model=model, results=results, reason=reason)


if __name__ == "__main__":
    main()
