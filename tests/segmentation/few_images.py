"""Three random images with prompts and ground truth, for the tests of both trainings."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from braid.segmentation.data.prompted import GroundTruth, Pair, Prompt
from braid.segmentation.sam3.predictor import word_tokenizer
from braid.segmentation.training.batches import PromptSampler
from tests.segmentation.tiny_models import CONTEXT, some_images

CPU = torch.device("cpu")
BOX = (0.5, 0.5, 0.4, 0.4)
PAIRS = [(image, place) for image in range(3) for place in range(4)]
WORDS = [f"{image}{place}" for image, place in PAIRS]


class FewImages:
    """Three images with four prompts each, of which the last one has a box."""

    def __init__(self) -> None:
        self.images = some_images(3)

    def pairs(self, _split: str) -> list[Pair]:
        return PAIRS

    def prompt(self, pair: Pair) -> Prompt:
        kind, box = ("box", BOX) if pair[1] == 3 else ("category", None)
        return Prompt(kind, f"{pair[0]}{pair[1]}", box, None, True)

    def labeled(self, pairs: Sequence[Pair]) -> torch.Tensor:
        return torch.tensor([self.prompt(pair).labeled for pair in pairs])

    def texts(self, pairs: Sequence[Pair]) -> list[str]:
        return [self.prompt(pair).text for pair in pairs]

    def pixels(self, images: Sequence[int]) -> torch.Tensor:
        return self.images[list(images)]

    def ground_truth(self, pairs: Sequence[Pair], size: int) -> GroundTruth:
        masks = torch.zeros(len(pairs), 1, size, size)
        masks[:, :, : size // 2] = 1
        boxes = torch.tensor([0.0, 0.0, 1.0, 0.5]).expand(len(pairs), 1, 4)
        return GroundTruth(masks, boxes, torch.ones(len(pairs)).long(), masks)


def sampler(pairs: Sequence[Pair] = PAIRS) -> PromptSampler:
    words = word_tokenizer(WORDS, length=CONTEXT)
    return PromptSampler(FewImages(), pairs, words, CONTEXT, CPU)  # type: ignore[arg-type]
