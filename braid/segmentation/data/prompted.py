"""Images with their prompts: what a batch for training, caching or evaluation is made of.

    prompted = open_prompted(Path("data/sa1b"), cache_mib=128)
    pairs = prompted.pairs("train", known=True)[:16]
    batch = prompt_batch(prompted, pairs)             # prompts, and pixels of their images
    truth = prompted.ground_truth(pairs, size=32)     # masks and boxes of their targets

A pair is the index of an image and the index of a prompt among those of the image. SAM3 (Carion et
al. 2025, SAM 3: Segment Anything with Concepts) segments every instance of a concept, given by a
noun phrase or by the box of an example, and says in a presence score whether the concept is in the
image at all. So the targets of a prompt are a set of annotations: an empty one for a negative
prompt, None where it cannot be known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
from pycocotools import mask as coco
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor

from braid.segmentation.config import Kind
from braid.segmentation.data.sa1b import (
    Images,
    Record,
    coverage,
    first_fault,
    normalize,
    open_images,
)

PROMPTS = "prompts.json"
VISUAL = "visual"  # the text beside a box, as in SAM3
AGAIN = "run `dvc repro -f prepare_sa1b` again"

Coordinate = Annotated[float, Field(ge=0, le=1)]
Targets = tuple[Annotated[int, Field(ge=0)], ...]  # indices of annotations
Pair = tuple[int, int]


@dataclass(frozen=True)
class Prompt:
    """What is to be segmented in an image, and which of its annotations that is."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    kind: Kind
    text: str
    box: tuple[Coordinate, Coordinate, Coordinate, Coordinate] | None  # cxcywh in [0, 1]
    targets: Targets | None  # (): a negative prompt; None: unknown
    labeled: bool  # students may see the ground truth

    def __post_init__(self) -> None:
        if (self.kind == "box") != (self.box is not None):
            raise ValueError("a box prompt has a box, and no other kind has")


def write_prompts(folder: Path, prompts: Sequence[Sequence[Prompt]]) -> None:
    """Write prompts.json: a line for each image, with the list of its prompts."""
    lines = [_OF_IMAGE.dump_json(list(of_image)).decode() for of_image in prompts]
    (folder / PROMPTS).write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


