"""How a student is trained: on its teacher's predictions, on ground truth, or on both.

    supervisions = supervisions_of(choice, phases, prompted, cache, loss)
    sampler = PromptSampler(prompted, train, ...)
    results = train_phases(student, sampler, supervisions, held_out, config, phases, run, hooks)

A phase has an objective, an optimizer and an order of images of its own; students go on where the
phase before has left them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from braid.common.rng import generator
from braid.segmentation.cache.cache import Cache
from braid.segmentation.config import DistillConfig, PhaseConfig, StudentTrainingConfig
from braid.segmentation.data.prompted import Pair, PromptedImages
from braid.segmentation.distillation.losses import DistillationLoss
from braid.segmentation.sam3.predictor import Texts
from braid.segmentation.sam3.sam3 import Prediction, count_parameters, predict
from braid.segmentation.student.student import batch_norms
from braid.segmentation.training.batches import Batch, Epochs, PromptSampler, on_cpu
from braid.segmentation.training.ground_truth import GroundTruthLoss
from braid.training.device import autocast
from braid.training.distributed import ALONE, Process
from braid.training.ema import Ema
from braid.training.optimizers import trainable
from braid.training.trainer import Hook, Row, Run, norm, train

Terms = dict[str, Tensor]

HELD_OUT = 256  # prompts on which the loss is taken around each phase
PROBED, PROBES = 12, 4  # prompts for the gradient of each term, and how often it is taken
MEASURED_BATCHES, MEASURED_AT_ONCE = 16, 4  # of images, for batch normalization


class Teacher(Protocol):
    """Where the teacher's predictions come from: the cache, or the teacher itself."""

    texts: Texts  # of all prompts

    def predictions(self, pairs: Sequence[Pair]) -> Prediction:
        """Those in the order of the pairs, with features of their images where it has them."""


class Supervision(Protocol):
    """What makes loss terms of a student's predictions."""

    features: bool  # whether it wants the student's features too
    earlier: bool  # whether it wants predictions of the earlier decoder layers too

    def __call__(self, prediction: Prediction, pairs: Sequence[Pair]) -> Terms:
        """Weighted terms."""


class TeacherSupervision:
    """The nine terms against the teacher's predictions."""

    earlier = False

    def __init__(
        self, teacher: Teacher, prompted: PromptedImages, loss: DistillationLoss, *, features: bool
    ) -> None:
        self.teacher, self.prompted = teacher, prompted
        self.loss, self.features = loss, features

    def __call__(self, prediction: Prediction, pairs: Sequence[Pair]) -> Terms:
        """Weighted terms; those of features only where they are wanted."""
        # The training's autocast is none of the teacher's: what was kept in 16 bits could not even
        # be put together under another precision, and the teacher itself would predict otherwise.
        with torch.autocast(prediction.logits.device.type, enabled=False):
            target = self.teacher.predictions(pairs)
        if self.features:
            texts = self.teacher.texts
            rows = texts.rows(self.prompted.texts(pairs))
            text, attention = texts.features[rows], texts.attention[rows]
            target = replace(target, text=text, attention=attention)
        return self.loss(prediction, target.to(prediction.logits.device))


class GroundTruthSupervision:
    """What the annotations say, without a teacher: the control.

    All decoder layers learn, as those of the tiny teacher did; its images are not mirrored, as
    those of students of the teacher's predictions are not.
    """

    features, earlier = False, True

    def __init__(self, prompted: PromptedImages, loss: GroundTruthLoss) -> None:
        self.prompted, self.loss = prompted, loss

    def __call__(self, prediction: Prediction, pairs: Sequence[Pair]) -> Terms:
        """Weighted terms."""
        truth = self.prompted.ground_truth(pairs, prediction.masks.shape[-1])
        hidden = ~self.prompted.labeled(pairs)
        truth = replace(truth, count=truth.count.masked_fill(hidden, -1))
        return self.loss(prediction, truth.to(prediction.logits.device))


