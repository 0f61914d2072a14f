"""How a student is trained: on a teacher's answers, or on the truth alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from braid.common.rng import generator
from braid.segmentation.data.prompted import Pair, PromptedImages
from braid.segmentation.distillation.losses import DistillationLoss
from braid.segmentation.sam3.sam3 import Prediction, predict
from braid.segmentation.student.student import measured_batch_norm
from braid.segmentation.supervised.batches import Asked, Epochs, Questions, on_cpu
from braid.segmentation.supervised.loss import TruthLoss
from braid.training.device import autocast

Terms = dict[str, Tensor]

MEASURED_BATCHES, MEASURED_AT_ONCE = 16, 4  # of images, for batch normalisation


class Teacher(Protocol):
    """Whoever knows the teacher's answers: the cache, or the teacher itself."""

    def predictions(self, pairs: Sequence[Pair]) -> Prediction:
        """Its answers in the order of the pairs, and features of their images where it has them."""


class Supervision(Protocol):
    """What makes loss terms of a student's answers."""

    features: bool  # whether it wants the student's features too

    def __call__(self, answer: Prediction, pairs: Sequence[Pair]) -> Terms:
        """Weighted terms."""


class FromTeacher:
    """The eight terms against the teacher's answers."""

    def __init__(self, teacher: Teacher, loss: DistillationLoss, *, features: bool) -> None:
        self.teacher, self.loss, self.features = teacher, loss, features

    def __call__(self, answer: Prediction, pairs: Sequence[Pair]) -> Terms:
        """Weighted terms; those of features only where they are wanted."""
        given = self.teacher.predictions(pairs)
        return self.loss(answer, given.to(answer.logits.device))


class FromTruth:
    """What the annotations say, without a teacher: the control."""

    features = False

    def __init__(self, prompted: PromptedImages, loss: TruthLoss) -> None:
        self.prompted, self.loss = prompted, loss

    def __call__(self, answer: Prediction, pairs: Sequence[Pair]) -> Terms:
        """Weighted terms."""
        truth = self.prompted.truth(pairs, answer.masks.shape[-1])
        return self.loss(answer, truth.to(answer.logits.device))


class Distillation(nn.Module):
    """The training objective of one phase."""

    def __init__(
        self,
        student: nn.Module,
        questions: Questions,
        supervision: Supervision,
        epochs: Epochs,
        prompts: int,  # of an image
    ) -> None:
        super().__init__()
        self.student, self.questions, self.supervision = student, questions, supervision
        self.epochs, self.prompts = epochs, prompts
        self._place = (-1, 0)  # the running step, and how many of its micro-steps have begun

    def forward(self, step: int, stream: torch.Generator) -> Terms:
        """One batch's weighted terms."""
        before, begun = self._place
        micro = begun if step == before else 0
        self._place = (step, micro + 1)
        asked = self.questions.draw(self.epochs(step, micro), self.prompts, on_cpu(stream))
        return self.terms(asked)

    def terms(self, asked: Asked) -> Terms:
        """The weighted terms of a given batch."""
        features = self.supervision.features
        answer = predict(self.student, asked.pixels, asked.inputs, features=features)
        return self.supervision(answer, asked.pairs)

    @torch.no_grad()
    def judged(self, pairs: Sequence[Pair], batch: int, precision: str) -> dict[str, float]:
        """The mean of each term over given prompts, without dropout and batch statistics."""
        training = self.student.training
        self.student.eval()
        sums: dict[str, float] = {}
        for start in range(0, len(pairs), batch):
            part = pairs[start : start + batch]
            with autocast(self.questions.device, precision):
                terms = self.terms(self.questions.ask(part))
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + float(term) * len(part) / len(pairs)
        self.student.train(training)
        return {"loss": sum(sums.values()), **sums}


@torch.no_grad()
def measure_batch_norm(student: nn.Module, questions: Questions, images: int, seed: int) -> None:
    """Statistics of a network without pretrained weights, before they are held still.

    Batches are of at least `MEASURED_AT_ONCE` images: one alone has no statistics to speak of.
    """
    epochs = Epochs(
        sorted(questions.of_image),
        batch=max(images, MEASURED_AT_ONCE),
        accumulate=1,
        seed=seed,
        phase="batch norm",
    )
    with measured_batch_norm(student):
        for step in range(MEASURED_BATCHES):
            asked = questions.draw(epochs(step, 0), 1, generator(seed, "batch norm", step))
            predict(student, asked.pixels, asked.inputs)
