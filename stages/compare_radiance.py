"""Lay all students of all scenes side by side: summary table, trade-off chart, publication figure.

Writes metrics/metrics_summary.csv (a row per scene and variant, the teacher and the trivial
predictors among them) and two pictures a scene. Seconds.
"""

from pathlib import Path
from typing import Any

from braid.radiance.evaluation.figures import image_table, summary_rows, tradeoff, tradeoff_chart
from braid.radiance.scenes.renders import load_images
from braid.stage.context import Stage, open_stage
from braid.stage.records import read_json


def main() -> None:
    """Run the stage."""
    with open_stage("compare_radiance") as stage:
        pictures = stage.out("plots/comparison")
        pictures.mkdir()
        rows = []
        for scene in stage.params.scenes:
            names = ("teacher", *stage.params.students)
            models = {name: _figures(stage, scene, name) for name in names}
            rows += list(summary_rows(scene, models))
            students = [tradeoff(name, models[name]) for name in stage.params.students]
            teacher = models["teacher"]
            tradeoff_chart(
                pictures / f"{scene}_tradeoff.png",
                students,
                "response",
                tradeoff("teacher", teacher),
                {"silhouette": teacher["psnr_silhouette"], "white": teacher["psnr_white"]},
                teacher["peak_memory_of"],
                scene,
            )
            _publish(stage, scene, pictures / f"{scene}_publication.png")
        stage.write_curve("metrics/metrics_summary.csv", rows)


def _figures(stage: Stage, scene: str, name: str) -> dict[str, Any]:
    folders = ("metrics/radiance", "metrics/runtime/radiance")
    quality, cost = (read_json(stage.dep(each) / scene / f"{name}.json") for each in folders)
    return {**cost, **quality}


def _publish(stage: Stage, scene: str, path: Path) -> None:
    """Truth, teacher, the first student and the last one, on the chosen test views."""
    first, last = stage.params.students[0], stage.params.students[-1]
    loaded = {
        name: load_images(stage.dep("data/renders") / scene / f"{name}.npz")
        for name in (first, last)
    }
    frames, shown = loaded[first]
    models = {"teacher": shown["teacher"]}
    models |= {_title(name): stored["end of training"] for name, (_, stored) in loaded.items()}
    labels = [f"test view {frame}" for frame in frames]
    image_table(path, shown["truth"], models, labels)


def _title(student: str) -> str:
    return "Stage 1B" if student == "response" else f"Stage 2\n{student}"


if __name__ == "__main__":
    main()
