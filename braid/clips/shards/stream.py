"""Clips of tar shards front to back, where they lie: on disk or in an object store.

`dataset.Clips` reads any clip by its place in a local shard. Here shards are read once, in order,
by WebDataset's pipeline (Aizman, Maltby & Breuel 2019, `webdataset`) for sets that are too large or
too far away for that. Its shard list, split, grouping and shuffle buffer are used as they are. Its
opener, which runs shell commands (`pipe:`) and curl, its tar reader, which takes a cut shard for a
whole one, and its decoders, which unpickle, are replaced.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from io import BufferedIOBase
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import webdataset
from braceexpand import braceexpand
from torch import Tensor
from webdataset.tariterators import group_by_keys

from braid.clips.shards.dataset import (
    KINDS,
    REQUIRED,
    Layout,
    member_of,
    read_at,
    read_embedding,
    read_latent,
    read_prompt,
    tar_entries,
    window,
    write_shard,
    write_tensor,
)
from braid.clips.shards.saved_tensor import Content
from braid.common.progress import progress
from braid.training.distributed import barrier, is_main

SCHEMES = frozenset({"file", "gs", "https", "s3"})
_SCHEME = re.compile(r"([a-zA-Z][\w+.-]*):")

Sample = dict[str, Any]


def stream_clips(
    urls: Sequence[str],
    kinds: Sequence[str] = REQUIRED,
    *,
    layout: Layout = "cthw",
    shuffle: int = 0,
    seed: int = 0,
    schemes: Collection[str] = SCHEMES,
) -> webdataset.DataPipeline:
    """An iterable data set of this process's and DataLoader worker's clips, one pass over shards.

    A sample holds ``__key__``, ``__url__`` and of each kind what the readers of `dataset` give:
    latent and anchor [16, T, H, W], embed [L, D], both as stored, prompt a string. Members of other
    kinds are passed over. Shards are dealt out whole by rank (RANK and WORLD_SIZE, or the process
    group), then by worker: all clips once in all, none for a process beyond the shards.

    Args:
        urls: of shards, in the order of the pass: paths or URLs.
        kinds: what is read of each clip, of KINDS; every clip must have them.
        layout: axes of a stored latent.
        shuffle: clips in a buffer from which they are drawn, and shards in another order; 0: none.
        seed: of that order, for one epoch; the same in all processes.
        schemes: of URLs that may be opened.

    Raises:
        ValueError: at once a URL that may not be opened; while iterating a shard that cannot be
            opened or ends early, or a clip that lacks a kind or cannot be read.
    """
    require_allowed(urls, schemes)
    return webdataset.DataPipeline(
        webdataset.SimpleShardList(list(urls), seed=seed if shuffle else None),
        webdataset.split_by_node,
        webdataset.split_by_worker,
        partial(read_members, kinds=kinds),
        _grouped,
        webdataset.shuffle(shuffle, initial=shuffle, seed=seed) if shuffle else None,
        partial(_decoded, kinds=kinds, layout=layout),
    )


# ---- Opening -------------------------------------------------------------------------------------


def is_url(source: str) -> bool:
    """Whether a param is of URLs, not a glob of paths."""
    return "://" in source


def expand_urls(pattern: str, key: str = "clips.source") -> list[str]:
    """The URLs of a pattern with braces, as s3://bucket/shard-{00000..00969}.tar.

    Raises:
        ValueError: braces are not balanced, or a URL may not be opened.
    """
    try:
        urls = list(braceexpand(pattern))
        require_allowed(urls)
    except ValueError as error:
        raise ValueError(f"{key}: {str(error) or 'braces are not balanced'}") from None
    return urls


def require_allowed(urls: Iterable[str], schemes: Collection[str] = SCHEMES) -> None:
    """Refuse what is neither a path nor a URL of these schemes, without opening it.

    Raises:
        ValueError: there is such a URL, or a chain of them (fsspec's ``::``).
    """
    for url in urls:
        scheme = _scheme(url)
        if (scheme and scheme not in schemes) or "::" in url:
            raise ValueError(f"{url}: expected a path or a URL of {', '.join(sorted(schemes))}")


def _scheme(url: str) -> str:
    match = _SCHEME.match(url)
    return match[1].lower() if match else ""


def _open(url: str) -> BufferedIOBase:
    """Open for reading: a local file, or by the fsspec package that knows the scheme.

    Raises:
        ValueError: it cannot be opened, or the package is not installed.
    """
    scheme = _scheme(url)
    try:
        if scheme in ("", "file"):
            return Path(unquote(urlsplit(url).path) if scheme else url).open("rb")
        from fsspec.core import url_to_fs  # imported where there is a URL: half a second

        files, path = url_to_fs(url)
        return cast(BufferedIOBase, files.open(path, "rb"))
    except ImportError as error:
        missing = f"{scheme}: needs a package that is not installed: pip install -e '.[stores]'"
        raise ValueError(f"{url}: {missing} ({error})") from None
    except Exception as error:  # each store has its own
        raise ValueError(f"{url}: cannot be opened ({_words(error)})") from None


def _words(error: Exception) -> str:
    return " ".join([f"{type(error).__name__}:", *str(error).split()])[:200]


# ---- Stages of the pipeline ----------------------------------------------------------------------


def read_members(sources: Iterable[Sample], kinds: Sequence[str]) -> Iterator[Sample]:
    """Bytes of the members of these kinds, and an empty sample after each shard.

    Members of other kinds are passed over unread, so are links, which have no bytes of their own.

    Raises:
        ValueError: a shard cannot be opened, ends early or is no tar file.
    """
    for source in sources:
        url = source["url"]
        with _open(url) as file:
            try:
                for entry in tar_entries(file):
                    member = member_of(entry.name)
                    plain = entry.isreg() and not entry.issparse()
                    if member and member[1] in kinds and plain:
                        content = read_at(file, entry.offset_data, entry.size)
                        if len(content) < entry.size:
                            raise ValueError(f"{entry.name} is cut off by the end of the shard")
                        place = {"fname": f"{url}/{entry.name}", "__url__": url}
                        yield place | {"member": member, "data": content}
            except ValueError as error:
                raise ValueError(f"{url}: {error}") from None
            except Exception as error:  # of the connection; each store has its own
                raise ValueError(f"{url}: cannot be read ({_words(error)})") from None
        yield {}


def _grouped(members: Iterable[Sample]) -> Iterator[Sample]:
    """WebDataset's samples: members side by side that share a key."""
    try:
        yield from group_by_keys(members, keys=member_of)
    except ValueError as error:  # of a duplicate, to whose words it appends what it knows
        raise ValueError(str(error.args[0]).partition(" dict_keys")[0]) from None


def _decoded(samples: Iterable[Sample], kinds: Sequence[str], layout: Layout) -> Iterator[Sample]:
    for sample in samples:
        name = f"{sample['__url__']}: {sample['__key__']}"
        missing = [kind for kind in kinds if kind not in sample]
        if missing:
            raise ValueError(f"{name}: incomplete clip, lacks {' and '.join(missing)}")
        try:
            yield sample | {kind: _decode(kind, sample[kind], layout) for kind in kinds}
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


def _decode(kind: str, content: Content, layout: Layout) -> Tensor | str:
    try:
        if kind == "prompt":
            return read_prompt(content)
        return read_embedding(content) if kind == "embed" else read_latent(content, layout)
    except ValueError as error:
        raise ValueError(f"{kind} {error}") from None


# ---- Local shards of what a store has ------------------------------------------------------------


def fetch_shards(
    urls: Sequence[str],
    folder: Path,
    layout: Layout,
    crop: tuple[int, int, int] | None = None,
) -> list[Path]:
    """Write a local shard for each URL, for random access: the members of clips, in their order.

    Latents are stored as they come, or cut to the crop's first frames and middle, which is what
    fits on a disk where the whole does not. What cannot be read is stored unchanged: the scan of
    local shards counts it. Of several processes the first does all, while the others wait.

    Raises:
        ValueError: a shard cannot be opened or ends early.
    """
    paths = [folder / f"shard-{number:05d}.tar" for number in range(len(urls))]
    if is_main():
        for path, url in zip(paths, progress(urls, "fetch", "shard"), strict=True):
            members = (member for member in read_members([{"url": url}], KINDS) if member)
            write_shard(path, _cropped(members, layout, crop))
    barrier()
    return paths


def _cropped(
    members: Iterable[Sample], layout: Layout, crop: tuple[int, int, int] | None
) -> Iterator[tuple[str, dict[str, Content]]]:
    for member in members:
        key, kind = member["member"]
        content = member["data"]
        if crop and kind in ("latent", "anchor"):
            content = _crop(content, layout, crop)
        yield key, {kind: content}


def _crop(content: Content, layout: Layout, crop: tuple[int, int, int]) -> Content:
    try:
        latents = read_latent(content, layout)
    except ValueError:
        return content
    if any(kept > length for kept, length in zip(crop, latents.shape[1:], strict=True)):
        return content
    cut = latents[window(latents.shape, crop)]
    return write_tensor(cut if layout == "cthw" else cut.movedim(0, 1))
