"""The prompts of each image, sampled from its annotations.

    generic   one text for all images; every annotation is a target
    category  a noun phrase, or a part of one: "red circle", "circle", "red thing"
    box       an example; its targets are the annotations of its name, or it alone where the others
              are not known
    caption   a sentence about the image; its targets are the annotations that it names

Only an exhaustive image, one of which every object is annotated, has known targets of its phrases;
in any other, what is not annotated may be there all the same. A prompt on it still has the
teacher's prediction.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import islice, zip_longest
from typing import Any, Protocol, TypeVar

import torch

from braid.common.rng import generator as stream
from braid.segmentation.config import PromptsConfig
from braid.segmentation.data.prompted import VISUAL, Kind, Prompt, Targets
from braid.segmentation.data.sa1b import Record

# ---- When a name matches a noun phrase, and when that is uncertain -----------------------------
# A phrase is a noun, with a color before it or not; the noun "thing" stands for any. Colors are
# taken to exclude each other, and so are nouns. A name without a color leaves open which it has:
# whether a "coin" is a "red thing" is unknown, that it is no "red star" is certain. Articles and
# plurals change nothing. Where one noun ends with the other, it may be a kind of it, as a "fire
# truck" is of "truck", or not, as a "hot dog" is no "dog": that is unknown.

_COLORS = "black blue brown cyan green grey magenta orange pink purple red white yellow"
COLORS = {"gray": "grey"} | {color: color for color in _COLORS.split(" ")}
THING = "thing"
ARTICLES = ("a", "an", "the", "some")


def plain(text: str) -> str:
    """A text in lower case, with single spaces."""
    return " ".join(text.lower().split())


def parts(name: str) -> list[str]:
    """What else to call a thing of this name: a "red circle" is a "circle" and a "red thing"."""
    color, noun = _parsed(name)
    return [noun, f"{color} {THING}"] if color and noun != THING else []


def matches(phrase: str, name: str | None) -> bool | None:
    """Whether a thing of this name is what a phrase means; None: it may be."""
    if name is None:
        return None
    (color, noun), (true_color, true_noun) = _parsed(phrase), _parsed(name)
    related = _related(noun, true_noun)
    if THING not in (noun, true_noun) and not related:
        return False
    if color and true_color and color != true_color:
        return False
    kind = THING not in (noun, true_noun) and noun != true_noun
    vague = (color and not true_color) or (true_noun == THING != noun) or kind
    return None if vague else True


def _related(noun: str, other: str) -> bool:
    """Whether the words of one are the last words of the other."""
    return f" {noun}".endswith(f" {other}") or f" {other}".endswith(f" {noun}")


def mentioned(phrases: Iterable[str], text: str) -> list[str]:
    """The phrases that stand in a text, in singular or plural, sorted.

    A phrase within a longer one does not count: "a red star" does not mention "star" if "red star"
    is among the phrases too.
    """
    split = [(plain(phrase), _words(phrase)) for phrase in phrases]
    by_words = {
        (*words[:-1], words[-1] + ending): phrase
        for ending in ("es", "s", "")
        for phrase, words in split
        if words
    }
    lengths = sorted({len(words) for words in by_words}, reverse=True)
    words, place, mentions = _words(text), 0, set[str]()
    while place < len(words):
        runs = (words[place : place + length] for length in lengths)
        run = next((run for run in runs if run in by_words), None)
        if run:
            mentions.add(by_words[run])
        place += len(run) if run else 1
    return sorted(mentions)


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", text.lower()))


@cache
def _parsed(phrase: str) -> tuple[str | None, str]:
    """Color and noun."""
    bare = _bare(plain(phrase))
    first, _, rest = bare.partition(" ")
    return (COLORS[first], rest) if first in COLORS and rest else (None, bare)


def _bare(phrase: str) -> str:
    """Without an article, its last word in the singular: by the usual endings, as "dishes"."""
    words = phrase.split(" ")
    words = words[1:] if words[0] in ARTICLES and words[1:] else words
    last = words[-1]
    if re.search(r"(s|x|z|ch|sh)es$", last):
        last = last[:-2]
    elif re.search(r"[^aeiou]ies$", last):
        last = f"{last[:-3]}y"
    elif re.search(r"[^sui]s$", last):
        last = last[:-1]
    return " ".join([*words[:-1], last])


# ---- Sampling ----------------------------------------------------------------------------------

_Value = TypeVar("_Value")


class Records(Protocol):
    """Annotated images, such as `sa1b.Images`."""

    def __len__(self) -> int: ...

    def record(self, index: int, /) -> Record:
        """The annotations of an image."""


class Vocabulary:
    """Every phrase that some image has, and how often to use it where it is absent."""

    def __init__(self, images: Records) -> None:
        counts = Counter[str]()
        for index in range(len(images)):
            counts.update(phrases_of(images.record(index)))
        self.phrases = sorted(counts)
        # In proportion to the odds of being there: else the text alone would tell whether it is.
        count = torch.tensor([counts[phrase] for phrase in self.phrases], dtype=torch.float32)
        self.odds = count / (len(images) + 1 - count)

    def shuffled(self, generator: torch.Generator) -> Iterator[str]:
        """All phrases, the likelier ones rather at the start."""
        if self.phrases:
            order = self.odds.multinomial(len(self.phrases), generator=generator)
            yield from (self.phrases[place] for place in order.tolist())


def sample_prompts(images: Records, config: PromptsConfig, seed: int) -> list[list[Prompt]]:
    """The prompts of every image, in the order of the images; the ids of these decide the choice.

    Raises:
        ValueError: a withheld phrase is of no image, or there is nothing to make prompts of.
    """
    vocabulary = Vocabulary(images)
    for phrase in config.withheld:
        if plain(phrase) not in vocabulary.phrases:
            raise ValueError(
                f"sam3.prompts.withheld: {phrase!r} is not in the images, expected some of: "
                + (", ".join(vocabulary.phrases[:20]) or "nothing, as no annotation has a name")
            )
    records = (images.record(index) for index in range(len(images)))
    prompts = [
        prompts_of(record, vocabulary, config, stream(seed, "prompts", record.id))
        for record in records
    ]
    if not any(prompts):
        raise ValueError(
            f"sam3.prompts.kinds: {', '.join(config.kinds)}: these images have nothing to make "
            "such prompts of, expected generic among them"
        )
    return prompts


def prompts_of(
    record: Record,
    vocabulary: Vocabulary,
    config: PromptsConfig,
    generator: torch.Generator,  # on the CPU
) -> list[Prompt]:
    """The prompts of one image, by kind; a random choice of them where there could be more."""
    candidates: dict[Kind, Iterator[Prompt]] = {
        "generic": _generic(record, config),
        "category": _categories(record, vocabulary, config, generator),
        "box": _boxes(record, config, generator),
        "caption": _captions(record, config, generator),
    }
    turns = [candidates[kind] for kind in _shuffled(config.kinds, generator)]
    chosen = list(islice(_in_turns(turns), config.per_image))
    return sorted(chosen, key=lambda prompt: config.kinds.index(prompt.kind))


def phrases_of(record: Record) -> list[str]:
    """The names in an image and their parts, sorted."""
    names = {plain(annotation.name) for annotation in record.annotations if annotation.name}
    return sorted({phrase for name in names for phrase in (name, *parts(name))})


def targets_of(phrase: str, record: Record) -> Targets | None:
    """The annotations that a phrase means; None unless they are certain, and all there are."""
    hits = [matches(phrase, annotation.name) for annotation in record.annotations]
    if not record.exhaustive or None in hits:
        return None
    return tuple(index for index, hit in enumerate(hits) if hit)


def _generic(record: Record, config: PromptsConfig) -> Iterator[Prompt]:
    everything = tuple(range(len(record.annotations))) if record.exhaustive else None
    yield Prompt("generic", config.generic, None, everything, True)


def _categories(
    record: Record, vocabulary: Vocabulary, config: PromptsConfig, generator: torch.Generator
) -> Iterator[Prompt]:
    """Phrases of the image, with absent ones among them at regular distances."""
    present = _shuffled(phrases_of(record), generator)
    absent = (phrase for phrase in vocabulary.shuffled(generator) if _is_absent(phrase, record))
    due = torch.rand((), generator=generator).item()
    while True:
        due += config.negative_fraction
        phrase = next(absent, None) if due >= 1 else None
        due -= due >= 1
        phrase = phrase or next(present, None)
        if phrase is None:
            return
        labeled = not mentioned(config.withheld, phrase)
        yield Prompt("category", phrase, None, targets_of(phrase, record), labeled)


def _is_absent(phrase: str, record: Record) -> bool:
    """For certain if the image is exhaustive; else nothing that is annotated matches."""
    if record.exhaustive:
        return targets_of(phrase, record) == ()
    return not any(matches(phrase, annotation.name) for annotation in record.annotations)


def _boxes(record: Record, config: PromptsConfig, generator: torch.Generator) -> Iterator[Prompt]:
    for index in _shuffled(range(len(record.annotations)), generator):
        example = record.annotations[index]
        left, top, right, bottom = example.box
        box = ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)
        alike = targets_of(example.name, record) if example.name else None
        labeled = not mentioned(config.withheld, example.name or "")
        yield Prompt("box", VISUAL, box, alike or (index,), labeled)


def _captions(
    record: Record, config: PromptsConfig, generator: torch.Generator
) -> Iterator[Prompt]:
    for caption in _shuffled(record.captions, generator):
        groups = [targets_of(phrase, record) for phrase in mentioned(phrases_of(record), caption)]
        certain = [group for group in groups if group is not None]
        targets = tuple(sorted({index for group in certain for index in group}))
        known = bool(groups) and len(certain) == len(groups)
        labeled = not mentioned(config.withheld, caption)
        yield Prompt("caption", caption, None, targets if known else None, labeled)


def _shuffled(values: Sequence[_Value], generator: torch.Generator) -> Iterator[_Value]:
    order = torch.randperm(len(values), generator=generator).tolist()
    return (values[place] for place in order)


def _in_turns(sources: Sequence[Iterator[_Value]]) -> Iterator[_Value]:
    """One of each source at a time, until all have run dry."""
    rounds = zip_longest(*sources)
    return (value for row in rounds for value in row if value is not None)


def prompt_rows(prompts: Iterable[Sequence[Prompt]]) -> list[dict[str, Any]]:
    """How many prompts there are, all and of each kind, and what is known of their targets."""
    every = [prompt for of_image in prompts for prompt in of_image]
    kinds = sorted({prompt.kind for prompt in every})
    groups = {kind: [prompt for prompt in every if prompt.kind == kind] for kind in kinds}
    return [_counts("all", every), *(_counts(kind, group) for kind, group in groups.items())]


def _counts(kind: str, prompts: Sequence[Prompt]) -> dict[str, Any]:
    targets = [prompt.targets for prompt in prompts if prompt.targets is not None]
    return {
        "kind": kind,
        "prompts": len(prompts),
        "known": len(targets),
        "withheld": sum(not prompt.labeled for prompt in prompts),
        "negative_fraction": round(targets.count(()) / len(targets), 4) if targets else None,
    }
