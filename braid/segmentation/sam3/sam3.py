"""One call for teacher and student: what a `Sam3Model` predicts for prompts on images.

    inputs = PromptInputs(owner, tokens, attention)
    prediction = predict(model, images, inputs, features=True)

The student is a `Sam3Model` too, with another vision and text encoder, so that both are run through
the public interface of transformers alone. Images go through the vision encoder once, however many
prompts each has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from braid.segmentation.sam3.geometry import xyxy

# what has a row a prompt
BY_PROMPT = (
    "masks",
    "boxes",
    "logits",
    "presence",
    "semantic",
    "encoder",
    "text",
    "attention",
)


@dataclass(frozen=True)
class PromptInputs:
    """A batch of prompts; text by tokens or, once computed, by its features."""

    owner: Tensor  # [B] row of the prompt's image
    tokens: Tensor  # [B, L] long
    attention: Tensor  # [B, L] long, 0 for padding
    boxes: Tensor | None = None  # [B, 4] cxcywh in [0, 1]; None: no prompt has one
    boxed: Tensor | None = None  # [B] bool, whose box counts
    text: Tensor | None = None  # [B, L, C] of `text_features`: tokens are not read

    def take(self, rows: Tensor) -> PromptInputs:
        """Some rows of the batch."""
        return self._changed(lambda tensor: tensor[rows])

    def to(self, device: torch.device) -> PromptInputs:
        """The batch on a device."""
        return self._changed(lambda tensor: tensor.to(device))

    def _changed(self, change: Callable[[Tensor], Tensor]) -> PromptInputs:
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        changed = {name: change(tensor) for name, tensor in tensors.items() if tensor is not None}
        return replace(self, **changed)


@dataclass(frozen=True)
class Layer:
    """What a decoder layer before the last one would predict; masks come at the end alone."""

    boxes: Tensor  # [B, Q, 4] xyxy in [0, 1]
    logits: Tensor  # [B, Q]
    presence: Tensor  # [B, 1]


@dataclass(frozen=True)
class Prediction:
    """What a model predicts for each of B prompts with Q queries."""

    masks: Tensor  # [B, Q, h, w] logits
    boxes: Tensor  # [B, Q, 4] xyxy in [0, 1]
    logits: Tensor  # [B, Q]
    presence: Tensor  # [B, 1] logits: is the concept in the image at all
    semantic: Tensor  # [B, 1, h, w] logits
    fpn: tuple[Tensor, ...] = ()  # [I, C, h, w] of the I images, finest first
    encoder: Tensor | None = None  # [B, C, h, w] tokens of the DETR encoder on their grid
    text: Tensor | None = None  # [B, L, C] tokens of the text as the DETR encoder takes them
    attention: Tensor | None = None  # [B, L] 0 for padding of the text
    earlier: tuple[Layer, ...] = ()  # of the decoder, first layer first

    @property
    def scores(self) -> Tensor:
        """How sure a query is of its mask, [B, Q] in [0, 1]."""
        return self.logits.sigmoid() * self.presence.sigmoid()

    def to(self, device: torch.device) -> Prediction:
        """The same on a device, without earlier layers."""
        tensors = {name: getattr(self, name) for name in BY_PROMPT}
        moved = {name: tensor.to(device) for name, tensor in tensors.items() if tensor is not None}
        return Prediction(**moved, fpn=tuple(level.to(device) for level in self.fpn))


def predict(
    model: Any,
    images: Tensor,  # [I, 3, S, S] as the teacher's processor normalizes them
    inputs: PromptInputs,
    *,
    features: bool = False,  # FPN levels and encoder tokens as well
    earlier: bool = False,  # predictions of the earlier decoder layers as well
) -> Prediction:
    """The model's predictions, in the order of the prompts."""
    vision = model.get_vision_features(pixel_values=images)
    if inputs.boxes is None or inputs.boxed is None:
        prediction = _forward(model, vision, inputs, features, earlier)
    else:
        # A box adds tokens to every prompt of its batch, so those without one take another pass.
        groups = [inputs.boxed.nonzero()[:, 0], (~inputs.boxed).nonzero()[:, 0]]
        groups = [rows for rows in groups if len(rows)]
        parts = [_forward(model, vision, inputs.take(rows), features, earlier) for rows in groups]
        prediction = parts[0] if len(parts) == 1 else _in_order(parts, torch.cat(groups).argsort())
    return replace(prediction, fpn=tuple(vision.fpn_hidden_states[:-1]) if features else ())


def text_features(model: Any, inputs: PromptInputs) -> Tensor:
    """Text as the DETR encoder takes it, [B, L, C]: to be computed once for a set of prompts.

    Raises:
        ValueError: the model has no text tower.
    """
    if model.text_encoder is None:
        raise ValueError("the model's text tower was removed, expected text features")
    encoded = model.get_text_features(input_ids=inputs.tokens, attention_mask=inputs.attention)
    return encoded.pooler_output


