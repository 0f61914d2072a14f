"""What is said of clips made from prompts."""

from __future__ import annotations

from typing import Any

import pytest

from braid.drifting.evaluation.text_to_clip import headline, status_of

GOOD: dict[str, dict[str, Any]] = {
    "generated": {"reader_digit": 0.8, "reader_motion": 0.9, "coverage": 0.8, "frechet": 0.3},
    "shuffled": {"reader_digit": 0.1, "reader_motion": 0.05},
    "real": {"reader_digit": 0.95},
    "true_keyframes": {"coverage": 0.9},
}


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, "ok"),
        ({"reader_digit": 0.14}, "prompts_ignored"),
        ({"reader_motion": 0.07}, "prompts_ignored"),
        ({"reader_digit": 0.5}, "not_as_asked"),
        ({"coverage": 0.4}, "collapsed"),
    ],
)
def test_the_status_names_what_is_wrong(changes: dict[str, float], status: str) -> None:
    assert status_of({**GOOD, "generated": GOOD["generated"] | changes}) == status


def test_without_words_there_are_distances_alone() -> None:
    figures = {name: {"coverage": 0.8, "frechet": 0.3} for name in GOOD}
    assert headline(figures) == {
        "reader_digit": None,
        "reader_motion": None,
        "reader_digit_shuffled": None,
        "reader_digit_real": None,
        "frechet": 0.3,
        "coverage": 0.8,
        "status": "ok",
    }
