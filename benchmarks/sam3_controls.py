"""Is it distillation? Students of one teacher against controls, over seeds.

    python -m benchmarks.sam3_controls 0 1 2

needs the images, the teacher and its cache (`dvc repro cache_teacher`). In a temporary copy of the
repository it trains each student once per seed, for as many steps, and writes how far each agrees
with the teacher on held-out images to benchmarks/results/sam3_controls.csv:

    distilled      as params.yaml has it
    no_features    without the fpn and encoder terms
    no_heads       heads of its own, none of the teacher's weights
    truth_only     no teacher at all: the annotations of the labelled prompts

Withheld prompts name objects whose truth no student was shown. The control knows nothing of them;
the others have heard the teacher.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import yaml
from scipy import stats

from braid.stage.params import load_yaml

ROOT = Path(__file__).parents[1]
PARTS = ("stages", "braid", "data/sa1b", "data/teacher_cache", "models/sam3_teacher")
STUDENTS = {
    "distilled": {"supervision": "teacher", "heads": True, "features": True},
    "no_features": {"supervision": "teacher", "heads": True, "features": False},
    "no_heads": {"supervision": "teacher", "heads": False, "features": True},
    "truth_only": {"supervision": "truth", "heads": False, "features": False},
}
FIGURES = (
    "agreement_iou",
    "agreement_iou_labelled",
    "agreement_iou_withheld",
    "agreement_presence",
    "agreement_presence_withheld",
    "score_gap",
    "miou_student",
    "presence_balanced_accuracy",
    "prompt_sensitivity",
)


def main() -> None:
    """Train, tabulate, print."""
    path = ROOT / "benchmarks/results/sam3_controls.csv"
    path.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in PARTS:
            shutil.copytree(ROOT / part, copy / part)
        shutil.copy(ROOT / "dvc.yaml", copy)
        rows: list[dict[str, object]] = []
        for seed in sys.argv[1:]:
            rows += _train(copy, int(seed))
            pd.DataFrame(rows).to_csv(path, index=False, float_format="%.4f")
    print(summary(pd.DataFrame(rows)).to_string(float_format=lambda value: f"{value:.3f}"))


def _train(copy: Path, seed: int) -> Iterator[dict[str, object]]:
    params = load_yaml(ROOT / "params.yaml")
    for student in STUDENTS:
        judged = {**params["sam3_evaluation"], "student": student, "truth_only": student}
        changed = {"seed": seed, "sam3_students": STUDENTS, "sam3_evaluation": judged}
        (copy / "params.yaml").write_text(yaml.safe_dump({**params, **changed}))
        for name, *item in (["distill_sam3", student], ["evaluate_sam3"]):
            environment = {**os.environ, "BRAID_SCRATCH": str(copy / "scratch")}
            command = [sys.executable, "-m", f"stages.{name}", *item]
            subprocess.run(command, cwd=copy, env=environment, check=True)
        figures = json.loads((copy / "metrics/sam3.json").read_text())
        yield {"seed": seed, "student": student, **{key: figures[key] for key in FIGURES}}


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds; of the agreement also its gain over `truth_only`, seed by seed."""
    means = table.groupby("student", sort=False)[list(FIGURES)].mean()
    agreement = table.pivot(index="seed", columns="student", values="agreement_iou")
    for student in means.index:
        gain = agreement[student] - agreement["truth_only"]
        half = (
            stats.t.ppf(0.975, len(gain) - 1) * stats.sem(gain) if len(gain) > 1 else float("nan")
        )
        means.loc[student, ["gain", "low", "high"]] = [
            gain.mean(),
            gain.mean() - half,
            gain.mean() + half,
        ]
    return means


if __name__ == "__main__":
    main()
