"""Batches of prompts: which images an update takes, and what it asks of them.

A batch is a few images, each with a few of its prompts. Every image comes once an epoch, in an
order of that epoch's own. As an epoch need not be a multiple of what an update takes, it is filled
up with its own first images, so that the last, partial update is stepped as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from braid.common.rng import generator
from braid.segmentation.data.prompted import Pair, PromptedImages, images_of
from braid.segmentation.sam3.sam3 import PromptInputs
from braid.training.distributed import ALONE, Process


class Epochs:
    """Which images an update takes."""

    def __init__(
        self,
        images: Sequence[int],
        *,
        batch: int,
        accumulate: int,
        seed: int,
        phase: str,  # whose orders these are
        process: Process = ALONE,
    ) -> None:
        if not images:
            raise ValueError("no image has a prompt to learn from, expected one or more")
        self.images, self.batch, self.accumulate = list(images), batch, accumulate
        self.seed, self.phase, self.process = seed, phase, process
        self.steps = math.ceil(len(images) / (batch * accumulate * process.world_size))  # an epoch

    def __call__(self, step: int, micro: int) -> list[int]:
        """Images of one micro-step of this process."""
        epoch, within = divmod(step, self.steps)
        order = torch.randperm(
            len(self.images), generator=generator(self.seed, self.phase, epoch)
        ).tolist()
        batches = (within * self.accumulate + micro) * self.process.world_size + self.process.rank
        places = range(batches * self.batch, (batches + 1) * self.batch)
        return [self.images[order[place % len(order)]] for place in places]


@dataclass(frozen=True)
class Asked:
    """A batch of prompts."""

    pairs: list[Pair]
    pixels: Tensor  # [I, 3, S, S]
    inputs: PromptInputs


class Questions:
    """Makes batches: prompts of the images at hand, tokenised for the student."""

    def __init__(
        self,
        prompted: PromptedImages,
        pairs: Sequence[Pair],  # that may be asked
        tokenizer: Any,
        length: int,  # tokens a prompt
        device: torch.device,
    ) -> None:
        self.prompted, self.tokenizer, self.length = prompted, tokenizer, length
        self.device = device
        self.of_image: dict[int, list[Pair]] = {}
        for pair in pairs:
            self.of_image.setdefault(pair[0], []).append(pair)
        boxed = [pair for pair in pairs if prompted.prompt(pair).box is not None]
        self.boxed, self.boxed_share = set(boxed), len(boxed) / max(1, len(pairs))

    def draw(
        self,
        images: Sequence[int],
        count: int,  # of each image, at most
        stream: torch.Generator,  # on the CPU
    ) -> Asked:
        """Some prompts of each image: with boxes all, or none, where an image has such prompts.

        A batch of one kind takes one pass through the heads; the kinds' shares stay as they are.
        """
        wanted = bool(torch.rand((), generator=stream) < self.boxed_share)
        chosen: list[Pair] = []
        for image in images:
            offered = self.of_image[image]
            kind = [pair for pair in offered if (pair in self.boxed) == wanted] or offered
            order = torch.randperm(len(kind), generator=stream)[:count].tolist()
            chosen += [kind[place] for place in order]
        return self.ask(chosen)

    def ask(self, pairs: Sequence[Pair]) -> Asked:
        """The batch of these prompts."""
        images, owner = images_of(pairs)
        inputs = self.prompted.inputs(pairs, owner, self.tokenizer, self.length)
        pixels = self.prompted.pixels(images)
        return Asked(list(pairs), pixels.to(self.device), inputs.to(self.device))


def on_cpu(stream: torch.Generator) -> torch.Generator:
    """A stream of the same seed that small draws can be made from without a transfer."""
    if stream.device.type == "cpu":
        return stream
    return torch.Generator().manual_seed(stream.initial_seed())