class BothSupervision:
    """The teacher's predictions for all prompts, and ground truth where a student may see it."""

    def __init__(self, teacher: TeacherSupervision, truth: GroundTruthSupervision) -> None:
        self.teacher, self.truth = teacher, truth
        self.features, self.earlier = teacher.features, truth.earlier

    def __call__(self, prediction: Prediction, pairs: Sequence[Pair]) -> Terms:
        """Weighted terms; those of ground truth begin with `truth_`."""
        terms = self.truth(prediction, pairs)
        return self.teacher(prediction, pairs) | {f"truth_{n}": term for n, term in terms.items()}


def supervisions_of(
    choice: StudentTrainingConfig,
    phases: Mapping[str, PhaseConfig],
    prompted: PromptedImages,
    cache: Cache,
    loss: DistillationLoss,
) -> dict[str, Supervision]:
    """What each phase learns from.

    Raises:
        ValueError: a phase wants features that the cache has not; the message names its key.
    """
    truth = GroundTruthSupervision(prompted, GroundTruthLoss())
    if choice.supervision == "ground_truth":
        return dict.fromkeys(phases, truth)
    features = {name: choice.features and phase.features for name, phase in phases.items()}
    wanting = [name for name in phases if features[name]]
    if wanting and not cache.config.kept_levels:
        raise ValueError(
            f"sam3.phases.{wanting[0]}.features is true, but the cache has none: expected "
            "sam3.cache.mode full or online"
        )
    taught = {
        name: TeacherSupervision(cache, prompted, loss, features=wanted)
        for name, wanted in features.items()
    }
    if choice.supervision == "both":
        return {name: BothSupervision(teacher, truth) for name, teacher in taught.items()}
    return {**taught}


def supervised_pairs(
    prompted: PromptedImages, choice: StudentTrainingConfig
) -> tuple[list[Pair], list[Pair]]:
    """Prompts to train on, and some held-out ones.

    A teacher predicts for all prompts, ground truth is shown of labeled ones alone.
    """
    shown = True if choice.supervision == "ground_truth" else None
    train, val = (prompted.pairs(split, labeled=shown, known=shown) for split in ("train", "val"))
    return train, val[:HELD_OUT]


class Distillation(nn.Module):
    """The training objective of one phase."""

    def __init__(
        self,
        student: nn.Module,
        sampler: PromptSampler,
        supervision: Supervision,
        epochs: Epochs,
        config: DistillConfig,
        process: Process = ALONE,
    ) -> None:
        super().__init__()
        self.student, self.sampler, self.supervision = student, sampler, supervision
        self.epochs, self.config, self.process = epochs, config, process
        self._place = (-1, 0)  # the running step, and how many of its micro-steps have begun

    def forward(self, step: int, stream: torch.Generator) -> Terms:
        """One batch's weighted terms."""
        before, begun = self._place
        micro = begun if step == before else 0
        self._place = (step, micro + 1)
        batches = micro * self.process.world_size + self.process.rank  # before this one
        first = batches * self.config.images
        images = self.epochs(step)[first : first + self.config.images]
        return self.terms(self.sampler.draw(images, self.config.prompts, on_cpu(stream)))

    def terms(self, batch: Batch) -> Terms:
        """The weighted terms of a given batch."""
        wanted = {"features": self.supervision.features, "earlier": self.supervision.earlier}
        prediction = predict(self.student, batch.pixels, batch.inputs, **wanted)
        return self.supervision(prediction, batch.pairs)

    @torch.no_grad()
    def validate(self, pairs: Sequence[Pair], batch: int, precision: str) -> dict[str, float]:
        """The mean of each term over given prompts, without dropout and batch statistics."""
        training = self.student.training
        self.student.eval()
        sums: dict[str, float] = {}
        for start in range(0, len(pairs), batch):
            part = pairs[start : start + batch]
            with autocast(self.sampler.device, precision):
                terms = self.terms(self.sampler.batch(part))
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + float(term) * len(part) / len(pairs)
        self.student.train(training)
        return {"loss": sum(sums.values()), **sums}


