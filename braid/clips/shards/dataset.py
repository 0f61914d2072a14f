"""Clips in tar shards, and random access to them by the manifest and index of `prepare_clips`.

Shards are read where they lie. Any clips can be read in any order, so a training has exact epochs,
draws that do not depend on the process count, and nothing to restore when it resumes.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from io import BufferedIOBase
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad
from webdataset import TarWriter

from braid.clips.config import TextSource
from braid.clips.shards.saved_tensor import Content, load_tensor
from braid.clips.shards.words import WordTable, word_table
from braid.data.row_cache import RowCache
from braid.data.splits import SPLITS

# ---- Tensors and prompts of a shard's members, from untrusted bytes ------------------------------
# A `.pt` file is a pickle, which may run any program when it is loaded. PyTorch's restricted loader
# (`weights_only=True`) builds tensors and plain containers only; anything else is an error here.

Layout = Literal["cthw", "tchw"]

CHANNELS = 16  # of the Wan 2.1 VAE
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def read_latent(content: Content, layout: Layout) -> Tensor:
    """The latents [16, T, H, W] of a member that has them in ``layout``, in their stored dtype.

    Raises:
        ValueError: no tensor, of another number of axes or channels, or not finite.
    """
    stored = _without_batch_axis(_read_tensor(content), 4, "latents")
    latents = stored.movedim(layout.index("c"), 0)
    if latents.shape[0] != CHANNELS:
        raise ValueError(
            f"latents {list(stored.shape)} read as {layout} have {latents.shape[0]} channels, "
            f"expected {CHANNELS}"
        )
    return latents


def read_embedding(content: Content) -> Tensor:
    """The text embedding [L, D] of a member.

    Raises:
        ValueError: no tensor, of another number of axes, or not finite.
    """
    return _without_batch_axis(_read_tensor(content), 2, "the text embedding")


def read_prompt(content: Content) -> str:
    """The prompt of a member, without blanks around it.

    Raises:
        ValueError: not UTF-8.
    """
    try:
        return str(content, "utf-8").strip()
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text") from None


def write_tensor(values: Tensor) -> bytes:
    """The bytes that `torch.save` writes for a tensor, without the rest of its storage."""
    buffer = io.BytesIO()
    torch.save(values.clone(memory_format=torch.contiguous_format), buffer)
    return buffer.getvalue()


def _read_tensor(content: Content) -> Tensor:
    try:
        values = load_tensor(content)
    except Exception as error:  # a damaged or hostile file may raise anything
        raise ValueError(f"is no tensor file ({_first_sentence(error)})") from None
    if not isinstance(values, Tensor):
        raise ValueError(f"holds {type(values).__name__}, expected a tensor")
    if values.layout is not torch.strided or values.dtype not in DTYPES.values():
        raise ValueError(f"holds {values.dtype} values, expected one of {', '.join(DTYPES)}")
    if values.nbytes > len(content):
        raise ValueError(f"holds {len(content)} bytes, too few for {list(values.shape)}")
    if not _is_finite(values):
        raise ValueError("holds NaN or infinite values")
    return values.detach()


def _is_finite(values: Tensor) -> bool:
    """Whether no exponent has all its bits set; on half floats PyTorch's test takes 20 times it."""
    if values.dtype is torch.float32:
        return bool(np.isfinite(values.detach().numpy()).all())
    ones = {torch.bfloat16: 0x7F80, torch.float16: 0x7C00}[values.dtype]
    bits = values.detach().contiguous().view(torch.int16).numpy()
    return not ((bits & ones) == ones).any()


def _without_batch_axis(values: Tensor, axes: int, what: str) -> Tensor:
    if values.dim() == axes + 1 and values.shape[0] == 1:
        values = values[0]
    if values.dim() != axes:
        raise ValueError(f"{what} {list(values.shape)} have {values.dim()} axes, expected {axes}")
    return values


def _first_sentence(error: Exception) -> str:
    words = str(error).split(". ")[0].split()
    return " ".join([type(error).__name__ + ":", *words])[:120]


