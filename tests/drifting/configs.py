"""Params models of the drifting strand with a usual value in each field, for tests to change."""

from __future__ import annotations

from typing import Any

from braid.drifting.config import (
    BatchesConfig,
    CorruptionConfig,
    DriftBatchesConfig,
    DriftEvaluationConfig,
    DriftFeaturesConfig,
    DriftLossConfig,
    HarmonicConfig,
    LatentMaeConfig,
    MaskingConfig,
    RefinerConfig,
    RefinerTrainingConfig,
    WanConfig,
)
from braid.training.config import OptimizerConfig

HARMONIC: dict[str, Any] = {"sigma_feature": 1.0, "sigma_space": 0.5, "lambda_reg": 1e-3}
CORRUPTION: dict[str, Any] = {
    "levels": 2,
    "min_keyframes": 3,
    "schedule": "doubling",
    "placement": "even",
    "interpolator": "linear",
    **HARMONIC,
    "sinkhorn_temperature": 0.05,
    "sinkhorn_reach": 2.0,
    "dustbin": -2.0,
    "noise": "none",
    "sigma": 0.02,
    "keyframe_noise": 0.0,
    "student_replace_prob": 0.0,
}
LOSS: dict[str, Any] = {
    "temperatures": (0.02, 0.05, 0.2),
    "annealing": 1.0,
    "annealing_steps": 0,
    "coupling": "softmax",
    "normalization": "joint",
    "attraction": 1.0,
    "floor": 1e-6,
    "self_mask": 100.0,
    "weighting": "affinity",
    "reduction": "mean",
    "scale_scope": "batch",
}
BATCHES: dict[str, Any] = {
    "classes": 2,
    "generated": 4,
    "positives": 6,
    "positive_sampling": "random",
    "negatives": 0,
    "unconditional": 3,
    "bank": 8,
    "bank_unconditional": 12,
    "alpha_max": 2.0,
    "alpha_power": 1.0,
}
FEATURES: dict[str, Any] = {
    "vanilla": ("tokens",),
    "vanilla_weight": 2.0,
    "encoder_weight": 0.0,
    "families": ("location",),
    "locations": 4,
}
REFINER: dict[str, Any] = {"patch": 2, "dim": 24, "depth": 1, "heads": 2, "clamp": True}
REFINER |= {"backbone": "transformer", "detail": 0, "moments": 1, "beside": "none"}
WAN: dict[str, Any] = {
    "base": "none",
    "widening": 2.0,
    "sigmas": (0.5, 1.0),
    "mask_padding": True,
    "attention": "full",
    "density": 0.5,
    "block": 4,
    "rank": 0,
    "adapter_scale": 8.0,
    "targets": ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"),
    "frozen": "float32",
    "recompute": False,
}
EVALUATION: dict[str, Any] = {
    "refiner": "drift",
    "paired": "paired",
    "train_clips": 1000,
    "test_clips": 1000,
    "read_clips": 1000,
    "reader_steps": 5,
    "components": 4,
    "alpha": 1.0,
    "strips": 2,
}
OPTIMIZER: dict[str, Any] = {
    "name": "adamw",
    "lr": 1e-2,
    "lr_floor": 1.0,
    "warmup": 0.0,
    "weight_decay": 0.0,
    "accumulate": 1,
    "clip_norm": None,
    "ema_decay": None,
}
MAE: dict[str, Any] = {
    "width": 8,
    "blocks": (1, 1),
    "steps": 100,
    "batch": 8,
    "head_weight": 0.5,
    "head_fraction": 0.4,
}


def harmonic(**changes: Any) -> HarmonicConfig:
    return HarmonicConfig(**HARMONIC | changes)


def corruption(**changes: Any) -> CorruptionConfig:
    return CorruptionConfig(**CORRUPTION | changes)


def loss(**changes: Any) -> DriftLossConfig:
    return DriftLossConfig(**LOSS | changes)


def batches(**changes: Any) -> DriftBatchesConfig:
    return DriftBatchesConfig(**BATCHES | changes)


def class_batches(**changes: Any) -> BatchesConfig:
    """The same without what each refiner's training says itself."""
    return BatchesConfig(**{k: v for k, v in (BATCHES | changes).items() if k != "generated"})


def refiner(**changes: Any) -> RefinerConfig:
    return RefinerConfig(**REFINER | {"wan": wan()} | changes)


def wan(**changes: Any) -> WanConfig:
    return WanConfig(**WAN | changes)


def wan_refiner(**changes: Any) -> RefinerConfig:
    """Of the backbone `wan`; changes of its section and of the refiner's sizes alike."""
    own = {name: value for name, value in changes.items() if name in WAN}
    sizes = {name: value for name, value in changes.items() if name not in WAN}
    return refiner(**{"backbone": "wan", "beside": "text", "wan": wan(**own)} | sizes)


def features(**changes: Any) -> DriftFeaturesConfig:
    return DriftFeaturesConfig(**FEATURES | changes)


def refiner_training(**changes: Any) -> RefinerTrainingConfig:
    usual = {
        "start": "none",
        "encoder": "none",
        "objective": "drift",
        "target": "clip",
        "generated": 4,
        "steps": 12,
        "lr_scale": 1.0,
    }
    usual |= {"validate_every": 4, "compile": False, "shard": False, "validation_clips": 512}
    usual |= {"chunk": 0, "recompute_blocks": False, "read_ahead": False} | changes
    if usual["objective"] == "drift":
        usual = {"features": features()} | usual
    return RefinerTrainingConfig(**usual)


def optimizer(**changes: Any) -> OptimizerConfig:
    return OptimizerConfig(**OPTIMIZER | changes)


def masking(
    mode: str = "mixed", patch_ratio: float = 0.5, tube_ratio: float = 0.5
) -> MaskingConfig:
    return MaskingConfig(mode=mode, patch_ratio=patch_ratio, tube_ratio=tube_ratio)


def mae(**changes: Any) -> LatentMaeConfig:
    return LatentMaeConfig(**MAE | {"masking": masking(), "optimizer": optimizer()} | changes)


def drift_evaluation(**changes: Any) -> DriftEvaluationConfig:
    return DriftEvaluationConfig(**EVALUATION | changes)
