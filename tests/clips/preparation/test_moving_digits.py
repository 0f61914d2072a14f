from __future__ import annotations

import dataclasses
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from braid.clips.codec.codec import decode, encode
from braid.clips.config import DigitsConfig
from braid.clips.preparation.moving_digits import (
    BACKGROUNDS,
    INKS,
    MOTIONS,
    NUMERALS,
    REST,
    ROWS,
    WIDTH,
    Handwriting,
    Scenes,
    draw_scenes,
    embed_prompt,
    pose_table,
    render,
    write_digit_shards,
)
from braid.data.splits import SPLITS, split_of

FRACTIONS = (0.125, 0.25)
KEYS = [f"{n:09d}" for n in range(120)]
FRAMES = 33


@pytest.fixture(scope="module")
def handwriting() -> Handwriting:
    return Handwriting(FRACTIONS)


@pytest.fixture(scope="module")
def scenes(handwriting: Handwriting) -> Scenes:
    return draw_scenes(KEYS, FRAMES, handwriting, FRACTIONS, np.random.default_rng(0))


@pytest.fixture(scope="module")
def video(scenes: Scenes) -> torch.Tensor:
    return render(scenes, 64)


def named(prompt: str) -> tuple[str, int, str, str]:
    """Ink, digit, motion and background of a prompt."""
    head, background = prompt.rsplit(", over ", 1)
    _, ink, numeral, motion = head.split(" ", 3)
    return ink, NUMERALS.index(numeral), motion, background


def cover(scenes: Scenes, size: int = 32) -> torch.Tensor:
    """How much of each pixel is ink, [N, F, size, size]."""
    ones = torch.ones_like(scenes.ink)
    return render(dataclasses.replace(scenes, ink=ones, background=0 * ones), size)[:, 0]


# ---- Motions and their phrases -----------------------------------------------------------------


SIDE = 96  # pixels


@cache
def measured(phrase: str) -> tuple[torch.Tensor, ...]:
    """Center x, y, turn, spread and ink of one motion's clip, in every frame."""
    number = [motion.phrase for motion in MOTIONS].index(phrase)
    bar = np.zeros((32, 32), np.float32)
    bar[8:24, 14:18] = 1
    texture = torch.from_numpy(gaussian_filter(bar, 1.5))[None]
    poses = pose_table(FRAMES)[[number]]
    scene = Scenes([""], [""], texture, poses, torch.ones(1, 3), torch.zeros(1, 3))
    mask = render(scene, SIDE)[0, 0].double()
    ink = mask.sum((1, 2))
    position = torch.arange(SIDE).double() - (SIDE - 1) / 2
    x, y = (mask.sum(1) @ position) / ink, (mask.sum(2) @ position) / ink
    dx, dy = position - x[:, None], position - y[:, None]
    xx, yy = ((mask.sum(axis) * d**2).sum(1) / ink for axis, d in ((1, dx), (2, dy)))
    xy = torch.einsum("fyx,fy,fx->f", mask, dy, dx) / ink
    angle = 0.5 * torch.atan2(-2 * xy, yy - xx)  # of the bar, clockwise from upright
    return x, y, angle, (xx + yy).sqrt(), ink


def steps(values: torch.Tensor) -> torch.Tensor:
    return values[1:] - values[:-1]


@pytest.mark.parametrize(
    ("direction", "axis", "sign"), [("left", 0, -1), ("right", 0, 1), ("up", 1, -1), ("down", 1, 1)]
)
def test_straight_motions(direction: str, axis: int, sign: int) -> None:
    slow, quick, rush = (
        measured(phrase)[axis] * sign
        for phrase in (
            f"drifts {direction}, slowly",
            f"drifts {direction}, quickly",
            f"rushes {direction}, faster and faster",
        )
    )
    for path in (slow, quick):
        torch.testing.assert_close(
            steps(path), steps(path).mean().expand(FRAMES - 1), atol=0.1, rtol=0
        )
    assert 2 < (quick[-1] - quick[0]) / (slow[-1] - slow[0]) < 3
    assert slow[-1] - slow[0] > SIDE / 8
    assert (steps(rush)[1:] > 0).all()
    assert (steps(steps(rush))[2:] > 0).all()
    assert rush[16] - rush[0] < 0.2 * (rush[-1] - rush[0])
    for phrase in (f"drifts {direction}, quickly", f"rushes {direction}, faster and faster"):
        across = measured(phrase)[1 - axis]
        assert across.max() - across.min() < 0.5


