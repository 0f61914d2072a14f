"""Batches of prompts: which images an update takes, and which prompts of theirs.

A batch is a few images, each with a few of its prompts; an update takes one or more batches, of all
processes together. Every image comes once an epoch, in an order of that epoch's own. As an epoch
need not be a multiple of what an update takes, it is filled up with its own first images, so that
the last, partial update is stepped as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from braid.common.rng import generator
from braid.segmentation.data.prompted import Pair, Prompt, PromptedImages, prompt_batch
from braid.segmentation.sam3.predictor import encode
from braid.segmentation.sam3.sam3 import PromptInputs


class Epochs:
    """Which images an update takes."""

    def __init__(
        self,
        images: Sequence[int],
        *,
        update: int,  # images, of all batches and processes together
        seed: int,
        phase: str,  # whose orders these are
    ) -> None:
        if not images:
            raise ValueError("no image has a prompt to learn from, expected one or more")
        self.images, self.update = list(images), update
        self.seed, self.phase = seed, phase
        self.steps = math.ceil(len(images) / update)  # an epoch

    def __call__(self, step: int) -> list[int]:
        """Images of an update, in the order in which batches and processes take them."""
        epoch, within = divmod(step, self.steps)
        order = torch.randperm(
            len(self.images), generator=generator(self.seed, self.phase, epoch)
        ).tolist()
        places = range(within * self.update, (within + 1) * self.update)
        return [self.images[order[place % len(order)]] for place in places]


@dataclass(frozen=True)
class Batch:
    """Prompts and their images, tokenized and on the device of a model."""

    pairs: list[Pair]
    pixels: Tensor  # [I, 3, S, S]
    inputs: PromptInputs


class PromptSampler:
    """Makes batches: prompts of the images at hand, tokenized for one model."""

    def __init__(
        self,
        prompted: PromptedImages,
        pairs: Sequence[Pair],  # to draw from
        tokenizer: Any,
        length: int,  # tokens a prompt
        device: torch.device,
    ) -> None:
        self.prompted, self.tokenizer, self.length = prompted, tokenizer, length
        self.device = device
        self._texts: dict[str, tuple[Tensor, ...]] = {}  # ids and attention, [L] each
        self.by_image: dict[int, list[Pair]] = {}
        for pair in pairs:
            self.by_image.setdefault(pair[0], []).append(pair)
        boxed = [pair for pair in pairs if prompted.prompt(pair).box is not None]
        self.boxed, self.boxed_fraction = set(boxed), len(boxed) / max(1, len(pairs))

    @property
    def images(self) -> list[int]:
        """The images that have prompts to draw from, ascending."""
        return sorted(self.by_image)

    def draw(
        self,
        images: Sequence[int],
        count: int,  # of each image, at most
        stream: torch.Generator,  # on the CPU
    ) -> Batch:
        """Some prompts of each image: with boxes all, or none, where an image has such prompts.

        A batch of one kind takes one pass through the heads; the kinds' fractions stay as they are.
        """
        wanted = bool(torch.rand((), generator=stream) < self.boxed_fraction)
        chosen: list[Pair] = []
        for image in images:
            pairs = self.by_image[image]
            kind = [pair for pair in pairs if (pair in self.boxed) == wanted] or pairs
            order = torch.randperm(len(kind), generator=stream)[:count].tolist()
            chosen += [kind[place] for place in order]
        return self.batch(chosen)

    def batch(self, pairs: Sequence[Pair]) -> Batch:
        """The batch of these prompts."""
        prompts, owner, pixels = prompt_batch(self.prompted, pairs)
        inputs = prompt_inputs(prompts, owner, *self._encoded(prompts))
        return Batch(list(pairs), pixels.to(self.device), inputs.to(self.device))

    def _encoded(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        """Ids and attention of prompts, [B, L] each; a text is tokenized once."""
        new = sorted({prompt.text for prompt in prompts} - set(self._texts))
        if new:
            columns = encode(self.tokenizer, new, self.length)
            self._texts |= zip(new, zip(*columns, strict=True), strict=True)
        tokens, attention = zip(*(self._texts[prompt.text] for prompt in prompts), strict=True)
        return torch.stack(tokens), torch.stack(attention)


def tokenized(
    prompts: Sequence[Prompt],
    owner: Tensor,  # [B] row of each prompt's image among the pixels
    tokenizer: Any,
    length: int,  # tokens
) -> PromptInputs:
    """Prompts for a model that has this tokenizer."""
    encoded = encode(tokenizer, [prompt.text for prompt in prompts], length)
    return prompt_inputs(prompts, owner, *encoded)


def prompt_inputs(
    prompts: Sequence[Prompt],
    owner: Tensor,  # [B] row of each prompt's image among the pixels
    tokens: Tensor,  # [B, L] of the texts
    attention: Tensor,  # [B, L]
) -> PromptInputs:
    """Prompts whose texts are tokenized."""
    boxed = torch.tensor([prompt.box is not None for prompt in prompts])
    if not boxed.any():
        return PromptInputs(owner, tokens, attention)
    nowhere = (0.0, 0.0, 0.0, 0.0)
    boxes = torch.tensor([prompt.box or nowhere for prompt in prompts])
    return PromptInputs(owner, tokens, attention, boxes, boxed)


def on_cpu(stream: torch.Generator) -> torch.Generator:
    """A stream of the same seed that small draws can be made from without a transfer."""
    if stream.device.type == "cpu":
        return stream
    return torch.Generator().manual_seed(stream.initial_seed())
