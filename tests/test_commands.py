"""`python -m braid.render` and `python -m braid.complete`, with models that the tests make."""

from __future__ import annotations

import importlib
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from braid.clips.codec.codec import decode
from braid.clips.shards.dataset import open_clips
from braid.radiance.gaussians.field import render_all
from tests.radiance.tiny_teacher import ball, views
from tests.tiny import TINY, override
from tests.untrained import write_clips, write_radiance

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def other_tests_keep_their_settings() -> Iterator[None]:
    """Commands set determinism and the treatment of denormals for the whole process."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_flush_denormal(False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    override(tmp_path, TINY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(name: str, *arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *arguments])
        importlib.import_module(f"braid.{name}").main()


def fault(name: str, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        run(name, *arguments)
    line = stop.value.code
    assert isinstance(line, str)
    assert "\n" not in line
    return line.removeprefix(f"error: {name}: ")


# ---- render -------------------------------------------------------------------------------------


def pictures(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]


def test_the_student_and_the_teacher_are_rendered_along_a_path(folder: Path) -> None:
    write_radiance(folder)
    run("render", "--model", "models/student/own/response", "--frames", "5", "--out", "a/b.gif")
    with Image.open("a/b.gif") as animation:
        assert (animation.size, getattr(animation, "n_frames", 1)) == ((16, 16), 5)
    teacher = "models/teacher/own/point_cloud.ply"
    run("render", "--model", teacher, "--path", "test", "--out", "views", "--width", "16")
    expected = render_all(ball(), views(2)).on_white()
    shown = pictures(folder / "views")
    assert len(shown) == 2
    for picture, image in zip(shown, expected, strict=True):
        assert np.abs(picture / 255 - image.clamp(0, 1).numpy()).max() < 0.01
        assert picture.min() < 200


def test_a_snapshot_and_a_width_have_a_say(folder: Path) -> None:
    write_radiance(folder)
    model = ("--model", "models/student/own/response", "--path", "test", "--frames", "1")
    run("render", *model, "--out", "last")
    run("render", *model, "--out", "warm", "--snapshot", "warm")
    run("render", *model, "--out", "wide", "--width", "20")
    (last,), (warm,), (wide,) = (pictures(folder / name) for name in ("last", "warm", "wide"))
    assert not np.array_equal(last, warm)
    assert wide.shape == (20, 20, 3)


def test_what_cannot_be_rendered_is_one_line(folder: Path) -> None:
    write_radiance(folder)
    out, model = ("--out", "a.gif"), "models/student/own/response"
    assert fault("render", "--model", "models/student/own/sh", *out).startswith(
        "models/student/own/sh: no such model"
    )
    assert "scenes/none/transforms_train.json: no such file" in fault(
        "render", "--model", model, "--scene", "data/scenes/none", *out
    )
    assert fault("render", "--model", "params.yaml", "--scene", "data/scenes/own", *out).startswith(
        "params.yaml: expected a stored student"
    )
    assert fault("render", "--model", model, "--out", "a.mp4").startswith("a.mp4: expected a .gif")
    assert "0 cameras" in fault("render", "--model", model, "--frames", "0", *out)
    assert not Path("a.gif").exists()


# ---- complete -----------------------------------------------------------------------------------


def latents(name: str) -> torch.Tensor:
    return load_file(f"{name}.safetensors")["latents"]


def test_a_held_out_clip_a_storyboard_and_pictures_are_completed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clips(folder)
    clips = open_clips(folder / "data/clips")
    held_out = clips.indices("test")[1:2]
    (truth,) = clips.latents(held_out)
    run("complete", "--clip", "1", "--at", "0", "2", "4", "--out", "a/clip.v2")
    completed = latents("a/clip.v2")
    assert completed.shape == truth.shape
    assert torch.equal(completed[:, [0, 2, 4]], truth[:, [0, 2, 4]])
    assert not torch.equal(completed[:, 1], truth[:, 1])
    with Image.open("a/clip.v2.gif") as animation:
        assert getattr(animation, "n_frames", 1) == 17
    assert Image.open("a/clip.v2.png").width > 100

    board = {"latents": truth.contiguous(), "embedding": clips.texts(held_out)[0]}
    save_file(board, "mine.safetensors")
    run("complete", "--storyboard", "mine.safetensors", "--at", "0", "2", "4", "--out", "a/file")
    assert torch.equal(latents("a/file"), completed)

    prompt = clips.prompts(held_out)[0]
    save_file({"latents": board["latents"]}, "mine.safetensors")
    words = ("--storyboard", "mine.safetensors", "--prompt", prompt)
    run("complete", *words, "--at", "0", "2", "4", "--out", "a/words")
    assert torch.equal(latents("a/words"), completed)
    capsys.readouterr()
    for other in clips.prompts(clips.indices("test")[:3]):
        words = ("--storyboard", "mine.safetensors", "--prompt", other)
        run("complete", *words, "--at", "0", "2", "4", "--out", "a/other")
    assert len(set(re.findall(r"class \d+", capsys.readouterr().out))) > 1  # words have a say

    for name, color in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        Image.new("RGB", (50, 40), color).save(f"{name}.png")
    run("complete", "--pictures", "red.png", "blue.png", "--at", "0", "4", "--out", "a/pictures")
    with Image.open("a/pictures.gif") as animation:
        colors = []
        for frame in (
            0,
            getattr(animation, "n_frames", 1) - 1,
        ):  # Pillow joins frames that are alike
            animation.seek(frame)
            colors.append(animation.convert("RGB").getpixel((animation.width - 20, 40)))
    assert colors[0][0] > 230 > 30 > colors[0][2]
    assert colors[1][2] > 230 > 30 > colors[1][0]

    Path("mine").mkdir()
    for name, number in (("red", 1), ("blue", 2)):
        Path(f"{name}.png").rename(f"mine/{number}.png")
    run("complete", "--pictures", "mine", "--at", "0", "4", "--out", "a/folder")
    assert torch.equal(latents("a/folder"), latents("a/pictures"))


def test_a_video_is_completed_from_its_own_frames(folder: Path) -> None:
    """A held-out clip as an animated PNG gives what the clip itself gives."""
    write_clips(folder)
    clips = open_clips(folder / "data/clips")
    frames = (decode(clips.latents(clips.indices("test")[:1]))[0].clamp(0, 1) * 255).round().byte()
    first, *rest = (Image.fromarray(frame.numpy()) for frame in frames.permute(1, 2, 3, 0))
    first.save("mine.png", save_all=True, append_images=rest, duration=50)
    run("complete", "--video", "mine.png", "--at", "0", "4", "--out", "a/video")
    run("complete", "--clip", "0", "--at", "0", "4", "--out", "a/clip")
    difference = (latents("a/video") - latents("a/clip")).abs().mean(dim=(0, 2, 3))
    assert difference[[0, 4]].max() < 0.03  # colors were clamped and rounded
    assert difference.min() > 0


def test_what_cannot_be_completed_is_one_line(folder: Path) -> None:
    assert "models/quantizer: expected config.json and model.safetensors of a quantizer" in fault(
        "complete", "--clip", "1", "--at", "0", "4", "--out", "a"
    )
    write_clips(folder)
    for arguments, message in {
        ("--clip", "1", "--at", "0"): "keyframes are [0], expected two or more of 0 to 4",
        ("--clip", "999", "--at", "0", "4"): "held-out clips: clip is 999, expected below",
        ("--clip", "-1", "--at", "0", "4"): "held-out clips: clip is -1, expected below",
        (
            "--storyboard",
            "no.safetensors",
            "--at",
            "0",
            "4",
        ): "no.safetensors: expected safetensors",
        ("--pictures", "a.png", "--at", "0", "4"): "1 pictures at frames [0, 4], expected a frame",
        ("--video", "a.gif", "--at", "0", "4"): "a.gif: not a readable video",
        ("--clip", "1", "--at", "0", "4", "--prompt", "a " * 17): "prompt 'a a",
        ("--clip", "1", "--at", "0", "4", "--refiner", "none"): "none: expected config.json",
    }.items():
        assert fault("complete", *arguments, "--out", "a").startswith(message)
    assert not list(Path().glob("a.*"))


@pytest.mark.parametrize("name", ["render", "complete"])
def test_help_names_every_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run(name, "--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"python -m braid.{name}" in text
    assert all(f"--{option}" in text for option in ("out", "model" if name == "render" else "at"))
