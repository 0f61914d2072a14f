"""The pictures: equal inputs give equal bytes, and what they show is what they were given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from braid.radiance.evaluation import figures
from braid.radiance.evaluation.figures import (
    MOVIE_SIDE,
    RESIDUAL_LIMIT,
    Tradeoff,
    image_table,
    movie,
    pictured_frames,
    publication_figure,
    tradeoff_chart,
)

TEACHER = Tradeoff("teacher", 29.3, 11.2, 640)
STUDENTS = [
    Tradeoff("response", 27.81, 4.1, 812),
    Tradeoff("sh", 28.05, 4.0, 813),
    Tradeoff("gaussian_all", 27.66, 3.9, 820),
]


def images(seed: int = 0, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 8, 8, 3, generator=torch.Generator().manual_seed(seed))


def draw_images(path: Path) -> None:
    image_table(path, images(0), {"teacher": images(1), "sh": images(2)}, [0, 7])


def draw_tradeoff(path: Path) -> None:
    tradeoff_chart(path, STUDENTS, TEACHER, {"white": 8.25}, "RSS", "bricks")


DRAW = [draw_images, draw_tradeoff]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved, kept for inspection."""
    kept: list[Figure] = []
    monkeypatch.setattr(figures, "save", lambda figure, path: kept.append(figure))
    return kept


@pytest.mark.parametrize("draw", DRAW)
def test_equal_inputs_give_equal_bytes_whatever_the_readers_settings(
    draw: Any, tmp_path: Path
) -> None:
    draw(tmp_path / "a.png")
    with matplotlib.rc_context({"font.size": 20, "axes.grid": True, "savefig.dpi": 50}):
        draw(tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("draw", DRAW)
def test_pictures_are_pngs_without_a_version_or_a_date(draw: Any, tmp_path: Path) -> None:
    draw(tmp_path / "picture.tmp")
    with Image.open(tmp_path / "picture.tmp") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 200
        assert set(picture.info) == {"dpi"}


def panel_axes(figure: Figure) -> list[Any]:
    return [ax for ax in figure.axes if ax.get_images()]


def test_an_image_table_shows_truth_renders_and_their_absolute_differences(
    drawn: list[Figure], tmp_path: Path
) -> None:
    image_table(tmp_path / "x.png", images(0), {"render": images(1)}, [0, 7])
    panels = panel_axes(drawn[0])
    assert [ax.get_title() for ax in panels[:3]] == ["ground truth", "render", "residual\nrender"]
    assert [ax.get_ylabel() for ax in panels[::3]] == ["test view 0", "test view 7"]
    shown = [ax.get_images()[0].get_array() for ax in panels[3:]]
    np.testing.assert_array_equal(shown[0], images(0)[1])
    np.testing.assert_array_equal(shown[1], images(1)[1])
    expected = (images(1)[1].double() - images(0)[1].double()).abs().mean(-1)
    np.testing.assert_allclose(np.asarray(shown[2]), expected, atol=1e-6)
    assert panels[2].get_images()[0].get_clim() == (0, RESIDUAL_LIMIT)


def test_an_image_table_prints_each_views_psnr_below_it(
    drawn: list[Figure], tmp_path: Path
) -> None:
    truth = 0.5 * images(0)
    models = {"teacher": truth + 0.01, "sh": truth + torch.tensor([0.1, 0.2])[:, None, None, None]}
    image_table(tmp_path / "x.png", truth, models, [0, 7])
    panels = panel_axes(drawn[0])
    titles = ["ground truth", "teacher", "sh", "residual\nteacher", "residual\nsh"]
    assert [ax.get_title() for ax in panels[:5]] == titles
    assert [ax.get_xlabel() for ax in panels[:5]] == ["", "40.00 dB", "20.00 dB", "", ""]
    assert panels[7].get_xlabel() == "13.98 dB"


def test_frames_and_images_must_agree(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zip"):
        image_table(tmp_path / "x.png", images(0), {"sh": images(1)}, [1])


def test_the_publication_figure_has_the_teacher_and_a_student_of_either_stage(
    drawn: list[Figure], tmp_path: Path
) -> None:
    stored = {"truth": images(0), "teacher": images(1)}
    first, last = (stored | {"after": images(seed)} for seed in (2, 3))
    publication_figure(tmp_path / "x.png", {"response": ([0, 7], first), "sh": ([0, 7], last)})
    panels = panel_axes(drawn[0])
    titles = [ax.get_title() for ax in panels[:4]]
    assert titles == ["ground truth", "teacher", "Stage 1B", "Stage 2\nsh"]
    np.testing.assert_array_equal(panels[3].get_images()[0].get_array(), images(3)[0])


def test_frames_that_the_scene_has_are_pictured() -> None:
    assert pictured_frames([0, 7, 14], views=8) == [0, 7]
    with pytest.raises(ValueError, match=r"figure_frames: expected one of 0 to 4, got \[9\]"):
        pictured_frames([9], views=5)


def test_the_tradeoff_chart_tells_stages_apart_and_draws_the_lines(
    drawn: list[Figure], tmp_path: Path
) -> None:
    draw_tradeoff(tmp_path / "x.png")
    quality, speed, memory = drawn[0].axes
    for ax, values in (
        (quality, [27.81, 28.05, 27.66]),
        (speed, [4.1, 4.0, 3.9]),
        (memory, [812, 813, 820]),
    ):
        dots = ax.collections[1]
        np.testing.assert_allclose(dots.get_offsets()[:, 0], values)
        np.testing.assert_allclose(dots.get_offsets()[:, 1], [0, 1, 2])
        first, *others = dots.get_facecolors().tolist()
        assert others == [others[0]] * 2
        assert first != others[0]
    lines = {ax: [line.get_xdata()[0] for line in ax.lines] for ax in drawn[0].axes}
    assert lines == {quality: [29.3, 8.25], speed: [11.2], memory: [640]}
    written = {text.get_text() for text in quality.texts}
    assert written == {"27.81", "28.05", "27.66", "teacher 29.30", "white 8.25"}
    assert quality.yaxis_inverted()


def test_the_movie_shows_teacher_student_and_residual_side_by_side(tmp_path: Path) -> None:
    teacher = torch.ones(3, 8, 10, 3)
    student = teacher.clone()
    student[1, :, :5] = 0.0
    for name in ("a.gif", "b.gif"):
        movie(tmp_path / name, teacher, student)
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()
    with Image.open(tmp_path / "a.gif") as film:
        assert film.n_frames == 3
        factor = MOVIE_SIDE // 8
        assert film.size == (3 * 10 * factor, 8 * factor)
        film.seek(1)
        frame = np.asarray(film.convert("RGB")).astype(int)[factor * 4, factor // 2 :: factor]
    assert frame[:10].min() > 250  # the teacher
    assert frame[10:15].max() < 5
    assert frame[15:20].min() > 250
    assert (frame[20:25].sum(1) > frame[25:30].sum(1) + 300).all()  # the residual


def test_without_a_peak_of_each_model_there_is_no_panel_of_memory(
    drawn: list[Figure], tmp_path: Path
) -> None:
    teacher = replace(TEACHER, peak_memory_mib=None)
    tradeoff_chart(tmp_path / "x.png", STUDENTS, teacher, {"white": 8.25}, "a reason", "bricks")
    assert len(drawn[0].axes) == 2
