"""Images with their prompts: what a batch for training, caching or evaluation is made of.

    prompted = open_prompted(Path("data/sa1b"), cache_mib=128)
    pairs = prompted.pairs("train", known=True)[:16]
    images, owner = images_of(pairs)
    predict(model, prompted.pixels(images), prompted.inputs(pairs, owner, tokenizer, length=8))
    prompted.truth(pairs, size=32)

A pair is the index of an image and the index of a prompt among those of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco
from torch import Tensor

from braid.segmentation.data.prompts import Prompt, read_prompts
from braid.segmentation.data.run_lengths import coverage
from braid.segmentation.data.sa1b import Images, normalise, open_images
from braid.segmentation.sam3.sam3 import PromptInputs
from braid.segmentation.sam3.tokens import encode

Pair = tuple[int, int]
Group = tuple[int, ...]  # annotations
AGAIN = "run `dvc repro -f prepare_sa1b` again"


@dataclass(frozen=True)
class Truth:
    """The objects that B prompts mean, at most M of one."""

    masks: Tensor  # [B, M, g, g] covered share of each cell; zero beyond `count`
    boxes: Tensor  # [B, M, 4] xyxy in [0, 1]
    count: Tensor  # [B] long; 0: a negative prompt; -1: unknown
    semantic: Tensor  # [B, 1, g, g] covered by all of them together

    @property
    def known(self) -> Tensor:
        """Whether the truth is known at all, [B] bool."""
        return self.count >= 0

    @property
    def present(self) -> Tensor:
        """Whether there is an object, [B] bool; False where unknown."""
        return self.count > 0

    def to(self, device: torch.device) -> Truth:
        """The truth on a device."""
        return self._each(lambda held: held.to(device))

    def take(self, rows: Tensor) -> Truth:
        """The truth of some of the prompts."""
        return self._each(lambda held: held[rows])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Truth:
        held = (self.masks, self.boxes, self.count, self.semantic)
        return Truth(*(change(each) for each in held))


class PromptedImages:
    """Images and what is asked of each."""

    def __init__(
        self,
        images: Images,
        prompts: Sequence[Sequence[Prompt]],  # of each image
        *,
        cache_mib: int = 0,  # RAM for masks
    ) -> None:
        if len(images) != len(prompts):
            raise ValueError(f"{len(prompts)} images have prompts, expected {len(images)}; {AGAIN}")
        self.images, self.prompts = images, prompts
        self._room = cache_mib << 20  # bytes left for masks
        self._held: dict[tuple[int, Group, int], Tensor] = {}

    def pairs(
        self,
        split: str,
        *,
        labelled: bool | None = None,
        known: bool | None = None,
    ) -> list[Pair]:
        """The prompts of a split, labelled or not, of known truth or not."""
        return [
            (int(image), place)
            for image in self.images.indices(split)
            for place, prompt in enumerate(self.prompts[image])
            if labelled in (None, prompt.labelled) and known in (None, prompt.answers is not None)
        ]

    def prompt(self, pair: Pair) -> Prompt:
        """The prompt of a pair."""
        return self.prompts[pair[0]][pair[1]]

    def pixels(self, images: Sequence[int]) -> Tensor:
        """Images as the teacher wants them, [I, 3, S, S] float32."""
        return normalise(torch.stack([self.images.pixels(index) for index in images]))

    def inputs(
        self,
        pairs: Sequence[Pair],
        owner: Tensor,  # [B] row of each pair's image among the pixels
        tokenizer: Any,
        length: int,  # tokens
    ) -> PromptInputs:
        """Prompts for a model that has this tokenizer."""
        prompts = [self.prompt(pair) for pair in pairs]
        tokens, attention = encode(tokenizer, [prompt.text for prompt in prompts], length)
        boxed = torch.tensor([prompt.box is not None for prompt in prompts])
        if not boxed.any():
            return PromptInputs(owner, tokens, attention)
        nowhere = (0.0, 0.0, 0.0, 0.0)
        boxes = torch.tensor([prompt.box or nowhere for prompt in prompts])
        return PromptInputs(owner, tokens, attention, boxes, boxed)

    def truth(
        self,
        pairs: Sequence[Pair],
        size: int,  # cells a side
    ) -> Truth:
        """What answers the prompts.

        Raises:
            ValueError: an annotation that answers is not there any more, or cannot be read.
        """
        answers = [self.prompt(pair).answers for pair in pairs]
        count = torch.tensor([-1 if each is None else len(each) for each in answers])
        most = max(1, int(count.max()))
        masks = torch.zeros(len(pairs), most, size, size)
        semantic = torch.zeros(len(pairs), 1, size, size)
        boxes = torch.zeros(len(pairs), most, 4)
        for row, ((image, _), group) in enumerate(zip(pairs, answers, strict=True)):
            if not group:
                continue
            record = self.images.record(image)
            if max(group) >= len(record.annotations):
                held = f"annotation {max(group)} of {len(record.annotations)}"
                raise ValueError(f"{record.file}: {held} is to answer a prompt; {AGAIN}")
            boxes[row, : len(group)] = torch.tensor([record.annotations[n].box for n in group])
            for slot, index in enumerate(group):
                masks[row, slot] = self._covered(image, (index,), size)
            alone = len(group) == 1
            semantic[row, 0] = masks[row, 0] if alone else self._covered(image, group, size)
        return Truth(masks, boxes, count, semantic)

    def _covered(self, image: int, group: Group, size: int) -> Tensor:
        """The share of each cell that some annotations cover together, [size, size] float32."""
        key = (image, group, size)
        held = self._held.get(key)
        if held is None:
            annotations = self.images.record(image).annotations
            united = coco.merge([annotations[index].rle for index in group])
            held = torch.from_numpy(np.rint(255 * coverage(united, size)).astype(np.uint8))
            if held.numel() <= self._room:
                self._room -= held.numel()
                self._held[key] = held
        return held / 255


def open_prompted(folder: Path, *, cache_mib: int) -> PromptedImages:
    """The images of a folder such as data/sa1b, and their prompts.

    Args:
        folder: has manifest.json and prompts.json.
        cache_mib: RAM for decoded images and, a quarter of it, for masks; 0: decoded each time.

    Raises:
        ValueError: one of these files is missing or broken, or they are of different images.
    """
    for_masks = cache_mib // 4
    images = open_images(folder, cache_mib=cache_mib - for_masks)
    return PromptedImages(images, read_prompts(folder), cache_mib=for_masks)


def images_of(pairs: Sequence[Pair]) -> tuple[list[int], Tensor]:
    """The distinct images of some pairs as they first come, and each pair's row among them, [B]."""
    images = list(dict.fromkeys(image for image, _ in pairs))
    rows = {image: row for row, image in enumerate(images)}
    return images, torch.tensor([rows[image] for image, _ in pairs])
