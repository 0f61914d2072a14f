from __future__ import annotations

import dataclasses
import math
from functools import cache

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from braid.clips.decoding.transform import decode, encode
from braid.clips.preparation.moving_digits import (
    GROUNDS,
    INKS,
    MOTIONS,
    NUMERALS,
    REST,
    Handwriting,
    Script,
    film,
    pose_table,
    write_script,
)
from braid.common.splits import SPLITS, split_of

SHARES = (0.125, 0.25)
KEYS = [f"{n:09d}" for n in range(120)]
FRAMES = 33


@pytest.fixture(scope="module")
def handwriting() -> Handwriting:
    return Handwriting(SHARES)


@pytest.fixture(scope="module")
def script(handwriting: Handwriting) -> Script:
    return write_script(KEYS, FRAMES, handwriting, SHARES, np.random.default_rng(0))


@pytest.fixture(scope="module")
def video(script: Script) -> torch.Tensor:
    return film(script, 64)


def named(prompt: str) -> tuple[str, int, str, str]:
    """Ink, digit, motion and ground of a prompt."""
    head, ground = prompt.rsplit(", over ", 1)
    _, ink, numeral, motion = head.split(" ", 3)
    return ink, NUMERALS.index(numeral), motion, ground


def cover(script: Script, size: int = 32) -> torch.Tensor:
    """How much of each pixel is ink, [N, F, size, size]."""
    ones = torch.ones_like(script.ink)
    return film(dataclasses.replace(script, ink=ones, ground=0 * ones), size)[:, 0]


# ---- Words and what is seen ------------------------------------------------------------------


SIDE = 96  # pixels


@cache
def seen(words: str) -> tuple[torch.Tensor, ...]:
    """Middle x, y, turn, spread and ink of one motion's clip, in every frame."""
    number = [motion.words for motion in MOTIONS].index(words)
    bar = np.zeros((32, 32), np.float32)
    bar[8:24, 14:18] = 1
    texture = torch.from_numpy(gaussian_filter(bar, 1.5))[None]
    plain = Script([""], texture, pose_table(FRAMES)[[number]], torch.ones(1, 3), torch.zeros(1, 3))
    mask = film(plain, SIDE)[0, 0].double()
    ink = mask.sum((1, 2))
    place = torch.arange(SIDE).double() - (SIDE - 1) / 2
    x, y = (mask.sum(1) @ place) / ink, (mask.sum(2) @ place) / ink
    dx, dy = place - x[:, None], place - y[:, None]
    xx, yy = ((mask.sum(axis) * d**2).sum(1) / ink for axis, d in ((1, dx), (2, dy)))
    xy = torch.einsum("fyx,fy,fx->f", mask, dy, dx) / ink
    angle = 0.5 * torch.atan2(-2 * xy, yy - xx)  # of the bar, clockwise from upright
    return x, y, angle, (xx + yy).sqrt(), ink


def steps(values: torch.Tensor) -> torch.Tensor:
    return values[1:] - values[:-1]


