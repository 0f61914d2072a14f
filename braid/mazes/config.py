"""The params model of mazes (`mazes` in params.yaml): units, ranges, meaning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from braid.common.config import Config, Count, Fraction, NonNegative, Positive


class LayoutsConfig(Config):
    """Built-in mazes, and the planner's paths through them; lengths in blocks, a corridor's width.

    A maze of c cells a side has 2 c + 1 blocks a side.
    """

    mazes: Count  # layouts, no two alike
    cells: Annotated[int, Field(ge=2)]  # a side
    loops: Fraction  # of the inner walls that a tree leaves, those taken out
    cases: Count  # pairs of start and goal a maze
    two_ways: Fraction  # of these, those with two ways around, as far as a maze has them
    shortest: Count  # steps from block to block of a case's shortest way, at least
    longest: Count  # at most
    detour: Annotated[float, Field(ge=1)]  # a second way is so many times as long, at most
    variants: Count  # trajectories a way
    rounding: Positive  # standard deviation of the filter that rounds corners
    wiggle: NonNegative  # standard deviation of the way off a corridor's middle
    clearance: Annotated[float, Field(ge=0, lt=0.5)]  # from walls, at least


class MazesConfig(Config):
    """Where the mazes and trajectories come from."""

    source: str  # built_in; or a pointmaze file: /data/pointmaze/main_data.hdf5
    faults: Literal["skip", "fatal"]  # what a broken trajectory does
    points: Annotated[int, Field(ge=8)]  # T: of a trajectory
    val_fraction: Annotated[float, Field(gt=0, lt=0.5)]  # of mazes; of a file: of ends
    test_fraction: Annotated[float, Field(gt=0, lt=0.5)]
    layouts: LayoutsConfig
