"""Settings of a size for tests; each takes other values by name."""

from __future__ import annotations

from typing import Any

from braid.radiance.config import (
    AggregationConfig,
    BricksConfig,
    DistillConfig,
    EvaluationConfig,
    FeaturesConfig,
    NetworkConfig,
    RaysConfig,
    RendersConfig,
    ResponseLossConfig,
    StudentConfig,
    TeacherConfig,
    VaeConfig,
    VaeSizes,
)
from braid.training.config import OptimizerConfig


def bricks_config(**values: Any) -> BricksConfig:
    small = {"width": 8, "supersample": 3, "train": 1, "val": 1, "test": 1}
    return BricksConfig(**{**small, **values})


def teacher_config(**values: Any) -> TeacherConfig:
    defaults = {
        "steps": 800,
        "resolution": 64,
        "sh_degree": 3,
        "sh_interval": 100,
        "lr_means": 3e-3,
        "lr_scales": 4e-2,
        "lr_quaternions": 4e-2,
        "lr_opacities": 1e-1,
        "lr_color": 4e-2,
        "lr_harmonics": 1e-2,
        "lr_decay": 0.03,
        "alpha_weight": 0.5,
        "density_interval": 0,
        "density_start": 0.1,
        "density_stop": 0.6,
        "density_grow": 0.05,
        "density_capacity": 50_000,
        "prune_opacity": 0.01,
        "split_scale": 1.0,
    }
    return TeacherConfig(**{**defaults, **values})


def vae_config(**values: Any) -> VaeConfig:
    defaults = {
        "groups": ("sh", "opacity"),
        "harmonics": 3,
        "validate_every": 20,
        "latent": 2,
        "hidden": (8,),
        "steps": 2000,
        "batch": 16,
        "optimizer": optimizer_config(),
        "beta": 1e-4,
        "beta_warmup": 0.5,
        "free_bits": 0.02,
        "gate": 0.0008,
    }
    return VaeConfig(**{**defaults, **values})


def vae_sizes(latent: int, *hidden: int) -> VaeSizes:
    return VaeSizes(latent=latent, hidden=hidden)


def aggregation_config(**values: Any) -> AggregationConfig:
    return AggregationConfig(**{"weighting": "mass", "split": "hard", **values})


def optimizer_config() -> OptimizerConfig:
    return OptimizerConfig(
        name="adamw",
        lr=1e-2,
        lr_floor=0.0,
        warmup=0.0,
        weight_decay=0.0,
        accumulate=1,
        clip_norm=None,
        ema_decay=None,
    )


def network_config(**values: int) -> NetworkConfig:
    sizes = {"hidden": 32, "layers": 4, "frequencies": 4, "direction_frequencies": 1}
    return NetworkConfig(**{**sizes, **values})


def student_config(**values: Any) -> StudentConfig:
    defaults = {
        **network_config().model_dump(),
        "cells": 2,
        "margin": 0.0,
        "density_scale": 30.0,
        "step": 0.75,
    }
    return StudentConfig(**{**defaults, **values})


def renders_config(**values: int) -> RendersConfig:
    return RendersConfig(**{"random_poses": 2, "voxels": 12, "field_points": 100, **values})


def features_config(**values: Any) -> FeaturesConfig:
    how = {"cells": 8, "robust": False, "block": 2, "val_fraction": 0.2}
    return FeaturesConfig(**{**aggregation_config().model_dump(), **how, **values})


def rays_config(**values: Any) -> RaysConfig:
    return RaysConfig(**{"count": 128, "hard": 0.5, "decay": 0.9, "tile": 8, **values})


def loss_config(**values: float) -> ResponseLossConfig:
    return ResponseLossConfig(**{"color": 1.0, "opacity": 0.3, "depth": 0.05, **values})


def distill_config(**values: Any) -> DistillConfig:
    defaults = {
        "steps": 100,
        "lr_scale": 1.0,
        "points": 300,
        "head_batches": 2,
        "l2": 1.0,
        "cosine": 0.2,
        "latent": 1.0,
        "warmup": 0.04,
        "decay": 0.1,
        "floor": 0.1,
        "mask": "weight",
        "threshold": 0.3,
        "soft_transition": 0.1,
        "gate_tau": 0.05,
    }
    return DistillConfig(**{**defaults, **values})


def evaluation_config(**values: Any) -> EvaluationConfig:
    defaults = {"chunk": 100, "stop": 0.01, "frames": 1, "turntable": 4, "figure_frames": (0,)}
    return EvaluationConfig(**{**defaults, "lpips_weights": "none", **values})