@dataclass(frozen=True)
class PhaseResult:
    """What a phase of the training leaves beside the weights."""

    name: str
    steps: int
    before: dict[str, float]  # terms of held-out prompts, and their sum `loss`
    after: dict[str, float]
    history: list[dict[str, Any]]  # rows of the training curve; steps count from the first phase on
    gradients: list[dict[str, Any]]  # rows of `TermGradients`; steps count likewise


class TermGradients:
    """A hook that takes the gradient norm of each weighted term, on the same prompts each time.

    At the first step and `PROBES` more, at equal distances up to the last one.
    """

    def __init__(self, pairs: Sequence[Pair], steps: int, precision: str) -> None:
        self.pairs, self.every, self.precision = pairs, max(1, steps // PROBES), precision

    def __call__(self, step: int, objective: nn.Module, _ema: Ema | None = None) -> Row | None:
        """Norms by `gradient_norm_<term>`; None between the probed steps."""
        if not self.pairs or (step > 1 and step % self.every):
            return None
        assert isinstance(objective, Distillation)
        with autocast(objective.sampler.device, self.precision):
            terms = objective.terms(objective.sampler.batch(self.pairs))
        weights = list(trainable(objective).values())
        norms = {}
        for name, term in terms.items():
            grads = torch.autograd.grad(term, weights, retain_graph=True, materialize_grads=True)
            norms[f"gradient_norm_{name}"] = norm(grads).item()
        return norms


def train_phases(
    student: nn.Module,
    sampler: PromptSampler,
    supervisions: Mapping[str, Supervision],  # by phase
    held_out: Sequence[Pair],
    config: DistillConfig,
    phases: Mapping[str, PhaseConfig],
    run: Run,
    hooks: Mapping[str, Hook],  # of the training loop, by phase
) -> list[PhaseResult]:
    """Train the student in place, and take the loss of held-out prompts around each phase.

    An epoch has as many updates as all images with prompts make: a student that is shown fewer of
    them, for the ground truth of the others is unknown or withheld, has as many steps.
    """
    every = {image for image, _ in sampler.prompted.pairs("train")}
    at_once = config.images * config.prompts
    results: list[PhaseResult] = []
    for name, phase in phases.items():
        update = config.images * phase.optimizer.accumulate * run.process.world_size
        epochs = Epochs(sampler.images, update=update, seed=run.seed, phase=name)
        supervision = supervisions[name]
        objective = Distillation(student, sampler, supervision, epochs, config, run.process)
        begin = sum(result.steps for result in results)
        steps = phase.epochs * math.ceil(len(every) / update)
        before = objective.validate(held_out, at_once, run.precision)
        result = train(
            objective,
            phase.optimizer,
            _continued(run, begin),
            steps=steps,
            name=name,
            fused=True,
            hooks={
                "phase": hooks[name],
                "gradients": TermGradients(held_out[:at_once][:PROBED], steps, run.precision),
            },
        )
        after = objective.validate(held_out, at_once, run.precision)
        limit = phase.optimizer.clip_norm or math.inf
        clipped = [
            {"gradient_norm_clipped": min(r["gradient_norm"], limit)} for r in result.history
        ]
        history = [row | extra for row, extra in zip(result.history, clipped, strict=True)]
        curves = (history, result.probes.get("gradients", []))
        placed = ([_placed(row, begin, name) for row in rows] for rows in curves)
        results.append(PhaseResult(name, steps, before, after, *placed))
    return results


def _placed(row: Row, begin: int, phase: str) -> dict[str, Any]:
    """A row of a curve that goes on after earlier phases."""
    return {**row, "step": begin + row["step"], "phase": phase}


def _continued(run: Run, begin: int) -> Run:
    """The run, with a log whose steps go on after those of earlier phases."""
    log = run.on_log
    if log is None:
        return run

    def shifted(row: Row) -> None:
        log(row | {"step": begin + row["step"]})

    return replace(run, on_log=shifted)


def term_rows(
    results: Sequence[PhaseResult],
    transferred: int,  # parameters that were copied from the teacher
) -> list[dict[str, Any]]:
    """The loss of held-out prompts around each phase: a row for each term, and for their sum."""
    return [
        {
            "phase": result.name,
            "steps": result.steps,
            "term": term,
            "before": value,
            "after": result.after[term],
            "transferred_parameters": transferred,
        }
        for result in results
        for term, value in result.before.items()
    ]


def headline(
    results: Sequence[PhaseResult], student: nn.Module, sampler: PromptSampler
) -> dict[str, Any]:
    """The loss of held-out prompts around the last phase, the steps of all, what was trained on."""
    last = results[-1]
    return {
        "loss": {"before": last.before["loss"], "after": last.after["loss"]},
        "steps": sum(result.steps for result in results),
        "parameters": count_parameters(student),
        "train": len(sampler.by_image),
        "prompts": sum(map(len, sampler.by_image.values())),
    }


def hold_batch_norm(
    student: nn.Module,
    sampler: PromptSampler,
    config: DistillConfig,
    seed: int,
    *,
    measured: bool,  # no backbone brings statistics
) -> None:
    """Put the student into training mode with the statistics of its batch normalization held still.

    Those of a network without pretrained weights are measured first, on batches of at least
    `MEASURED_AT_ONCE` images: one alone has no statistics to speak of.
    """
    if measured:
        measure_batch_norm(student, sampler, max(config.images, MEASURED_AT_ONCE), seed)
    freeze_batch_norm(student.train())


@torch.no_grad()
def measure_batch_norm(student: nn.Module, sampler: PromptSampler, images: int, seed: int) -> None:
    """Set the statistics to those of `MEASURED_BATCHES` batches."""
    epochs = Epochs(sampler.images, update=images, seed=seed, phase="batch norm")
    with measured_batch_norm(student):
        for step in range(MEASURED_BATCHES):
            batch = sampler.draw(epochs(step), 1, generator(seed, "batch norm", step))
            predict(student, batch.pixels, batch.inputs)


# ---- Batch normalization where a batch is too small for it -------------------------------------
# RepViT and the text encoder's RepMixer blocks hold `BatchNorm2d`. One image at a time, as at full
# size, does not stand for the others: a network that learned with its batches' statistics fails
# with the running ones in evaluation. So they are held still (as usual in detection since He et al.
# 2016), those of the pretrained backbone. One without pretrained weights has none, only mean 0 and
# variance 1, with which the signal fades in some backbones: there they are measured first, over
# some batches.


def freeze_batch_norm(model: nn.Module) -> int:
    """Normalize by the statistics as they are, in training too, whatever `model.train()` says.

    Scale and shift still learn. Gives how many layers that concerns.
    """
    layers = batch_norms(model)
    for layer in layers:
        layer.register_forward_pre_hook(_as_in_evaluation)
    return len(layers)


@contextmanager
def measured_batch_norm(model: nn.Module) -> Iterator[None]:
    """Within, the statistics become the mean over all batches that pass; every batch counts alike.

    Run batches through the model, without gradients; then freeze or evaluate it.
    """
    layers = batch_norms(model)
    before = [(layer.momentum, layer.training) for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the plain mean
        layer.train()
    try:
        yield
    finally:
        for layer, (momentum, training) in zip(layers, before, strict=True):
            layer.momentum = momentum
            layer.train(training)


def _as_in_evaluation(layer: nn.Module, inputs: object) -> None:
    """A hook that runs before each pass; nothing that sets modes can undo it."""
    layer.training = False
