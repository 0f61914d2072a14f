"""Export the teacher's features: per-cell aggregates of its Gaussians (GA-VAE-DATA).

Writes data/features/<scene>.npz with its schema and the standardization. Seconds.
"""

from braid.radiance.features.aggregation import extract_features
from braid.radiance.features.table import save_features
from braid.radiance.gaussians.field import contributions
from braid.radiance.gaussians.gaussians import load_ply
from braid.radiance.scenes.blender import load_views
from braid.stage.context import open_stage


def main() -> None:
    """Run the stage."""
    with open_stage("export_features") as stage:
        config, device = stage.params.radiance.features, stage.device()
        gaussians = load_ply(stage.dep("models/teacher")).to(device)
        contribution = None
        if config.weighting == "contribution":
            cameras = load_views(stage.dep("data/scenes"), "train").cameras.to(device)
            contribution = contributions(gaussians, cameras)
        stored = extract_features(gaussians, config, contribution)
        save_features(stage.out("data/features"), stored)

        features, gaussian_count = stored.features, len(gaussians)
        size = {"cells": len(features.cells), "channels": features.schema.channels}
        stage.write_metrics(size)
        more = {
            "gaussians": gaussian_count,
            "gaussians_per_cell": gaussian_count / len(features.cells),
            "training_fraction": float(stored.training.float().mean()),
        }
        stage.write_table("metrics/tables", [{**size, **more, "schema": features.schema.hash}])


if __name__ == "__main__":
    main()
