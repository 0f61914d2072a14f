"""The params model of `maze_drift`: units, ranges, meaning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from braid.common.config import Config, Count, Distinct, Named, NonNegative, Positive, Steps
from braid.drifting.config import DriftBatchesConfig, DriftLossConfig, MazeCorruptionConfig
from braid.training.config import OptimizerConfig


class MazeRefinerConfig(Config):
    """The one-step transformer over the points of a trajectory."""

    patch: Count  # successive points a token; of keyframes always 1
    dim: Count
    depth: Count
    heads: Count
    map_width: Count  # channels of the map's encoding
    map_rounds: Count  # blocks that it reaches around a block, which is how far it can search
    clamp: bool  # given keyframes are kept bit for bit


class MazeTrainingConfig(Config):
    """How one network of trajectories is trained."""

    task: Literal["refinement", "keyframes"]  # keyframes: from the ends alone, phase 1
    start: str  # folder of a network whose weights it begins with, models/drift_maze/paired; none
    anchors: str  # folder of a phase-1 network that replaces keyframes; none: no keyframe is
    objective: Literal["drift", "paired"]
    steps: Steps
    lr_scale: Positive  # times optimizer.lr
    validate_every: Count  # steps between evaluations on the validation split
    batches: DriftBatchesConfig
    features: Distinct[Literal["tokens", "pairs", "clip"]]  # of the drift

    @model_validator(mode="after")
    def _only_drifting_has_features(self) -> MazeTrainingConfig:
        if (self.objective == "drift") != bool(self.features):
            wanted = "some features" if self.objective == "drift" else "no features"
            raise ValueError(f"objective is {self.objective}, expected {wanted} beside it")
        return self


class PhaseOneConfig(Config):
    """Keyframes from start, goal and maze alone."""

    count: Annotated[int, Field(ge=3)]  # keyframes, both ends among them; a level has as many
    noise: Literal["bridge", "sides"]  # that they start from; sides: bends of random signs alone
    sigma: Positive  # of it, as in corruption


class MazeEvaluationConfig(Config):
    """How trajectories are evaluated."""

    refiner: str  # of `maze_drift.refiners`: the one that is evaluated
    paired: str  # the regression beside it, which multi-step sampling runs too
    keyframes: str  # phase 1 before `refiner`
    paired_keyframes: str  # phase 1 before `paired`
    trajectories: Count  # test trajectories, at most
    cases: Count  # test cases with two ways around, at most
    samples: Annotated[int, Field(ge=2)]  # a case, from noise
    components: Count  # of the PCA space of distances
    margin: NonNegative  # blocks from walls, of the projection baseline
    alpha: Annotated[float, Field(ge=1)]  # guidance
    pictures: Count  # trajectories drawn; as many failures


class MazeDriftConfig(Config):
    """One-step refinement of trajectories through mazes."""

    loss: DriftLossConfig
    corruption: MazeCorruptionConfig
    keyframes: PhaseOneConfig
    refiner: MazeRefinerConfig
    refiners: Named[MazeTrainingConfig]
    optimizer: OptimizerConfig
    evaluation: MazeEvaluationConfig

    @model_validator(mode="after")
    def _refiners_are_evaluated_at_their_task(self) -> MazeDriftConfig:
        tasks = {"refiner": "refinement", "paired": "refinement"}
        tasks |= {"keyframes": "keyframes", "paired_keyframes": "keyframes"}
        for field, task in tasks.items():
            name = getattr(self.evaluation, field)
            settings = self.refiners.get(name)
            if settings is None or settings.task != task:
                able = [name for name, other in self.refiners.items() if other.task == task]
                raise ValueError(
                    f"evaluation.{field} is {name}, expected a refiner whose task is {task}: "
                    f"{', '.join(able)}"
                )
        return self

    @model_validator(mode="after")
    def _keyframes_are_replaced_by_anchors(self) -> MazeDriftConfig:
        name, probability = self.evaluation.refiner, self.corruption.student_replace_prob
        if (probability > 0) != (self.refiners[name].anchors != "none"):
            wanted = "a folder of a phase-1 network" if probability else "none"
            raise ValueError(
                f"corruption.student_replace_prob is {probability:g}, expected {wanted} as "
                f"refiners.{name}.anchors, got {self.refiners[name].anchors}"
            )
        return self
