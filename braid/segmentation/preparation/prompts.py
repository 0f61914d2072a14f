"""The prompts of each image, sampled from its annotations.

    generic   one text for all images; every annotation is a target
    category  a noun phrase, or a part of one: "red circle", "circle", "red thing"
    box       an example; its targets are the annotations of its name, or it alone where the others
              are not known
    caption   a sentence about the image; its targets are the annotations that it names
    phrase    one of a given list, whether the image has it or not

Only an exhaustive image, one of which every object is annotated, has known targets of its phrases;
in any other, what is not annotated may be there all the same, unless the image says that it is
exhaustive in this phrase. A prompt of unknown targets still has the teacher's prediction.

A negative prompt means nothing that is in the image: a phrase or a caption of another image, or a
box around nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from braid.common.rng import generator as stream
from braid.segmentation.config import Kind, PromptsConfig
from braid.segmentation.data.prompted import VISUAL, Prompt, Targets
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
_TRIES = 20  # places of a box, or captions, before an image is taken to have no room for a negative
_SIDE = 0.25  # of a box on an image without annotations


class Records(Protocol):
    """Annotated images, such as `sa1b.Images`."""

    def __len__(self) -> int: ...

    def record(self, index: int, /) -> Record:
        """The annotations of an image."""


class Vocabulary:
    """Every phrase that some image has, and how often to use it where it is absent; captions."""

    def __init__(self, images: Records) -> None:
        counts = Counter[str]()
        self.captions: list[str] = []
        for index in range(len(images)):
            record = images.record(index)
            counts.update(phrases_of(record))
            self.captions += record.captions
        self.phrases = sorted(counts)
        # In proportion to the odds of being there: else the text alone would tell whether it is.
        count = torch.tensor([counts[phrase] for phrase in self.phrases], dtype=torch.float32)
        self.odds = count / (len(images) + 1 - count)

    def shuffled(self, generator: torch.Generator) -> Iterator[str]:
        """All phrases, the likelier ones rather at the start."""
        if self.phrases:
            order = self.odds.multinomial(len(self.phrases), generator=generator)
            yield from (self.phrases[place] for place in order.tolist())


def all_phrases(config: PromptsConfig, file: Path | None) -> list[str]:
    """The phrases of a list and of a file, each once, as they first come.

    Raises:
        ValueError: the file cannot be read, or has no phrase.
    """
    lines: list[str] = []
    if file is not None:
        try:
            lines = [line for line in file.read_text(encoding="utf-8").splitlines() if plain(line)]
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"sam3.prompts.phrases_file {file}: unreadable ({error})") from None
        if not lines:
            raise ValueError(f"sam3.prompts.phrases_file {file}: empty, expected a phrase a line")
    return list(dict.fromkeys(plain(phrase) for phrase in (*config.phrases, *lines)))


def sample_prompts(
    images: Records,
    config: PromptsConfig,
    seed: int,
    phrases: Sequence[str] = (),  # of `all_phrases`
) -> list[list[Prompt]]:
    """The prompts of every image, in the order of the images; the ids of these decide the choice.

    Raises:
        ValueError: a withheld phrase is of no image, or there is nothing to make prompts of.
    """
    vocabulary = Vocabulary(images)
    for phrase in config.withheld:
        if plain(phrase) not in (*vocabulary.phrases, *phrases):
            raise ValueError(
                f"sam3.prompts.withheld: {phrase!r} is not in the images, expected some of: "
                + (", ".join(vocabulary.phrases[:20]) or "nothing, as no annotation has a name")
            )
    records = (images.record(index) for index in range(len(images)))
    prompts = [
        prompts_of(record, vocabulary, config, stream(seed, "prompts", record.id), phrases)
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
    phrases: Sequence[str] = (),
) -> list[Prompt]:
    """The prompts of one image, by kind; a random choice of them where there could be more."""
    candidates: dict[Kind, Iterator[Prompt]] = {
        "generic": _generic(record, config),
        "category": _categories(record, vocabulary, config, generator),
        "box": _boxes(record, config, generator),
        "caption": _captions(record, vocabulary, config, generator),
        "phrase": _phrases(phrases, record, config, generator),
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
    same = (_parsed(phrase) == _parsed(complete) for complete in record.complete)
    if None in hits or not (record.exhaustive or any(same)):
        return None
    return tuple(index for index, hit in enumerate(hits) if hit)


def _generic(record: Record, config: PromptsConfig) -> Iterator[Prompt]:
    everything = tuple(range(len(record.annotations))) if record.exhaustive else None
    yield Prompt("generic", config.generic, None, everything, True)


def _categories(
    record: Record, vocabulary: Vocabulary, config: PromptsConfig, generator: torch.Generator
) -> Iterator[Prompt]:
    """Phrases of the image, and absent ones: first those that it says it has not."""
    present = _shuffled(phrases_of(record), generator)
    stated = [plain(phrase) for phrase in record.complete if targets_of(phrase, record) == ()]
    others = (phrase for phrase in vocabulary.shuffled(generator) if _is_absent(phrase, record))
    absent = dict.fromkeys(stated)
    negatives = chain(absent, (phrase for phrase in others if phrase not in absent))
    for phrase in _mixed(present, negatives, config.negative_fraction.category, generator):
        yield _of_phrase("category", phrase, record, config)


def _phrases(
    phrases: Sequence[str], record: Record, config: PromptsConfig, generator: torch.Generator
) -> Iterator[Prompt]:
    for phrase in _shuffled(phrases, generator):
        yield _of_phrase("phrase", phrase, record, config)


def _of_phrase(kind: Kind, phrase: str, record: Record, config: PromptsConfig) -> Prompt:
    labeled = not mentioned(config.withheld, phrase)
    return Prompt(kind, phrase, None, targets_of(phrase, record), labeled)


def _is_absent(phrase: str, record: Record) -> bool:
    """For certain if the image is exhaustive; else nothing that is annotated matches."""
    if record.exhaustive:
        return targets_of(phrase, record) == ()
    return not any(matches(phrase, annotation.name) for annotation in record.annotations)


def _boxes(record: Record, config: PromptsConfig, generator: torch.Generator) -> Iterator[Prompt]:
    """Boxes around objects, and boxes around nothing."""
    examples = _shuffled(range(len(record.annotations)), generator)
    yield from _mixed(
        (_around(index, record, config) for index in examples),
        _empty_boxes(record, generator),
        config.negative_fraction.box,
        generator,
    )


def _around(index: int, record: Record, config: PromptsConfig) -> Prompt:
    example = record.annotations[index]
    left, top, right, bottom = example.box
    box = ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)
    alike = targets_of(example.name, record) if example.name else None
    labeled = not mentioned(config.withheld, example.name or "")
    return Prompt("box", VISUAL, box, alike or (index,), labeled)


def _empty_boxes(record: Record, generator: torch.Generator) -> Iterator[Prompt]:
    """Boxes as large as those of objects, where no box of an object is."""
    boxes = torch.tensor([part.box for part in record.annotations]).view(-1, 4)
    sizes = boxes[:, 2:] - boxes[:, :2] if len(boxes) else torch.tensor([[_SIDE, _SIDE]])
    targets = () if record.exhaustive else None
    for _ in range(_TRIES):
        size = sizes[int(torch.randint(len(sizes), (), generator=generator))]
        low = torch.rand(2, generator=generator) * (1 - size)
        high = low + size
        if not ((boxes[:, :2] < high) & (low < boxes[:, 2:])).all(1).any():
            x, y, width, height = (*((low + high) / 2).tolist(), *size.tolist())
            yield Prompt("box", VISUAL, (x, y, width, height), targets, True)


def _captions(
    record: Record, vocabulary: Vocabulary, config: PromptsConfig, generator: torch.Generator
) -> Iterator[Prompt]:
    """Captions of the image, and such of other images as name nothing in it."""
    yield from _mixed(
        (_of_caption(caption, record, config) for caption in _shuffled(record.captions, generator)),
        _other_captions(record, vocabulary, config, generator),
        config.negative_fraction.caption,
        generator,
    )


def _of_caption(caption: str, record: Record, config: PromptsConfig) -> Prompt:
    groups = [targets_of(phrase, record) for phrase in mentioned(phrases_of(record), caption)]
    certain = [group for group in groups if group is not None]
    targets = tuple(sorted({index for group in certain for index in group}))
    known = bool(groups) and len(certain) == len(groups)
    labeled = not mentioned(config.withheld, caption)
    return Prompt("caption", caption, None, targets if known else None, labeled)


def _other_captions(
    record: Record, vocabulary: Vocabulary, config: PromptsConfig, generator: torch.Generator
) -> Iterator[Prompt]:
    captions = vocabulary.captions
    for place in torch.randint(max(1, len(captions)), (_TRIES,), generator=generator).tolist():
        for caption in captions[place : place + 1]:
            phrases = mentioned(vocabulary.phrases, caption)
            if phrases and all(targets_of(phrase, record) == () for phrase in phrases):
                labeled = not mentioned(config.withheld, caption)
                yield Prompt("caption", caption, None, (), labeled)


def _mixed(
    present: Iterator[_Value],
    absent: Iterator[_Value],
    fraction: float,  # of the absent ones
    generator: torch.Generator,
) -> Iterator[_Value]:
    """Both, the absent ones at regular distances, until those that are there have run dry."""
    due = torch.rand((), generator=generator).item() if fraction else 0.0
    while True:
        due += fraction
        value = next(absent, None) if due >= 1 else None
        due -= due >= 1
        value = next(present, None) if value is None else value
        if value is None:
            return
        yield value


def _shuffled(values: Sequence[_Value], generator: torch.Generator) -> Iterator[_Value]:
    order = torch.randperm(len(values), generator=generator).tolist()
    return (values[place] for place in order)


def _in_turns(sources: Sequence[Iterator[_Value]]) -> Iterator[_Value]:
    """One of each source at a time, until all have run dry; a source may have several turns."""
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
