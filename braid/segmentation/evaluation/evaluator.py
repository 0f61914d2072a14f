"""Several models on the same prompts, each compared with ground truth and with the teacher.

Images are taken a few at a time; of each batch nothing but sums and scores is kept, so the memory
hardly grows with the images. Beside the models stand two that predict nothing of their own:

    truth           agrees with the teacher as much as a student can that knows the truth alone
    random_teacher  the teacher's detections for random prompts of other images: what chance scores
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from braid.common.rng import seed_global_stream
from braid.common.timing import timed
from braid.segmentation.config import EvaluationConfig
from braid.segmentation.data.prompted import (
    Pair,
    PromptBatch,
    PromptedImages,
    image_batches,
    images_of,
    prompt_batch,
)
from braid.segmentation.metrics.agreement import (
    SAME,
    Detections,
    Table,
    compare,
    concept_counts,
    joined,
    mask_iou,
    predicted_detections,
    ratio,
    true_detections,
)
from braid.segmentation.sam3.predictor import Predictor, load_tokenizer
from braid.segmentation.student.student import build_student, load_student
from braid.training.distributed import shared

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

    def state(self) -> dict[str, Any]:
        """All of it on the CPU, as plain values and tensors."""
        whole = Evaluation.joined([self])
        return {**vars(whole), "scored": tuple(whole.scored)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Evaluation:
        """The reverse of `state`."""
        return cls(**{**state, "scored": Scored(*state["scored"])})

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
        scratch: Path | None = None,  # where several processes share the batches
    ) -> dict[str, Evaluation]:
        """Every model and the two beside them; rows of the tables in the order of the pairs.

        Of several processes the first gets them, the others nothing. A batch that a killed run left
        in its scratch folder is not evaluated again.

        Raises:
            ValueError: fewer than two images have prompts.
        """
        count = len(images_of(pairs)[0])
        if count < 2:  # the random teacher predicts for another image
            raise ValueError(f"held-out images with prompts: {count}, expected 2 or more")
        batches = image_batches(pairs, self.config.images)
        others = [other_images(images_of(batch)[1], generator) for batch in batches]

        def evaluated(number: int) -> dict[str, Any]:
            parts = self._evaluate(batches[number], others[number])
            return {name: part.state() for name, part in parts.items()}

        names = [f"batch{number:05d}.pt" for number in range(len(batches))]
        parts: dict[str, list[Evaluation]] = {}
        for by_model in shared(names, evaluated, scratch, "evaluate", "batch"):
            for name, state in by_model.items():
                parts.setdefault(name, []).append(Evaluation.from_state(state))
        return {name: Evaluation.joined(of_model) for name, of_model in parts.items()}

    def _evaluate(self, batch: Sequence[Pair], others: Tensor) -> dict[str, Evaluation]:
        truth, by_model = self.detections(batch)
        owner, teacher = images_of(batch)[1], by_model[TEACHER]
        random_teacher = teacher.take(others.to(self.device))
        by_model |= {TRUTH: truth, RANDOM_TEACHER: random_teacher}
        return {
            name: Evaluation(
                compare(detections, truth),
                compare(detections, teacher),
                concept_counts(detections, truth),
                score_masks(detections, truth),
                prompt_sensitivity(detections, truth, owner.to(self.device)).cpu(),
            )
            for name, detections in by_model.items()
        }


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


# ---- Calibration: does a score of 0.8 mean that 8 of 10 such masks are right? ----------------
# A mask is right if it is the surest among those that overlap a true instance by an IoU of at least
# 1/2, as in the greedy matching of COCO's average precision; a duplicate is wrong. The expected
# calibration error of Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, eq. 5, is
# the mean distance of score and fraction of right masks over bins of equal width, weighted by their
# counts. Most queries of a DETR detect nothing and say so, which makes it small; the same error of
# the detected masks alone stands beside it.


class Scored(NamedTuple):
    """N masks of prompts whose ground truth is known."""

    scores: Tensor  # [N] in [0, 1]
    right: Tensor  # [N] bool
    detected: Tensor  # [N] bool


def score_masks(detections: Detections, truth: Detections) -> Scored:
    """Which of all masks, detected or not, are right."""
    iou = mask_iou(detections, truth) * truth.detected[:, None, :]
    best, instance = _best(iou)
    hits = best >= SAME
    rivals = torch.where(hits, detections.scores, -1.0)
    same = instance[:, :, None] == instance[:, None, :]  # [B, Q, Q] overlap one instance most
    surest = rivals[:, None, :].masked_fill(~same, -1.0).argmax(dim=2)
    right = hits & (surest == torch.arange(hits.shape[1], device=hits.device))
    columns = (detections.scores, right, detections.detected)
    return Scored(*(column[truth.known].flatten().cpu() for column in columns))


def _best(iou: Tensor) -> tuple[Tensor, Tensor]:
    """The IoU of each mask with the instance that it overlaps most, and that instance, [B, Q]."""
    if iou.shape[2] == 0:
        return iou.new_zeros(iou.shape[:2]), iou.new_zeros(iou.shape[:2], dtype=torch.long)
    best, instance = iou.max(dim=2)
    return best, instance


def joined_scores(parts: Sequence[Scored]) -> Scored:
    """All masks of all parts."""
    return Scored(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


@dataclass(frozen=True)
class Reliability:
    """Sums over the masks of each bin, [bins] float64."""

    count: Tensor
    score: Tensor
    right: Tensor

    def error(self) -> float | None:
        """The expected calibration error; None without any mask."""
        return ratio(float((self.score - self.right).abs().sum()), float(self.count.sum()))

    def rows(self) -> list[dict[str, float | None]]:
        """Each bin's number, mean score, fraction of right masks and count, as a curve's points."""
        sums = torch.stack([self.count, self.score, self.right], dim=1).tolist()
        return [
            {
                "bin": number,
                "confidence": ratio(score, count),
                "accuracy": ratio(right, count),
                "count": int(count),
            }
            for number, (count, score, right) in enumerate(sums)
        ]


def reliability(
    scores: Tensor,  # [N] in [0, 1]
    right: Tensor,  # [N] bool
    bins: int,
) -> Reliability:
    """Bins of equal width; a score on an edge belongs to the bin above it, 1 to the last one."""
    place = (scores.double() * bins).long().clamp(0, bins - 1)
    columns = (torch.ones_like(scores), scores, right)
    return Reliability(
        *(torch.bincount(place, values.double(), minlength=bins) for values in columns)
    )


# ---- Cost in use: size, latency, and a student made smaller or faster ------------------------
# `fused` folds batch normalization and parallel branches of the backbone into single convolutions
# (Ding et al. 2021, RepVGG; RepViT is made for it): the same function in fewer steps. `quantized`
# keeps the matrices of linear layers and the text encoder's embeddings in 8 bits and quantizes
# activations as they come (dynamic quantization): another function, close to the first. Both are
# for inference.

MEGABYTE = 1_000_000
WARM_UP = 2  # calls that are not counted: caches, kernels, lazy allocations


def fused(student: Any) -> Any:
    """A copy with the backbone's branches folded, in evaluation mode."""
    from timm.utils.model import reparameterize_model

    dtype = student.vision_encoder.gain.dtype
    folded = copy.deepcopy(student).eval().float()
    reparameterize_model(folded.vision_encoder.backbone, inplace=True)
    return folded.to(dtype)


