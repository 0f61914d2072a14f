"""Is it distillation? Students of one teacher against controls, over seeds.

    python -m benchmarks.sam3_controls 0 1 2

needs the images, the teacher and its cache (`dvc repro cache_teacher`). In a temporary copy of the
repository it trains each student once per seed, all for as many steps, and writes how each does on
test images to benchmarks/results/sam3_controls.csv, a row as soon as it is there, and the means
beside it; `--students` trains some of them, and leaves the rows of the others as they are. One
thing differs from the row above, or from the first one:

    distilled          as params.yaml has it
    truth_heads        ground truth of the labeled prompts instead of the teacher's predictions
    truth_no_heads     the same without the teacher's heads to start from
    no_features        distilled without the terms of features
    no_heads           distilled without the teacher's heads to start from
    both               distilled, and ground truth of the labeled prompts as well

Withheld prompts name objects whose ground truth no student was shown. The controls know nothing of
them; the others were trained on the teacher's predictions.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from benchmarks.seeds import ROOT, copy_parts, half_width, run_stage
from braid.common.rng import generator
from braid.segmentation.cache.cache import open_cache
from braid.segmentation.data.prompted import open_prompted
from braid.segmentation.evaluation.evaluator import STUDENT, TEACHER, Evaluator
from braid.segmentation.evaluation.report import group_rows, model_metrics
from braid.segmentation.sam3.checkpoint import load_teacher
from braid.segmentation.sam3.predictor import Predictor, load_tokenizer
from braid.segmentation.student.student import load_student
from braid.stage.params import Params, check_params, load_yaml
from braid.training.device import set_up

PARTS = ("data/sa1b", "data/teacher_cache", "models/sam3_teacher")
STUDENTS = {
    "distilled": {"supervision": "teacher", "heads": True, "features": True},
    "truth_heads": {"supervision": "ground_truth", "heads": True, "features": False},
    "truth_no_heads": {"supervision": "ground_truth", "heads": False, "features": False},
    "no_features": {"supervision": "teacher", "heads": True, "features": False},
    "no_heads": {"supervision": "teacher", "heads": False, "features": True},
    "both": {"supervision": "both", "heads": True, "features": True},
}
CONTROL = "truth_heads"
RESULTS = ROOT / "benchmarks/results/sam3_controls.csv"
MEANS = RESULTS.with_stem("sam3_controls_means")
OVERALL = (
    "agreement_iou",
    "agreement_presence",
    "score_gap_signed",
    "iou",
    "iou_ratio",
    "cgf1",
    "cgf1_ratio",
    "presence_balanced_accuracy",
    "prompt_sensitivity",
    "ece",
)
BY_SPLIT = {"labeled": ("agreement_iou",), "withheld": ("agreement_iou", "agreement_presence")}


def main() -> None:
    """Train, tabulate, print."""
    parser = argparse.ArgumentParser("benchmarks.sam3_controls")
    parser.add_argument("seeds", nargs="+", type=int)
    parser.add_argument("--students", nargs="+", choices=STUDENTS, default=[*STUDENTS])
    options = parser.parse_args()
    RESULTS.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        copy, params = Path(folder), load_yaml(ROOT / "params.yaml")
        copy_parts(copy, PARTS)
        for student in options.students:
            for seed in options.seeds:
                write({"seed": seed, "student": student, **_trained(copy, params, student, seed)})
    print(pd.read_csv(MEANS, index_col="student").to_string())


def write(row: dict[str, object]) -> None:
    """Put a row into the table, for that of an earlier run, and take the means anew."""
    earlier = pd.read_csv(RESULTS) if RESULTS.is_file() else pd.DataFrame(columns=[*row])
    same = (earlier["seed"] == row["seed"]) & (earlier["student"] == row["student"])
    table = pd.concat([earlier[~same], pd.DataFrame([row])])
    order = table["student"].map([*STUDENTS].index)
    table = table.assign(order=order).sort_values(["order", "seed"]).drop(columns="order")
    table.to_csv(RESULTS, index=False, float_format="%.4f")
    summary(table).to_csv(MEANS, float_format="%.4f")


def _trained(copy: Path, params: Mapping[str, Any], student: str, seed: int) -> dict[str, object]:
    evaluation = {**params["sam3"]["evaluation"], "student": student, "truth_only": student}
    sam3 = {**params["sam3"], "students": STUDENTS, "evaluation": evaluation}
    changed = {**params, "seed": seed, "sam3": sam3}
    (copy / "params.yaml").write_text(yaml.safe_dump(changed))
    run_stage(copy, "distill_sam3", student)
    return _metrics(copy, check_params(changed, "params.yaml"), student)


def _metrics(copy: Path, params: Params, student: str) -> dict[str, object]:
    """Those of the student, of all prompts and of each split, as the stage evaluate_sam3 has them.

    No other model but the teacher is evaluated, which takes a third of the stage's time.
    """
    config, hardware = params.sam3.evaluation, params.hardware
    device = set_up(hardware.device, hardware.threads, params.seed)
    prompted = open_prompted(copy / "data/sa1b", cache_mib=params.sam3.data.cache_mib)
    pairs, folder = prompted.pairs(config.split), copy / "models/sam3_student" / student
    teacher = load_teacher(copy / "models/sam3_teacher", device)
    texts = open_cache(copy / "data/teacher_cache").texts
    where = (device, hardware.precision)
    words = load_tokenizer(folder / "tokenizer")
    predictors = {
        TEACHER: Predictor(teacher, texts, *where),
        STUDENT: Predictor.of(load_student(folder), prompted.texts(pairs), words, *where),
    }
    evaluator = Evaluator(prompted, predictors, config, device)
    evaluations = evaluator.evaluate(pairs, generator(params.seed, "strangers"))
    metrics = model_metrics(evaluations, config.bins)[STUDENT]
    rows, _ = group_rows(evaluations, [prompted.prompt(pair) for pair in pairs])
    splits = {row["split"]: row for row in rows if row["model"] == STUDENT}
    return {name: metrics[name] for name in OVERALL} | {
        f"{name}_{split}": splits[split][name]
        for split, names in BY_SPLIT.items()
        for name in names
    }


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds; of agreement, presence and IoU also what is left of the control's, seed by
    seed, with the half width of its 95 % interval (Student's t)."""
    groups = table.drop(columns="seed").groupby("student", sort=False)
    means = groups.mean()
    means.insert(0, "seeds", groups.size())
    for metric in ("agreement_iou", "presence_balanced_accuracy", "iou"):
        values = table.pivot(index="seed", columns="student", values=metric)
        values = values.reindex(columns=[*STUDENTS])  # those that did not run yet are missing
        for student in means.index:
            gain = (values[student] - values[CONTROL]).dropna()
            own = [f"{metric}_gain", f"{metric}_half"]
            means.loc[student, own] = [gain.mean(), half_width(gain)]
    return means


if __name__ == "__main__":
    main()
