"""Lay all students of all scenes side by side: summary table, trade-off chart, publication figure.

Writes metrics/metrics_summary.csv (a row per scene and model) and three figures a scene.
"""

from collections.abc import Mapping
from typing import Any

from braid.common.io import read_json
from braid.radiance.evaluation.figures import (
    COLUMNS,
    FIRST_STAGE,
    Model,
    draw_publication,
    draw_sizes,
    draw_tradeoff,
    read_table,
    summary_rows,
)
from braid.stage.context import Stage, open_stage


def main() -> None:
    """Run the stage."""
    with open_stage("compare_radiance") as stage:
        config, renders = stage.params.radiance, stage.dep("data/renders")
        (figures := stage.out("plots/comparison")).mkdir()
        rows: list[Mapping[str, Any]] = []
        for scene in config.scenes:
            teacher = _teacher(stage, scene)
            students = [_student(stage, scene, name) for name in config.students]
            rows += summary_rows([teacher, *students])
            draw_tradeoff(figures / f"{scene}_tradeoff.png", teacher, students, scene)
            draw_sizes(figures / f"{scene}_size.png", [teacher, *students], scene)
            draw_publication(figures / f"{scene}_publication.png", students, renders / scene)
        stage.write_table("metrics/metrics_summary.csv", rows, COLUMNS)


def _teacher(stage: Stage, scene: str) -> Model:
    table = read_table(stage.dep("metrics/tables/radiance") / scene / "teacher.csv")
    fit, cost = (_runtime(stage, name, scene) for name in ("fit_teacher", "render_teacher"))
    return Model(table, cost, fit["seconds"])


def _student(stage: Stage, scene: str, name: str) -> Model:
    table = read_table(stage.dep("metrics/tables/radiance") / scene / f"{name}.csv")
    cost = _runtime(stage, "evaluate_radiance", scene, name)
    if name == FIRST_STAGE:
        return Model(table, cost, _runtime(stage, "distill_response", scene)["seconds"])
    mask = read_table(stage.dep("plots/feature_mask") / scene / f"{name}.csv")
    weights = [float(row["feature_mask_weight_mean"]) for row in mask]
    return Model(table, cost, _runtime(stage, "distill_features", scene, name)["seconds"], weights)


def _runtime(stage: Stage, name: str, *item: str) -> dict[str, Any]:
    return read_json(stage.dep(f"metrics/runtime/{name}").joinpath(*item).with_suffix(".json"))


if __name__ == "__main__":
    main()
