"""Judge the student by its teacher's answers and by the truth, beside controls and baselines.

Writes metrics/sam3.json, a table of models, the calibration curve and pictures of answers. Fifteen
seconds for the built-in images.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch

from braid.common.rng import generator, seed_global_stream
from braid.segmentation.data.prompted import PromptedImages, open_prompted
from braid.segmentation.evaluation.agreement import reliability
from braid.segmentation.evaluation.cost import MEGABYTE, fused, latencies, megabytes, quantised
from braid.segmentation.evaluation.evaluation import (
    TEACHER,
    Panel,
    Respondent,
    question,
    respondent,
)
from braid.segmentation.evaluation.pictures import answers_picture, choose, shown
from braid.segmentation.evaluation.report import (
    INT8,
    STUDENT,
    TRUTH_ONLY,
    UNTRAINED,
    flattened,
    null_reason,
    report,
    verdict,
)
from braid.segmentation.sam3.tokens import load_tokenizer
from braid.segmentation.student.student import build_student, load_student
from braid.segmentation.teacher.cache import open_cache
from braid.segmentation.teacher.teacher import load_teacher
from braid.stage.context import Stage, open_stage
from braid.stage.records import read_json
from braid.training.device import set_up


def main() -> None:
    """Run the stage."""
    with open_stage("evaluate_sam3") as stage:
        hardware, seed = stage.params.hardware, stage.params.seed
        settings = stage.params.sam3_evaluation
        device = set_up(hardware.device, hardware.threads, seed)
        prompted = open_prompted(stage.dep("data/sa1b"), cache_mib=stage.params.sa1b.cache_mib)
        models = _respondents(stage, prompted, device)
        panel = Panel(
            prompted, models, score=settings.score, size=settings.mask_size, device=device
        )
        pairs = prompted.pairs("val")
        judged = panel.judge(pairs, images=settings.images, generator=generator(seed, "strangers"))

        labelled = torch.tensor([prompted.prompt(pair).labelled for pair in pairs])
        found = report(judged, labelled, settings.bins)
        counts = {"prompts": len(pairs), "prompts_withheld": int((~labelled).sum())}
        flat = flattened(found)
        texts = {"status": verdict(found), "null_reason": null_reason(flat)}
        stage.write_metrics({**flat, **_sizes(models), **counts, **texts})
        rows = [{"model": name, **each} for name, each in found.items()]
        stage.write_curve("plots/sam3_methods.csv", rows, ["model", *found[STUDENT]])
        scores, right, _ = judged[STUDENT].scored
        calibration = reliability(scores, right, settings.bins)
        stage.write_curve("plots/sam3_calibration.csv", calibration.rows())
        by_teacher = judged[STUDENT].by_teacher
        chosen = choose(prompted, pairs, by_teacher, settings.pictures)
        folder = stage.out("plots/sam3_evaluation")
        folder.mkdir()
        answers_picture(
            folder / "answers.png", shown(panel, chosen, (TEACHER, STUDENT, TRUTH_ONLY))
        )
        timed = {name: models[name] for name in (TEACHER, STUDENT, INT8)}
        timed["fused"] = replace(models[STUDENT], model=fused(models[STUDENT].model))
        stage.runtime |= latencies(timed, question(prompted, pairs[:1]), settings.latency_runs)
        stage.runtime |= _training(read_json(stage.dep("metrics/runtime/distill_sam3")))


def _respondents(
    stage: Stage, prompted: PromptedImages, device: torch.device
) -> dict[str, Respondent]:
    """All that is judged; a quantised model runs on the CPU and in its own precision."""
    settings, precision = stage.params.sam3_evaluation, stage.params.hardware.precision
    asked = [prompted.prompt(pair).text for pair in prompted.pairs("val")]
    place, control = (
        stage.dep(f"models/sam3_student/{name}") for name in (settings.student, settings.truth_only)
    )
    student, words = load_student(place), load_tokenizer(place / "tokenizer")
    seed_global_stream(generator(stage.params.seed, "untrained"))
    untrained, int8 = build_student(student.recipe), quantised(student)
    truth_only, its_words = load_student(control), load_tokenizer(control / "tokenizer")
    teacher = load_teacher(stage.dep("models/sam3_teacher"), device)
    texts = open_cache(stage.dep("data/teacher_cache")).texts
    return {
        TEACHER: Respondent(teacher, texts, device, precision),
        STUDENT: respondent(student, asked, words, device, precision),
        TRUTH_ONLY: respondent(truth_only, asked, its_words, device, precision),
        UNTRAINED: respondent(untrained, asked, words, device, precision),
        INT8: respondent(int8, asked, words, torch.device("cpu")),
    }


def _sizes(models: Mapping[str, Respondent]) -> dict[str, float]:
    """Parameters, and millions of bytes."""
    sizes: dict[str, float] = {"int8_mb": megabytes(models[INT8].model)}
    for name, suffix in {STUDENT: "", TEACHER: "_teacher"}.items():
        params = sum(each.numel() for each in models[name].model.parameters())
        sizes |= {f"params{suffix}": params, f"fp16_mb{suffix}": 2 * params / MEGABYTE}
    return sizes


def _training(runtime: Mapping[str, float]) -> dict[str, float]:
    """What a step of the student's training took in each phase, in milliseconds."""
    ending = "_steps_per_second"
    paces = {
        key.removesuffix(ending): each for key, each in runtime.items() if key.endswith(ending)
    }
    return {f"step_ms_{phase}": 1000 / each for phase, each in paces.items() if each}


if __name__ == "__main__":
    main()
