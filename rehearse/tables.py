"""The tables of all rehearsals: what a stage took and what it would take, and what was cut down.

GPU hours are projected FLOPs over what one NVIDIA H100 does of them at `UTILIZATION` of its peak.
They are a lower bound: reading data, elementwise work and waiting come on top.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from braid.common.io import write_csv
from rehearse.plans import Full
from rehearse.rehearsal import Rehearsal, value_at

PEAK = {"bfloat16": 989e12, "float16": 989e12, "float32": 67e12}  # FLOP/s, dense, no TF32
UTILIZATION = 0.4
STAGES, CUTS = "rehearsals.csv", "rehearsal_cuts.csv"

Row = dict[str, Any]


def write_tables(folder: Path, rehearsal: Rehearsal) -> None:
    """Put the rehearsal's rows in the place of those that the tables have of it."""
    for name, rows in ((STAGES, stage_rows(rehearsal)), (CUTS, cut_rows(rehearsal))):
        others = [row for row in _read(folder / name) if row["recipe"] != rehearsal.name]
        joined = sorted([*others, *rows], key=lambda row: row["recipe"])
        write_csv(folder / name, joined)


def stage_rows(rehearsal: Rehearsal) -> list[Row]:
    """A row for each stage that was measured."""
    rows = []
    for record in rehearsal.records():
        loops = rehearsal.plan.full.get(record["stage"], {})
        unknown = set(loops) - {loop["name"] for loop in record["loops"]}
        if unknown and record["status"] == "ok":
            raise ValueError(f"{record['stage']}: has no loop {', '.join(sorted(unknown))}")
        projected = projection(record["loops"], loops, rehearsal.recipe, rehearsal.settings)
        rows.append(
            {
                "recipe": rehearsal.name,
                "stage": record["stage"],
                "status": record["status"],
                "seconds": round(record["seconds"], 1),
                "peak_gib": round(record["peak_rss_mib"] / 1024, 2),
                "tflop": _rounded(record["flops"] / 1e12),
                "did": "; ".join(_did(loop) for loop in record["loops"]),
                "full_pflop": None if projected is None else _rounded(projected / 1e15),
                "gpu_hours": None
                if projected is None
                else _rounded(gpu_hours(projected, rehearsal.recipe["hardware"]["precision"])),
            }
        )
    return rows


def cut_rows(rehearsal: Rehearsal) -> list[Row]:
    """A row for each param that the rehearsal cuts down, and for each input that it makes."""
    made = [
        {
            "recipe": rehearsal.name,
            "param": part.param,
            "recipe_value": part.full,
            "rehearsed": part.here,
            "why": "made here",
        }
        for part in rehearsal.plan.inputs
    ]
    return made + [
        {
            "recipe": rehearsal.name,
            "param": cut.key,
            "recipe_value": _shown(value_at(rehearsal.recipe, cut.key)),
            "rehearsed": _shown(cut.value),
            "why": cut.why,
        }
        for cut in rehearsal.plan.cuts
    ]


def projection(
    loops: Sequence[Mapping[str, Any]],
    full: Mapping[str, Full],
    recipe: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> float | None:
    """FLOPs of the full run's loops; None where nothing is known of them.

    One time around is the cheapest one measured: a training validates in some.
    """
    total = 0.0
    for loop in loops:
        if (whole := full.get(loop["name"])) and loop["flops"]:
            grown = _product(whole.batch, recipe) / _product(whole.batch, settings)
            total += min(loop["flops"]) * grown * _product(whole.times, recipe)
    return total or None


def gpu_hours(flops: float, precision: str) -> float:
    """Hours of one H100."""
    return flops / (PEAK[precision] * UTILIZATION) / 3600


def _product(factors: Sequence[str | float], settings: Mapping[str, Any]) -> float:
    return math.prod(
        value_at(settings, factor) if isinstance(factor, str) else factor for factor in factors
    )


def _did(loop: Mapping[str, Any]) -> str:
    return f"{loop['name']}: {len(loop['flops'])} × {loop['unit']}"


def _rounded(value: float) -> float:
    """Three digits."""
    return float(f"{value:.3g}")


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
