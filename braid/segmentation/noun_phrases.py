"""Noun phrases at their word: when a name answers a phrase, and when that cannot be told.

A phrase is a noun, with a colour before it or not; the noun "thing" stands for any. Colours are
taken to exclude each other, and so are nouns. A name without a colour leaves open which it has:
whether a "coin" is a "red thing" is unknown, that it is no "red star" is certain.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

_COLOURS = "black blue brown cyan green grey magenta orange pink purple red white yellow"
COLOURS = {"gray": "grey"} | {colour: colour for colour in _COLOURS.split(" ")}
THING = "thing"


def plain(text: str) -> str:
    """A text in lower case, with single spaces."""
    return " ".join(text.lower().split())


def parts(name: str) -> list[str]:
    """What else to call a thing of this name: a "red circle" is a "circle" and a "red thing"."""
    colour, noun = _parsed(name)
    return [noun, f"{colour} {THING}"] if colour and noun != THING else []


def agree(phrase: str, name: str | None) -> bool | None:
    """Whether a thing of this name is what a phrase asks for; None: it may be."""
    if name is None:
        return None
    (colour, noun), (true_colour, true_noun) = _parsed(phrase), _parsed(name)
    if THING not in (noun, true_noun) and noun != true_noun:
        return False
    if colour and true_colour and colour != true_colour:
        return False
    vague = (colour and not true_colour) or (true_noun == THING != noun)
    return None if vague else True


def mentioned(phrases: Iterable[str], text: str) -> list[str]:
    """The phrases that stand in a text, in singular or plural, sorted.

    A phrase within a longer one does not count: "a red star" does not mention "star" if "red star"
    is among the phrases too.
    """
    split = [(plain(each), _words(each)) for each in phrases]
    known = {
        (*words[:-1], words[-1] + ending): phrase
        for ending in ("es", "s", "")
        for phrase, words in split
        if words
    }
    lengths = sorted({len(each) for each in known}, reverse=True)
    words, place, found = _words(text), 0, set[str]()
    while place < len(words):
        runs = (words[place : place + length] for length in lengths)
        run = next((each for each in runs if each in known), None)
        if run:
            found.add(known[run])
        place += len(run) if run else 1
    return sorted(found)


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", text.lower()))


@cache
def _parsed(phrase: str) -> tuple[str | None, str]:
    """Colour and noun."""
    first, _, rest = plain(phrase).partition(" ")
    return (COLOURS[first], rest) if first in COLOURS and rest else (None, plain(phrase))
