"""The committed settings of drifting on images, some of them changed."""

from pathlib import Path
from typing import Any

from braid.drifting.image.config import (
    ImageDriftConfig,
    ImageEvaluationConfig,
    ImageFeaturesConfig,
    ImageRefinerConfig,
    KeypatchConfig,
)
from braid.stage.params import load_params

COMMITTED = load_params(Path(__file__).parents[3] / "params.yaml").image_drift


def drift_config(**changes: dict[str, Any]) -> ImageDriftConfig:
    """Of the sections that are named, some settings changed."""
    committed = COMMITTED.model_dump()
    changed = {name: committed[name] | settings for name, settings in changes.items()}
    return ImageDriftConfig(**(committed | changed))


def keypatch_config(**changes: Any) -> KeypatchConfig:
    return KeypatchConfig(**(COMMITTED.corruption.model_dump() | changes))


def features_config(**changes: Any) -> ImageFeaturesConfig:
    return ImageFeaturesConfig(**(COMMITTED.features.model_dump() | changes))


def refiner_config(**changes: Any) -> ImageRefinerConfig:
    return ImageRefinerConfig(**(COMMITTED.refiner.model_dump() | changes))


def evaluation_config(**changes: Any) -> ImageEvaluationConfig:
    return ImageEvaluationConfig(**(COMMITTED.evaluation.model_dump() | changes))
