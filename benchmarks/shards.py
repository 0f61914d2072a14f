"""How fast clips are read: by index in random order, streamed in order, and by plain webdataset.

    python -m benchmarks.shards

Clips of Wan's size, latents [16, 21, 60, 104] and text [512, 4096] in bfloat16 (4.2 MB each), and
of the embedded one (latents 9 x 8 x 8, 18 kB), from warm files, one process, one thread, CPU
seconds. Plain webdataset decodes by PyTorch's restricted loader; ours check that values are finite
besides. All give batches in float32. Runs alternate, the fastest of each counts.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import webdataset
from torch import Tensor

from braid.clips.preparation.scan import scan_shards, write_manifest
from braid.clips.shards.dataset import open_clips, write_shard, write_tensor
from braid.clips.shards.stream import stream_clips

_REPEATS = 3
_BATCH = 4

Batches = Iterator[tuple[Tensor, ...]]


def write_shards(
    folder: Path, latent: tuple[int, ...], text: tuple[int, int], clips: int
) -> list[str]:
    """Two shards of random clips in the Wan-synth layout."""
    draw = torch.Generator().manual_seed(0)
    paths = [folder / f"shard-{number:05d}.tar" for number in range(2)]
    for number, path in enumerate(paths):
        rows = (
            (
                f"{number * clips + clip:09d}",
                {
                    "latent": write_tensor(torch.randn(*latent, generator=draw).bfloat16()),
                    "embed": write_tensor(torch.randn(*text, generator=draw).bfloat16()),
                    "prompt": b"a clip",
                },
            )
            for clip in range(clips // 2)
        )
        write_shard(path, rows)
    return [str(path) for path in paths]


def by_index(folder: Path, kinds: list[str]) -> Batches:
    """Batches in random order by the manifest and index of `prepare_clips`."""
    clips = open_clips(folder)
    order = torch.randperm(len(clips), generator=torch.Generator().manual_seed(1))
    for rows in order.split(_BATCH):
        texts = (clips.texts(rows),) if "embed" in kinds else ()
        yield clips.latents(rows), *texts


def streamed(paths: list[str], kinds: list[str]) -> Batches:
    """Batches in order by `stream_clips`."""
    yield from _batches(stream_clips(paths, kinds), kinds)


def plain(paths: list[str], kinds: list[str]) -> Batches:
    """Batches in order by webdataset, members decoded by PyTorch's restricted loader."""

    def decode(sample: dict[str, Any]) -> dict[str, Tensor]:
        contents = {kind: io.BytesIO(sample[f"{kind}.pt"]) for kind in kinds}
        return {kind: torch.load(content, weights_only=True) for kind, content in contents.items()}

    dataset = webdataset.WebDataset(paths, shardshuffle=False)
    yield from _batches(dataset.map(decode), kinds)


def _batches(clips: Iterable[dict[str, Any]], kinds: list[str]) -> Batches:
    """Each clip is copied as it comes, so that its memory is that of the next."""
    for row, clip in enumerate(clips):
        if row % _BATCH == 0:
            batch = tuple(torch.empty(_BATCH, *clip[kind].shape) for kind in kinds)
        for values, kind in zip(batch, kinds, strict=True):
            values[row % _BATCH] = clip[kind]
        if row % _BATCH == _BATCH - 1:
            yield batch


def per_second(read: Callable[[], Batches], clips: int) -> float:
    """Clips a CPU second."""
    started = time.process_time()
    total = sum(len(batch[0]) for batch in read())
    assert total == clips, f"read {total} of {clips} clips"
    return clips / (time.process_time() - started)


def compare(latent: tuple[int, ...], text: tuple[int, int], clips: int) -> Iterator[str]:
    """A line for latents alone, and one for latents and texts."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_shards(folder, latent, text, clips)
        scan = scan_shards([Path(path) for path in paths], "cthw", "first")
        write_manifest(folder, scan, codec="wan", layout="cthw", fractions=(0.3, 0.3))
        for kinds in (["latent"], ["latent", "embed"]):
            readers = {
                "webdataset": partial(plain, paths, kinds),
                "by index": partial(by_index, folder, kinds),
                "streamed": partial(streamed, paths, kinds),
            }
            best = dict.fromkeys(readers, 0.0)
            for _ in range(_REPEATS):
                for reader, read in readers.items():
                    best[reader] = max(best[reader], per_second(read, clips))
            speeds = ", ".join(
                f"{reader} {speed:,.0f}/s ({speed / best['webdataset']:.2f})"
                for reader, speed in best.items()
            )
            yield f"shards: {' and '.join(kinds)} {list(latent)}: {speeds}"


def main() -> None:
    """Both sizes."""
    torch.set_num_threads(1)
    for line in (
        *compare((16, 21, 60, 104), (512, 4096), 32),
        *compare((16, 9, 8, 8), (16, 32), 1024),
    ):
        print(line)


if __name__ == "__main__":
    main()
