"""The built-in clips as shards: moving digits, encoded, beside their prompts and embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from braid.clips.members import Layout, write_tensor
from braid.clips.moving_digits import Handwriting, film, write_script
from braid.clips.prompts import embed_prompt
from braid.clips.space_time_transform import SPACE_STRIDE, TIME_STRIDE, encode
from braid.clips.tar_shards import write_shard

LAYOUT: Layout = "cthw"
_CHUNK = 8  # clips filmed at a time; many more would not fit a processor's cache


def write_digit_shards(
    folder: Path,
    *,
    clips: int,
    per_shard: int,
    latent_frames: int,
    latent_size: int,
    shares: tuple[float, float],
    seed: int,
) -> list[Path]:
    """Film, encode and write the clips; the shards in order.

    Args:
        folder: where shards are written.
        clips: how many.
        per_shard: clips a shard, at most.
        latent_frames: T of [16, T, S, S]; 4 (T - 1) + 1 video frames.
        latent_size: S, of 8 pixels a side.
        shares: of validation and test clips.
        seed: of all draws.

    Raises:
        ValueError: a split's share is too small to own every handwritten digit.
    """
    handwriting = Handwriting(shares)
    paths = []
    for number, start in enumerate(range(0, clips, per_shard)):
        keys = [f"{key:09d}" for key in range(start, min(start + per_shard, clips))]
        paths.append(folder / f"shard-{number:05d}.tar")
        rng = np.random.default_rng([seed, number])
        write_shard(paths[-1], _members(keys, latent_frames, latent_size, handwriting, shares, rng))
    return paths


def _members(
    keys: Sequence[str],
    latent_frames: int,
    latent_size: int,
    handwriting: Handwriting,
    shares: tuple[float, float],
    rng: np.random.Generator,
) -> Iterator[tuple[str, dict[str, bytes]]]:
    frames = TIME_STRIDE * (latent_frames - 1) + 1
    for start in range(0, len(keys), _CHUNK):
        chunk = keys[start : start + _CHUNK]
        script = write_script(chunk, frames, handwriting, shares, rng)
        latents = encode(film(script, SPACE_STRIDE * latent_size)).bfloat16()
        for key, each, prompt in zip(chunk, latents, script.prompts, strict=True):
            yield (
                key,
                {
                    "latent": write_tensor(each),
                    "embed": write_tensor(embed_prompt(prompt)),
                    "prompt": prompt.encode(),
                },
            )
