"""Compare the student with its teacher and with ground truth, beside controls and baselines.

Writes metrics/sam3.json, tables of all models, the calibration curve and a figure of examples.
Fifteen seconds for the built-in images.
"""

from braid.common.rng import generator
from braid.segmentation.cache.cache import open_cache
from braid.segmentation.data.prompted import open_prompted, prompt_batch
from braid.segmentation.evaluation import evaluator as models
from braid.segmentation.evaluation import report
from braid.segmentation.evaluation.evaluator import latencies, reliability
from braid.segmentation.evaluation.report import draw_examples, examples_of, select
from braid.segmentation.sam3.checkpoint import load_teacher
from braid.segmentation.sam3.predictor import Predictor
from braid.stage.context import open_stage
from braid.training.distributed import working


def main() -> None:
    """Run the stage."""
    with open_stage("evaluate_sam3") as stage:
        config, seed, device = stage.params.sam3.evaluation, stage.params.seed, stage.device()
        precision = stage.params.hardware.precision
        prompted = open_prompted(stage.dep("data/sa1b"), cache_mib=stage.params.sam3.data.cache_mib)
        pairs = prompted.pairs(config.split)
        teacher = load_teacher(stage.dep("models/sam3_teacher"), device)
        encoded = open_cache(stage.dep("data/teacher_cache")).texts
        predictors = {models.TEACHER: Predictor(teacher, encoded, device, precision)}
        names = config.student, config.truth_only
        student, control = (stage.dep(f"models/sam3_student/{name}") for name in names)
        parts = prompted.texts(pairs), generator(seed, "untrained"), device, precision
        predictors |= models.student_predictors(student, control, *parts)

        evaluator = models.Evaluator(prompted, predictors, config, device)
        with working() as process:
            evaluations = evaluator.evaluate(pairs, generator(seed, "strangers"), stage.scratch())
        if not process.is_main:
            return
        metrics = report.model_metrics(evaluations, config.bins)
        of_student = evaluations[models.STUDENT]
        rows = report.model_rows(metrics, predictors, len(pairs))
        stage.write_table("plots/sam3_methods.csv", rows)
        splits, kinds = report.group_rows(evaluations, [prompted.prompt(pair) for pair in pairs])
        stage.write_table("metrics/tables/sam3_splits.csv", splits)
        stage.write_table("metrics/tables/sam3_kinds.csv", kinds)
        bins = reliability(*of_student.scored[:2], config.bins).rows()
        stage.write_table("plots/sam3_calibration.csv", bins)
        stage.write_metrics(report.headline(metrics))

        folder = stage.out("plots/sam3_evaluation")
        folder.mkdir()
        selected = select(prompted, pairs, of_student.by_teacher, config.pictures)
        draw_examples(folder / "examples.png", examples_of(evaluator, selected))
        timed, first = models.timed_predictors(predictors), prompt_batch(prompted, pairs[:1])
        stage.runtime["latency"] = latencies(timed, first, config.latency_runs)


if __name__ == "__main__":
    main()
