"""How fast clips are read: ours at random, beside webdataset in order with a safe decoder.

    python -m benchmarks.shards

Clips of Wan's size, [16, 21, 60, 104] in bfloat16 (4.2 MB), and of the embedded one (9 x 8 x 8),
from warm files, one process, one thread, CPU seconds; both give float32 and check nothing else than
what they always do (ours: that values are finite). Runs alternate, the fastest of each counts.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import webdataset
from torch import Tensor

from braid.clips.preparation.scan import scan_shards, write_manifest
from braid.clips.shards.dataset import open_clips, write_tensor

_REPEATS = 3
_BATCH = 4


def write_shards(folder: Path, shape: tuple[int, ...], clips: int) -> list[Path]:
    """Two shards of random clips in the Wan-synth layout."""
    draw = torch.Generator().manual_seed(0)
    paths = [folder / f"shard-{number:05d}.tar" for number in range(2)]
    for number, path in enumerate(paths):
        with webdataset.TarWriter(str(path)) as writer:
            for clip in range(clips // 2):
                latent = torch.randn(*shape, generator=draw).bfloat16()
                writer.write(
                    {
                        "__key__": f"{number * clips + clip:09d}",
                        "latent.pt": write_tensor(latent),
                        "embed.pt": write_tensor(torch.ones(4, 8).bfloat16()),
                        "prompt.txt": b"a clip",
                    }
                )
    return paths


def ours(folder: Path) -> Iterator[Tensor]:
    """Batches in random order by the manifest and index of `prepare_clips`."""
    clips = open_clips(folder)
    order = torch.randperm(len(clips), generator=torch.Generator().manual_seed(1))
    for rows in order.split(_BATCH):
        yield clips.latents(rows)


def theirs(paths: list[Path]) -> Iterator[Tensor]:
    """Batches in order, members decoded by PyTorch's restricted loader."""

    def decode(sample: dict[str, Any]) -> Tensor:
        content = io.BytesIO(sample["latent.pt"])
        latent: Tensor = torch.load(content, weights_only=True)
        return latent.float()

    dataset = webdataset.WebDataset([str(path) for path in paths], shardshuffle=False)
    yield from dataset.map(decode).batched(_BATCH, collation_fn=torch.stack)


def per_second(read: Callable[[], Iterator[Tensor]], clips: int) -> float:
    """Clips a CPU second."""
    started = time.process_time()
    total = sum(len(batch) for batch in read())
    assert total == clips, f"read {total} of {clips} clips"
    return clips / (time.process_time() - started)


def compare(shape: tuple[int, ...], clips: int) -> str:
    """One line of the table."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_shards(folder, shape, clips)
        scan = scan_shards(paths, "cthw", "first")
        write_manifest(folder, scan, codec="wan", layout="cthw", fractions=(0.1, 0.1))
        best = {"ours": 0.0, "webdataset": 0.0}
        for _ in range(_REPEATS):
            best["ours"] = max(best["ours"], per_second(lambda: ours(folder), clips))
            best["webdataset"] = max(best["webdataset"], per_second(lambda: theirs(paths), clips))
    megabytes = 2 * math.prod(shape) / 1e6
    ratio = best["ours"] / best["webdataset"]
    speeds = ", ".join(f"{name} {speed:,.0f}/s" for name, speed in best.items())
    return f"shards: clips of {megabytes:.2f} MB: {ratio:.2f} of webdataset's speed ({speeds})"


def main() -> None:
    """Both sizes."""
    torch.set_num_threads(1)
    print(compare((16, 21, 60, 104), 32))
    print(compare((16, 9, 8, 8), 1024))


if __name__ == "__main__":
    main()
