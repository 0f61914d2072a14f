"""Train the VAE on the teacher's per-cell features and hold it against PCA (GA-VAE-TRAIN).

Writes models/feature_vae/<scene>. Ten seconds for the built-in scene.
"""

from braid.radiance.features.table import load_features
from braid.radiance.features.vae import (
    FeatureVae,
    VaeObjective,
    kl_stable,
    save_vae,
    vae_report,
    vae_status,
)
from braid.stage.context import open_stage
from braid.training.device import set_up
from braid.training.distributed import joined, launched
from braid.training.optimizers import adamw, muon, warmup_cosine
from braid.training.trainer import LoopSettings, train


def main() -> None:
    """Run the stage."""
    with open_stage("train_vae") as stage:
        process, hardware, seed = launched(), stage.params.hardware, stage.params.seed
        device = set_up(hardware.device, hardware.threads, seed, process.local_rank)
        params = stage.params.feature_vae
        stored = load_features(stage.dep("data/features"))
        schema, values = stored.features.schema, stored.standardised.to(device)
        training = stored.training.to(device)

        vae = FeatureVae(schema.channels, params.hidden, params.latent)
        vae.start_from_pca(stored.standardised[stored.training], schema.columns)
        objective = VaeObjective(
            vae,
            values[training],
            schema.columns,
            batch=params.batch,
            beta=params.beta,
            warmup=int(params.beta_warmup * params.steps),
            free_bits=params.free_bits,
        ).to(device)
        optimizer = (
            muon(objective, lr=params.lr, exclude=objective.outer_layers)
            if params.optimizer == "muon"
            else adamw(objective, lr=params.lr)
        )
        cadence = stage.params.cadence.model_dump()
        settings = LoopSettings(steps=params.steps, precision=hardware.precision, **cadence)
        with joined(process, device):
            result = train(
                objective,
                optimizer,
                warmup_cosine(steps=params.steps, warmup=params.steps // 50, floor=0.02),
                settings,
                seed=seed,
                device=device,
                process=process,
                checkpoint=stage.scratch() / "vae.pt",
                on_log=stage.logger(),
            )

        report = vae_report(vae.freeze(), values[training], values[~training], schema.columns)
        stable = kl_stable([row["kl_nats"] for row in result.history])
        status = vae_status(report["recon_mse"], stable, params.gate)
        save_vae(stage.out("models/feature_vae"), vae, schema.hash)
        stage.write_curve("plots/feature_vae", result.history)
        stage.write_metrics({**report, "kl_stable": stable, "status": status})


if __name__ == "__main__":
    main()