# ---- Tar shards in the Wan-synth layout: their members, and where these lie ----------------------
# A shard is a plain tar file in WebDataset's convention (Aizman, Maltby & Breuel 2019): members of
# one clip share the name up to the first dot. Wan-synth's are
#
#     000000000.latent.pt   [16, T, H, W] bfloat16, torch.save       (.pth as well)
#     000000000.embed.pt    [L, D] bfloat16, zero rows after the text; or as long as the text
#     000000000.prompt.txt  UTF-8
#     000000000.anchor.pt   a phase-1 model's latents, where there are any; or in other shards
#
# with any key in the place of the nine digits, with or without a folder before the name. Only
# headers are read here. Readers of tar files, Python's and WebDataset's alike, take a file that
# ends at or within a header for a complete one; the end-of-archive mark of two zero blocks
# distinguishes the two. They also stop at the first such
# mark, though another archive may follow it (`cat a.tar b.tar`), whose members are read here too.

KINDS = ("latent", "embed", "prompt", "anchor")
REQUIRED = KINDS[:3]

_MEMBER = re.compile(r"(?:.*/)?([^/.]+)\.(?:(latent|embed|anchor)\.pth?|(prompt)\.txt)")
_END = bytes(2 * tarfile.BLOCKSIZE)
_CHUNK = 2**20  # bytes of padding looked at together


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


def read_shard(path: Path, required: Sequence[str] = REQUIRED) -> Shard:
    """Find the members of a shard by its headers; a clip is whole if it has those required."""
    shard = Shard(path, path.stat().st_size)
    with path.open("rb") as file:
        try:
            for entry in tar_entries(file):
                _take(shard, entry)
        except ValueError as error:
            shard.fault("", str(error))
    for key in [key for key, kinds in shard.clips.items() if not set(required) <= set(kinds)]:
        missing = [kind for kind in required if kind not in shard.clips[key]]
        shard.drop(key, f"incomplete clip, lacks {' and '.join(missing)}")
    if not shard.clips and not shard.faults:
        shard.fault("", f"holds no member named as <key>.{required[0]}.pt")
    return shard


def tar_entries(file: BufferedIOBase) -> Iterator[tarfile.TarInfo]:
    """Headers of members, front to back; the file may be read and moved in between.

    Raises:
        ValueError: after the last sound header: the file ends early or is no tar file.
    """
    start: int | None = 0
    while start is not None:
        file.seek(start)
        end = yield from _archive_entries(file)
        start = _next_archive(file, end)


def _archive_entries(file: BufferedIOBase) -> Generator[tarfile.TarInfo, None, int]:
    """Those of the archive that begins where the file stands; where its end mark ends."""
    start = file.tell()
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for entry in archive:
                if entry.size < 0:  # Python's reader would go back and never end
                    raise tarfile.ReadError(f"negative size of {entry.name}")
                yield entry
    except (tarfile.TarError, ValueError) as error:
        raise ValueError(f"ends early or is no tar file: {error}") from None
    file.seek(archive.offset)
    if file.read(len(_END)) == _END:
        return archive.offset + len(_END)
    if start and archive.offset == start:
        what = f"what follows the end-of-archive mark, at byte {start}, is no tar archive"
        raise ValueError(what)
    raise ValueError(f"has no end-of-archive mark at byte {archive.offset}: cut off or damaged")


def _next_archive(file: BufferedIOBase, end: int) -> int | None:
    """The first block after the mark that is not of zeros, which only pad; None: there is none."""
    file.seek(end)
    while chunk := file.read(_CHUNK):
        if rest := chunk.lstrip(b"\0"):
            return end + (len(chunk) - len(rest)) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
        end += len(chunk)
    return None


def member_of(name: str) -> tuple[str, str] | None:
    """The clip's key and the kind of a member; None: the name is of no such member."""
    match = _MEMBER.fullmatch(name)
    return (match[1], match[2] or match[3]) if match else None


def _take(shard: Shard, entry: tarfile.TarInfo) -> None:
    member = member_of(entry.name)
    if member is None:
        return
    key, kind = member
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


