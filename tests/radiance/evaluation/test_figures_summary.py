"""The rows of the summary, and the state of the boundary mask."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from braid.radiance.evaluation.figures import (
    COLUMNS,
    Model,
    draw_sizes,
    mask_figures,
    mask_state,
    published,
    read_table,
    sizes,
    summary_rows,
)

BASELINES = ("white", "mean_color", "mean_image", "silhouette")
COST = {"fps": 7.0, "peak_memory_mib": 300.0, "power_w": None, "power_reason": "no sensor"}


def model(variant: str, psnr: float, mask: tuple[float, ...] = (), **figures: Any) -> Model:
    row = {"scene": "lego", "variant": variant, "psnr": psnr, **figures}
    baselines = [
        {"scene": "lego", "variant": f"baseline_{name}", "psnr": rank}
        for rank, name in enumerate(BASELINES)
    ]
    return Model([row, *baselines], {**COST, "frames": 5}, train_seconds=4.0, mask=mask)


TEACHER = model("teacher", 31.0, status="ok")
STUDENT = model("sh", 29.0, mask=(0.2, 0.4), lpips=None, parameters=5000, steps=800)


def test_a_row_per_model_then_one_per_baseline() -> None:
    rows = list(summary_rows([TEACHER, STUDENT]))
    baselines = [f"baseline_{name}" for name in BASELINES]
    assert [row["variant"] for row in rows] == ["teacher", "sh", *baselines]
    assert {row["scene"] for row in rows} == {"lego"}
    assert [row["psnr"] for row in rows] == [31.0, 29.0, 0.0, 1.0, 2.0, 3.0]


def test_smaller_files_of_a_model_stand_below_it(tmp_path: Path) -> None:
    own, *trivial = STUDENT.table
    half = {"scene": "lego", "variant": "sh_half", "psnr": 28.0, "bytes": 50}
    student = replace(STUDENT, table=[{**own, "bytes": 100}, half, *trivial])
    rows = list(summary_rows([TEACHER, student]))
    assert [row["variant"] for row in rows][:3] == ["teacher", "sh", "sh_half"]
    assert len(rows) == 3 + len(BASELINES)
    drawn = sizes([TEACHER, student])
    assert [(row["variant"], row["bytes"]) for row in drawn] == [("sh", 100), ("sh_half", 50)]
    draw_sizes(tmp_path / "sizes.png", [TEACHER, student], "lego")
    assert (tmp_path / "sizes.png").stat().st_size > 1000


def test_model_rows_have_quality_cost_and_size_and_no_more_of_the_cost_than_that() -> None:
    teacher, student, *_ = summary_rows([TEACHER, STUDENT])
    assert (teacher["fps"], teacher["train_seconds"], teacher["status"]) == (7.0, 4.0, "ok")
    assert (teacher["power_w"], teacher["power_reason"]) == (None, "no sensor")
    assert (student["parameters"], student["steps"], student["lpips"]) == (5000, 800, None)
    assert "frames" not in teacher


def test_the_metrics_that_the_interface_names_are_columns() -> None:
    named = "psnr ssim lpips psnr_foreground psnr_vs_teacher status parameters steps"
    cost = "fps peak_memory_mib power_w train_seconds"
    more = "bytes psnr_val feature_explained_variance feature_explained_variance_by_network"
    named += f" {more}"
    assert {"scene", "variant", *named.split(), *cost.split()} == set(COLUMNS)


def test_a_dot_of_the_chart_is_quality_and_cost() -> None:
    dot = TEACHER.tradeoff()
    assert (dot.name, dot.psnr, dot.fps, dot.peak_memory_mib) == ("teacher", 31.0, 7.0, 300.0)
    assert TEACHER.baseline("silhouette") == 3.0


def test_the_mask_is_averaged_over_the_training_and_absent_where_there_is_none() -> None:
    teacher, student, *_ = summary_rows([TEACHER, STUDENT])
    assert student["feature_mask_weight_mean"] == pytest.approx(0.3)
    assert student["feature_mask_state"] == "ok"
    assert "feature_mask_state" not in teacher
    assert mask_figures([]) == {}


@pytest.mark.parametrize(
    ("mean", "state"), [(0.0, "collapsed"), (0.049, "collapsed"), (0.3, "ok"), (1.0, "saturated")]
)
def test_states_have_names(mean, state):
    assert mask_state(mean) == state


def test_cells_are_read_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("psnr,steps,note\n31.36247,12345678,\n")
    rows = read_table(tmp_path / "a.csv")
    assert rows == [{"psnr": "31.36247", "steps": "12345678", "note": ""}]


def student(variant: str, **figures: str) -> Model:
    return Model([{"variant": variant, **figures}], {}, 0.0)


def test_the_publication_figure_has_stage_1b_gaussian_all_and_the_best_of_the_validation() -> None:
    figures = {"response": ("30", "31"), "sh": ("32", "30"), "gaussian_all": ("31", "32")}
    students = [student(name, psnr_val=val, psnr=test) for name, (val, test) in figures.items()]
    assert published(students) == ["response", "gaussian_all", "sh"]
    unvalidated = [student(name, psnr=test) for name, (_, test) in figures.items()]
    assert published(unvalidated) == ["response", "gaussian_all"]
    assert published([student("sh", psnr="30")]) == ["sh"]
