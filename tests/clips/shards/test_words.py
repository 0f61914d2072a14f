"""A table of one vector a token, in the files that WordLlama's package has, embeds prompts."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from braid.clips.preparation.scan import scan_shards, write_manifest
from braid.clips.preparation.storyboards import prompt_text
from braid.clips.shards.dataset import open_clips
from braid.clips.shards.words import PACKAGE, TABLE, WordTable, word_table
from tests.clips.shard_files import TEXT, write_clips

WORDS = {"[UNK]": 0, "prompt": 1, "é": 2, "red": 3}


def rows() -> torch.Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).half()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of that name and layout on the path, with a table of six vectors."""
    folder = tmp_path / "site" / PACKAGE
    for part in ("weights", "tokenizers"):
        (folder / part).mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('is never imported')")
    save_file({TABLE: rows()}, folder / "weights/l2_supercat_256.safetensors")
    tokenizer = Tokenizer(WordLevel(WORDS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizers/l2_supercat_tokenizer_config.json"))
    monkeypatch.syspath_prepend(str(folder.parent))
    return folder


def test_a_prompt_has_the_vectors_of_its_tokens(package: Path) -> None:
    table = WordTable(package)
    embedded = table(["red prompt é", "", "red other"])
    expected = rows().float()
    assert embedded.dtype == torch.float32
    assert torch.equal(embedded[0], expected[[3, 1, 2]])
    assert embedded[1].eq(0).all()
    assert torch.equal(embedded[2], torch.cat([expected[[3, 0]], torch.zeros(1, 4)]))
    assert table([""]).shape == (1, 0, 4)


@pytest.mark.usefixtures("package")
def test_clips_and_storyboards_have_them_in_place_of_the_shards_own(tmp_path: Path) -> None:
    scan = scan_shards([write_clips(tmp_path / "a.tar", range(12))], "cthw", "all")
    (tmp_path / "clips").mkdir()
    more = {"codec": "wan", "layout": "cthw", "fractions": (0.2, 0.3)}
    write_manifest(tmp_path / "clips", scan, **more)
    shards = open_clips(tmp_path / "clips")
    clips = open_clips(tmp_path / "clips", text="wordllama")
    assert shards.texts([3]).shape == (1, *TEXT)
    assert torch.equal(clips.texts([3])[0], rows().float()[[1, 0, 2]])  # prompt 3 é
    assert torch.equal(prompt_text("prompt 3 é", clips), clips.texts([3]))
    with pytest.raises(ValueError, match="of the built-in clips only"):
        prompt_text("prompt 3 é", shards)


def test_what_is_missing_or_of_another_format_is_named(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = package / "weights/l2_supercat_256.safetensors"
    for tensors, message in (
        ({"other": rows()}, f"{package}: expected"),
        ({TABLE: rows()[:3]}, f"{TABLE} is [3, 4], expected [4 or more, D]"),
    ):
        save_file(tensors, weights)
        with pytest.raises(ValueError, match=re.escape(message)):
            word_table("wordllama")
    save_file({TABLE: rows()}, weights)
    (words,) = (package / "tokenizers").iterdir()
    words.write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: expected weights"):
        word_table("wordllama")
    shutil.rmtree(package)
    monkeypatch.setattr("braid.clips.shards.words.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"clips.conditions.text is wordllama.*pip install"):
        word_table("wordllama")
    assert word_table("shards") is None
