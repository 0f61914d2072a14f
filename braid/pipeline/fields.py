"""What the sections of params.yaml are made of: a strict base model, the ranges of numbers,
and how anything is optimised."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Steps = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]
Whole = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A frozen section that refuses unknown keys and wrong types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Optimisation(Section):
    """Gradient steps under a cosine with a warm-up, and the moving average that is kept."""

    lr: Positive
    lr_floor: Share  # of lr, at the end of the cosine
    warmup: Share  # of the steps
    weight_decay: NonNegative
    accumulate: Count  # batches a step
    clip_norm: Positive
    ema_decay: Annotated[float, Field(ge=0, lt=1)]


class NetworkOptimisation(Optimisation):
    """How a network is optimised that has hidden matrices."""

    optimizer: Literal["adamw", "muon"]  # muon: for the hidden matrices, adamw for the rest
