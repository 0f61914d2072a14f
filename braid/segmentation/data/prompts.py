"""What is asked of an image: kinds of prompts, their truth, and the file they are kept in.

SAM3 (Carion et al. 2025, SAM 3: Segment Anything with Concepts) segments every instance of a
concept, given by a noun phrase or by the box of an example, and says in a presence score whether
the concept is in the image at all. So the truth of a prompt is a set of annotations: an empty one
for a negative prompt, None where it cannot be known.

    generic   one text for all images; every annotation answers
    category  a noun phrase, or a part of one: "red circle", "circle", "red thing"
    box       an example; the annotations of its name answer, or it alone where they are not known
    caption   a sentence about the image; the annotations that it names answer

Only an exhaustive image, one of which every object is annotated, has a truth of its phrases; in any
other, what is not annotated may be there all the same. A prompt on it still has the teacher's
answer. The rules by which a phrase and a name agree are those of `noun_phrases`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice, zip_longest
from pathlib import Path
from typing import Annotated, Literal, Protocol, TypeVar

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from braid.common.rng import generator as stream
from braid.segmentation.data.sa1b import Record, first_fault

# ---- Noun phrases at their word: when a name answers a phrase, and when that cannot be told ----
# A phrase is a noun, with a colour before it or not; the noun "thing" stands for any. Colours are
# taken to exclude each other, and so are nouns. A name without a colour leaves open which it has:
# whether a "coin" is a "red thing" is unknown, that it is no "red star" is certain.

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


PROMPTS = "prompts.json"
VISUAL = "visual"  # the text beside a box, as in SAM3

Kind = Literal["generic", "category", "box", "caption"]
Place = Annotated[float, Field(ge=0, le=1)]
Answers = tuple[Annotated[int, Field(ge=0)], ...]
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Prompt:
    """A question to an image, and which of its annotations answer it."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    kind: Kind
    text: str
    box: tuple[Place, Place, Place, Place] | None  # cxcywh in [0, 1]
    answers: Answers | None  # indices of annotations; (): a negative prompt; None: unknown
    labelled: bool  # students may see the truth

    def __post_init__(self) -> None:
        if (self.kind == "box") != (self.box is not None):
            raise ValueError("a box prompt has a box, and no other kind has")


@dataclass(frozen=True)
class Asking:
    """Which prompts are made."""

    kinds: tuple[Kind, ...]
    generic: str  # the text of a generic prompt
    per_image: int  # at most; kinds take turns
    negative_share: float  # of the category prompts
    withheld: tuple[str, ...] = ()  # phrases; prompts that mention one are not labelled


class Records(Protocol):
    """Annotated images, such as `sa1b.Images`."""

    def __len__(self) -> int: ...

    def record(self, index: int, /) -> Record:
        """The annotations of an image."""


class Vocabulary:
    """Every phrase that some image has, and how often it is to be asked for where it is absent."""

    def __init__(self, images: Records) -> None:
        found = Counter[str]()
        for index in range(len(images)):
            found.update(phrases_of(images.record(index)))
        self.phrases = sorted(found)
        # In proportion to the odds of being there: else the text alone would betray the answer.
        count = torch.tensor([found[each] for each in self.phrases], dtype=torch.float32)
        self.odds = count / (len(images) + 1 - count)

    def shuffled(self, generator: torch.Generator) -> Iterator[str]:
        """All phrases, the likelier ones rather at the start."""
        if self.phrases:
            order = self.odds.multinomial(len(self.phrases), generator=generator)
            yield from (self.phrases[place] for place in order.tolist())


def ask(images: Records, asking: Asking, seed: int) -> list[list[Prompt]]:
    """The prompts of every image, in the order of the images; the ids of these decide the choice.

    Raises:
        ValueError: a withheld phrase is of no image, or there is nothing to ask.
    """
    vocabulary = Vocabulary(images)
    for phrase in asking.withheld:
        if plain(phrase) not in vocabulary.phrases:
            raise ValueError(
                f"prompts.withheld: {phrase!r} is not in the images, expected some of: "
                + (", ".join(vocabulary.phrases[:20]) or "nothing, as no annotation has a name")
            )
    records = (images.record(index) for index in range(len(images)))
    prompts = [
        make_prompts(record, vocabulary, asking, stream(seed, "prompts", record.id))
        for record in records
    ]
    if not any(prompts):
        raise ValueError(
            f"prompts.kinds: {', '.join(asking.kinds)}: these images have nothing to ask by, "
            "expected generic among them"
        )
    return prompts


