"""A small set of mazes and params models, for tests."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from braid.drifting.config import DriftBatchesConfig, MazeCorruptionConfig
from braid.drifting.maze.config import (
    MazeEvaluationConfig,
    MazeRefinerConfig,
    MazeTrainingConfig,
    PhaseOneConfig,
)
from braid.mazes.config import LayoutsConfig, MazesConfig
from braid.mazes.maze_set import MazeSet, open_maze_set, write_maze_set
from braid.mazes.sources import built_in

LAYOUTS: dict[str, Any] = {
    "mazes": 30,
    "cells": 3,
    "loops": 0.4,
    "cases": 4,
    "two_ways": 0.5,
    "shortest": 2,
    "longest": 6,
    "detour": 1.2,
    "variants": 2,
    "rounding": 0.3,
    "wiggle": 0.12,
    "clearance": 0.15,
}
MAZES: dict[str, Any] = {
    "source": "built_in",
    "faults": "skip",
    "points": 16,
    "val_fraction": 0.2,
    "test_fraction": 0.25,
}
CORRUPTION: dict[str, Any] = {
    "levels": 2,
    "min_keyframes": 3,
    "schedule": "doubling",
    "placement": "even",
    "interpolator": "linear",
    "noise": "bridge",
    "sigma": 0.4,
    "keyframe_noise": 0.0,
    "student_replace_prob": 0.0,
}
BATCHES: dict[str, Any] = {
    "classes": 4,
    "generated": 4,
    "positives": 4,
    "positive_sampling": "random",
    "negatives": 0,
    "unconditional": 2,
    "bank": 4,
    "bank_unconditional": 0,
    "alpha_max": 1.0,
    "alpha_power": 3.0,
}
REFINER: dict[str, Any] = {
    "patch": 2,
    "dim": 16,
    "depth": 1,
    "heads": 2,
    "map_width": 8,
    "map_rounds": 2,
    "clamp": True,
}
EVALUATION: dict[str, Any] = {
    "refiner": "drift",
    "paired": "paired",
    "keyframes": "keyframes",
    "paired_keyframes": "keyframes",
    "trajectories": 24,
    "cases": 4,
    "samples": 3,
    "components": 4,
    "margin": 0.15,
    "alpha": 1.0,
    "pictures": 2,
}


def mazes(**changes: Any) -> MazesConfig:
    layouts = {key: changes.pop(key) for key in list(changes) if key in LAYOUTS}
    return MazesConfig(**MAZES | changes, layouts=LayoutsConfig(**LAYOUTS | layouts))


def corruption(**changes: Any) -> MazeCorruptionConfig:
    return MazeCorruptionConfig(**CORRUPTION | changes)


def phase_one(**changes: Any) -> PhaseOneConfig:
    return PhaseOneConfig(**{"count": 6, "noise": "bridge", "sigma": 0.6} | changes)


def refiner(**changes: Any) -> MazeRefinerConfig:
    return MazeRefinerConfig(**REFINER | changes)


def training(**changes: Any) -> MazeTrainingConfig:
    usual: dict[str, Any] = {
        "task": "refinement",
        "start": "none",
        "anchors": "none",
        "objective": "paired",
        "steps": 8,
        "lr_scale": 1.0,
        "validate_every": 4,
        "batches": DriftBatchesConfig(**BATCHES),
        "features": (),
    } | changes
    if usual["objective"] == "drift":
        usual["features"] = usual["features"] or ("clip",)
    return MazeTrainingConfig(**usual)


def evaluation(**changes: Any) -> MazeEvaluationConfig:
    return MazeEvaluationConfig(**EVALUATION | changes)


@cache
def maze_set() -> MazeSet:
    folder = Path(mkdtemp())
    write_maze_set(folder, built_in(mazes(), 0), "built_in")
    return open_maze_set(folder)
