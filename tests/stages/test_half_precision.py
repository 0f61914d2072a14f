"""Every training runs in half precision on a CPU too, as `hardware.precision` offers it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.stages.conftest import override, run
from tests.tiny import TINY

STRANDS = {
    "radiance": (
        ("train_vae", "own"),
        ("distill_response", "own"),
        ("distill_features", "own", "sh_opacity"),
    ),
    "clips": (
        ("prepare_clips",),
        ("quantize",),
        ("train_latent_mae",),
        ("train_drift", "paired"),
        ("train_drift", "drift"),
    ),
    "images": (("prepare_images",), ("train_image_mae",), ("train_drift_image",)),
    "segmentation": (
        ("prepare_sa1b",),
        ("fit_sam3_teacher",),
        ("cache_teacher",),
        ("distill_sam3", "distilled"),
    ),
}


def figures(value: Any) -> list[float]:
    """All numbers of a metrics file."""
    if isinstance(value, dict):
        return [number for inner in value.values() for number in figures(inner)]
    return [value] if isinstance(value, int | float) else []


@pytest.mark.parametrize(
    ("strand", "precision"),
    [
        *((strand, "bfloat16") for strand in STRANDS),
        ("images", "float16"),
        ("segmentation", "float16"),
    ],
)
def test_every_training_of_a_strand_runs(
    finished: Path, tmp_path: Path, strand: str, precision: str
) -> None:
    repo = Path(shutil.copytree(finished, tmp_path / "repo"))
    override(repo, {"hardware.precision": precision, "training.log_every": 1})
    steps = [key for key in TINY if key.endswith("steps") and not key.startswith("radiance")]
    override(repo, {**dict.fromkeys(steps, 4), "sam3.shapes.scenes": 20})
    before = {path: path.stat().st_mtime_ns for path in (repo / "metrics").rglob("*.json")}
    for stage in STRANDS[strand]:
        run(repo, *stage)
    after = (repo / "metrics").rglob("*.json")
    written = [path for path in after if path.stat().st_mtime_ns != before.get(path)]
    numbers = [number for path in written for number in figures(json.loads(path.read_text()))]
    assert len(numbers) > len(STRANDS[strand])
    assert all(map(math.isfinite, numbers))