def _forward(
    model: Any, vision: Any, inputs: PromptInputs, features: bool, earlier: bool
) -> Prediction:
    """Prompts that all have a box, or none of them."""
    boxes = inputs.boxes
    if boxes is not None and inputs.boxed is not None:
        boxes = boxes[:, None] if bool(inputs.boxed.all()) else None
    text = text_features(model, inputs) if inputs.text is None else inputs.text
    parts = ("detr_decoder", "dot_product_scoring") if earlier else ()
    with _outputs_of(model, parts) as outputs, separable_roi_align():
        output = model(
            vision_embeds=_of_owners(vision, inputs.owner),
            text_embeds=type(vision)(pooler_output=text),
            attention_mask=inputs.attention,
            input_boxes=None if boxes is None else boxes.to(text.dtype),
            output_hidden_states=features,
        )
    encoder = None
    if features:
        height, width = vision.fpn_hidden_states[-2].shape[-2:]
        encoder = output.encoder_hidden_states[-1].mT.unflatten(2, (height, width))
    return Prediction(
        masks=output.pred_masks,
        boxes=output.pred_boxes,
        logits=output.pred_logits,
        presence=output.presence_logits,
        semantic=output.semantic_seg,
        encoder=encoder,
        text=text if features else None,
        attention=inputs.attention if features else None,
        earlier=_earlier(**outputs) if earlier else (),
    )


@contextmanager
def _outputs_of(model: Any, parts: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Within, what those parts of the model return as it runs, by their names."""
    outputs: dict[str, Any] = {}
    hooks = [
        getattr(model, name).register_forward_hook(
            lambda _module, _inputs, output, name=name: outputs.update({name: output})
        )
        for name in parts
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _earlier(detr_decoder: Any, dot_product_scoring: Tensor) -> tuple[Layer, ...]:
    """The decoder's layers but the last, which the model's output has.

    The boxes that a layer predicts are the reference boxes of the next one.
    """
    boxes = xyxy(detr_decoder.reference_boxes[1:])
    presence = detr_decoder.presence_logits[:-1]
    logits = dot_product_scoring[:-1, ..., 0]
    return tuple(map(Layer, boxes, logits, presence))


def _of_owners(vision: Any, owner: Tensor) -> Any:
    """The vision features of each prompt's image."""
    positions = vision.fpn_position_encoding  # the same for every image
    return type(vision)(
        fpn_hidden_states=tuple(level[owner] for level in vision.fpn_hidden_states),
        fpn_position_encoding=tuple(
            position[:1].expand(len(owner), -1, -1, -1) for position in positions
        ),
    )


def _in_order(parts: Sequence[Prediction], order: Tensor) -> Prediction:
    """Predictions of groups of prompts as those of one batch."""
    joined: dict[str, Any] = {}
    for name in BY_PROMPT:
        values = [getattr(part, name) for part in parts]
        joined[name] = None if values[0] is None else torch.cat(values)[order]
    layers = zip(*(part.earlier for part in parts), strict=True)
    joined["earlier"] = tuple(
        Layer(
            **{
                field.name: torch.cat([getattr(part, field.name) for part in layer])[order]
                for field in fields(Layer)
            }
        )
        for layer in layers
    )
    return Prediction(**joined)


def count_parameters(model: nn.Module) -> int:
    """How many parameters a model has."""
    return sum(parameter.numel() for parameter in model.parameters())


# ---- RoIAlign as two small matrix products (He et al. 2017, Mask R-CNN, section 3) -------------
# SAM3's geometry encoder pools the features below a box by `torchvision.ops.roi_align`. Where that
# has no native kernel, or none that is deterministic, it compiles itself: 20 s at the first call,
# and on some machines never. But bilinear samples on an axis-aligned grid are separable: with the
# mean weights of a box's rows and columns, the same numbers are rows @ features @ columns^T.


def roi_align(
    features: Tensor,  # [I, C, h, w]
    boxes: Sequence[Tensor],  # I of [N, 4] xyxy in cells
    size: int,  # bins a side
) -> Tensor:
    """What `torchvision.ops.roi_align(features, boxes, size)` gives, [sum N, C, size, size]."""
    owner = [image for image, of_image in enumerate(boxes) for _ in range(len(of_image))]
    x_low, y_low, x_high, y_high = torch.cat([of_image.float() for of_image in boxes]).unbind(1)
    rows = _weights(y_low, y_high, size, features.shape[2]).to(features)
    columns = _weights(x_low, x_high, size, features.shape[3]).to(features)
    return rows[:, None] @ features[owner] @ columns[:, None].mT


def _weights(low: Tensor, high: Tensor, bins: int, cells: int) -> Tensor:
    """How much each cell counts in each bin, [K, bins, cells]; samples far outside count as 0."""
    extent = (high - low).clamp_min(1.0)
    samples = (extent / bins).ceil()  # of a bin
    most = int(samples.max()) if len(samples) else 1
    index = torch.arange(most, device=low.device)
    within = (index + 0.5) / samples[:, None]  # [K, most] in bins
    place = torch.arange(bins, device=low.device)[:, None] + within[:, None]  # [K, bins, most]
    place = low[:, None, None] + place * (extent / bins)[:, None, None]
    counts = (index < samples[:, None])[:, None] & (place >= -1) & (place <= cells)
    cell = torch.arange(cells, device=low.device)
    distance = place.clamp(0, cells - 1)[..., None] - cell
    hat = (1 - distance.abs()).clamp_min(0) * counts[..., None]
    return hat.sum(2) / samples[:, None, None]


@contextmanager
def separable_roi_align() -> Iterator[None]:
    """Within, `torchvision.ops.roi_align` is the one above."""
    import torchvision  # not before the model that needs it

    ops: Any = torchvision.ops
    original = ops.roi_align
    ops.roi_align = roi_align
    try:
        yield
    finally:
        ops.roi_align = original