def read_at(file: BufferedIOBase, offset: int, size: int) -> memoryview:
    """So many bytes from there on, or those up to the end, in memory that a tensor can keep."""
    content = np.empty(size, np.uint8).data
    file.seek(offset)
    return content[: file.readinto(content)]


def write_shard(path: Path, members: Iterable[tuple[str, Mapping[str, Content]]]) -> None:
    """Write clips, each a key and its members by kind; the same clips give the same bytes."""
    fixed = {"user": "", "group": "", "mode": 0o644, "mtime": 0}
    with path.open("wb") as file, TarWriter(file, encoder=False, **fixed) as writer:
        for key, kinds in members:
            for kind, content in kinds.items():  # one at a time: in this order, not sorted
                suffix = "txt" if kind == "prompt" else "pt"
                writer.write({"__key__": key, f"{kind}.{suffix}": content})


# ---- The data set --------------------------------------------------------------------------------

MANIFEST, INDEX = "manifest.json", "index.npz"
_RERUN = "run `dvc repro -f prepare_clips` again"

Indices = NDArray[np.int64] | Sequence[int] | Tensor
_Parsed = TypeVar("_Parsed")


@dataclass(frozen=True)
class Index:
    """Where the members of N clips lie."""

    keys: NDArray[np.str_]  # [N]
    shards: NDArray[np.int32]  # [N], in the manifest's order
    offsets: NDArray[np.int64]  # [N, kinds]
    sizes: NDArray[np.int64]  # [N, kinds]; 0: there is no such member
    anchor_shards: NDArray[np.int32]  # [N], that of the anchor; after those of clips its own ones
    splits: NDArray[np.uint8]  # [N], of SPLITS


