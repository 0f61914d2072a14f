"""How the tiny teacher is trained: on prompts whose truth is known, images mirrored at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from braid.segmentation.data.prompted import Truth
from braid.segmentation.sam3.sam3 import predict
from braid.segmentation.supervised.batches import Asked, Questions, on_cpu
from braid.segmentation.supervised.loss import TruthLoss


class TruthObjective(nn.Module):
    """The training objective of a `Sam3Model` that learns from annotations."""

    outer_layers = tuple(
        f"model.{name}"
        for name in (
            "geometry_encoder.boxes_direct_project",
            "detr_decoder.box_head.layer3",
            "detr_decoder.presence_head.layer3",
        )
    )  # the first and the last

    def __init__(
        self,
        model: nn.Module,
        questions: Questions,
        loss: TruthLoss,
        *,
        images: int,  # a step
        prompts: int,  # an image, at most
    ) -> None:
        super().__init__()
        self.model, self.questions, self.loss = model, questions, loss
        self.images, self.prompts = images, prompts
        config: Any = model.config
        self.mask_size = int(config.vision_config.backbone_feature_sizes[0][0])
        self.shown: Sequence[int] = sorted(questions.of_image)
        if not self.shown:
            raise ValueError("no training prompt has a known truth, expected one or more")

    def forward(self, _step: int, stream: torch.Generator) -> dict[str, Tensor]:
        """Weighted terms of prompts that are drawn at random, of all decoder layers."""
        stream = on_cpu(stream)
        places = torch.randperm(len(self.shown), generator=stream)[: self.images].tolist()
        asked = self.questions.draw([self.shown[each] for each in places], self.prompts, stream)
        truth = self.questions.prompted.truth(asked.pairs, self.mask_size)
        truth = truth.to(asked.pixels.device)
        mirrored = torch.rand(2, len(asked.pixels), generator=stream) < 0.5
        for axis, chosen in enumerate(mirrored):
            asked, truth = mirror(asked, truth, chosen.to(asked.pixels.device), axis)
        prediction = predict(self.model, asked.pixels, asked.inputs, earlier=True)
        return self.loss(prediction, truth)


def mirror(
    asked: Asked,
    truth: Truth,
    chosen: Tensor,  # [I] bool, which images
    axis: int,  # 0: left becomes right, 1: top becomes bottom
) -> tuple[Asked, Truth]:
    """Some of the images, and what is asked and known of them, seen in a mirror."""
    across, inputs = -1 - axis, asked.inputs
    rows = chosen[inputs.owner]

    def flipped(picture: Tensor, where: Tensor) -> Tensor:
        return torch.where(where[:, None, None, None], picture.flip(across), picture)

    low, high = truth.boxes[..., axis], truth.boxes[..., axis + 2]
    boxes = truth.boxes.clone()
    boxes[..., axis] = torch.where(rows[:, None], 1 - high, low)
    boxes[..., axis + 2] = torch.where(rows[:, None], 1 - low, high)
    if inputs.boxes is not None:
        centre = inputs.boxes.clone()
        centre[:, axis] = torch.where(rows, 1 - centre[:, axis], centre[:, axis])
        inputs = replace(inputs, boxes=centre)
    masks, semantic = flipped(truth.masks, rows), flipped(truth.semantic, rows)
    return (
        replace(asked, pixels=flipped(asked.pixels, chosen), inputs=inputs),
        replace(truth, masks=masks, boxes=boxes, semantic=semantic),
    )