def read_prompts(folder: Path) -> list[list[Prompt]]:
    """Read prompts.json.

    Raises:
        ValueError: it cannot be read, or it is not what `write_prompts` writes.
    """
    path = folder / PROMPTS
    try:
        return _OF_IMAGES.validate_json(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except ValidationError as error:
        raise ValueError(f"{path}: {first_fault(error)}") from None


_OF_IMAGE = TypeAdapter(list[Prompt])
_OF_IMAGES = TypeAdapter(list[list[Prompt]])


@dataclass(frozen=True)
class GroundTruth:
    """The targets of B prompts, at most M of one."""

    masks: Tensor  # [B, M, g, g] covered fraction of each cell; zero beyond `count`
    boxes: Tensor  # [B, M, 4] xyxy in [0, 1]
    count: Tensor  # [B] long; 0: a negative prompt; -1: unknown
    semantic: Tensor  # [B, 1, g, g] covered by all of them together

    @property
    def known(self) -> Tensor:
        """Whether the targets are known at all, [B] bool."""
        return self.count >= 0

    @property
    def present(self) -> Tensor:
        """Whether there is a target, [B] bool; False where unknown."""
        return self.count > 0

    def to(self, device: torch.device) -> GroundTruth:
        """The same on a device."""
        return self._changed(lambda tensor: tensor.to(device))

    def take(self, rows: Tensor) -> GroundTruth:
        """That of some of the prompts."""
        return self._changed(lambda tensor: tensor[rows])

    def _changed(self, change: Callable[[Tensor], Tensor]) -> GroundTruth:
        tensors = (self.masks, self.boxes, self.count, self.semantic)
        return GroundTruth(*map(change, tensors))


class PromptedImages:
    """Images, and the prompts of each."""

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
        self._masks: dict[tuple[int, Targets, int], Tensor] = {}

    def pairs(
        self,
        split: str,
        *,
        labeled: bool | None = None,
        known: bool | None = None,
    ) -> list[Pair]:
        """The prompts of a split, labeled or not, of known targets or not."""
        return [
            (int(image), place)
            for image in self.images.indices(split)
            for place, prompt in enumerate(self.prompts[image])
            if labeled in (None, prompt.labeled) and known in (None, prompt.targets is not None)
        ]

    def prompt(self, pair: Pair) -> Prompt:
        """The prompt of a pair."""
        return self.prompts[pair[0]][pair[1]]

    def labeled(self, pairs: Sequence[Pair]) -> Tensor:
        """Whether students may see the ground truth of prompts, [P] bool."""
        return torch.tensor([self.prompt(pair).labeled for pair in pairs])

    def texts(self, pairs: Sequence[Pair] | None = None) -> list[str]:
        """The texts of some prompts, or of all in order."""
        if pairs is None:
            return [prompt.text for of_image in self.prompts for prompt in of_image]
        return [self.prompt(pair).text for pair in pairs]

    def kinds(self, pairs: Sequence[Pair]) -> list[str]:
        """The kinds of some prompts, sorted."""
        return sorted({self.prompt(pair).kind for pair in pairs})

    def pixels(self, images: Sequence[int]) -> Tensor:
        """Images as the teacher wants them, [I, 3, S, S] float32."""
        return normalize(torch.stack([self.images.pixels(index) for index in images]))

    def ground_truth(
        self,
        pairs: Sequence[Pair],
        size: int,  # cells a side
    ) -> GroundTruth:
        """The targets of the prompts.

        Raises:
            ValueError: an annotation that is a target is not there any more, or cannot be read.
        """
        targets = [self.prompt(pair).targets for pair in pairs]
        count = torch.tensor([-1 if group is None else len(group) for group in targets])
        most = max(1, int(count.max()))
        masks = torch.zeros(len(pairs), most, size, size)
        semantic = torch.zeros(len(pairs), 1, size, size)
        boxes = torch.zeros(len(pairs), most, 4)
        records: dict[int, Record] = {}  # each file is read once, cached or not
        for row, ((image, _), group) in enumerate(zip(pairs, targets, strict=True)):
            if not group:
                continue
            record = records[image] = records.get(image) or self.images.record(image)
            if max(group) >= len(record.annotations):
                missing = f"annotation {max(group)} of {len(record.annotations)}"
                raise ValueError(f"{record.file}: {missing} is the target of a prompt; {AGAIN}")
            boxes[row, : len(group)] = torch.tensor([record.annotations[n].box for n in group])
            for slot, index in enumerate(group):
                masks[row, slot] = self._covered(image, record, (index,), size)
            alone = len(group) == 1
            semantic[row, 0] = masks[row, 0] if alone else self._covered(image, record, group, size)
        return GroundTruth(masks, boxes, count, semantic)

    def _covered(self, image: int, record: Record, group: Targets, size: int) -> Tensor:
        """The fraction of each cell that annotations cover together, [size, size] float32."""
        key = (image, group, size)
        mask = self._masks.get(key)
        if mask is None:
            union = coco.merge([record.annotations[index].rle for index in group])
            mask = torch.from_numpy(np.rint(255 * coverage(union, size)).astype(np.uint8))
            if mask.numel() <= self._room:
                self._room -= mask.numel()
                self._masks[key] = mask
        return mask / 255


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


class PromptBatch(NamedTuple):
    """Prompts and their images, before any model's tokenizer."""

    prompts: list[Prompt]  # B
    owner: Tensor  # [B] row of each prompt's image
    pixels: Tensor  # [I, 3, S, S] on the CPU


def prompt_batch(prompted: PromptedImages, pairs: Sequence[Pair]) -> PromptBatch:
    """The prompts of some pairs; each image is decoded once."""
    images, owner = images_of(pairs)
    return PromptBatch([prompted.prompt(pair) for pair in pairs], owner, prompted.pixels(images))


def images_of(pairs: Sequence[Pair]) -> tuple[list[int], Tensor]:
    """The distinct images of some pairs as they first come, and each pair's row among them, [B]."""
    images = list(dict.fromkeys(image for image, _ in pairs))
    rows = {image: row for row, image in enumerate(images)}
    return images, torch.tensor([rows[image] for image, _ in pairs])


def image_batches(pairs: Sequence[Pair], images: int) -> list[list[Pair]]:
    """The prompts of `images` images at a time; an image left alone joins those before it."""
    every, owner = images_of(pairs)
    count = -(-len(every) // images)
    alone = count > 1 < images and len(every) % images == 1
    groups: list[list[Pair]] = [[] for _ in range(count - alone)]
    for pair, place in zip(pairs, owner.tolist(), strict=True):
        groups[min(place // images, len(groups) - 1)].append(pair)
    return groups
