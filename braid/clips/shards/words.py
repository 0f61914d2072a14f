"""Text embeddings of prompts from a table of one vector a token, as WordLlama ships it.

No network is run: a prompt's rows are those of its tokens (Miller et al., WordLlama, MIT). The
package itself is never imported, its two files are read:

    weights/*.safetensors           embedding.weight [tokens, D] float16
    tokenizers/*tokenizer*.json     of the tokenizers library
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from braid.clips.config import TextSource

PACKAGE = "wordllama"
TABLE = "embedding.weight"


class WordTable:
    """Prompts to the vectors of their tokens."""

    def __init__(self, folder: Path) -> None:
        """Read the files of a package folder.

        Raises:
            ValueError: a file is missing or broken, or not of the format above.
        """
        try:
            (weights,) = (folder / "weights").glob("*.safetensors")
            (words,) = (folder / "tokenizers").glob("*tokenizer*.json")
            self.table = load(weights.read_bytes())[TABLE].float()
            self.tokenizer = Tokenizer.from_str(words.read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise ValueError(f"{folder}: {_expected(error)}") from None
        except Exception as error:  # the tokenizers library raises nothing narrower
            raise ValueError(f"{words}: {_expected(error)}") from None
        if self.table.ndim != 2 or len(self.table) < self.tokenizer.get_vocab_size():
            wanted = f"[{self.tokenizer.get_vocab_size()} or more, D]"
            raise ValueError(f"{weights}: {TABLE} is {list(self.table.shape)}, expected {wanted}")

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Rows [B, L, D] float32, zero rows after each text and where there is none."""
        encoded = self.tokenizer.encode_batch(list(prompts), add_special_tokens=False)
        rows = [self.table[torch.tensor(one.ids, dtype=torch.long)] for one in encoded]
        return pad_sequence(rows, batch_first=True)


def word_table(source: TextSource) -> WordTable | None:
    """The installed package's table; None where texts are embedded in the shards.

    Raises:
        ValueError: the package is not installed, or its files are not as expected.
    """
    if source == "shards":
        return None
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"clips.conditions.text is {source}, which needs the package: pip install -e '.[words]'"
        )
    return WordTable(Path(spec.submodule_search_locations[0]))


def _expected(error: Exception) -> str:
    return f"expected weights/*.safetensors with {TABLE} and tokenizers/*tokenizer*.json ({error})"
