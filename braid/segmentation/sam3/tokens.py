"""Tokenizers as Hugging Face folders: one of whole words, or the one that a checkpoint brings.

    words = words_in(prompt.text for prompt in prompts)
    save_tokenizer(folder, word_tokenizer(words, length=8))
    ids, attention = encode(load_tokenizer(folder), ["a red circle"], length=8)

Like CLIP's, the one of words puts a start and an end token around a text and pads with the end
token, so the model's attention mask tells where a text ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from braid.common.torchvision import mend_torchvision

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
