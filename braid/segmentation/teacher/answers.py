"""The teacher's answers as a student is given them: asked now, or written down before.

    texts = encode_texts(["red circle", "blue star"], model, tokenizer, device=device)
    teacher = OnlineTeacher(prompted, model, texts, Kept(...), device=device)
    teacher.predictions([(0, 2), (0, 5), (7, 1)])  # of three prompts on two images

`teacher_cache` writes down what an `OnlineTeacher` says and gives it back by the same call, so that
a training need not know which of the two it learns from. Both keep of an answer what `Kept` says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from braid.segmentation.data.prompted import Pair, PromptedImages, images_of
from braid.segmentation.data.prompts import Prompt
from braid.segmentation.sam3.masks import resized
from braid.segmentation.sam3.sam3 import Prediction, PromptInputs, predict, text_features
from braid.segmentation.sam3.tokens import encode
from braid.training.device import autocast

_TEXTS = 64  # encoded at once
_OF_PROMPTS = ("logits", "presence", "boxes", "masks", "semantic")


@dataclass(frozen=True)
class Kept:
    """What is kept of an answer."""

    masks: int  # queries of a prompt, those with the highest scores
    mask_size: int  # pixels a side
    levels: int  # of the FPN, the coarsest; 0: no features at all

    def of(self, answer: Prediction) -> Prediction:
        """That of the queries with the highest scores, in the model's order.

        Features are rounded to 16 bits.

        Raises:
            ValueError: there are fewer queries, smaller masks or fewer levels.
        """
        self._check(answer)
        chosen = answer.logits.topk(self.masks, dim=1).indices.sort(dim=1).values
        rows = torch.arange(len(chosen), device=chosen.device)[:, None]
        return Prediction(
            masks=resized(answer.masks[rows, chosen], self.mask_size),
            boxes=answer.boxes[rows, chosen].float(),
            logits=answer.logits.gather(1, chosen).float(),
            presence=answer.presence.float(),
            semantic=resized(answer.semantic, self.mask_size),
            fpn=tuple(each.half() for each in answer.fpn[len(answer.fpn) - self.levels :]),
            encoder=answer.encoder.half() if answer.encoder is not None else None,
        )

    def _check(self, answer: Prediction) -> None:
        offered = {
            "masks": (self.masks, answer.logits.shape[1], "queries"),
            "mask_size": (self.mask_size, answer.masks.shape[-1], "pixels a side of its masks"),
            "levels": (self.levels, len(answer.fpn), "levels of features"),
        }
        for name, (wanted, most, what) in offered.items():
            if wanted > most:
                raise ValueError(
                    f"sam3_cache.{name} is {wanted}, expected at most the teacher's {most} {what}"
                )


class Texts:
    """Texts as the teacher reads them, encoded once."""

    def __init__(
        self,
        texts: Sequence[str],  # T distinct ones
        features: Tensor,  # [T, L, C]
        attention: Tensor,  # [T, L] long, 0 for padding
    ) -> None:
        self.texts, self.features, self.attention = list(texts), features, attention
        self._rows = {text: row for row, text in enumerate(texts)}

    def rows(self, texts: Sequence[str]) -> Tensor:
        """Where some of them stand, [B] long.

        Raises:
            ValueError: one was never encoded.
        """
        unknown = sorted(set(texts) - set(self._rows))
        if unknown:
            raise ValueError(f"text {unknown[0]!r} is not among those that the teacher has encoded")
        return torch.tensor([self._rows[text] for text in texts])

    def inputs(
        self,
        prompts: Sequence[Prompt],  # B
        owner: Tensor,  # [B] row of each one's image
    ) -> PromptInputs:
        """Prompts without need of a tokenizer."""
        rows = self.rows([prompt.text for prompt in prompts])
        return PromptInputs(
            owner,
            torch.zeros_like(self.attention[rows]),  # tokens are not read beside features
            self.attention[rows],
            boxes=torch.tensor([prompt.box or (0.0, 0.0, 0.0, 0.0) for prompt in prompts]),
            boxed=torch.tensor([prompt.box is not None for prompt in prompts]),
            text=self.features[rows],
        )


@torch.no_grad()
def encode_texts(
    texts: Iterable[str],
    model: Any,  # a Sam3Model with its text tower
    tokenizer: Any,
    *,
    device: torch.device,
    precision: str = "float32",
) -> Texts:
    """The distinct ones among some texts, as they first come; features stay on the CPU.

    After this the teacher can do without tokenizer and text tower, four tenths of SAM3.

    Raises:
        ValueError: there is no text, or the model came without its text tower.
    """
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        raise ValueError("no image has a prompt, expected something to ask the teacher")
    if model.text_encoder is None:
        raise ValueError("the teacher has no text tower, expected one to encode the prompts with")
    tokens, attention = encode(tokenizer, distinct, context(model))
    features = []
    for some in torch.arange(len(distinct)).split(_TEXTS):
        inputs = PromptInputs(torch.zeros_like(some), tokens[some], attention[some]).to(device)
        with autocast(device, precision):
            features.append(text_features(model, inputs).float().cpu())
    return Texts(distinct, torch.cat(features), attention)


class OnlineTeacher:
    """The teacher itself."""

    def __init__(
        self,
        prompted: PromptedImages,
        model: Any,  # a Sam3Model, with or without its text tower
        texts: Texts,  # of all prompts
        kept: Kept,
        *,
        device: torch.device,
        precision: str = "float32",  # of the forward pass
    ) -> None:
        self.prompted, self.model = prompted, model.to(device).eval()
        self.texts, self.kept = texts, kept
        self.device, self.precision = device, precision

    def predictions(self, pairs: Sequence[Pair]) -> Prediction:
        """Answers in the order of the pairs, features of the images as these first come.

        Raises:
            ValueError: an answer is not finite; the message names the image and the prompt.
        """
        return self.answers(pairs)[1]

    @torch.no_grad()
    def answers(self, pairs: Sequence[Pair]) -> tuple[Tensor, Prediction]:
        """The scores of all queries, [B, Q], and what is kept of the answers."""
        images, owner = images_of(pairs)
        pixels = self.prompted.pixels(images).to(self.device)
        prompts = [self.prompted.prompt(pair) for pair in pairs]
        inputs = self.texts.inputs(prompts, owner).to(self.device)
        with autocast(self.device, self.precision):
            answer = predict(self.model, pixels, inputs, features=self.kept.levels > 0)
        kept = self.kept.of(answer)
        self._require_finite(kept, pairs, owner)
        return answer.scores, kept

    def _require_finite(self, kept: Prediction, pairs: Sequence[Pair], owner: Tensor) -> None:
        held = [(name, getattr(kept, name)) for name in _OF_PROMPTS]
        features = [("fpn", level) for level in kept.fpn]
        if kept.encoder is not None:
            held.append(("encoder", kept.encoder))
        for name, values in [*held, *features]:
            finite = values.isfinite().flatten(1).all(1).cpu()
            finite = finite[owner] if name == "fpn" else finite
            if not finite.all():
                image, place = pair = pairs[int(finite.int().argmin())]
                file, prompt = self.prompted.images.record(image).file, self.prompted.prompt(pair)
                raise ValueError(
                    f"{file}: the teacher's {name} for prompt {place} ({prompt.kind}: "
                    f"{prompt.text!r}) are not finite"
                )


def context(model: Any) -> int:
    """How many tokens a text has for a `Sam3Model`, padding included."""
    return int(model.config.text_config.max_position_embeddings)
