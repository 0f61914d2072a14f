"""Several models on the same prompts, each compared with ground truth and with the teacher.

Images are taken a few at a time; of each batch nothing but sums and scores is kept, so the memory
hardly grows with the images. Beside the models stand two that predict nothing of their own:

    truth           agrees with the teacher as much as a student can that knows the truth alone
    random_teacher  the teacher's detections for random prompts of other images: what chance scores
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from braid.common.progress import progress
from braid.common.rng import seed_global_stream
from braid.segmentation.config import EvaluationConfig
from braid.segmentation.data.prompted import (
    Pair,
    PromptedImages,
    image_batches,
    images_of,
    prompt_batch,
)
from braid.segmentation.evaluation.calibration import Scored, joined_scores, score_masks
from braid.segmentation.evaluation.cost import fused, quantized
from braid.segmentation.metrics.agreement import (
    Detections,
    Table,
    compare,
    joined,
    predicted_detections,
    true_detections,
)
from braid.segmentation.metrics.cgf1 import concept_counts
from braid.segmentation.sam3.predictor import Predictor
from braid.segmentation.sam3.tokens import load_tokenizer
from braid.segmentation.student.student import build_student, load_student

TEACHER, STUDENT, TRUTH_ONLY = "teacher", "student", "truth_only"
UNTRAINED, INT8 = "untrained", "int8"
RANDOM_TEACHER, TRUTH = "random_teacher", "truth"


def student_predictors(
    student: Path,  # folder of the student
    control: Path,  # folder of the student that learned from ground truth alone
    texts: Sequence[str],  # of the prompts to come
    generator: torch.Generator,  # of the fresh weights
    device: torch.device,
    precision: str,
) -> dict[str, Predictor]:
    """The student, its control, its fresh weights, and its quantized copy, which runs on the CPU.

    Raises:
        ValueError: a file of a student is missing or broken.
    """
    trained, truth_only = load_student(student), load_student(control)
    words, control_words = (load_tokenizer(folder / "tokenizer") for folder in (student, control))
    seed_global_stream(generator)
    untrained, int8 = build_student(trained.recipe), quantized(trained)
    where = (device, precision)
    return {
        STUDENT: Predictor.of(trained, texts, words, *where),
        TRUTH_ONLY: Predictor.of(truth_only, texts, control_words, *where),
        UNTRAINED: Predictor.of(untrained, texts, words, *where),
        INT8: Predictor.of(int8, texts, words, torch.device("cpu")),
    }


def timed_predictors(predictors: Mapping[str, Predictor]) -> dict[str, Predictor]:
    """Those whose latency counts, and the student with its backbone's branches folded."""
    student = predictors[STUDENT]
    folded = Predictor(fused(student.model), student.texts, student.device, student.precision)
    return {name: predictors[name] for name in (TEACHER, STUDENT, INT8)} | {"fused": folded}


@dataclass(frozen=True)
class Evaluation:
    """How one model did; P prompts, N masks."""

    by_truth: Table  # [P] each, of `compare`
    by_teacher: Table
    concepts: Table  # [P] each, of `concept_counts`
    scored: Scored  # [N] each
    sensitivity: Tensor  # [images that have prompts of different ground truth]

    @staticmethod
    def joined(parts: Sequence[Evaluation]) -> Evaluation:
        """That of all parts."""
        return Evaluation(
            joined([part.by_truth for part in parts]),
            joined([part.by_teacher for part in parts]),
            joined([part.concepts for part in parts]),
            joined_scores([part.scored for part in parts]),
            torch.cat([part.sensitivity for part in parts]),
        )


class Evaluator:
    """The models, and how their predictions are compared."""

    def __init__(
        self,
        prompted: PromptedImages,
        predictors: Mapping[str, Predictor],  # `teacher` among them
        config: EvaluationConfig,
        device: torch.device,
    ) -> None:
        self.prompted, self.predictors = prompted, dict(predictors)
        self.config, self.device = config, device

    def detections(self, pairs: Sequence[Pair]) -> tuple[Detections, dict[str, Detections]]:
        """Ground truth, and every model's detections, in the order of the pairs."""
        score, size = self.config.score, self.config.mask_size
        truth = true_detections(self.prompted.ground_truth(pairs, size).to(self.device))
        batch = prompt_batch(self.prompted, pairs)
        return truth, {
            name: predicted_detections(predictor(batch).to(self.device), score=score, size=size)
            for name, predictor in self.predictors.items()
        }

    def evaluate(
        self,
        pairs: Sequence[Pair],  # those of an image follow one another
        generator: torch.Generator,  # on the CPU
    ) -> dict[str, Evaluation]:
        """Every model and the two beside them; rows of the tables in the order of the pairs.

        Raises:
            ValueError: fewer than two images have prompts.
        """
        count = len(images_of(pairs)[0])
        if count < 2:  # the random teacher predicts for another image
            raise ValueError(f"held-out images with prompts: {count}, expected 2 or more")
        parts: dict[str, list[Evaluation]] = {}
        batches = image_batches(pairs, self.config.images)
        for batch in progress(batches, "evaluate", "batch"):
            truth, by_model = self.detections(batch)
            owner, teacher = images_of(batch)[1], by_model[TEACHER]
            others = other_images(owner, generator).to(self.device)
            by_model |= {TRUTH: truth, RANDOM_TEACHER: teacher.take(others)}
            for name, detections in by_model.items():
                part = Evaluation(
                    compare(detections, truth),
                    compare(detections, teacher),
                    concept_counts(detections, truth),
                    score_masks(detections, truth),
                    prompt_sensitivity(detections, truth, owner.to(self.device)).cpu(),
                )
                parts.setdefault(name, []).append(part)
        return {name: Evaluation.joined(of_model) for name, of_model in parts.items()}


def other_images(
    owner: Tensor,  # [B]
    generator: torch.Generator,
) -> Tensor:
    """For each prompt a random one of another image, of which the batch has one or more, [B]."""
    draw = torch.rand(len(owner), len(owner), generator=generator)
    return draw.masked_fill(owner[:, None] == owner, -1.0).argmax(dim=1)


# ---- Whether a model is conditioned on its prompt: do prompts change the masks on one image ----
# A model that ignores its prompt can score well wherever most prompts mean the same thing. So for
# every two prompts of an image whose ground truths differ, the Jaccard distance of what is detected
# for them,
#
#     1 - |A and B| / |A or B|      (0 if both are empty),
#
# is taken: 0 for a model that always predicts alike. The distances of the ground truth itself tell
# how much of it there should be.


def prompt_sensitivity(
    detections: Detections,
    truth: Detections,
    owner: Tensor,  # [B] image of each prompt
) -> Tensor:
    """The mean distance over its pairs of prompts for each image that has such a pair, [images].

    Prompts whose ground truth is unknown are left out.
    """
    predicted, true, means = detections.union.flatten(1), truth.union.flatten(1), []
    for image in owner.unique():
        rows = ((owner == image) & truth.known).nonzero()[:, 0]
        differ = jaccard_distances(true[rows]).triu() > 0
        if differ.any():
            means.append(jaccard_distances(predicted[rows])[differ].mean())
    return torch.stack(means) if means else predicted.new_zeros(0, dtype=torch.float32)


def jaccard_distances(
    masks: Tensor,  # [N, P] bool
) -> Tensor:
    """Of every mask to every one, [N, N] in [0, 1]."""
    values = masks.float()
    area, common = values.sum(dim=1), values @ values.mT
    union = area[:, None] + area - common
    return (union - common) / union.clamp_min(1)
