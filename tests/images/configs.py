"""The committed settings of images, some of them changed."""

from pathlib import Path
from typing import Any

from braid.images.config import ImagesConfig
from braid.stage.params import load_params

COMMITTED = load_params(Path(__file__).parents[2] / "params.yaml").images.model_dump()


def images_config(**changes: Any) -> ImagesConfig:
    return ImagesConfig(**(COMMITTED | changes))


def folder_config(root: Path, **changes: Any) -> ImagesConfig:
    """Of a folder of which a fifth is for validation and a fifth for testing."""
    return images_config(source=str(root), val_fraction=0.2, test_fraction=0.2, **changes)
