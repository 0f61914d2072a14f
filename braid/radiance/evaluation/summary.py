"""All models of a scene in one table: quality, cost, size, and how much of a cell was compared."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from braid.radiance.evaluation.figures import Tradeoff, tradeoff_chart

Row = Mapping[str, Any]

# First columns of the summary, in order; others follow as the tables of the models have them.
COLUMNS = (
    *("scene", "variant", "psnr", "ssim", "lpips", "psnr_foreground", "psnr_vs_teacher", "status"),
    *("fps", "peak_memory_mib", "power_w", "train_seconds", "parameters", "steps"),
)
COLLAPSED = 0.05  # mean weight below which the boundary mask leaves next to nothing to learn from


@dataclass(frozen=True)
class Model:
    """What was measured of one model of a scene."""

    table: Sequence[Row]  # its own row of quality and size first, then the trivial predictors'
    cost: Row  # of rendering: a `FrameCost`
    train_seconds: float
    mask: Sequence[float] = ()  # mean weight of the boundary mask at every logged step

    def row(self) -> dict[str, Any]:
        """Its row of the summary."""
        cost = ("fps", "peak_memory_mib", "power_w", "power_reason")
        return {
            **self.table[0],
            **{name: self.cost[name] for name in cost},
            "train_seconds": self.train_seconds,
            **mask_figures(self.mask),
        }

    def tradeoff(self) -> Tradeoff:
        """Its place in the trade-off chart."""
        name, psnr = self.table[0]["variant"], float(self.table[0]["psnr"])
        return Tradeoff(name, psnr, self.cost["fps"], self.cost["peak_memory_mib"])

    def baseline(self, name: str) -> float:
        """PSNR of a trivial predictor."""
        rows = {row["variant"]: row for row in self.table}
        return float(rows[f"baseline_{name}"]["psnr"])


def summary_rows(models: Sequence[Model]) -> Iterator[Row]:
    """A row per model of a scene, then one per trivial predictor."""
    for model in models:
        yield model.row()
    yield from models[0].table[1:]


def draw_tradeoff(path: Path, teacher: Model, students: Sequence[Model], title: str) -> None:
    """Write the trade-off chart of a scene, two trivial predictors among its lines."""
    tradeoff_chart(
        path,
        [student.tradeoff() for student in students],
        teacher.tradeoff(),
        {name: teacher.baseline(name) for name in ("silhouette", "white")},
        teacher.cost["peak_memory_of"],
        title,
    )


def mask_figures(weights: Sequence[float]) -> dict[str, Any]:
    """The boundary mask over a whole training; nothing where no features were compared."""
    if not weights:
        return {}
    mean = sum(weights) / len(weights)
    return {"feature_mask_weight_mean": mean, "feature_mask_state": mask_state(mean)}


def mask_state(mean: float) -> str:
    """`collapsed`, `saturated` (every weight is 1) or `ok`."""
    if mean < COLLAPSED:
        return "collapsed"
    return "saturated" if mean == 1.0 else "ok"


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV, every cell as it is written there."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