def quantized(student: Any) -> Any:
    """A copy on the CPU with linear layers and token embeddings in int8, in evaluation mode.

    Convolutions, normalization and the heads' few embeddings stay in float32.
    """
    from torch.ao.quantization import (
        default_dynamic_qconfig,
        float_qparams_weight_only_qconfig,
        quantize_dynamic,
    )

    embedding = "text_encoder.embeddings.token_embedding"
    copied = copy.deepcopy(student).eval().float().cpu()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it will move to another library one day
        return quantize_dynamic(
            copied,
            {nn.Linear: default_dynamic_qconfig, embedding: float_qparams_weight_only_qconfig},
            inplace=True,
        )


def megabytes(model: nn.Module) -> float:
    """The size of a model's state on disk, in millions of bytes."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.tell() / MEGABYTE


def latencies(
    predictors: Mapping[str, Predictor],
    batch: PromptBatch,
    runs: int,
) -> dict[str, dict[str, float]]:
    """Those of each model's prediction; images are encoded, texts have been before."""
    return {
        name: latency(predictor.prepared(batch), runs, predictor.device)
        for name, predictor in predictors.items()
    }


def latency(call: Callable[[], object], runs: int, device: torch.device) -> dict[str, float]:
    """Milliseconds a call, `p50_ms` and `p95_ms`; on a GPU `peak_mib` too, of its memory.

    On the CPU there is only the peak of the whole process, which belongs to no call.
    """
    for _ in range(WARM_UP):
        call()
    if device.type != "cuda":
        return percentiles([timed(call, device)[1] for _ in range(runs)])
    torch.cuda.reset_peak_memory_stats(device)
    times = percentiles([timed(call, device)[1] for _ in range(runs)])
    return {**times, "peak_mib": torch.cuda.max_memory_allocated(device) / 2**20}


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile in milliseconds."""
    return {f"p{rank}_ms": float(np.percentile(seconds, rank)) * 1000 for rank in (50, 95)}