@pytest.mark.parametrize(("end", "axis"), [("up and down", 1), ("from side to side", 0)])
def test_bounces(end: str, axis: int) -> None:
    path = measured(f"bounces {end}")[axis]
    assert path[[0, 16, 32]].max() - path[[0, 16, 32]].min() < 0.1  # keyframes show no motion
    assert path[0] - path[8] > SIDE / 3
    assert path[0] - path[24] > SIDE / 3
    speed = steps(path).abs()
    assert speed[[0, 15, 16, 31]].min() > 3 * speed[[7, 8, 23, 24]].max()


@pytest.mark.parametrize(("direction", "sign"), [("clockwise", 1), ("anticlockwise", -1)])
def test_turns_are_clockwise_on_the_screen(direction: str, sign: int) -> None:
    x, y, *_ = measured(f"circles {direction}")
    radius = (x**2 + y**2).sqrt()
    assert radius.max() - radius.min() < 1
    assert y[0] < y.min() + 0.01  # begins at the top
    assert sign * x[8] > SIDE / 8  # the right comes next on a clock
    angle = measured(f"spins {direction}")[2] * sign
    turned = torch.remainder(steps(angle) + math.pi / 2, math.pi) - math.pi / 2
    torch.testing.assert_close(turned, torch.full_like(turned, 2 * math.pi / 32), atol=0.05, rtol=0)


def test_swings_grows_shrinks_and_fades() -> None:
    angle = measured("swings to and fro")[2]
    assert angle[[0, 8, 16, 24, 32]].max() - angle[[0, 8, 16, 24, 32]].min() < 0.05
    assert angle[4] > angle[0] + 0.7
    assert angle[12] < angle[0] - 0.7
    assert (steps(measured("grows")[3]) > 0).all()
    assert (steps(measured("shrinks")[3]) < 0).all()
    assert 2 < measured("grows")[3][-1] / measured("grows")[3][0] < 3
    assert (steps(measured("fades in")[4]) > 0).all()
    assert (steps(measured("fades away")[4]) < 0).all()


def test_every_motion_has_a_phrase_of_its_own() -> None:
    assert len({motion.phrase for motion in MOTIONS}) == len(MOTIONS)
    table = pose_table(FRAMES)
    assert table.shape == (len(MOTIONS), len(REST), FRAMES)
    apart = torch.cdist(table.flatten(1), table.flatten(1)) + 9 * torch.eye(len(MOTIONS))
    assert apart.min() > 1


def test_colors_are_those_of_the_prompt(scenes: Scenes) -> None:
    video, ink = render(scenes, 32), cover(scenes)
    for n, prompt in enumerate(scenes.prompts):
        ink_name, _, _, background_name = named(prompt)
        place = ink[n].argmax()
        strongest = ink[n].flatten()[place]
        shown = video[n].flatten(1)[:, place]
        background = video[n, :, 0, 0, 0]
        shown_ink = (shown - (1 - strongest) * background) / strongest
        for colors, name, color in (
            (INKS, ink_name, shown_ink),
            (BACKGROUNDS, background_name, background),
        ):
            gaps = {other: (torch.tensor(rgb) - color).norm() for other, rgb in colors.items()}
            assert min(gaps, key=lambda name: float(gaps[name])) == name
    assert video.min() >= 0
    assert video.max() <= 1


