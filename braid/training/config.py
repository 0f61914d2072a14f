"""The params models that every training shares: hardware, cadence, launcher, optimizer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from braid.common.config import Config, Count, Fraction, NonNegative, Positive


class LaunchConfig(Config):
    """How training commands are started."""

    train: str  # prefix of the commands of trainings
    data: str  # of stages that make data or evaluate, and share units of it: shards, views, batches


class HardwareConfig(Config):
    """Where stages compute."""

    device: Literal["auto", "cpu", "cuda", "mps"]
    threads: Count  # CPU threads
    precision: Literal["float32", "bfloat16", "float16"]  # halves: autocast, float32 weights


class TrainingConfig(Config):
    """How often trainings of every strand log and save their state."""

    log_every: Count  # steps
    checkpoint_every: Count  # steps


class OptimizerConfig(Config):
    """Gradient steps under a cosine with a warm-up, and the moving average that is kept."""

    name: Literal["adamw", "muon"]  # muon: for the hidden matrices, adamw for the rest
    lr: Positive
    lr_floor: Fraction  # of lr, at the end of the cosine
    warmup: Fraction  # of the steps
    weight_decay: NonNegative
    accumulate: Count  # batches a step
    clip_norm: Positive | None  # null: gradients are not clipped
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None  # null: no average is kept
