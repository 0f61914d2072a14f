"""Export the teacher's features: per-cell aggregates of its Gaussians (GA-VAE-DATA).

Writes data/features/<scene>.npz with its schema and the standardisation. Seconds.
"""

from braid.radiance.features.aggregation import aggregate
from braid.radiance.features.table import (
    StoredFeatures,
    fit_standardisation,
    save_features,
    training_cells,
)
from braid.radiance.gaussians.field import contributions
from braid.radiance.gaussians.gaussians import load_ply
from braid.radiance.scenes.blender import load_views
from braid.radiance.scenes.cells import points_grid
from braid.stage.context import open_stage
from braid.training.device import set_up


def main() -> None:
    """Run the stage."""
    with open_stage("export_features") as stage:
        hardware = stage.params.hardware
        device = set_up(hardware.device, hardware.threads, stage.params.seed)
        gaussians = load_ply(stage.dep("models/teacher")).to(device)
        params = stage.params.features
        contribution = None
        if params.weighting == "contribution":
            cameras = load_views(stage.dep("data/scenes"), "train").cameras.to(device)
            contribution = contributions(gaussians, cameras)
        features = aggregate(
            gaussians,
            points_grid(gaussians.means, params.cells),
            weighting=params.weighting,
            split=params.split,
            contribution=contribution,
        )
        training = training_cells(
            features.schema.grid, features.cells, block=params.block, validation=params.val_share
        )
        standardisation = fit_standardisation(features.values[training], robust=params.robust)
        save_features(
            stage.out("data/features"), StoredFeatures(features, standardisation, training)
        )
        stage.write_metrics(
            {
                "cells": len(features.cells),
                "channels": features.schema.channels,
                "gaussians": len(gaussians),
                "gaussians_per_cell": len(gaussians) / len(features.cells),
                "training_share": float(training.float().mean()),
                "schema": features.schema.hash,
            }
        )


if __name__ == "__main__":
    main()
