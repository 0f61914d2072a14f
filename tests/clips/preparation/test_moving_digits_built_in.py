from __future__ import annotations

from pathlib import Path

import pytest
import torch

from braid.clips.preparation.moving_digits import ROWS, WIDTH, embed_prompt, write_digit_shards

SHARES = (0.125, 0.25)


def test_prompts_as_rows() -> None:
    rows = embed_prompt("A red seven drifts left, slowly, over black")
    assert rows.shape == (ROWS, WIDTH)
    assert rows.dtype == torch.bfloat16
    assert (rows[:8] != 0).any(1).all()
    assert (rows[8:] == 0).all()
    assert torch.equal(rows[1], embed_prompt("red")[0])
    assert not torch.equal(rows[1], rows[2])
    many = torch.stack([embed_prompt(f"word{n}")[0] for n in range(300)]).float()
    assert many.mean() == pytest.approx(0, abs=0.05)
    assert many.std() == pytest.approx(1, abs=0.05)
    assert float(embed_prompt("red")[0, 0]) == -0.216796875  # the same on every machine
    with pytest.raises(ValueError, match="has 17 words, expected at most 16"):
        embed_prompt("a " * 17)


def written(folder: Path, seed: int = 0, **options: int) -> list[Path]:
    folder.mkdir()
    sizes = {"clips": 20, "per_shard": 8, "latent_frames": 3, "latent_size": 4, **options}
    return write_digit_shards(folder, shares=SHARES, seed=seed, **sizes)


def test_shards_have_the_asked_sizes_and_the_same_bytes(tmp_path: Path) -> None:
    first, same, other = (
        [path.read_bytes() for path in written(tmp_path / name, seed)]
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert len(first) == 3
    assert first == same
    assert all(a != b for a, b in zip(first, other, strict=True))
