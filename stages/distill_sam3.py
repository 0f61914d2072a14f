"""Train a student on the teacher's answers, or on the truth alone, in the phases of params.yaml.

Writes models/sam3_student/<student>. A minute for the built-in images.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from braid.segmentation.config import Sam3Distill, Sam3Phase
from braid.segmentation.data.prompted import Pair, PromptedImages, open_prompted
from braid.segmentation.distillation.distillation import (
    Distillation,
    FromTeacher,
    FromTruth,
    Supervision,
    measure_batch_norm,
)
from braid.segmentation.distillation.losses import DistillationLoss
from braid.segmentation.distillation.matching import Matcher
from braid.segmentation.sam3.tokens import load_tokenizer, word_tokenizer, words_in
from braid.segmentation.student.student import (
    StudentRecipe,
    build_student,
    freeze_batch_norm,
    heads_of,
    initialise_heads,
    save_student,
)
from braid.segmentation.supervised.batches import Epochs, Questions
from braid.segmentation.supervised.loss import TruthLoss
from braid.segmentation.teacher.answers import context
from braid.segmentation.teacher.cache import open_answers
from braid.segmentation.teacher.teacher import load_teacher
from braid.stage.card import Pace
from braid.stage.context import Stage, open_stage
from braid.training.device import set_up
from braid.training.distributed import Process, joined, launched
from braid.training.trainer import Optimisation, optimise

JUDGED = 256  # held-out prompts


def main() -> None:
    """Run the stage."""
    with open_stage("distill_sam3") as stage:
        process, hardware, seed = launched(), stage.params.hardware, stage.params.seed
        device = set_up(hardware.device, hardware.threads, seed, process.local_rank)
        recipe, training = stage.params.sam3_distill, stage.params.sam3_students[stage.item[0]]
        images = open_prompted(stage.dep("data/sa1b"), cache_mib=stage.params.sa1b.cache_mib)
        # The truth is shown for labelled prompts alone; a teacher answers any.
        shown = None if training.supervision == "teacher" else True
        train = images.pairs("train", labelled=shown, known=shown)
        teacher = load_teacher(stage.dep("models/sam3_teacher"), drop_text=True)
        answers = open_answers(stage.dep("data/teacher_cache"), images, teacher, device)
        _check_features(stage, answers.kept.levels)
        student, tokenizer, inherited = _student(stage, images, teacher, answers)
        del teacher

        questions = Questions(images, train, tokenizer, student.recipe.context, device)
        if stage.params.sam3_student.backbone_weights is None:
            measure_batch_norm(student.to(device), questions, recipe.images, seed)
        freeze_batch_norm(student.to(device).train())

        def supervision(phase: Sam3Phase) -> Supervision:
            if training.supervision == "truth":
                return FromTruth(images, TruthLoss())
            return FromTeacher(answers, _loss(stage), features=training.features and phase.features)

        judged = images.pairs("val", labelled=shown, known=shown)[:JUDGED]
        with joined(process, device):
            rows, figures = _train(stage, student, questions, judged, supervision, device, process)
        save_student(stage.out("models/sam3_student"), student.eval(), tokenizer)
        stage.write_curve("plots/sam3", rows)
        counts = {"images": len(questions.of_image), "prompts": len(train)}
        stage.write_metrics({**figures, **counts, **inherited})


def _train(
    stage: Stage,
    student: Any,
    questions: Questions,
    judged: list[Pair],  # held-out prompts
    supervision: Callable[[Sam3Phase], Supervision],
    device: torch.device,
    process: Process,
) -> tuple[list[dict[str, float | str]], dict[str, float]]:
    """All phases, one after the other; the curve, and the loss of held-out prompts around each."""
    recipe, seed = stage.params.sam3_distill, stage.params.seed
    precision, at_once = stage.params.hardware.precision, recipe.images * recipe.prompts
    rows: list[dict[str, float | str]] = []
    figures: dict[str, float] = {}
    for name, phase in stage.params.sam3_phases.items():
        shares = {"batch": recipe.images, "accumulate": recipe.accumulate}
        images = sorted(questions.of_image)
        epochs = Epochs(images, **shares, seed=seed, phase=name, process=process)
        told = supervision(phase)
        objective = Distillation(student, questions, told, epochs, recipe.prompts)
        pace, before = Pace(), objective.judged(judged, at_once, precision)
        result = optimise(
            objective,
            _optimisation(recipe, phase),
            steps=phase.epochs * epochs.steps,
            precision=precision,
            **stage.params.cadence.model_dump(),
            seed=seed,
            device=device,
            process=process,
            checkpoint=stage.scratch() / f"{name}.pt",
            hooks={"pace": pace},
            on_log=stage.logger(),
        )
        after = objective.judged(judged, at_once, precision)
        done = sum(int(value) for key, value in figures.items() if key.endswith("_steps"))
        rows += [{**row, "step": done + row["step"], "phase": name} for row in result.history]
        figures |= {f"{name}_steps": phase.epochs * epochs.steps}
        figures |= {f"{name}_{term}_before": value for term, value in before.items()}
        figures |= {f"{name}_{term}_after": value for term, value in after.items()}
        stage.runtime[f"{name}_steps_per_second"] = pace.per_second()
    return rows, figures


def _check_features(stage: Stage, levels: int) -> None:
    """Features that a phase wants have to be there."""
    training = stage.params.sam3_students[stage.item[0]]
    wanting = [name for name, phase in stage.params.sam3_phases.items() if phase.features]
    if training.supervision == "teacher" and training.features and wanting and not levels:
        raise ValueError(
            f"sam3_phases.{wanting[0]}.features is true, but the cache holds none: expected "
            "sam3_cache.mode full or online"
        )


def _student(
    stage: Stage, images: PromptedImages, teacher: Any, answers: Any
) -> tuple[Any, Any, dict[str, int]]:
    """A fresh student, its tokenizer, and how much of it is the teacher's."""
    settings = stage.params.sam3_student
    folder = settings.tokenizer
    # A student's tokens are its own: they need not be those of the teacher.
    words = words_in(prompt.text for prompts in images.prompts for prompt in prompts)
    length = context(teacher)
    tokenizer = load_tokenizer(Path(folder)) if folder else word_tokenizer(words, length=length)
    recipe = StudentRecipe(
        heads=heads_of(teacher),
        vocabulary=len(tokenizer),
        context=length,
        **settings.model_dump(exclude={"tokenizer", "backbone_weights"}),
    )
    student = build_student(recipe, settings.backbone_weights)
    inherited = 0
    if stage.params.sam3_students[stage.item[0]].heads:
        inherited = initialise_heads(student, teacher, answers.query_usage()).parameters
    parameters = sum(each.numel() for each in student.parameters())
    return student, tokenizer, {"parameters": parameters, "inherited_parameters": inherited}


def _loss(stage: Stage) -> DistillationLoss:
    """The eight terms."""
    matcher = Matcher(**stage.params.sam3_matching.model_dump())
    return DistillationLoss(matcher, **stage.params.sam3_losses.model_dump())


def _optimisation(recipe: Sam3Distill, phase: Sam3Phase) -> Optimisation:
    """AdamW under a cosine of the phase's own."""
    shared = recipe.model_dump(include={"weight_decay", "accumulate", "clip_norm", "ema_decay"})
    return Optimisation(lr=phase.lr, lr_floor=0.0, warmup=phase.warmup, fused=True, **shared)


if __name__ == "__main__":
    main()
