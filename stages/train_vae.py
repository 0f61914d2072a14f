"""Train the VAE on the teacher's per-cell features and compare it with PCA (GA-VAE-TRAIN).

Writes models/feature_vae/<scene>. Ten seconds for the built-in scene.
"""

from braid.radiance.features.table import load_features
from braid.radiance.features.vae import FeatureVae, VaeObjective, save_vae, vae_report, vae_status
from braid.stage.context import open_stage
from braid.training.trainer import train


def main() -> None:
    """Run the stage."""
    with open_stage("train_vae") as stage:
        config, run = stage.params.radiance.vae, stage.training()
        stored = load_features(stage.dep("data/features"))
        schema, values = stored.features.schema, stored.standardized.to(run.device)
        training = stored.training.to(run.device)

        vae = FeatureVae(schema.channels, config)
        vae.start_from_pca(stored.standardized[stored.training], schema.columns)
        objective = VaeObjective(vae, values[training], schema.columns, config).to(run.device)
        result = train(
            objective,
            config.optimizer,
            run,
            steps=config.steps,
            name="vae",
            outer_layers=objective.outer_layers,
        )
        save_vae(stage.out("models/feature_vae"), vae, schema.hash)
        stage.write_table("plots/feature_vae", result.history)

        kl = [row["kl_nats"] for row in result.history]
        report = vae_report(vae.freeze(), values[training], values[~training], schema.columns, kl)
        mse = {method: row["mse"] for method, row in report.items()}
        status = vae_status(mse["vae"], report["vae"]["kl_stable"], config.gate)
        stage.write_metrics({"mse": mse, "status": status})
        stage.write_table("metrics/tables", [{"method": k, **row} for k, row in report.items()])


if __name__ == "__main__":
    main()
