"""Tar shards in the Wan-synth layout: what members they hold, and where.

A shard is a plain tar file in WebDataset's convention (Aizman, Maltby & Breuel 2019): members of
one clip share the name up to the first dot. Wan-synth's are

    000000000.latent.pt   [16, T, H, W] bfloat16, torch.save       (.pth as well)
    000000000.embed.pt    [L, D] bfloat16, zero rows after the text
    000000000.prompt.txt  UTF-8
    000000000.anchor.pt   a phase-1 model's latents, where there are any

with or without a folder before the name. Only headers are read here. Readers of tar files, Python's
and WebDataset's alike, take a file that ends at or within a header for a complete one; the
end-of-archive mark of two zero blocks tells the difference.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

KINDS = ("latent", "embed", "prompt", "anchor")
REQUIRED = KINDS[:3]

_MEMBER = re.compile(r"(?:.*/)?(\d{9})\.(?:(latent|embed|anchor)\.pth?|(prompt)\.txt)")
_END = bytes(2 * tarfile.BLOCKSIZE)


class Fault(NamedTuple):
    """What is wrong, and with which member of which shard; an empty member means the shard."""

    shard: str
    member: str
    reason: str

    def __str__(self) -> str:
        return f"{self.shard}: {self.member}{': ' if self.member else ''}{self.reason}"


class Place(NamedTuple):
    """Where a member's bytes lie in its shard."""

    offset: int
    size: int
    name: str


@dataclass
class Shard:
    """The clips whose members are all there, by key, and the faults of the others."""

    path: Path
    size: int  # bytes
    clips: dict[str, dict[str, Place]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    latents: int = 0  # members of that kind, of whole clips or not

    def fault(self, member: str, reason: str) -> None:
        """Note a fault."""
        self.faults.append(Fault(self.path.name, member, reason))

    def drop(self, key: str, reason: str) -> None:
        """Note a fault of a whole clip, and forget the clip."""
        self.fault(key, reason)
        del self.clips[key]


def read_shard(path: Path) -> Shard:
    """Find the members of a shard by its headers."""
    shard = Shard(path, path.stat().st_size)
    try:
        with tarfile.open(path, "r:") as archive:
            for entry in archive:
                if entry.size < 0:  # Python's reader would go back and never end
                    raise tarfile.ReadError(f"negative size of {entry.name}")
                _take(shard, entry)
            _check_end(shard, archive.offset)
    except (tarfile.TarError, ValueError) as error:
        shard.fault("", f"ends early or is no tar file: {error}")
    for key in [key for key, kinds in shard.clips.items() if not set(REQUIRED) <= set(kinds)]:
        missing = [kind for kind in REQUIRED if kind not in shard.clips[key]]
        shard.drop(key, f"incomplete clip, lacks {' and '.join(missing)}")
    if not shard.clips and not shard.faults:
        shard.fault("", "holds no member named as <9 digits>.latent.pt")
    return shard


def _take(shard: Shard, entry: tarfile.TarInfo) -> None:
    match = _MEMBER.fullmatch(entry.name)
    if not match:
        return
    key, kind = match[1], match[2] or match[3]
    shard.latents += kind == "latent"
    kinds = shard.clips.setdefault(key, {})
    if not entry.isreg() or entry.issparse():
        shard.fault(entry.name, "is a link or another special member, expected a plain file")
    elif entry.offset_data + entry.size > shard.size:
        shard.fault(entry.name, "is cut off by the end of the shard")
    elif kind in kinds:
        shard.fault(entry.name, f"duplicate {kind} of clip {key}")
    else:
        kinds[kind] = Place(entry.offset_data, entry.size, entry.name)


def _check_end(shard: Shard, offset: int) -> None:
    with shard.path.open("rb") as file:
        file.seek(offset)
        if file.read(len(_END)) != _END:
            shard.fault("", f"has no end-of-archive mark at byte {offset}: cut off or damaged")


def write_shard(path: Path, members: Iterable[tuple[str, Mapping[str, bytes]]]) -> None:
    """Write clips, each a key and its members by kind; the same clips give the same bytes."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for key, kinds in members:
            for kind, content in kinds.items():
                suffix = "txt" if kind == "prompt" else "pt"
                entry = tarfile.TarInfo(f"{key}.{kind}.{suffix}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