class Clips:
    """Clips of one shape, opened by `open_clips`."""

    def __init__(
        self,
        folder: Path,
        manifest: dict[str, Any],
        index: Index,
        cache: int,  # bytes
        words: WordTable | None = None,
    ) -> None:
        self.keys: list[str] = index.keys.tolist()
        self.shape: tuple[int, int, int, int] = tuple(manifest["latent_shape"])
        self._stored: tuple[int, ...] = tuple(manifest["stored_shape"])
        self._window = window(self._stored, self.shape[1:])
        self.text_shape: tuple[int, int] = tuple(manifest["text_shape"])
        self.codec: str = manifest["codec"]
        self.words = words
        self._layout: Layout = manifest["layout"]
        self._index = index
        every = [*manifest["shards"], *manifest["anchor_shards"]]
        self._shards = [folder / shard["path"] for shard in every]
        self._dtype = DTYPES[manifest["dtype"]]
        self._cache = RowCache(len(self), self.shape, self._dtype, cache)

    def __len__(self) -> int:
        return len(self.keys)

    def indices(self, split: str) -> NDArray[np.int64]:
        """The clips of ``train``, ``val`` or ``test``, ascending."""
        return np.flatnonzero(self._index.splits == SPLITS.index(split))

    def latents(self, indices: Indices) -> Tensor:
        """Latents in the order of the indices, [B, C, T, H, W] float32.

        Raises:
            ValueError: a clip can no longer be read; the message names shard and key.
        """
        read = partial(self._stack, "latent", self._latents_of, self.shape, dtype=self._dtype)
        return self._cache.get(np.asarray(indices, np.int64), read).float()

    def anchors(self, indices: Indices) -> Tensor:
        """A phase-1 model's latents for the same clips, [B, C, T, H, W] float32.

        Raises:
            ValueError: a clip has none, or it can no longer be read.
        """
        clips = np.asarray(indices, np.int64)
        for clip in clips[self._index.sizes[clips, KINDS.index("anchor")] == 0]:
            raise ValueError(f"clip {self.keys[clip]}: the shards hold no anchor of it")
        return self._stack("anchor", self._latents_of, self.shape, clips)

    def texts(self, indices: Indices) -> Tensor:
        """Text embeddings with zero rows after the text, [B, L, D] float32.

        Raises:
            ValueError: a clip can no longer be read.
        """
        if self.words is not None:
            return self.words(self.prompts(indices))
        return self._stack("embed", self._text_of, self.text_shape, indices)

    def prompts(self, indices: Indices) -> list[str]:
        """The prompts, in the order of the indices.

        Raises:
            ValueError: a clip can no longer be read.
        """
        clips = np.asarray(indices, np.int64)
        return [prompt for _, prompt in sorted(self._read("prompt", clips, read_prompt))]

    def _stack(
        self,
        kind: str,
        parse: Callable[[Content], Tensor],
        shape: tuple[int, ...],
        indices: Indices,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        clips = np.asarray(indices, np.int64)
        batch = torch.empty(len(clips), *shape, dtype=dtype)
        for row, values in self._read(kind, clips, parse):
            batch[row] = values
        return batch

    def _read(
        self, kind: str, clips: NDArray[np.int64], parse: Callable[[Content], _Parsed]
    ) -> Iterator[tuple[int, _Parsed]]:
        """(row, what clips[row] has of a kind), each shard opened once and read front to back."""
        column = KINDS.index(kind)
        own = self._index.anchor_shards if kind == "anchor" else self._index.shards
        shards = own[clips]
        offsets, sizes = self._index.offsets[clips, column], self._index.sizes[clips, column]
        order = np.lexsort((offsets, shards)).tolist()
        for shard, rows in groupby(order, key=shards.tolist().__getitem__):
            with self._shards[shard].open("rb") as file:
                for row in rows:
                    try:
                        parsed = parse(read_at(file, offsets[row], sizes[row]))
                    except ValueError as error:
                        name = f"{self._shards[shard]}: {kind} of {self.keys[clips[row]]}"
                        raise ValueError(f"{name}: {error}; {_RERUN}") from None
                    yield row, parsed

    def _latents_of(self, content: Content) -> Tensor:
        return _of_shape(read_latent(content, self._layout), self._stored)[self._window]

    def _text_of(self, content: Content) -> Tensor:
        values = read_embedding(content)
        rows, dim = self.text_shape
        if values.shape[1] != dim or len(values) > rows:
            raise ValueError(
                f"its shape is {list(values.shape)}, expected {[rows, dim]} or fewer rows"
            )
        return pad(values, (0, 0, 0, rows - len(values)))


def _of_shape(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    if values.shape != shape:
        raise ValueError(f"its shape is {list(values.shape)}, expected {list(shape)}")
    return values


def window(stored: Sequence[int], crop: Sequence[int]) -> tuple[slice, ...]:
    """Of latents [C, T, H, W] the first frames and the middle of each, as many as a crop has.

    The first latent frame is one video frame, those after it four each: a clip must begin there.
    """
    spare = [length - kept for length, kept in zip(stored[2:], crop[1:], strict=True)]
    rows, columns = (
        slice(left // 2, left // 2 + kept) for left, kept in zip(spare, crop[1:], strict=True)
    )
    return slice(None), slice(crop[0]), rows, columns


def open_clips(folder: Path, *, cache_mib: int = 0, text: TextSource = "shards") -> Clips:
    """Open the clips that a manifest lists.

    Args:
        folder: where `prepare_clips` wrote manifest and index.
        cache_mib: RAM of this process in which latents are kept once read, as they are stored.
        text: whose text embeddings the clips have.

    Raises:
        ValueError: the folder lacks its manifest, a shard is gone or changed since, or what embeds
            the prompts is not installed.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); {_RERUN}") from None
    for shard in (*manifest["shards"], *manifest["anchor_shards"]):
        _require_unchanged(folder / shard["path"], shard["bytes"])
    with np.load(folder / INDEX, allow_pickle=False) as arrays:
        index = Index(**arrays)
    return Clips(folder, manifest, index, cache_mib * 2**20, word_table(text))


def _require_unchanged(path: Path, size: int) -> None:
    try:
        now = path.stat().st_size
    except OSError:
        raise ValueError(f"{path}: the shard is gone; {_RERUN}") from None
    if now != size:
        raise ValueError(f"{path}: the shard has {now} bytes, not {size} as indexed; {_RERUN}")
