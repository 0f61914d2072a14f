"""What the models of params.yaml are made of: a strict base, ranges of numbers, optional paths."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

BUILT_IN = "built_in"  # data or a model that the repository makes itself
NONE = "none"  # a file there is not

Steps = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]
Whole = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]

# What a scene, a variant, a refiner or a student may be called: it becomes part of a stage's name,
# of file names and of a command line.
NAME_FORM = "letters, digits, _ and -, in quotes where it would be a number"
Name = Annotated[str, Field(pattern=r"^\w[\w-]*$")]

_Item = TypeVar("_Item")


def _once(values: tuple[_Item, ...]) -> tuple[_Item, ...]:
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise ValueError(f"expected each once, got more of {repeated}")
    return values


Named = Annotated[dict[Name, _Item], Field(min_length=1)]  # what stages are repeated over
Distinct = Annotated[tuple[_Item, ...], Field(strict=False), AfterValidator(_once)]


class Config(BaseModel):
    """A frozen model that refuses unknown keys, wrong types and numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class KMeansConfig(Config):
    """K-means of clips or images; how many classes is a param beside it."""

    seeding_rows: Count
    projection: Count  # dimensions in which seeds are chosen and most iterations run
    candidates: Count  # greedy k-means++, a step
    projected_iterations: Whole
    exact_iterations: Count


def external_path(value: str, key: str) -> Path:
    """The path that a param names, of what is read where it lies, past the guard of stages.

    Raises:
        ValueError: it lies in the repository, where stages read declared deps alone.
    """
    path = Path(value)
    if path.resolve().is_relative_to(Path.cwd().resolve()):
        raise ValueError(
            f"{key}: {value}: is read where it lies, expected a place outside of the repository"
        )
    return path
