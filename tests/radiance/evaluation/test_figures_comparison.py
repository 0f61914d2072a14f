"""The rows of the summary."""

from __future__ import annotations

from braid.radiance.evaluation.figures import BASELINES, COST, QUALITY, SIZE, summary_rows, tradeoff

BASE = {f"psnr_{name}": float(rank) for rank, name in enumerate(BASELINES)}
TEACHER = {**BASE, "psnr": 31.0, "ssim": 0.9, "status": "ok", "fps": 7.0, "peak_memory_mib": 300.0}
STUDENT = {**BASE, "psnr": 29.0, "lpips": None, "params": 5000, "steps": 800, "fps": 2.0}


def test_a_row_per_model_then_one_per_baseline() -> None:
    rows = list(summary_rows("lego", {"teacher": TEACHER, "sh": STUDENT}))
    baselines = [f"baseline_{name}" for name in BASELINES]
    assert [row["variant"] for row in rows] == ["teacher", "sh", *baselines]
    assert {row["scene"] for row in rows} == {"lego"}
    assert [row["psnr"] for row in rows] == [31.0, 29.0, 0.0, 1.0, 2.0, 3.0]


def test_model_rows_have_all_columns_and_null_for_what_is_unknown() -> None:
    teacher, student, *_ = summary_rows("lego", {"teacher": TEACHER, "sh": STUDENT})
    assert set(teacher) == set(student) == {"scene", "variant", *QUALITY, *COST, *SIZE}
    assert (teacher["params"], teacher["fps"], teacher["status"]) == (None, 7.0, "ok")
    assert (student["params"], student["steps"], student["lpips"]) == (5000, 800, None)


def test_the_metrics_that_the_interface_names_are_columns() -> None:
    named = "psnr ssim lpips psnr_foreground psnr_vs_teacher status params steps"
    cost = "fps peak_memory_mib power_w train_seconds"
    assert {*named.split(), *cost.split()} == {*QUALITY, *SIZE, *COST}


def test_a_dot_of_the_chart_is_quality_and_cost() -> None:
    dot = tradeoff("teacher", TEACHER)
    assert (dot.name, dot.psnr, dot.fps, dot.peak_memory_mib) == ("teacher", 31.0, 7.0, 300.0)
