"""How the tiny teacher is trained: on prompts of known ground truth, images mirrored at random."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from braid.segmentation.config import TeacherConfig
from braid.segmentation.data.prompted import GroundTruth, PromptedImages
from braid.segmentation.sam3.sam3 import predict
from braid.segmentation.sam3.tokens import word_tokenizer, words_in
from braid.segmentation.teacher.tiny_sam3 import tiny_sam3
from braid.segmentation.training.batches import Batch, PromptSampler, on_cpu
from braid.segmentation.training.ground_truth import GroundTruthLoss
from braid.training.trainer import Row, Run, train

MOST_TOKENS = 77  # of a text, as in CLIP


def new_teacher(
    config: TeacherConfig,
    prompted: PromptedImages,
    generator: torch.Generator,  # of the weights
) -> tuple[Any, Any]:
    """A tiny `Sam3Model` for the images, and a tokenizer of all words in their prompts."""
    texts = sorted(set(prompted.texts()))
    tokenizer = word_tokenizer(words_in(texts), length=MOST_TOKENS)
    context = max(map(len, tokenizer(texts, truncation=True)["input_ids"]))
    tokenizer.model_max_length = context
    model = tiny_sam3(
        width=config.width,
        layers=config.layers,
        queries=config.queries,
        image_size=prompted.images.size,
        vocabulary=len(tokenizer),
        context=context,
        generator=generator,
    )
    return model, tokenizer


def fit(
    model: Any,
    tokenizer: Any,
    prompted: PromptedImages,
    config: TeacherConfig,
    run: Run,
) -> list[Row]:
    """Train a teacher in place, until evaluation mode; the rows of the training curve."""
    sampler = PromptSampler(
        prompted,
        prompted.pairs("train", known=True),
        tokenizer,
        tokenizer.model_max_length,
        run.device,
    )
    objective = GroundTruthObjective(
        model.to(run.device),
        sampler,
        GroundTruthLoss(),
        images=config.images,
        prompts=config.prompts,
    )
    result = train(
        objective,
        config.optimizer,
        run,
        steps=config.steps,
        outer_layers=objective.outer_layers,
        fused=True,
    )
    model.eval()
    return result.history


class GroundTruthObjective(nn.Module):
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
        sampler: PromptSampler,
        loss: GroundTruthLoss,
        *,
        images: int,  # a step
        prompts: int,  # an image, at most
    ) -> None:
        super().__init__()
        self.model, self.sampler, self.loss = model, sampler, loss
        self.images, self.prompts = images, prompts
        config: Any = model.config
        self.mask_size = int(config.vision_config.backbone_feature_sizes[0][0])
        if not sampler.images:
            raise ValueError("no training prompt has known ground truth, expected one or more")

    def forward(self, _step: int, stream: torch.Generator) -> dict[str, Tensor]:
        """Weighted terms of prompts that are drawn at random, of all decoder layers."""
        stream, images = on_cpu(stream), self.sampler.images
        places = torch.randperm(len(images), generator=stream)[: self.images].tolist()
        batch = self.sampler.draw([images[place] for place in places], self.prompts, stream)
        truth = self.sampler.prompted.ground_truth(batch.pairs, self.mask_size)
        truth = truth.to(batch.pixels.device)
        mirrored = torch.rand(2, len(batch.pixels), generator=stream) < 0.5
        for axis, chosen in enumerate(mirrored):
            batch, truth = mirror(batch, truth, chosen.to(batch.pixels.device), axis)
        prediction = predict(self.model, batch.pixels, batch.inputs, earlier=True)
        return self.loss(prediction, truth)


def mirror(
    batch: Batch,
    truth: GroundTruth,
    chosen: Tensor,  # [I] bool, which images
    axis: int,  # 0: left becomes right, 1: top becomes bottom
) -> tuple[Batch, GroundTruth]:
    """Some of the images mirrored, with the boxes of their prompts and their ground truth."""
    across, inputs = -1 - axis, batch.inputs
    rows = chosen[inputs.owner]

    def flipped(values: Tensor, where: Tensor) -> Tensor:
        return torch.where(where[:, None, None, None], values.flip(across), values)

    low, high = truth.boxes[..., axis], truth.boxes[..., axis + 2]
    boxes = truth.boxes.clone()
    boxes[..., axis] = torch.where(rows[:, None], 1 - high, low)
    boxes[..., axis + 2] = torch.where(rows[:, None], 1 - low, high)
    if inputs.boxes is not None:
        prompt_boxes = inputs.boxes.clone()
        center = prompt_boxes[:, axis]
        prompt_boxes[:, axis] = torch.where(rows, 1 - center, center)
        inputs = replace(inputs, boxes=prompt_boxes)
    masks, semantic = flipped(truth.masks, rows), flipped(truth.semantic, rows)
    return (
        replace(batch, pixels=flipped(batch.pixels, chosen), inputs=inputs),
        replace(truth, masks=masks, boxes=boxes, semantic=semantic),
    )
