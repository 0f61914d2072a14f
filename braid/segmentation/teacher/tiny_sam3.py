"""The tiny teacher: a `Sam3Model` of transformers, small enough to be trained on one core.

The architecture is that of SAM3 (Carion et al. 2025, SAM 3: Segment Anything with Concepts) with
every width, depth and grid shrunk. Only the initial weights differ from the library's, whose
normal(0, .02) is meant for loading a checkpoint over it and leaves so small a network at a
standstill. Here

- a layer's weights have the scale of its fan-in (LeCun et al. 1998), residual branches less;
- attention to the prompt counts more than that: if not, some runs end before any word matters;
- position embeddings of patches are sines, which a large model has the time to learn;
- the queries' reference boxes stand all over the image, and each query attends to what lies in
  its own: without that, some hundred steps pass before the first object is told from another.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from braid.common.torchvision import mend_torchvision
from braid.segmentation.config import TeacherConfig
from braid.segmentation.data.prompted import (
    GroundTruth,
    Pair,
    PromptedImages,
    image_batches,
    prompt_batch,
)
from braid.segmentation.metrics.agreement import (
    BLIND,
    Detections,
    Table,
    compare,
    joined,
    mask_metrics,
    predicted_detections,
    presence_metrics,
    rows_of,
    true_detections,
)
from braid.segmentation.sam3.geometry import spread, xyxy
from braid.segmentation.sam3.predictor import Predictor, word_tokenizer, words_in
from braid.segmentation.sam3.sam3 import predict
from braid.segmentation.training.batches import Batch, PromptSampler, on_cpu
from braid.segmentation.training.ground_truth import GroundTruthLoss
from braid.training.trainer import Row, Run, train

MOST_TOKENS = 77  # of a text, as in CLIP
PATCH = 14  # pixels a side, as in SAM3: the finest features and the masks have stride 3.5

# What the initial weights are multiplied by, beside 1 / sqrt(fan-in).
LAST_OF_BRANCH = (".o_proj", ".out_proj", ".fc2")
TO_PROMPT = (".text_cross_attn.o_proj", ".prompt_cross_attn.o_proj")
RESIDUAL = 0.3  # what attention and perceptrons add to their input
PROMPT = 1.4  # what attention to the prompt adds
PATCHES = 3.0  # beside the sines, which are of size 0.7
TEXT_POSITIONS = 0.1  # beside the words
CORRECTIONS = 0.1  # of the reference boxes
STEEPEST = 8.0  # slope of the attention outside of a reference box


def tiny_sam3(
    *,
    width: int,  # channels everywhere, a multiple of 8
    layers: int,  # of the vision encoder, the DETR encoder and the decoder
    queries: int,
    image_size: int,  # pixels a side, a multiple of 14
    vocabulary: int,  # tokens
    context: int,  # tokens of a prompt, at most
    generator: torch.Generator,
) -> Any:
    """A `Sam3Model` with random weights, masks of `image_size` / 3.5 pixels a side."""
    mend_torchvision()
    from transformers import Sam3Config, Sam3Model

    grid = image_size // PATCH
    sizes = {"hidden_size": width, "num_attention_heads": 2}
    block = {**sizes, "intermediate_size": 2 * width, "dropout": 0.0}
    config = Sam3Config(
        vision_config={
            "backbone_config": _vision(width, layers, image_size),
            "fpn_hidden_size": width,
            "backbone_feature_sizes": [[scale * grid, scale * grid] for scale in (4, 2, 1)],
        },
        text_config=_text(width, vocabulary, context),
        geometry_encoder_config={**block, "num_layers": 1},
        detr_encoder_config={**block, "num_layers": layers},
        detr_decoder_config={**block, "num_layers": layers, "num_queries": queries},
        mask_decoder_config={**sizes, "dropout": 0.0},
    )
    model = Sam3Model(config)
    initialize(model, generator)
    return model


def _vision(width: int, layers: int, image_size: int) -> dict[str, Any]:
    """The vision transformer: windows of half the grid but in the last layer."""
    return {
        "model_type": "sam3_vit_model",
        "hidden_size": width,
        "num_attention_heads": 2,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "image_size": image_size,
        "pretrain_image_size": image_size,
        "patch_size": PATCH,
        "window_size": max(1, image_size // PATCH // 2),
        "global_attn_indexes": [layers - 1],
    }


def _text(width: int, vocabulary: int, context: int) -> dict[str, Any]:
    """The text transformer; tokens 0 and 1 start and end a prompt, as in `tokens`."""
    return {
        "model_type": "clip_text_model",
        "hidden_size": width,
        "num_attention_heads": 2,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 1,
        "vocab_size": vocabulary,
        "max_position_embeddings": context,
        "projection_dim": width,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }


@torch.no_grad()
def initialize(model: Any, generator: torch.Generator) -> None:
    """Give a `Sam3Model` weights from which it learns, every one from the generator."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            scale = _scale(name)
            nn.init.normal_(
                module.weight, std=scale / math.sqrt(_fan_in(module)), generator=generator
            )
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, generator=generator)
    model.text_encoder.text_model.embeddings.position_embedding.weight.mul_(TEXT_POSITIONS)
    embeddings = model.vision_encoder.backbone.embeddings
    embeddings.patch_embeddings.projection.weight.mul_(PATCHES)
    side = math.isqrt(embeddings.position_embeddings.shape[1])
    positions = sines(side, embeddings.position_embeddings.shape[2])
    embeddings.position_embeddings.copy_(positions[None])
    decoder = model.detr_decoder
    decoder.reference_points.weight.copy_(spread(len(decoder.reference_points.weight)).logit())
    decoder.box_head.layer3.weight.mul_(CORRECTIONS)
    for axis in (decoder.box_rpb_embed_x, decoder.box_rpb_embed_y):
        attend_inside(axis)


