"""Ask several models the same prompts and judge every answer by the truth and by the teacher's.

Images are taken a few at a time; of each batch nothing but sums and scores is kept, so the memory
hardly grows with the images. Beside the models stand two that give no answers of their own:

    truth           agrees with the teacher as much as a student can that knows the truth alone
    random_teacher  the teacher's answers to random prompts of other images: what chance scores
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from braid.segmentation.data.prompted import Pair, PromptedImages, images_of
from braid.segmentation.data.prompts import Prompt
from braid.segmentation.evaluation.agreement import (
    Answers,
    Scored,
    Table,
    answers_of,
    compare,
    joined,
    joined_scores,
    prompt_sensitivity,
    score_masks,
    true_answers,
)
from braid.segmentation.sam3.sam3 import Prediction, predict
from braid.segmentation.teacher.answers import Texts, encode_texts
from braid.training.device import autocast

TEACHER, RANDOM_TEACHER, TRUTH = "teacher", "random_teacher", "truth"

Call = Callable[[], Prediction]


class Question(NamedTuple):
    """Prompts of some images, before any model's tokenizer."""

    prompts: list[Prompt]
    owner: Tensor  # [B] row of each prompt's image
    pixels: Tensor  # [I, 3, S, S] on the CPU


def question(prompted: PromptedImages, pairs: Sequence[Pair]) -> Question:
    """What is put to every model alike; images are decoded once."""
    images, owner = images_of(pairs)
    return Question([prompted.prompt(pair) for pair in pairs], owner, prompted.pixels(images))


@dataclass(frozen=True)
class Respondent:
    """A model that prompts are put to; texts are encoded before, as for any number of images."""

    model: Any
    texts: Texts  # as the model reads them
    device: torch.device
    precision: str = "float32"  # of the forward pass

    def asked(self, question: Question) -> Call:
        """What answers when it is called; all that it takes is on the device by then."""
        inputs = self.texts.inputs(question.prompts, question.owner).to(self.device)
        pixels = question.pixels.to(self.device)

        @torch.no_grad()
        def call() -> Prediction:
            with autocast(self.device, self.precision):
                return predict(self.model, pixels, inputs)

        return call


def respondent(
    model: Any,
    texts: Iterable[str],  # that will be asked
    tokenizer: Any,
    device: torch.device,
    precision: str = "float32",
) -> Respondent:
    """A model on its device, with the texts as it reads them."""
    model = model.to(device)
    encoded = encode_texts(texts, model, tokenizer, device=device, precision=precision)
    return Respondent(model, encoded, device, precision)


@dataclass(frozen=True)
class Judged:
    """How one model did; P prompts, N masks."""

    by_truth: Table  # [P] each, of `compare`
    by_teacher: Table
    scored: Scored  # [N] each
    sensitivity: Tensor  # [images that have prompts of different truth]


class Panel:
    """The models, and how they are asked."""

    def __init__(
        self,
        prompted: PromptedImages,
        respondents: Mapping[str, Respondent],  # `teacher` among them
        *,
        score: float,  # a query above it counts as found
        size: int,  # pixels a side at which masks are compared
        device: torch.device,
    ) -> None:
        self.prompted, self.respondents = prompted, dict(respondents)
        self.score, self.size, self.device = score, size, device

    def answers(self, pairs: Sequence[Pair]) -> tuple[Answers, dict[str, Answers]]:
        """The truth, and every model's answers, in the order of the pairs."""
        truth = true_answers(self.prompted.truth(pairs, self.size).to(self.device))
        made, asked = {}, question(self.prompted, pairs)
        for name, each in self.respondents.items():
            prediction = each.asked(asked)().to(self.device)
            made[name] = answers_of(prediction, score=self.score, size=self.size)
        return truth, made

    def judge(
        self,
        pairs: Sequence[Pair],  # those of an image follow one another
        *,
        images: int,  # a batch, 2 or more
        generator: torch.Generator,  # on the CPU
    ) -> dict[str, Judged]:
        """Every model and the two beside them; rows of the tables in the order of the pairs.

        Raises:
            ValueError: fewer than two images have prompts, or are to be in a batch.
        """
        held = len(images_of(pairs)[0])
        if min(held, images) < 2:  # the random teacher answers for another image
            raise ValueError(
                f"{held} held-out images have prompts and a batch has {images}: expected 2 or more"
            )
        parts: dict[str, list[Judged]] = {}
        for batch in batches(pairs, images):
            truth, given = self.answers(batch)
            owner = images_of(batch)[1]
            strangers = other_images(owner, generator).to(self.device)
            given |= {TRUTH: truth, RANDOM_TEACHER: given[TEACHER].take(strangers)}
            for name, each in given.items():
                found = Judged(
                    compare(each, truth),
                    compare(each, given[TEACHER]),
                    score_masks(each, truth),
                    prompt_sensitivity(each, truth, owner.to(self.device)).cpu(),
                )
                parts.setdefault(name, []).append(found)
        return {name: _joined(each) for name, each in parts.items()}


def _joined(parts: Sequence[Judged]) -> Judged:
    return Judged(
        joined([each.by_truth for each in parts]),
        joined([each.by_teacher for each in parts]),
        joined_scores([each.scored for each in parts]),
        torch.cat([each.sensitivity for each in parts]),
    )


def batches(pairs: Sequence[Pair], images: int) -> list[list[Pair]]:
    """The prompts of `images` images at a time; an image left alone joins those before it."""
    every, owner = images_of(pairs)
    count = -(-len(every) // images)
    alone = count > 1 < images and len(every) % images == 1
    made: list[list[Pair]] = [[] for _ in range(count - alone)]
    for pair, place in zip(pairs, owner.tolist(), strict=True):
        made[min(place // images, len(made) - 1)].append(pair)
    return made


def other_images(
    owner: Tensor,  # [B]
    generator: torch.Generator,
) -> Tensor:
    """For each prompt a random one of another image, of which the batch has one or more, [B]."""
    draw = torch.rand(len(owner), len(owner), generator=generator)
    return draw.masked_fill(owner[:, None] == owner, -1.0).argmax(dim=1)