def test_all_words_occur(handwriting: Handwriting) -> None:
    keys = [f"{n:09d}" for n in range(600)]
    prompts = draw_scenes(keys, 2, handwriting, FRACTIONS, np.random.default_rng(1)).prompts
    inks, digits, motions, backgrounds = map(set, zip(*map(named, prompts), strict=True))
    assert (inks, digits, backgrounds) == (set(INKS), set(range(10)), set(BACKGROUNDS))
    assert motions == {motion.phrase for motion in MOTIONS}


# ---- Handwriting -----------------------------------------------------------------------------


def test_digits_are_those_of_the_prompt_and_images_those_of_the_split(
    handwriting: Handwriting, scenes: Scenes
) -> None:
    numbers = {pixels.numpy().tobytes(): n for n, pixels in enumerate(handwriting.textures)}
    target = load_digits().target
    splits: dict[int, set[str]] = {}
    for key, prompt, texture in zip(KEYS, scenes.prompts, scenes.textures, strict=True):
        image = numbers[texture.numpy().tobytes()]
        assert target[image] == named(prompt)[1]
        splits.setdefault(image, set()).add(split_of(key, *FRACTIONS))
    assert all(len(names) == 1 for names in splits.values())


def test_every_image_is_drawn_by_one_split(handwriting: Handwriting) -> None:
    drawn = {
        split: {
            handwriting.image(split, d, place) for d in range(10) for place in np.arange(0, 1, 1e-3)
        }
        for split in SPLITS
    }
    assert sum(map(len, drawn.values())) == len(set.union(*drawn.values())) == 1797
    assert len(drawn["train"]) > len(drawn["test"]) > len(drawn["val"]) > 150


def test_a_split_too_small_to_have_a_digit() -> None:
    with pytest.raises(ValueError, match="val split is too small to have a handwritten 0"):
        Handwriting((0.001, 0.25)).image("val", 0, 0.5)


# ---- Encoded ---------------------------------------------------------------------------------


def test_decoded_clips_are_close_and_legible(scenes: Scenes, video: torch.Tensor) -> None:
    decoded = decode(encode(video).bfloat16().float())
    psnr = -10 * (decoded - video).square().mean((1, 2, 3, 4)).log10()
    blank = (
        -10
        * (scenes.background[:, :, None, None, None] - video).square().mean((1, 2, 3, 4)).log10()
    )
    assert psnr.mean() > 29
    assert psnr.min() > 20
    assert (psnr - blank).mean() > 9
    upright = [
        n for n, text in enumerate(scenes.prompts) if "drifts" in text or "fades away" in text
    ]
    pictures = [frames[upright].mean(1)[:, 0].flatten(1) for frames in (video, decoded)]
    digits = np.array([named(scenes.prompts[n])[1] for n in upright])
    reader = KNeighborsClassifier(1).fit(pictures[0], digits)
    assert (reader.predict(pictures[1]) == digits).mean() > 0.9


def test_latents_are_normalized(video: torch.Tensor) -> None:
    """The constants were taken from 2,048 such clips."""
    latents = encode(video).transpose(0, 1).flatten(1)
    assert latents.mean(1).abs().max() < 0.25
    assert latents.std(1).min() > 0.8
    assert latents.std(1).max() < 1.2


# ---- Text embeddings and shards --------------------------------------------------------------


def test_text_embeddings() -> None:
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


def written(folder: Path, seed: int) -> list[Path]:
    folder.mkdir()
    config = DigitsConfig(clips=20, per_shard=8, latent_frames=3, latent_size=4)
    scratch = folder / "scratch"
    return write_digit_shards(folder, config, fractions=FRACTIONS, seed=seed, scratch=scratch)


def test_shards_have_the_configured_sizes_and_the_same_bytes(tmp_path: Path) -> None:
    first, same, other = (
        [path.read_bytes() for path in written(tmp_path / name, seed)]
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert len(first) == 3
    assert first == same
    assert all(a != b for a, b in zip(first, other, strict=True))