@pytest.mark.parametrize(
    ("way", "axis", "sign"), [("left", 0, -1), ("right", 0, 1), ("up", 1, -1), ("down", 1, 1)]
)
def test_straight_motions(way: str, axis: int, sign: int) -> None:
    slow, quick, rush = (
        seen(f"{words}")[axis] * sign
        for words in (
            f"drifts {way}, slowly",
            f"drifts {way}, quickly",
            f"rushes {way}, faster and faster",
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
    for words in (f"drifts {way}, quickly", f"rushes {way}, faster and faster"):
        across = seen(words)[1 - axis]
        assert across.max() - across.min() < 0.5


@pytest.mark.parametrize(("words", "axis"), [("up and down", 1), ("from side to side", 0)])
def test_bounces(words: str, axis: int) -> None:
    path = seen(f"bounces {words}")[axis]
    assert path[[0, 16, 32]].max() - path[[0, 16, 32]].min() < 0.1  # keyframes see no motion
    assert path[0] - path[8] > SIDE / 3
    assert path[0] - path[24] > SIDE / 3
    speed = steps(path).abs()
    assert speed[[0, 15, 16, 31]].min() > 3 * speed[[7, 8, 23, 24]].max()


@pytest.mark.parametrize(("words", "sense"), [("clockwise", 1), ("anticlockwise", -1)])
def test_turns_have_the_sense_that_a_reader_sees(words: str, sense: int) -> None:
    x, y, *_ = seen(f"circles {words}")
    radius = (x**2 + y**2).sqrt()
    assert radius.max() - radius.min() < 1
    assert y[0] < y.min() + 0.01  # begins at the top
    assert sense * x[8] > SIDE / 8  # the right comes next on a clock
    angle = seen(f"spins {words}")[2] * sense
    turned = torch.remainder(steps(angle) + math.pi / 2, math.pi) - math.pi / 2
    torch.testing.assert_close(turned, torch.full_like(turned, 2 * math.pi / 32), atol=0.05, rtol=0)


def test_swings_grows_shrinks_and_fades() -> None:
    angle = seen("swings to and fro")[2]
    assert angle[[0, 8, 16, 24, 32]].max() - angle[[0, 8, 16, 24, 32]].min() < 0.05
    assert angle[4] > angle[0] + 0.7
    assert angle[12] < angle[0] - 0.7
    assert (steps(seen("grows")[3]) > 0).all()
    assert (steps(seen("shrinks")[3]) < 0).all()
    assert 2 < seen("grows")[3][-1] / seen("grows")[3][0] < 3
    assert (steps(seen("fades in")[4]) > 0).all()
    assert (steps(seen("fades away")[4]) < 0).all()


def test_every_motion_is_named_by_its_own_words() -> None:
    assert len({motion.words for motion in MOTIONS}) == len(MOTIONS)
    table = pose_table(FRAMES)
    assert table.shape == (len(MOTIONS), len(REST), FRAMES)
    apart = torch.cdist(table.flatten(1), table.flatten(1)) + 9 * torch.eye(len(MOTIONS))
    assert apart.min() > 1


def test_colours_are_those_of_the_prompt(script: Script) -> None:
    video, ink = film(script, 32), cover(script)
    for n, prompt in enumerate(script.prompts):
        ink_name, _, _, ground_name = named(prompt)
        place = ink[n].argmax()
        strongest = ink[n].flatten()[place]
        shown = video[n].flatten(1)[:, place]
        ground = video[n, :, 0, 0, 0]
        shown_ink = (shown - (1 - strongest) * ground) / strongest
        for colours, name, colour in (
            (INKS, ink_name, shown_ink),
            (GROUNDS, ground_name, ground),
        ):
            gaps = {other: (torch.tensor(rgb) - colour).norm() for other, rgb in colours.items()}
            assert min(gaps, key=lambda each: float(gaps[each])) == name
    assert video.min() >= 0
    assert video.max() <= 1


def test_all_words_occur(handwriting: Handwriting) -> None:
    keys = [f"{n:09d}" for n in range(600)]
    prompts = write_script(keys, 2, handwriting, SHARES, np.random.default_rng(1)).prompts
    inks, digits, motions, grounds = (set(each) for each in zip(*map(named, prompts), strict=True))
    assert (inks, digits, grounds) == (set(INKS), set(range(10)), set(GROUNDS))
    assert motions == {motion.words for motion in MOTIONS}


# ---- Handwriting -----------------------------------------------------------------------------


def test_the_digit_is_the_prompt_s_and_its_split_s_own(
    handwriting: Handwriting, script: Script
) -> None:
    known = {each.numpy().tobytes(): n for n, each in enumerate(handwriting.textures)}
    target = load_digits().target
    owners: dict[int, set[str]] = {}
    for key, prompt, texture in zip(KEYS, script.prompts, script.textures, strict=True):
        image = known[texture.numpy().tobytes()]
        assert target[image] == named(prompt)[1]
        owners.setdefault(image, set()).add(split_of(key, *SHARES))
    assert all(len(each) == 1 for each in owners.values())


def test_every_image_is_drawn_by_one_split(handwriting: Handwriting) -> None:
    drawn = {
        split: {
            handwriting.draw(split, d, place) for d in range(10) for place in np.arange(0, 1, 1e-3)
        }
        for split in SPLITS
    }
    assert sum(len(each) for each in drawn.values()) == len(set.union(*drawn.values())) == 1797
    assert len(drawn["train"]) > len(drawn["test"]) > len(drawn["val"]) > 150


def test_a_split_too_small_to_own_a_digit() -> None:
    with pytest.raises(ValueError, match="val split is too small to own a handwritten 0"):
        Handwriting((0.001, 0.25)).draw("val", 0, 0.5)


# ---- Encoded ---------------------------------------------------------------------------------


def test_decoded_clips_are_close_and_can_be_read(script: Script, video: torch.Tensor) -> None:
    decoded = decode(encode(video).bfloat16().float())
    psnr = -10 * (decoded - video).square().mean((1, 2, 3, 4)).log10()
    blank = (
        -10 * (script.ground[:, :, None, None, None] - video).square().mean((1, 2, 3, 4)).log10()
    )
    assert psnr.mean() > 29
    assert psnr.min() > 20
    assert (psnr - blank).mean() > 9
    upright = [
        n for n, each in enumerate(script.prompts) if "drifts" in each or "fades away" in each
    ]
    pictures = [each[upright].mean(1)[:, 0].flatten(1) for each in (video, decoded)]
    digits = np.array([named(script.prompts[n])[1] for n in upright])
    reader = KNeighborsClassifier(1).fit(pictures[0], digits)
    assert (reader.predict(pictures[1]) == digits).mean() > 0.9


def test_latents_are_normalised(video: torch.Tensor) -> None:
    """The constants were taken from 2,048 such clips."""
    latents = encode(video).transpose(0, 1).flatten(1)
    assert latents.mean(1).abs().max() < 0.25
    assert latents.std(1).min() > 0.8
    assert latents.std(1).max() < 1.2
