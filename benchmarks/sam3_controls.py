"""Is it distillation? Students of one teacher against controls, over seeds.

    python -m benchmarks.sam3_controls 0 1 2

needs the images, the teacher and its cache (`dvc repro cache_teacher`). In a temporary copy of the
repository it trains each student once per seed, for as many steps, and writes how far each agrees
with the teacher on held-out images to benchmarks/results/sam3_controls.csv:

    distilled      as params.yaml has it
    no_features    without the fpn and encoder terms
    no_heads       heads of its own, none of the teacher's weights
    truth_only     no teacher at all: the annotations of the labeled prompts

Withheld prompts name objects whose ground truth no student was shown. The control knows nothing of
them; the others were trained on the teacher's predictions.
"""

from __future__ import annotations

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
    "truth_only": {"supervision": "ground_truth", "heads": False, "features": False},
}
OVERALL = (
    "agreement_iou",
    "agreement_presence",
    "score_gap",
    "iou",
    "presence_balanced_accuracy",
    "prompt_sensitivity",
)
BY_SPLIT = {"labeled": ("agreement_iou",), "withheld": ("agreement_iou", "agreement_presence")}


def main() -> None:
    """Train, tabulate, print."""
    path = ROOT / "benchmarks/results/sam3_controls.csv"
    path.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in PARTS:
            shutil.copytree(ROOT / part, copy / part)
        for file in ("dvc.yaml", "built_in", "none"):
            shutil.copy(ROOT / file, copy)
        rows: list[dict[str, object]] = []
        for seed in sys.argv[1:]:
            rows += _train(copy, int(seed))
            pd.DataFrame(rows).to_csv(path, index=False, float_format="%.4f")
    print(summary(pd.DataFrame(rows)).to_string(float_format=lambda value: f"{value:.3f}"))


def _train(copy: Path, seed: int) -> Iterator[dict[str, object]]:
    params = load_yaml(ROOT / "params.yaml")
    environment = {**os.environ, "BRAID_SCRATCH": str(copy / "scratch")}
    for student in STUDENTS:
        evaluation = {**params["sam3"]["evaluation"], "student": student, "truth_only": student}
        sam3 = {**params["sam3"], "students": STUDENTS, "evaluation": evaluation}
        changed = {**params, "seed": seed, "sam3": sam3}
        (copy / "params.yaml").write_text(yaml.safe_dump(changed))
        for name, *item in (["distill_sam3", student], ["evaluate_sam3"]):
            command = [sys.executable, "-m", f"stages.{name}", *item]
            subprocess.run(command, cwd=copy, env=environment, check=True)
        yield {"seed": seed, "student": student, **_metrics(copy)}


def _metrics(copy: Path) -> dict[str, object]:
    """Those of the student, of all prompts and of each split."""
    models = pd.read_csv(copy / "plots/sam3_methods.csv", index_col="model")
    splits = pd.read_csv(copy / "metrics/tables/sam3_splits.csv", index_col=["model", "split"])
    return {name: models.loc["student", name] for name in OVERALL} | {
        f"{name}_{split}": splits.loc[("student", split), name]
        for split, names in BY_SPLIT.items()
        for name in names
    }


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds; of the agreement also its gain over `truth_only`, seed by seed."""
    means = table.drop(columns="seed").groupby("student", sort=False).mean()
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