def make_prompts(
    record: Record,
    vocabulary: Vocabulary,
    asking: Asking,
    generator: torch.Generator,  # on the CPU
) -> list[Prompt]:
    """The prompts of one image, by kind; a random choice of them where there could be more."""
    offered: dict[Kind, Iterator[Prompt]] = {
        "generic": _generic(record, asking),
        "category": _categories(record, vocabulary, asking, generator),
        "box": _boxes(record, asking, generator),
        "caption": _captions(record, asking, generator),
    }
    turns = [offered[kind] for kind in _shuffled(asking.kinds, generator)]
    chosen = list(islice(_in_turns(turns), asking.per_image))
    return sorted(chosen, key=lambda prompt: asking.kinds.index(prompt.kind))


def phrases_of(record: Record) -> list[str]:
    """The names in an image and their parts, sorted."""
    names = {plain(each.name) for each in record.annotations if each.name}
    return sorted({phrase for name in names for phrase in (name, *parts(name))})


def answers_to(phrase: str, record: Record) -> Answers | None:
    """The annotations that a phrase means; None unless they are certain, and all there are."""
    verdicts = [agree(phrase, each.name) for each in record.annotations]
    if not record.exhaustive or None in verdicts:
        return None
    return tuple(index for index, verdict in enumerate(verdicts) if verdict)


def _generic(record: Record, asking: Asking) -> Iterator[Prompt]:
    everything = tuple(range(len(record.annotations))) if record.exhaustive else None
    yield Prompt("generic", asking.generic, None, everything, True)


def _categories(
    record: Record, vocabulary: Vocabulary, asking: Asking, generator: torch.Generator
) -> Iterator[Prompt]:
    """Phrases of the image, with absent ones among them at regular distances."""
    present = _shuffled(phrases_of(record), generator)
    absent = (each for each in vocabulary.shuffled(generator) if _is_absent(each, record))
    due = torch.rand((), generator=generator).item()
    while True:
        due += asking.negative_share
        phrase = next(absent, None) if due >= 1 else None
        due -= due >= 1
        phrase = phrase or next(present, None)
        if phrase is None:
            return
        labelled = not mentioned(asking.withheld, phrase)
        yield Prompt("category", phrase, None, answers_to(phrase, record), labelled)


def _is_absent(phrase: str, record: Record) -> bool:
    """For certain if the image is exhaustive; else nothing that is annotated answers."""
    if record.exhaustive:
        return answers_to(phrase, record) == ()
    return not any(agree(phrase, each.name) for each in record.annotations)


def _boxes(record: Record, asking: Asking, generator: torch.Generator) -> Iterator[Prompt]:
    for index in _shuffled(range(len(record.annotations)), generator):
        example = record.annotations[index]
        left, top, right, bottom = example.box
        box = ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)
        alike = answers_to(example.name, record) if example.name else None
        labelled = not mentioned(asking.withheld, example.name or "")
        yield Prompt("box", VISUAL, box, alike or (index,), labelled)


def _captions(record: Record, asking: Asking, generator: torch.Generator) -> Iterator[Prompt]:
    for caption in _shuffled(record.captions, generator):
        named = mentioned(phrases_of(record), caption)
        found = [answers_to(phrase, record) for phrase in named]
        certain = [each for each in found if each is not None]
        answers = tuple(sorted({index for each in certain for index in each}))
        known = bool(found) and len(certain) == len(found)
        labelled = not mentioned(asking.withheld, caption)
        yield Prompt("caption", caption, None, answers if known else None, labelled)


def _shuffled(values: Sequence[_Value], generator: torch.Generator) -> Iterator[_Value]:
    order = torch.randperm(len(values), generator=generator).tolist()
    return (values[place] for place in order)


def _in_turns(sources: Sequence[Iterator[_Value]]) -> Iterator[_Value]:
    """One of each source at a time, until all have run dry."""
    rounds = zip_longest(*sources)
    return (each for row in rounds for each in row if each is not None)


def write_prompts(folder: Path, prompts: Sequence[Sequence[Prompt]]) -> None:
    """Write prompts.json: a line for each image, with the list of its prompts."""
    lines = [_OF_IMAGE.dump_json(list(each)).decode() for each in prompts]
    (folder / PROMPTS).write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


def read_prompts(folder: Path) -> list[list[Prompt]]:
    """Read prompts.json.

    Raises:
        ValueError: it cannot be read, or it is not what `write_prompts` writes.
    """
    path = folder / PROMPTS
    try:
        return _OF_IMAGES.validate_json(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except ValidationError as error:
        raise ValueError(f"{path}: {first_fault(error)}") from None


_OF_IMAGE = TypeAdapter(list[Prompt])
_OF_IMAGES = TypeAdapter(list[list[Prompt]])
