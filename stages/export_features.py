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
        cells = len(features.cells)
        stage.write_metrics({"cells": cells})
        row: dict[str, float | str] = {
            "cells": cells,
            "channels": features.schema.channels,
            "gaussians": gaussian_count,
            "gaussians_per_cell": gaussian_count / cells,
            "training_fraction": float(stored.training.float().mean()),
            "schema": features.schema.hash,
        }
        stage.write_table("metrics/tables", [row])


if __name__ == "__main__":
    main()
