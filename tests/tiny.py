"""Params at which the whole DAG runs in seconds a stage, and the trainings that can be resumed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import yaml

from braid.stage.params import load_yaml

TINY: dict[str, Any] = {
    "hardware.device": "cpu",
    "training.log_every": 4,
    "training.checkpoint_every": 4,
    "radiance.bricks.width": 32,
    "radiance.bricks.supersample": 1,
    "radiance.bricks.train": 12,
    "radiance.bricks.val": 2,
    "radiance.bricks.test": 3,
    "radiance.teacher.steps": 40,
    "radiance.teacher.resolution": 16,
    "radiance.teacher.sh_degree": 1,
    "radiance.teacher.sh_interval": 10,
    "radiance.renders.random_poses": 3,
    "radiance.renders.voxels": 16,
    "radiance.renders.field_points": 500,
    "radiance.features.cells": 6,
    "radiance.features.block": 2,
    "radiance.vae.latent": 4,
    "radiance.vae.hidden": [16],
    "radiance.vae.steps": 40,
    "radiance.vae.batch": 32,
    "radiance.own_teacher.mismatch": "warn",
    "radiance.student.cells": 3,
    "radiance.rays.count": 64,
    "radiance.response.steps": 20,
    "radiance.distill.steps": 20,
    "radiance.distill.points": 64,
    "radiance.distill.head_batches": 1,
    "radiance.evaluation.frames": 1,
    "radiance.evaluation.turntable": 2,
    "radiance.evaluation.figure_frames": [0, 1],
    "clips.digits.clips": 120,
    "clips.digits.per_shard": 40,
    "clips.digits.latent_frames": 5,
    "clips.digits.latent_size": 4,
    "clips.conditions.grid": 2,
    "clips.conditions.text_components": 6,
    "clips.conditions.keyframe_components": 6,
    "drift.K": 5,
    "latent_mae.width": 8,
    "latent_mae.steps": 12,
    "latent_mae.batch": 4,
    "drift.corruption.min_keyframes": 2,
    "drift.batches.classes": 2,
    "drift.batches.positives": 4,
    "drift.batches.unconditional": 2,
    "drift.batches.bank": 6,
    "drift.refiner.dim": 12,
    "drift.refiner.depth": 1,
    "drift.refiner.heads": 2,
    "drift.refiners.drift.generated": 3,
    "drift.refiners.paired.generated": 3,
    "drift.refiners.drift.steps": 12,
    "drift.refiners.drift.validate_every": 4,
    "drift.refiners.drift.encoder": "models/latent_mae",
    "drift.refiners.drift.features.encoder_weight": 0.5,
    "drift.refiners.drift.features.locations": 4,
    "drift.refiners.paired.steps": 12,
    "drift.refiners.paired.validate_every": 4,
    "clips.representation.clips": 60,
    "clips.representation.map_clips": 40,
    "clips.representation.bootstrap": 10,
    "drift.evaluation.components": 4,
    "drift.evaluation.reader_steps": 10,
    "drift.evaluation.strips": 1,
    "drift.storyboards.held_out.clip": 0,
    "drift.storyboards.held_out.keyframes": [0, 2, 4],
    "drift.keyframes.network.patch": 2,
    "drift.keyframes.network.noise": 4,
    "drift.keyframes.network.dim": 12,
    "drift.keyframes.network.depth": 1,
    "drift.keyframes.network.heads": 2,
    **{
        f"drift.keyframes.trainings.{name}.{key}": value
        for name in ("paired", "drift")
        for key, value in (
            ("steps", 8),
            ("validate_every", 4),
            ("batches.classes", 2),
            ("batches.generated", 3),
            ("batches.positives", 3),
            ("batches.unconditional", 2),
        )
    },
    "drift.text_to_clip.strips": 1,
    "image_mae.width": 8,
    "image_mae.blocks": [1, 1],
    "image_mae.steps": 12,
    "image_mae.batch": 8,
    "image_drift.features.families": ["clip", "location"],
    "image_drift.features.locations": 2,
    "image_drift.features.encoder_weight": 1.0,
    "image_drift.batches.classes": 3,
    "image_drift.batches.generated": 4,
    "image_drift.batches.positives": 6,
    "image_drift.batches.negatives": 2,
    "image_drift.batches.unconditional": 2,
    "image_drift.batches.bank": 8,
    "image_drift.batches.bank_unconditional": 8,
    "image_drift.refiner.dim": 8,
    "image_drift.refiner.style": 16,
    "image_drift.training.steps": 12,
    "image_drift.training.validate_every": 4,
    "image_drift.training.validation_images": 40,
    "image_drift.evaluation.train_images": 200,
    "image_drift.evaluation.test_images": 100,
    "image_drift.evaluation.components": 8,
    "image_drift.evaluation.samples": 2,
    "mazes.points": 16,
    "mazes.val_fraction": 0.25,
    "mazes.test_fraction": 0.25,
    "mazes.layouts.mazes": 24,
    "mazes.layouts.cells": 3,
    "mazes.layouts.longest": 6,
    "maze_drift.refiner.patch": 2,
    "maze_drift.refiner.dim": 16,
    "maze_drift.refiner.depth": 1,
    "maze_drift.refiner.heads": 2,
    "maze_drift.refiner.map_width": 8,
    "maze_drift.refiner.map_rounds": 2,
    **{
        f"maze_drift.refiners.{name}.{key}": value
        for name in ("paired", "paired_then_drift", "keyframes_paired", "keyframes")
        for key, value in (("steps", 8), ("validate_every", 4))
    },
    "maze_drift.evaluation.trajectories": 24,
    "maze_drift.evaluation.cases": 4,
    "maze_drift.evaluation.samples": 3,
    "maze_drift.evaluation.components": 4,
    "maze_drift.evaluation.pictures": 2,
    "sam3.data.val": 4,
    "sam3.data.test": 6,
    "sam3.data.image_size": 56,
    "sam3.data.cache_mib": 8,
    "sam3.shapes.scenes": 40,
    "sam3.shapes.photos": 4,
    "sam3.prompts.kinds": ["generic", "category", "box", "caption"],
    "sam3.prompts.withheld": ["red star"],
    "sam3.teacher.width": 16,
    "sam3.teacher.layers": 1,
    "sam3.teacher.queries": 5,
    "sam3.teacher.steps": 12,
    "sam3.teacher.images": 2,
    "sam3.cache.mask_size": 16,
    "sam3.cache.masks": 4,
    "sam3.cache.shard": 16,
    "sam3.cache.images": 4,
    "sam3.student.backbone_options": {"embed_dim": [8, 8, 16, 16], "depth": [1, 1, 1, 1]},
    "sam3.student.text_width": 16,
    "sam3.student.queries": 3,
    "sam3.phases.features.epochs": 1,
    "sam3.phases.outputs.optimizer.warmup": 0.1,
    "sam3.distill.images": 4,
    "sam3.evaluation.images": 2,
    "sam3.evaluation.mask_size": 28,
    "sam3.evaluation.latency_runs": 2,
    "sam3.evaluation.pictures": 2,
    "sam3.evaluation.bins": 5,
}


def override(repo: Path, changes: Mapping[str, Any]) -> None:
    """Set dotted keys of the repository's params.yaml, as `dvc exp run -S` does."""
    path = repo / "params.yaml"
    params = load_yaml(path)
    for key, value in changes.items():
        *sections, name = key.split(".")
        reduce(getitem, sections, params)[name] = value
    path.write_text(yaml.safe_dump(params, sort_keys=False))


TRAININGS = (
    "fit_teacher@bricks",
    "train_vae@bricks",
    "distill_response@bricks",
    "distill_features@bricks-gaussian_all_vae",
    "train_latent_mae",
    "train_drift@drift",
    "train_image_mae",
    "train_drift_image",
    "train_drift_maze@keyframes",
    "fit_sam3_teacher",
    "distill_sam3@distilled",
)
