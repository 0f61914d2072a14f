"""Storyboards of files, pictures and videos; what is wrong with one is named in one line."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from braid.clips.codec.codec import TRANSFORM, WAN, WAN_MEAN, WAN_STD, decode
from braid.clips.preparation import storyboards
from braid.clips.preparation.moving_digits import ROWS, WIDTH, embed_prompt
from braid.clips.preparation.storyboards import (
    HELD_OUT,
    encoder,
    frames_at,
    load_storyboard,
    open_storyboard,
    picture_latents,
    pictures_of,
    prompt_text,
    video_latents,
)
from braid.drifting.evaluation.pictures import save_mp4


def test_a_storyboard_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    tensors = {"latents": torch.rand(2, 5, 4, 4), "embedding": torch.rand(3, 6)}
    save_file(tensors, path)
    latents, embedding = load_storyboard(path)
    assert torch.equal(latents[0], tensors["latents"])
    assert embedding is not None
    assert torch.equal(embedding[0], tensors["embedding"])
    save_file({"latents": tensors["latents"]}, path)
    assert load_storyboard(path)[1] is None


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"embedding": torch.rand(3, 6)}, "expected safetensors with latents"),
        ({"latents": torch.rand(2, 5, 4), "embedding": torch.rand(3, 6)}, r"got \[2, 5, 4\]"),
        ({"latents": torch.rand(2, 5, 4, 4), "embedding": torch.rand(3)}, r"\[L, D\], got \[3\]"),
    ],
)
def test_a_wrong_storyboard_is_refused(tmp_path: Path, tensors: dict, message: str) -> None:
    path = tmp_path / "mine.safetensors"
    save_file(tensors, path)
    with pytest.raises(ValueError, match=message):
        load_storyboard(path)


def test_a_broken_or_missing_storyboard_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    for content in (None, b"broken"):
        if content:
            path.write_bytes(content)
        with pytest.raises(ValueError, match=r"mine\.safetensors: expected safetensors"):
            load_storyboard(path)


class HeldOut:
    """Two held-out clips, 3 and 5, that are numbers."""

    def indices(self, split: str) -> np.ndarray:
        return np.array({"test": [3, 5]}[split])

    def latents(self, indices: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(indices)

    texts = latents


def test_a_held_out_clip_may_be_the_storyboard() -> None:
    latents, text = open_storyboard(HELD_OUT, 1, (0, 1), None, HeldOut())
    assert latents.tolist() == text.tolist() == [5]
    with pytest.raises(ValueError, match="clip is 2, expected below 2"):
        open_storyboard(HELD_OUT, 2, (0, 1), None, HeldOut())


# ---- Pictures and videos -------------------------------------------------------------------------


class BuiltIn(HeldOut):
    """Clips of 13 frames of 16 x 24 pixels in the built-in transform."""

    shape, text_shape, codec, words = (16, 4, 2, 3), (ROWS, WIDTH), TRANSFORM, None


RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
SIZE = (24, 16)


def picture(path: Path, color: tuple[int, int, int], size: tuple[int, int] = SIZE) -> Path:
    Image.new("RGB", size, color).save(path)
    return path


def film(path: Path, colors: list[tuple[int, int, int]], milliseconds: int | list[int]) -> Path:
    first, *rest = (Image.new("RGB", SIZE, color) for color in colors)
    first.save(path, save_all=True, append_images=rest, duration=milliseconds, loop=0)
    return path


def colors_of(latents: torch.Tensor) -> list[list[int]]:
    """The mean color of each of 13 frames."""
    return (255 * decode(latents)[0].mean(dim=(2, 3))).round().int().T.tolist()


def opened(
    source: Path, keyframes: tuple[int, ...] = (0, 2), prompt: str | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    return open_storyboard(str(source), 0, keyframes, prompt, BuiltIn())


def test_pictures_of_a_folder_stand_still_at_their_frames(tmp_path: Path) -> None:
    picture(tmp_path / "frame_10.png", BLUE, (48, 32))
    picture(tmp_path / "frame_2.png", RED)
    for name in (".DS_Store", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"no picture")
    assert [path.name for path in pictures_of(tmp_path)] == ["frame_2.png", "frame_10.png"]
    latents, text = opened(tmp_path)
    assert (latents.shape, text) == ((1, 16, 4, 2, 3), None)
    shown = colors_of(latents)
    assert shown[0] == list(RED)
    assert shown[5:9] == [list(BLUE)] * 4
    assert not latents[:, :, [1, 3]].any()


def test_a_picture_is_cropped_around_its_center(tmp_path: Path) -> None:
    wide = Image.new("RGB", (72, 16), GREEN)
    wide.paste(RED, (24, 0, 48, 16))
    wide.save(tmp_path / "wide.png")
    latents = picture_latents([tmp_path / "wide.png"], [0], BuiltIn(), None)
    assert colors_of(latents)[0] == list(RED)


def test_a_prompt_replaces_the_text_and_needs_the_built_in_embedding(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", RED)
    picture(tmp_path / "b.png", BLUE)
    _, text = opened(tmp_path, prompt="a red seven")
    assert text is not None
    assert torch.equal(text[0], embed_prompt("a red seven").float())
    clips = BuiltIn()
    clips.text_shape = (512, 4096)
    with pytest.raises(ValueError, match="prompt: of the built-in clips only"):
        prompt_text("a red seven", clips)


def test_a_video_lasts_as_long_as_a_clip(tmp_path: Path) -> None:
    """Red for longer than five of thirteen frames, then green and, from the tenth on, blue."""
    path = film(tmp_path / "mine.gif", [RED, GREEN, BLUE], [500, 400, 400])
    latents, _ = opened(path)
    shown = colors_of(latents)
    assert shown[0] == list(RED)
    assert shown[12] == list(BLUE)
    assert shown[1:5] == [list(RED)] * 4  # a latent frame of one color keeps it
    assert shown[9:13] == [list(BLUE)] * 4


def test_frames_are_chosen_by_time() -> None:
    assert frames_at([1 / 30] * 5, 5) == [0, 1, 2, 3, 4]
    assert frames_at([1.0] * 26, 13) == list(range(1, 26, 2))
    assert frames_at([1.0, 1.0, 1.0], 6) == [0, 0, 1, 1, 2, 2]
    assert frames_at([6.0, 1.0, 1.0], 4) == [0, 0, 0, 2]


def test_frames_that_an_animation_has_joined_come_back(tmp_path: Path) -> None:
    path = film(tmp_path / "mine.gif", [RED] * 5 + [BLUE] * 8, 100)
    with Image.open(path) as animation:
        assert getattr(animation, "n_frames", 1) == 2
    shown = colors_of(video_latents(path, BuiltIn(), None))
    assert shown == [list(RED)] * 5 + [list(BLUE)] * 8


def test_what_is_no_storyboard_is_one_line(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    picture(broken / "a.png", RED)
    (broken / "b.png").write_bytes(b"no picture")
    single = film(tmp_path / "single.gif", [RED], 100)
    words = tmp_path / "words.gif"
    words.write_text("no video")
    for source, message in {
        empty: r"^0 pictures at frames \[0, 2\], expected a frame of 0 to 3 for each",
        broken: r"b\.png: not a readable picture",
        single: r"single\.gif: not a readable video \(1 frames, expected two or more\)",
        words: r"words\.gif: not a readable video \(cannot identify",
        tmp_path / "none.gif": r"none\.gif: not a readable video .*No such file",
    }.items():
        with pytest.raises(ValueError, match=message):
            opened(source)
    with pytest.raises(ValueError, match=r"2 pictures at frames \[0, 4\], expected a frame"):
        opened(broken, keyframes=(0, 4))


def test_other_videos_need_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"mine\.mp4: .*pip install -e '\.\[video\]'"):
        video_latents(tmp_path / "mine.mp4", BuiltIn(), None)


def test_a_film_written_here_is_read_again(tmp_path: Path) -> None:
    pytest.importorskip("av")
    colors = [RED] * 7 + [BLUE] * 6
    save_mp4(tmp_path / "mine.mp4", [Image.new("RGB", SIZE, color) for color in colors])
    shown = torch.tensor(colors_of(video_latents(tmp_path / "mine.mp4", BuiltIn(), None)))
    assert (shown[0] - torch.tensor(RED)).abs().max() < 30  # of a compressed film
    assert (shown[-1] - torch.tensor(BLUE)).abs().max() < 30


def test_pictures_of_wan_clips_need_its_vae_and_are_normalized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"clips\.wan_vae is none, expected the folder"):
        encoder(WAN, None)
    seen = []

    class Vae:
        def encode(self, video: torch.Tensor) -> SimpleNamespace:
            seen.append(video)
            raw = torch.tensor(WAN_MEAN).view(1, -1, 1, 1, 1) + 3 * torch.tensor(WAN_STD).view(
                1, -1, 1, 1, 1
            )
            return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: raw))

    monkeypatch.setattr(storyboards, "load_wan", lambda folder: Vae())
    latents = encoder(WAN, tmp_path)(torch.full((1, 3, 5, 8, 8), 0.75))
    assert torch.allclose(latents, torch.tensor(3.0), atol=1e-5)
    assert torch.equal(seen[0], torch.full((1, 3, 5, 8, 8), 0.5))
