"""Survey shards once: which clips they hold, whether these can be read, and what is wrong.

Shards stay where they are; beyond their headers, only what is to be verified is read.
"""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, TypeVar

from torch import Tensor

from braid.clips.members import Layout, read_embedding, read_latent, read_prompt
from braid.clips.tar_shards import Fault, Place, Shard, read_shard

_Read = TypeVar("_Read")


class Form(NamedTuple):
    """What all clips must have alike."""

    latent_shape: tuple[int, ...]  # C, T, H, W
    text_shape: tuple[int, ...]  # L, D
    dtype: str  # of the latents

    def __str__(self) -> str:
        return f"{self.dtype} latents {list(self.latent_shape)}, text {list(self.text_shape)}"


@dataclass
class Survey:
    """What was found in the shards."""

    shards: list[Shard] = field(default_factory=list)
    forms: dict[str, Form] = field(default_factory=dict)  # of the clips that were read, by key
    lengths: list[int] = field(default_factory=list)  # of their texts, without zero rows

    @property
    def form(self) -> Form:
        """That of most of the clips that were read."""
        return Counter(self.forms.values()).most_common(1)[0][0]

    @property
    def faults(self) -> list[Fault]:
        """Of all shards, in their order."""
        return [fault for shard in self.shards for fault in shard.faults]


def find_shards(pattern: str, outside: Path) -> list[Path]:
    """The plain files that a glob matches, sorted by path.

    Raises:
        ValueError: there are none, or they lie in the folder ``outside`` of which they must be.
    """
    found = [Path(each).resolve() for each in glob.glob(pattern, recursive=True)]
    plain = sorted(path for path in found if path.is_file())
    if not plain:
        raise ValueError(f"clips.source: {pattern}: no such file, expected a glob of tar shards")
    inside = [path for path in plain if path.is_relative_to(outside.resolve())]
    if inside:
        raise ValueError(
            f"clips.source: {inside[0]}: shards are read where they lie, expected a place outside "
            "of the repository"
        )
    return plain


def survey_shards(
    paths: Sequence[Path],
    layout: Layout,
    verify: Literal["first", "all"],
) -> Survey:
    """Find all clips, and read those of every shard or of the first that holds a good one.

    Raises:
        ValueError: not one clip can be read; the message names the first fault.
    """
    found = Survey()
    keys: set[str] = set()
    for path in paths:
        shard = read_shard(path)
        found.shards.append(shard)
        for key in [key for key in shard.clips if key in keys]:
            shard.drop(key, "duplicate key, an earlier shard has it")
        if verify == "all" or not found.forms:
            _verify(shard, layout, found)
        keys.update(shard.clips)
    if not found.forms:
        raise ValueError(f"no clip can be read; the first fault: {found.faults[0]}")
    form = found.form
    for shard in found.shards:
        for key in [key for key in shard.clips if found.forms.get(key, form) != form]:
            shard.drop(key, f"has {found.forms[key]}, most clips {form}")
    return found


def _verify(shard: Shard, layout: Layout, found: Survey) -> None:
    """Read every clip of a shard; drop those that cannot be read."""
    with shard.path.open("rb") as file:
        for key, places in list(shard.clips.items()):
            try:
                latents = _parsed(file, places, "latent", lambda each: read_latent(each, layout))
                text = _parsed(file, places, "embed", read_embedding)
                _parsed(file, places, "prompt", read_prompt)
                if "anchor" in places:
                    anchor = _parsed(file, places, "anchor", lambda each: read_latent(each, layout))
                    _require_equal_shapes(places["anchor"], anchor, latents)
            except ValueError as error:
                shard.drop(key, str(error))
                continue
            dtype = str(latents.dtype).removeprefix("torch.")
            found.forms[key] = Form(tuple(latents.shape), tuple(text.shape), dtype)
            found.lengths.append(int((text != 0).any(1).sum()))


def _parsed(
    file: BinaryIO, places: Mapping[str, Place], kind: str, parse: Callable[[bytes], _Read]
) -> _Read:
    place = places[kind]
    file.seek(place.offset)
    try:
        return parse(file.read(place.size))
    except ValueError as error:
        raise ValueError(f"{place.name} {error}") from None


def _require_equal_shapes(place: Place, anchor: Tensor, latents: Tensor) -> None:
    if anchor.shape != latents.shape:
        raise ValueError(
            f"{place.name} anchors {list(anchor.shape)}, expected {list(latents.shape)}, as latents"
        )
