"""How preparing, opening, splitting, quantizing and drawing grow with the full sets' counts.

    python -m benchmarks.counts 16 8        # a sixteenth and an eighth of them; 1: all

The full sets have 248,320 clips in 970 shards and 1.28 million images in 1,000 class folders. Here
latents are tiny and images are names alone, so that counts are all that grows. Each line is a
process of its own: CPU seconds of one thread, and the most memory that it held. The last column is
how the CPU seconds of an entry grew, beside the fraction before: 1 is linear. Writes
docs/results/counts.csv.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from braid.clips.codec.codec import WAN
from braid.clips.preparation.scan import scan_shards, write_manifest
from braid.clips.shards.dataset import open_clips, write_shard, write_tensor
from braid.clustering.kmeans import kmeans
from braid.common.io import write_csv
from braid.common.rng import generator
from braid.common.timing import peak_rss_mib
from braid.data.splits import SPLITS, split_of
from braid.drifting.training.objectives import ClassSampler
from braid.images.data.image_set import open_image_set
from braid.images.preparation.indexing import Listing, write_stored
from braid.stage.params import load_params

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs/results/counts.csv"
SHARDS, PER_SHARD, IMAGES, CLASSES, DIMENSIONS = 970, 256, 1_281_167, 1024, 512
STEPS = 100  # batches that are drawn

Timed = Callable[[str, Callable[[], object]], object]


def of_clips(folder: Path, part: int, timed: Timed) -> int:
    """Shards of tiny clips, from scanning to batches; how many clips there are."""
    shards = SHARDS // part
    draw = torch.Generator().manual_seed(0)
    text, members = write_tensor(torch.ones(2, 4).bfloat16()), []
    for number in range(shards):
        latents = torch.randn(PER_SHARD, 16, 2, 2, 2, generator=draw).bfloat16()
        rows = (
            (
                f"{number * PER_SHARD + row:09d}",
                {"latent": write_tensor(latent), "embed": text, "prompt": b"a clip"},
            )
            for row, latent in enumerate(latents)
        )
        members.append(folder / f"shard-{number:05d}.tar")
        write_shard(members[-1], rows)

    def prepare() -> None:
        scan = scan_shards(members, "cthw", "first")
        write_manifest(folder, scan, codec=WAN, layout="cthw", fractions=(0.02, 0.02))

    timed("prepare_clips", prepare)
    clips = open_clips(folder)
    timed("open_clips", lambda: open_clips(folder))
    splits = [clips.indices(split) for split in SPLITS]
    timed("split", lambda: [clips.indices(split) for split in SPLITS])
    _draw(len(splits[0]), timed, "clips")
    return len(clips)


def of_quantizing(_: Path, part: int, timed: Timed) -> int:
    """K-means on as many rows as there are clips, around as many centers as classes."""
    count = SHARDS * PER_SHARD // part
    draw = torch.Generator().manual_seed(0)
    centers = torch.randn(CLASSES, DIMENSIONS, generator=draw)
    rows = centers[torch.randint(CLASSES, (count,), generator=draw)]
    rows += 0.5 * torch.randn(rows.shape, generator=draw)
    config = load_params(ROOT / "params.yaml").clips.quantizer
    timed("quantize", lambda: kmeans(rows, CLASSES, config, generator(0, "kmeans")))
    return count


def of_images(folder: Path, part: int, timed: Timed) -> int:
    """An index of image names, and batches of it."""
    count = IMAGES // part
    names = [f"n{number % 1000:08d}/image_{number:08d}.jpeg" for number in range(count)]
    labels = [number % 1000 for number in range(count)]
    classes = [f"n{number:08d}" for number in range(1000)]

    def prepare() -> None:
        splits = [split_of(name, 0.02, 0.02) for name in names]
        listing = Listing(names, labels, classes, splits)
        chunks = (torch.zeros(len(part), 1, 1, 1) for part in np.array_split(names, count // 4096))
        write_stored(folder, listing, chunks, input_space="latent")

    timed("prepare_images", prepare)
    timed("open_images", lambda: open_image_set(folder))
    _draw(count, timed, "images")
    return count


def _draw(count: int, timed: Timed, what: str) -> None:
    labels = torch.arange(count) % CLASSES
    sampler = ClassSampler(labels)
    draws = torch.Generator().manual_seed(0)
    timed(f"sampler_{what}", lambda: ClassSampler(labels))
    timed(f"draw_{what}", lambda: [sampler.draw(64, 64, draws) for _ in range(STEPS)])


PARTS = {"clips": of_clips, "quantizing": of_quantizing, "images": of_images}


def measure(what: str, part: int) -> None:
    """Print name, count, CPU seconds and peak memory of each entry, in this process."""
    torch.set_num_threads(1)
    seconds: dict[str, float] = {}

    def timed(name: str, call: Callable[[], object]) -> None:
        started = time.process_time()
        call()
        seconds[name] = time.process_time() - started

    with TemporaryDirectory() as folder:
        count = PARTS[what](Path(folder), part, timed)
    for name, taken in seconds.items():
        print(name, count, f"{taken:.4f}", f"{peak_rss_mib():.0f}")


def main() -> None:
    """A process for each fraction and set, or what such a process does."""
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2], int(sys.argv[3]))
        return
    rows: list[dict[str, Any]] = []
    for part in map(int, sys.argv[1:] or ["16", "8"]):
        for what in PARTS:
            command = [sys.executable, "-m", "benchmarks.counts", "--measure", what, str(part)]
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
            for name, count, seconds, memory in csv.reader(done.stdout.splitlines(), delimiter=" "):
                row = {"what": name, "fraction": f"1/{part}", "count": int(count)}
                rows.append({**row, "cpu_seconds": float(seconds), "peak_mib": int(memory)})
    last: dict[str, dict[str, Any]] = {}
    for row in rows:
        name = str(row["what"])
        if old := last.get(name):
            more = row["count"] / old["count"]
            row["growth"] = row["cpu_seconds"] / max(old["cpu_seconds"], 1e-4) / more
        last[name] = row
    write_csv(RESULTS, rows, ["what", "fraction", "count", "cpu_seconds", "peak_mib", "growth"])


if __name__ == "__main__":
    main()
