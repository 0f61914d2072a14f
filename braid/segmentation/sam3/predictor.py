"""A model and the texts of its prompts, encoded once: what predicts for batches of prompts.

    predictor = Predictor.of(model, ["red circle", "blue star"], tokenizer, device)
    prediction = predictor(prompt_batch(prompted, pairs))

Features of texts are the same for any image: encoded once, they spare the text tower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from braid.segmentation.data.prompted import Prompt, PromptBatch
from braid.segmentation.sam3.sam3 import Prediction, PromptInputs, predict, text_features
from braid.segmentation.sam3.tokens import encode
from braid.training.device import autocast

_TEXTS = 64  # encoded at once


class Predictor:
    """A `Sam3Model` in evaluation mode that needs no tokenizer any more."""

    def __init__(
        self,
        model: Any,
        texts: Texts,  # as the model encodes them
        device: torch.device,
        precision: str = "float32",  # of the forward pass
    ) -> None:
        self.model, self.texts = model.to(device).eval(), texts
        self.device, self.precision = device, precision

    @classmethod
    def of(
        cls,
        model: Any,
        texts: Iterable[str],  # of the prompts to come
        tokenizer: Any,
        device: torch.device,
        precision: str = "float32",
    ) -> Self:
        """The predictor that a model makes with its tokenizer.

        Raises:
            ValueError: as `encode_texts`.
        """
        model = model.to(device).eval()
        encoded = encode_texts(texts, model, tokenizer, device=device, precision=precision)
        return cls(model, encoded, device, precision)

    def __call__(self, batch: PromptBatch, *, features: bool = False) -> Prediction:
        """The predictions for a batch, on the model's device."""
        return self.prepared(batch, features=features)()

    def prepared(self, batch: PromptBatch, *, features: bool = False) -> Callable[[], Prediction]:
        """What predicts when it is called; all that it takes is on the device by then."""
        inputs = self.texts.inputs(batch.prompts, batch.owner).to(self.device)
        pixels = batch.pixels.to(self.device)

        @torch.no_grad()
        def call() -> Prediction:
            with autocast(self.device, self.precision):
                return predict(self.model, pixels, inputs, features=features)

        return call


class Texts:
    """Encoded texts."""

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
        owner: Tensor,  # [B] row of each prompt's image
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

    After this the model can do without tokenizer and text tower, four tenths of SAM3.

    Raises:
        ValueError: there is no text, or the model came without its text tower.
    """
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        raise ValueError("no image has a prompt, expected one or more")
    if model.text_encoder is None:
        raise ValueError("the teacher has no text tower, expected one to encode the prompts with")
    tokens, attention = encode(tokenizer, distinct, text_length(model))
    features = []
    for rows in torch.arange(len(distinct)).split(_TEXTS):
        inputs = PromptInputs(torch.zeros_like(rows), tokens[rows], attention[rows]).to(device)
        with autocast(device, precision):
            features.append(text_features(model, inputs).float().cpu())
    return Texts(distinct, torch.cat(features), attention)


def text_length(model: Any) -> int:
    """How many tokens a text has for a `Sam3Model`, padding included."""
    return int(model.config.text_config.max_position_embeddings)
