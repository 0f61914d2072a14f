"""Prompts as rows of numbers: one fixed vector for each word, zero rows after the last.

It stands in for umT5's embeddings, which are padded to 512 rows in the same way. A word's vector
is drawn from a unit Gaussian by a hash of the word, so the same word has the same vector always.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache

import numpy as np
import torch
from torch import Tensor

ROWS, WIDTH = 16, 32  # umT5-XXL in Wan2.1: 512, 4096


def embed_prompt(prompt: str) -> Tensor:
    """A prompt's embedding, [ROWS, WIDTH] bfloat16.

    Raises:
        ValueError: the prompt has more than ROWS words.
    """
    words = re.findall(r"\w+", prompt.lower())
    if len(words) > ROWS:
        raise ValueError(f"prompt {prompt!r} has {len(words)} words, expected at most {ROWS}")
    rows = torch.zeros(ROWS, WIDTH)
    rows[: len(words)] = torch.stack([_vector(word) for word in words])
    return rows.bfloat16()


@cache
def _vector(word: str) -> Tensor:
    seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(WIDTH, np.float32))
