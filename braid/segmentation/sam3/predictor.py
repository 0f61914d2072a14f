"""A model and the texts of its prompts, encoded once: what predicts for batches of prompts.

    predictor = Predictor.of(model, ["red circle", "blue star"], tokenizer, device)
    prediction = predictor(prompt_batch(prompted, pairs))

Features of texts are the same for any image: encoded once, they spare the text tower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from braid.common.torchvision import mend_torchvision
from braid.segmentation.data.prompted import Prompt, PromptBatch
from braid.segmentation.sam3.sam3 import Prediction, PromptInputs, predict, text_features
from braid.training.device import autocast

# ---- Tokenizers as Hugging Face folders: of whole words, or a checkpoint's own ---------------
#
#     words = words_in(prompt.text for prompt in prompts)
#     save_tokenizer(folder, word_tokenizer(words, length=8))
#     ids, attention = encode(load_tokenizer(folder), ["a red circle"], length=8)
#
# Like CLIP's, the one of words puts a start and an end token around a text and pads with the end
# token, so the model's attention mask tells where a text ends.

FILES = ("tokenizer.json", "vocab.json")
START, END, UNKNOWN = "<start>", "<end>", "<unknown>"  # tokens 0, 1 and 2


def words_in(texts: Iterable[str]) -> list[str]:
    """The distinct words and marks of punctuation of some texts, sorted."""
    from tokenizers import normalizers, pre_tokenizers

    lower, split = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    pieces = [split.pre_tokenize_str(lower.normalize_str(text)) for text in set(texts)]
    return sorted({word for text in pieces for word, _ in text})


def word_tokenizer(
    words: Sequence[str],  # the first one becomes token 3
    *,
    length: int,  # tokens of a text, at most
) -> Any:
    """A `PreTrainedTokenizerFast` that knows these words in lower case."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    mend_torchvision()
    from transformers import PreTrainedTokenizerFast

    ids = {word: place for place, word in enumerate((START, END, UNKNOWN, *words))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, ids[START]), (END, ids[END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        unk_token=UNKNOWN,
        model_max_length=length,
    )


def save_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Write a tokenizer's files into a folder."""
    tokenizer.backend_tokenizer.no_padding()  # else the last use would be saved as well
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.save_pretrained(folder)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, such as that of a checkpoint; nothing is fetched from the network.

    Raises:
        ValueError: the folder has none, or one that cannot be read, or that does not pad.
    """
    # Without this, a folder of weights alone would get an empty tokenizer of its model's kind.
    if not any((folder / name).is_file() for name in FILES):
        raise ValueError(f"{folder}: has no tokenizer, expected {' or '.join(FILES)} in it")
    mend_torchvision()
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library lets through whatever its parsers raise
        reason = " ".join(str(error).split())
        raise ValueError(f"{folder}: its tokenizer cannot be read: {reason}") from None
    if tokenizer.pad_token is None:
        raise ValueError(f"{folder}: its tokenizer has no pad_token, expected one, as CLIP's has")
    return tokenizer


def encode(
    tokenizer: Any,
    texts: Sequence[str],  # B
    length: int,  # tokens; longer texts are cut
) -> tuple[Tensor, Tensor]:
    """Ids and attention, both [B, length] long; 0 in the attention is padding."""
    tokens = tokenizer(
        list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )
    return tokens["input_ids"], tokens["attention_mask"]


_TEXTS = 64  # encoded at once


# ---- Predictors ------------------------------------------------------------------------------


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