def attend_inside(bias: Any) -> None:
    """Make a decoder's queries attend to what lies in their reference boxes.

    The perceptron `bias` turns the signed log-distances from a box's two sides along one axis, to
    the low side and to the high one, into what is added to the attention of each head. Two of its
    units take how far a place is outside, so that attention falls with it, less in every further
    head; the others start small.
    """
    heads = bias.layer2.weight.shape[0]
    bias.layer1.weight[:2] = torch.tensor([[-1.0, 0.0], [0.0, 1.0]])
    bias.layer2.weight.mul_(0.1)
    bias.layer2.weight[:, :2] = -STEEPEST / 2.0 ** torch.arange(heads)[:, None]


def _scale(name: str) -> float:
    """Of a layer's initial weights, beside 1 / sqrt(fan-in)."""
    fusion = name.startswith("detr_encoder.") and name.endswith(".cross_attn.o_proj")
    if fusion or name.endswith(TO_PROMPT):
        return PROMPT
    return RESIDUAL if name.endswith(LAST_OF_BRANCH) else 1.0


def _fan_in(module: nn.Linear | nn.Conv2d | nn.ConvTranspose2d) -> float:
    """Inputs of one output."""
    if isinstance(module, nn.ConvTranspose2d):
        area, strides = math.prod(module.kernel_size), math.prod(module.stride)
        return module.in_channels * area / strides
    return module.weight[0].numel()


def sines(side: int, channels: int) -> Tensor:
    """Two-dimensional sine and cosine position embeddings, [side * side, channels]."""
    quarter = channels // 4
    frequencies = 0.5 * math.pi * torch.linspace(1, side, quarter) / side
    place = torch.arange(side)[:, None] * frequencies
    axis = torch.cat([place.sin(), place.cos()], 1)  # [side, channels / 2]
    rows = axis[:, None].expand(-1, side, -1)
    columns = axis[None].expand(side, -1, -1)
    both = torch.cat([rows, columns], 2).flatten(0, 1)
    return nn.functional.pad(both, (0, channels - both.shape[1]))


# ---- Training: on prompts of known ground truth, images mirrored at random ---------------------


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
    objective = GroundTruthObjective(model.to(run.device), sampler, GroundTruthLoss(), config)
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
        config: TeacherConfig,
    ) -> None:
        super().__init__()
        self.model, self.sampler, self.loss, self.config = model, sampler, loss, config
        architecture: Any = model.config
        self.mask_size = int(architecture.vision_config.backbone_feature_sizes[0][0])
        if not sampler.images:
            raise ValueError("no training prompt has known ground truth, expected one or more")

    def forward(self, _step: int, stream: torch.Generator) -> dict[str, Tensor]:
        """Weighted terms of prompts that are drawn at random, of all decoder layers."""
        stream, images = on_cpu(stream), self.sampler.images
        places = torch.randperm(len(images), generator=stream)[: self.config.images].tolist()
        chosen = [images[place] for place in places]
        batch = self.sampler.draw(chosen, self.config.prompts, stream)
        truth = self.sampler.prompted.ground_truth(batch.pairs, self.mask_size)
        truth = truth.to(batch.pixels.device)
        mirrored = torch.rand(2, len(batch.pixels), generator=stream) < 0.5
        for axis, flipped in enumerate(mirrored):
            batch, truth = mirror(batch, truth, flipped.to(batch.pixels.device), axis)
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


