"""Train the VAE on the teacher's per-cell features and compare it with PCA (GA-VAE-TRAIN).

Writes models/feature_vae/<scene>: the weights that validated best. Seconds for the built-in scene.
"""

from braid.radiance.features.table import channel_balance, load_features
from braid.radiance.features.vae import (
    BestVae,
    FeatureVae,
    VaeObjective,
    against_pca,
    save_vae,
    vae_report,
    vae_status,
)
from braid.stage.context import open_stage
from braid.training.trainer import train


def main() -> None:
    """Run the stage."""
    with open_stage("train_vae") as stage:
        config, run = stage.params.radiance.vae, stage.training()
        stored = load_features(stage.dep("data/features")).select(config.groups, config.harmonics)
        schema, values = stored.features.schema, stored.standardized.to(run.device)
        training = stored.training.to(run.device)

        vae = FeatureVae(schema.channels, config)
        vae.start_from_pca(stored.standardized[stored.training], schema.columns)
        objective = VaeObjective(vae, values[training], schema.columns, config).to(run.device)
        balance = channel_balance(schema.columns).to(values)
        best = BestVae(vae, values[~training], balance, config)
        result = train(
            objective,
            config.optimizer,
            run,
            steps=config.steps,
            name="vae",
            outer_layers=objective.outer_layers,
            stateful={"best": best},
            hooks={"validation": best},
        )
        best.restore()
        save_vae(stage.out("models/feature_vae"), vae, config, schema.hash)
        stage.write_table("plots/feature_vae", result.history)

        kl = [row["kl_nats"] for row in result.history if row["step"] <= best.step]
        report = vae_report(vae.freeze(), stored, kl)
        figures = {name: report["vae"][name] for name in ("recon_mse", "unexplained_fraction")}
        status = vae_status(figures["recon_mse"], report["vae"]["kl_stable"], config.gate)
        stage.write_metrics({**figures, "status": status})
        last = result.probes["validation"][-1]["error"]
        errors = {"start_error": best.start_error, "best_error": best.error, "last_error": last}
        report["vae"] |= {"best_step": best.step, **errors}
        report["vae"]["against_pca"] = against_pca(report)
        stage.write_table("metrics/tables", [{"method": k, **row} for k, row in report.items()])


if __name__ == "__main__":
    main()
