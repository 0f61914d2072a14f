"""Params at which the whole DAG runs in seconds a stage, and the trainings that can be resumed."""

from __future__ import annotations

from typing import Any

TINY: dict[str, dict[str, Any]] = {
    "hardware": {"device": "cpu", "threads": 1},
    "cadence": {"log_every": 4, "checkpoint_every": 4},
    "bricks": {"width": 32, "supersample": 1, "train": 12, "val": 2, "test": 3},
    "teacher": {"steps": 40, "resolution": 16, "sh_degree": 1, "sh_interval": 10},
    "renders": {"random_poses": 3, "voxels": 16, "field_points": 500},
    "features": {"cells": 6, "block": 2},
    "feature_vae": {"latent": 4, "hidden": [16], "steps": 40, "batch": 32},
    "student": {"cells": 3, "frequencies": 4},
    "rays": {"count": 64},
    "response": {"steps": 20},
    "distill": {"steps": 20, "points": 64, "projector_hidden": 16},
    "evaluation": {"frames": 1, "figure_frames": [0, 1]},
    "digits": {"clips": 120, "per_shard": 40, "latent_frames": 5, "latent_size": 4},
    "conditions": {"grid": 2, "text_components": 6, "keyframe_components": 6},
    "drift": {"K": 5},
    "latent_mae": {"width": 8, "steps": 12, "batch": 4},
    "corruption": {"min_keyframes": 2, "levels": 2},
    "drift_features": {"families": ["location", "frame"], "locations": 4},
    "drift_batches": {
        "classes": 2,
        "generated": 3,
        "positives": 4,
        "unconditional": 2,
        "queue": 6,
        "queue_unconditional": 8,
    },
    "refiner": {"dim": 12, "depth": 1, "heads": 2},
    "refiners": {
        "drift": {"objective": "drift", "steps": 12, "validate_every": 4, "compile": False},
        "paired": {"objective": "paired", "steps": 12, "validate_every": 4, "compile": False},
    },
    "representation": {"clips": 60, "map_clips": 40, "bootstrap": 10},
    "drift_evaluation": {"components": 4, "strips": 1},
    "storyboards": {
        "held_out": {"source": "data/clips", "clip": 0, "keyframes": [0, 2, 4], "alpha": 1.0}
    },
    "image_mae": {"width": 8, "blocks": [1, 1], "steps": 12, "batch": 8},
    "image_features": {"families": ["clip", "location"], "locations": 2, "encoder_weight": 1.0},
    "image_batches": {
        "classes": 3,
        "generated": 4,
        "positives": 6,
        "negatives": 2,
        "unconditional": 2,
        "queue": 8,
        "queue_unconditional": 8,
    },
    "image_refiner": {"dim": 8, "style": 16},
    "image_training": {"steps": 12, "validate_every": 4, "validation_images": 40},
    "image_evaluation": {"train_images": 200, "test_images": 100, "components": 8, "samples": 2},
    "sa1b": {"val": 8, "image_size": 56, "cache_mib": 8},
    "shapes": {"scenes": 40, "photos": 4},
    "prompts": {
        "kinds": ["generic", "category", "box", "caption"],
        "per_image": 6,
        "withheld": ["red star"],
    },
    "sam3_teacher": {"width": 16, "layers": 1, "queries": 5, "steps": 12, "images": 2},
    "sam3_cache": {"mask_size": 16, "masks": 4, "shard": 16, "images": 4},
    "sam3_student": {
        "backbone_options": {"embed_dim": [8, 8, 16, 16], "depth": [1, 1, 1, 1]},
        "text_width": 16,
        "queries": 3,
    },
    "sam3_phases": {
        "features": {"epochs": 1, "lr": 2e-3, "warmup": 0.1, "features": True},
        "outputs": {"epochs": 1, "lr": 1e-3, "warmup": 0.1, "features": False},
    },
    "sam3_distill": {"images": 4, "prompts": 2},
    "sam3_evaluation": {
        "images": 2,
        "mask_size": 28,
        "latency_runs": 2,
        "pictures": 2,
        "bins": 5,
    },
}

TRAININGS = (
    "fit_teacher@bricks",
    "train_vae@bricks",
    "distill_response@bricks",
    "distill_features@bricks-gaussian_all_vae",
    "train_latent_mae",
    "train_drift@drift",
    "train_image_mae",
    "train_drift_image",
    "fit_sam3_teacher",
    "distill_sam3@distilled",
)
