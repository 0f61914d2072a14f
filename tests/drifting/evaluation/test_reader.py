"""The reader learns from real clips, and says of hand-made frames what they show."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from braid.clips.codec.codec import TRANSFORM, decoder, encode
from braid.clips.preparation.moving_digits import Handwriting, draw_scenes, read_words, render
from braid.drifting.evaluation.reader import (
    HEADS,
    SHOWN,
    ClipReader,
    View,
    Viewer,
    Words,
    double_exposures,
    position_error,
    roughness,
    sharpness,
    smears,
    stray_color,
    tracks_of,
)

GIVEN = torch.tensor([True, False, True])


@cache
def filmed(count: int = 96) -> tuple[Tensor, list[str]]:
    """Clips of 3 latent frames of the built-in scenes, and their prompts."""
    fractions = (0.125, 0.25)
    keys = [f"{key:09d}" for key in range(count)]
    scenes = draw_scenes(keys, 9, Handwriting(fractions), fractions, np.random.default_rng(0))
    return encode(render(scenes, 64)), list(scenes.prompts)


@cache
def viewed() -> tuple[Viewer, View, Words]:
    clips, prompts = filmed()
    words = read_words(prompts)
    assert words is not None
    viewer = Viewer(decoder(TRANSFORM, clips), GIVEN)
    return viewer, viewer(clips), words


@cache
def trained() -> ClipReader:
    _, view, words = viewed()
    return ClipReader(view, words, 300, seed=0)


def view_of(maps: Tensor, **changes: Any) -> View:
    """A view of given maps [n, F, s, s], none of whose frames is given."""
    clips, frames = maps.shape[:2]
    columns: dict[str, Any] = {
        "ink": torch.ones(clips, frames, 4),
        "ground": torch.zeros(clips, frames, 3),
        "detail": torch.ones(clips, frames),
        "stray": torch.zeros(clips, frames),
        "backdrop": torch.zeros(clips, 7),
        "missing": torch.ones(frames, dtype=torch.bool),
        "pixels": 64,
    }
    return View(maps, **columns | changes)


def square(x: int, y: int, side: int = 6) -> Tensor:
    """A map with one opaque square, its corner at (x, y)."""
    one = torch.zeros(32, 32)
    one[y : y + side, x : x + side] = 1
    return one


def test_the_reader_learns_its_own_clips_and_knows_chance() -> None:
    _, view, words = viewed()
    figures, chance = trained().figures(view, view, words), trained().chance(view, words)
    for head in HEADS:
        assert figures[f"{head}_whole"] > 0.95, head
        assert figures[f"{head}_missing"] > 0.95, head
    most = torch.bincount(words["digit"]).max() / len(words["digit"])
    assert chance["digit_whole"] == chance["digit_missing"] == pytest.approx(float(most))
    assert figures["position_error"] == 0 < chance["position_error"]
    assert figures["track_roughness"] == 1
    assert figures["ghost"] < 0.1
    assert figures["smear"] < 0.1


def test_the_same_seed_gives_the_same_reader() -> None:
    _, view, words = viewed()
    again = ClipReader(view, words, 300, seed=0)
    assert again.figures(view, view, words) == trained().figures(view, view, words)


def test_readers_of_missing_frames_see_no_given_ones() -> None:
    viewer, view, words = viewed()
    clips = filmed()[0].clone()
    clips[:, :, GIVEN] = 0
    changed = trained().figures(viewer(clips, view), view, words)
    figures = trained().figures(view, view, words)
    for name in ("digit_missing", "motion_missing", "ghost", "smear", "position_error"):
        assert changed[name] == figures[name], name
    assert changed["digit_whole"] < figures["digit_whole"]


def test_frames_of_one_of_two_and_of_no_object_are_told_apart() -> None:
    _, view, _ = viewed()
    frames = trained().frames
    single = view.maps[view.visible]
    shown = {
        "object": single,
        "several": double_exposures(view, torch.Generator().manual_seed(5)),
        "smear": smears(single, torch.Generator().manual_seed(6)),
        "nothing": torch.zeros(4, 32, 32),
    }
    least = {"object": 0.9, "several": 0.6, "smear": 0.8, "nothing": 1.0}  # chance: a third
    for name, maps in shown.items():
        right = (frames(maps) == SHOWN.index(name)).float().mean()
        assert right >= least[name], (name, right)
    assert (frames(shown["several"]) != SHOWN.index("object")).float().mean() > 0.7


def test_two_digits_side_by_side_are_several() -> None:
    _, view, _ = viewed()
    still = view.maps[:, 0][view.visible[:, 0]]
    pair = 0.5 * (still.roll(8, dims=2) + still.roll(-8, dims=2))
    assert (trained().frames(pair) == SHOWN.index("several")).float().mean() > 0.8


def test_a_double_exposure_is_of_frames_that_are_apart() -> None:
    here, there = square(4, 4), square(20, 20)
    maps = torch.stack([torch.stack([here, there]), torch.stack([here, here])])
    blends = double_exposures(view_of(maps), torch.Generator().manual_seed(1))
    assert len(blends) in (0, 2)  # none where each frame meets itself
    for blend in blends:
        part = blend[6, 6]
        assert 0.3 <= part <= 0.7
        torch.testing.assert_close(blend, part * here + (1 - part) * there)


def test_a_track_is_that_of_the_square() -> None:
    x, y, xx, yy, xy, mass, peak = tracks_of(square(20, 10)).tolist()
    assert (x, y) == pytest.approx(((23 - 16) / 16, (13 - 16) / 16), abs=1e-5)
    assert xx == pytest.approx((6**2 - 1) / 12 / 16**2, rel=1e-4) == yy
    assert xy == pytest.approx(0, abs=1e-6)
    assert mass == pytest.approx(0.85 * 36 * 10 / 32**2, rel=1e-5)
    assert peak == 1
    assert tracks_of(torch.zeros(32, 32))[:2].tolist() == [0, 0]


def test_position_error_is_in_pixels_of_visible_real_frames() -> None:
    real = torch.stack([square(10, 10), square(12, 10), torch.zeros(32, 32)])[None]
    moved = torch.stack([square(13, 14), square(12, 10), square(0, 0)])[None]
    error = position_error(view_of(moved), view_of(real))
    assert error == pytest.approx((5 * 64 / 32 + 0) / 2, rel=1e-4)  # 3, 4, 5; the last is unseen


def test_roughness_is_zero_of_a_straight_track_only() -> None:
    straight = torch.stack([square(x, 10) for x in (4, 6, 8, 10)])[None]
    jumping = torch.stack([square(x, 10) for x in (4, 8, 4, 8)])[None]
    assert roughness(view_of(straight)) == pytest.approx(0, abs=1e-9)
    assert roughness(view_of(jumping)) == pytest.approx((8 / 16) ** 2, rel=1e-4)


def test_sharpness_is_of_missing_frames() -> None:
    maps, missing = torch.zeros(1, 2, 4, 4), torch.tensor([True, False])
    detail = torch.tensor([[2.0, 5.0]])
    real = view_of(maps, detail=torch.ones(1, 2), missing=missing)
    assert sharpness(view_of(maps, detail=detail, missing=missing), real) == 2


def test_only_colors_of_no_mixture_of_ground_and_ink_are_stray() -> None:
    blue = torch.tensor([0.1, 0.1, 0.4])
    frames = blue.expand(1, 5, 8, 8, 3).clone()
    frames[:, :, 2:4, 2:4] = blue + 0.5 * torch.tensor([0.0, 0.6, 0.8])
    frames[:, 2, 2:4, 2:4] = blue + 0.2 * torch.tensor([0.0, 0.6, 0.8])  # fainter, not stray
    viewer = Viewer(lambda _: frames, torch.tensor([True, False, True]))
    real = viewer(torch.zeros(1))
    assert stray_color(real) == pytest.approx(0, abs=1e-6)
    frames[:, 2, 5, 5, 0] += 0.5  # red is across both
    assert stray_color(viewer(torch.zeros(1), real)) == pytest.approx(0.25 / 64, rel=1e-4)
