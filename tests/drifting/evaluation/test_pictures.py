"""Pictures of refined clips: equal clips, equal bytes; what is given is marked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from braid.clips.preparation.moving_digits import read_words
from braid.drifting.evaluation import pictures
from braid.drifting.evaluation.clips import Completed, Method, Sample
from braid.drifting.evaluation.pictures import (
    draw_evaluation,
    first_of_each,
    largest,
    save_gif,
    side_by_side,
    strip,
    tradeoff,
)

FRAMES = torch.rand(5, 8, 8, 3, generator=torch.Generator().manual_seed(0))
METHODS = {"truth": FRAMES, "refined": FRAMES.flip(0)}


def test_a_strip_is_the_same_each_time_and_marks_keyframes(tmp_path: Path) -> None:
    for name, given in (("one", [0, 4]), ("two", [0, 4]), ("three", [0])):
        strip(tmp_path / f"{name}.png", METHODS, given, 2, "a clip")
    one, two, three = ((tmp_path / f"{n}.png").read_bytes() for n in ("one", "two", "three"))
    assert one == two
    assert one != three


def test_an_animation_has_every_frame_and_every_method(tmp_path: Path) -> None:
    path = tmp_path / "clip.gif"
    save_gif(path, side_by_side(METHODS, [0]))
    with Image.open(path) as shown:
        assert shown.n_frames == 5
        assert shown.size == (2 * 8 * 2, 8 * 2 + 16)
        bars = []
        for frame in range(5):
            shown.seek(frame)
            red, green, blue = shown.convert("RGB").getpixel((0, 14))
            bars.append(red > green + 50 > blue)
        assert bars == [True, False, False, False, False]


def test_the_tradeoff_is_drawn_from_ratios_alone(tmp_path: Path) -> None:
    plain = {"frechet": 1.0, "frechet_pca": 2.0, "mse_missing": 0.5}
    better = {"frechet": 0.5, "frechet_pca": 1.0, "mse_missing": 0.6}
    for name, scale in (("one", 1), ("two", 10)):
        scaled = [{key: scale * value for key, value in row.items()} for row in (plain, better)]
        methods = dict(zip(("interpolated", "refined"), scaled, strict=True))
        tradeoff(tmp_path / f"{name}.png", methods, "interpolated", "clips")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_methods_of_the_tradeoff_are_told_apart_where_they_coincide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(pictures, "save", lambda figure, path: figures.append(figure))
    row = {"frechet": 1.0, "frechet_pca": 2.0, "mse_missing": 0.5}
    names = ["interpolated", "refined", "unclamped", "shuffled", "paired", "cold"]
    tradeoff(tmp_path / "a.png", {**dict.fromkeys(names, row), "real": {}}, "interpolated", "clips")
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == names
    for ax in figures[0].axes:
        assert not ax.texts
        outlines = [points.get_paths()[0].vertices.round(3).tolist() for points in ax.collections]
        assert len({str(outline) for outline in outlines}) == len(names)


class Repeat:
    """Decodes each latent frame but the first to four frames."""

    name = "repeat"

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        frames = latents[:, :3].movedim(1, -1)
        return torch.cat([frames[:, :1], frames[:, 1:].repeat_interleave(4, dim=1)], dim=1)


def draw(folder: Path, prompts: list[str], worse: int) -> None:
    clips = torch.rand(len(prompts), 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    refined = clips + 0.01
    refined[worse] += 0.2
    given, classes = torch.tensor([True, False, True]), torch.zeros(len(prompts)).long()
    rows = {"interpolated": clips.flip(0), "refined": refined, "paired": clips}
    methods = {name: Method(latents, "", 0, 0.0) for name, latents in rows.items()}
    sample = Sample(clips, torch.zeros(len(prompts), 1, 1), prompts, read_words(prompts))
    figures = {name: {"frechet": 1.0, "frechet_pca": 2.0, "mse_missing": 1.0} for name in rows}
    draw_evaluation(folder, Completed(given, classes, methods), sample, figures, 2, Repeat())


def test_first_and_worst_clips_are_drawn_by_rule(tmp_path: Path) -> None:
    prompts = ["a red one grows, over black", "a red two shrinks, over black"]
    prompts += ["a red two swings to and fro, over black"]
    for name, worse in (("one", 0), ("same", 0), ("other", 2)):
        draw(tmp_path / name, prompts, worse)
    pictures = sorted(path.name for path in (tmp_path / "one").iterdir())
    clips = [f"clip_{number}.{ending}" for number in (0, 1) for ending in ("gif", "png")]
    assert pictures == [*clips, "first.png", "tradeoff.png", "worst.png"]
    for picture in pictures:
        one, same = ((tmp_path / name / picture).read_bytes() for name in ("one", "same"))
        assert one == same
    worst = [(tmp_path / name / "worst.png").read_bytes() for name in ("one", "other")]
    assert worst[0] != worst[1]
    with Image.open(tmp_path / "one/clip_0.gif") as shown:
        assert shown.size[0] == 3 * 8 * 2  # interpolated, refined, real


def test_clips_of_other_prompts_are_drawn_class_by_class(tmp_path: Path) -> None:
    draw(tmp_path / "one", ["a cat", "a dog", "a cow"], 1)
    assert (tmp_path / "one/first.png").exists()


def test_clips_are_shown_of_as_many_labels_as_can_be() -> None:
    labels = torch.tensor([2, 2, 0, 2, 1, 0])
    assert first_of_each(labels, 4) == [0, 2, 4, 1]
    assert first_of_each(labels, 9) == [0, 2, 4, 1, 5, 3]


def test_the_worst_clips_come_first() -> None:
    assert largest(torch.tensor([0.1, 0.5, 0.2, 0.5]), 3) == [1, 3, 2]
