"""Tokenizers of words and of checkpoints, in folders."""

import json

import pytest
import torch

from braid.common.torchvision import mend_torchvision
from braid.segmentation.sam3.predictor import (
    encode,
    load_tokenizer,
    save_tokenizer,
    word_tokenizer,
    words_in,
)

TEXTS = ["A red circle and a blue star", "visual", "objects in the image!"]
START, END, UNKNOWN = 0, 1, 2


def some_tokenizer(words=None, length=8):
    return word_tokenizer(words_in(TEXTS) if words is None else words, length=length)


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_words_are_those_of_the_texts_sorted_and_in_lower_case():
    expected = "! a and blue circle image in objects red star the visual"
    assert words_in(TEXTS) == words_in(TEXTS[::-1] * 2) == sorted(expected.split())
    assert words_in(["it's half-done"]) == ["'", "-", "done", "half", "it", "s"]
    assert words_in([]) == []


def test_a_text_is_framed_padded_and_cut():
    tokenizer = some_tokenizer(["red", "circle", "a"])
    ids, attention = encode(tokenizer, ["A red  circle", "circle", "", "a a a a red"], 6)
    assert ids.tolist() == [
        [START, 5, 3, 4, END, END],
        [START, 4, END, END, END, END],
        [START, END, END, END, END, END],
        [START, 5, 5, 5, 5, END],
    ]
    assert attention.sum(1).tolist() == [5, 3, 2, 6]
    assert (attention.diff(dim=1) <= 0).all()
    assert ids.dtype == attention.dtype == torch.int64


def test_an_unknown_word_has_its_own_token():
    ids, _ = encode(some_tokenizer(["red"]), ["red zebra's"], 8)
    assert ids[0, :6].tolist() == [START, 3, UNKNOWN, UNKNOWN, UNKNOWN, END]
    assert len(some_tokenizer(["red"])) == 4


def test_every_word_of_the_texts_is_known_and_comes_back():
    tokenizer = some_tokenizer()
    ids, attention = encode(tokenizer, TEXTS, 12)
    assert not (ids == UNKNOWN).any()
    assert len(tokenizer) == 3 + 12
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == TEXTS[0].lower()
    assert encode(tokenizer, [TEXTS[0]], 12)[0].tolist() == ids[:1].tolist()
    assert attention.sum(1).tolist() == [9, 3, 7]


def test_the_order_of_the_words_gives_other_ids_to_the_same_text():
    words = words_in(TEXTS)
    one, other = (encode(some_tokenizer(order), TEXTS, 12)[0] for order in (words, words[::-1]))
    assert not torch.equal(one, other)
    assert torch.equal(torch.where(one > 2, 17 - one, one), other)


def test_a_folder_gives_the_same_tokenizer_and_the_same_bytes(tmp_path):
    tokenizer = some_tokenizer()
    expected = encode(tokenizer, TEXTS, 6)
    folders = [tmp_path / name for name in "abc"]
    save_tokenizer(folders[0], some_tokenizer())
    save_tokenizer(folders[1], tokenizer)  # after its use
    loaded = load_tokenizer(folders[1])
    for one, other in zip(encode(loaded, TEXTS, 6), expected, strict=True):
        assert torch.equal(one, other)
    assert files(folders[0]) == files(folders[1])
    save_tokenizer(folders[2], loaded)
    assert files(folders[2])["tokenizer.json"] == files(folders[0])["tokenizer.json"]
    assert loaded.model_max_length == 8


def test_the_folder_of_a_model_gives_its_own_tokenizer(tmp_path):
    save_tokenizer(tmp_path, some_tokenizer())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam3"}))
    ids, _ = encode(load_tokenizer(tmp_path), ["a zebra"], 5)
    assert ids.tolist() == encode(some_tokenizer(), ["a zebra"], 5)[0].tolist()


def clip_tokenizer():
    """CLIP's, of 256 bytes alone and at the end of a word, without merges."""
    mend_torchvision()
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    symbols = sorted(ByteLevel.alphabet())
    tokens = [
        *symbols,
        *(f"{symbol}</w>" for symbol in symbols),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    return CLIPTokenizer(vocab={token: place for place, token in enumerate(tokens)}, merges=[])


def test_the_tokenizer_of_a_real_checkpoint_is_loaded(tmp_path):
    clip = clip_tokenizer()
    assert len(clip) == 514
    save_tokenizer(tmp_path, clip)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam3"}))
    loaded = load_tokenizer(tmp_path)
    assert type(loaded).__name__ == "CLIPTokenizer"
    ids, attention = encode(loaded, ["A red", "é"], 32)
    assert ids.shape == attention.shape == (2, 32)
    letters = [loaded.convert_tokens_to_ids(token) for token in ("a</w>", "r", "e", "d</w>")]
    assert ids[0, :6].tolist() == [512, *letters, 513]
    assert (ids[0, 6:] == 513).all()
    assert attention.sum(1).tolist() == [6, 4]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, r"has no tokenizer, expected tokenizer\.json or vocab\.json in it"),
        ({"config.json": '{"model_type": "sam3"}'}, "has no tokenizer"),
        ({"tokenizer.json": "{"}, "its tokenizer cannot be read: "),
        ({"tokenizer.json": '{"model": {"type": "Word"}}'}, "its tokenizer cannot be read: "),
    ],
)
def test_a_folder_without_a_tokenizer_is_refused_in_a_line(tmp_path, content, message):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_folder_is_refused_without_asking_any_hub(tmp_path):
    with pytest.raises(ValueError, match="nowhere: has no tokenizer"):
        load_tokenizer(tmp_path / "nowhere")


def test_a_tokenizer_that_does_not_pad_is_refused(tmp_path):
    tokenizer = some_tokenizer()
    tokenizer.pad_token = None
    save_tokenizer(tmp_path, tokenizer)
    with pytest.raises(ValueError, match="has no pad_token"):
        load_tokenizer(tmp_path)
