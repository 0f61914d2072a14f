"""What the prompts of the built-in clips say, as numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from braid.clips.preparation.moving_digits import BACKGROUNDS, INKS, MOTIONS, NUMERALS

WORDS: dict[str, tuple[str, ...]] = {
    "digit": NUMERALS,
    "ink": tuple(INKS),
    "ground": tuple(BACKGROUNDS),
    "motion": tuple(motion.phrase for motion in MOTIONS),
}
FAMILIES = tuple(dict.fromkeys(motion.family for motion in MOTIONS))
_PROMPT = re.compile(
    "a {ink} {digit} {motion}, over {ground}".format(
        **{kind: f"(?P<{kind}>{'|'.join(map(re.escape, words))})" for kind, words in WORDS.items()}
    )
)


def read_words(prompts: Sequence[str]) -> dict[str, Tensor] | None:
    """Numbers of each clip's word of each kind, [n], and as `family` of its motion's family.

    None if a prompt is not one of the built-in ones.
    """
    matches = [match for match in map(_PROMPT.fullmatch, prompts) if match]
    if len(matches) < len(prompts):
        return None
    numbers = {
        kind: torch.tensor([words.index(match[kind]) for match in matches])
        for kind, words in WORDS.items()
    }
    family_of = torch.tensor([FAMILIES.index(motion.family) for motion in MOTIONS])
    return {**numbers, "family": family_of[numbers["motion"]]}
