"""Prompts of the built-in clips are read word by word, and no others are."""

from __future__ import annotations

import pytest

from braid.clips.preparation.moving_digits import FAMILIES, WORDS, read_words


def test_prompts_are_read_word_by_word() -> None:
    prompts = ["a red seven drifts left, slowly, over black", "a white one grows, over grey"]
    words = read_words(prompts)
    assert words is not None
    named = {kind: [names[n] for n in words[kind].tolist()] for kind, names in WORDS.items()}
    assert named == {
        "digit": ["seven", "one"],
        "ink": ["red", "white"],
        "ground": ["black", "grey"],
        "motion": ["drifts left, slowly", "grows"],
    }
    assert [FAMILIES[number] for number in words["family"].tolist()] == ["drift", "scale"]


@pytest.mark.parametrize(
    "other", ["", "a cat sleeps, over black", "a red seven drifts left, slowly, over black."]
)
def test_other_prompts_have_no_words(other: str) -> None:
    assert read_words(["a red seven grows, over black", other]) is None