# ---- How good a teacher is by the truth of held-out images, beside what takes no model -------

Figures = dict[str, Any]  # a row of the table of teachers

TEACHER, WHOLE_IMAGE, FILLED_BOX = "teacher", "whole_image", "filled_box"
ALL = "all"  # kinds of prompts
DETECTED = 0.3  # the score of a detection: no param, or other ways to evaluate would fit anew
EVERYWHERE = (0.5, 0.5, 1.0, 1.0)  # cxcywh
COLUMNS = ("model", "kind", "prompts", "iou")  # at least


def teacher_rows(
    predictor: Predictor,
    prompted: PromptedImages,
    pairs: Sequence[Pair],  # of known ground truth, those of an image one after another
    *,
    images: int,  # at once
    score: float = DETECTED,
) -> list[Figures]:
    """Metrics of the teacher and of trivial predictors, for all prompts and each kind of them.

    `whole_image` detects all of an image whatever the prompt is, `filled_box` all of its box; both
    always predict presence. `iou` is the mean over true objects: 0 for one that no detection is
    matched to. Without prompts there are no rows.
    """
    if not pairs:
        return []
    parts: dict[str, list[Table]] = {TEACHER: [], WHOLE_IMAGE: [], FILLED_BOX: []}
    for batch in image_batches(pairs, images):
        prediction = predictor(prompt_batch(prompted, batch)).to(torch.device("cpu"))
        size = prediction.masks.shape[-1]
        truth = true_detections(prompted.ground_truth(batch, size))
        boxes = [prompted.prompt(pair).box or EVERYWHERE for pair in batch]
        detections = {
            TEACHER: predicted_detections(prediction, score=score, size=size),
            WHOLE_IMAGE: filled(torch.tensor([EVERYWHERE] * len(batch)), size),
            FILLED_BOX: filled(torch.tensor(boxes), size),
        }
        for model in parts:
            parts[model].append(compare(detections[model], truth))
    tables = {model: joined(of_model) for model, of_model in parts.items()}
    kinds = [prompted.prompt(pair).kind for pair in pairs]
    return [
        _row(model, kind, tables[model], torch.tensor([kind in (ALL, own) for own in kinds]))
        for kind in (ALL, *sorted(set(kinds)))
        for model in (TEACHER, FILLED_BOX if kind == "box" else WHOLE_IMAGE)
    ]


def _row(
    model: str,
    kind: str,
    table: Table,
    rows: Tensor,  # [P] bool, which prompts
) -> Figures:
    some = rows_of(table, rows)
    masks = mask_metrics(some)
    return {
        "model": model,
        "kind": kind,
        "prompts": int(rows.sum()),
        "iou": masks["matched_iou"],
        "semantic_iou": masks["semantic_iou"],
        **presence_metrics(some),
    }


def headline(rows: Iterable[Figures]) -> Figures:
    """What the teacher is worth in two numbers, and its status.

    - `unknown`: no held-out prompt has known ground truth
    - `finds_nothing`: its masks are no better than the whole image
    - `presence_at_chance`: it tells what is there from what is not hardly better than a coin does
    """
    of_all = {row["model"]: row for row in rows if row["kind"] == ALL}
    teacher, trivial = of_all.get(TEACHER, {}), of_all.get(WHOLE_IMAGE, {})
    iou, presence = teacher.get("iou"), teacher.get("presence_balanced_accuracy")
    if iou is None:
        status = "unknown"
    elif iou <= trivial["iou"]:
        status = "finds_nothing"
    elif presence is not None and presence <= BLIND:
        status = "presence_at_chance"
    else:
        status = "ok"
    return {
        "miou_teacher": iou,
        "presence_balanced_accuracy_teacher": presence,
        "status": status,
    }


def filled(
    boxes: Tensor,  # [B, 4] cxcywh in [0, 1]
    size: int,  # cells a side
) -> Detections:
    """The detection of all of a box as the object, which is there."""
    corners = xyxy(boxes)
    low, high = corners[:, :2], corners[:, 2:]
    center = (torch.arange(size) + 0.5) / size
    inside = (center >= low[..., None]) & (center < high[..., None])  # [B, 2, size]
    masks = inside[:, 1, :, None] & inside[:, 0, None]
    ones = torch.ones(len(boxes), 1)
    return Detections(
        masks=masks[:, None],
        boxes=corners[:, None],
        scores=ones,
        detected=ones.bool(),
        present=ones[:, 0].bool(),
        semantic=masks,
        known=ones[:, 0].bool(),
    )
