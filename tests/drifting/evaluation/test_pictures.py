"""Pictures of refined clips: equal clips, equal bytes; what is given is marked."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from braid.drifting.evaluation.pictures import animation, draw_clips, strip, tradeoff

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
    animation(path, METHODS)
    with Image.open(path) as shown:
        assert shown.n_frames == 5
        assert shown.size == (2 * 8 * 2, 8 * 2)


def test_the_tradeoff_is_drawn_from_ratios_alone(tmp_path: Path) -> None:
    plain = {"frechet": 1.0, "frechet_pca": 2.0, "mse_missing": 0.5}
    better = {"frechet": 0.5, "frechet_pca": 1.0, "mse_missing": 0.6}
    for name, scale in (("one", 1), ("two", 10)):
        scaled = [{key: scale * value for key, value in row.items()} for row in (plain, better)]
        methods = dict(zip(("interpolated", "refined"), scaled, strict=True))
        tradeoff(tmp_path / f"{name}.png", methods, "interpolated", "clips")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


class Repeat:
    """Decodes each latent frame but the first to four frames."""

    name = "repeat"

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        frames = latents[:, :3].movedim(1, -1)
        return torch.cat([frames[:, :1], frames[:, 1:].repeat_interleave(4, dim=1)], dim=1)


def test_chosen_clips_are_drawn_with_their_keyframes(tmp_path: Path) -> None:
    latents = {name: torch.rand(3, 4, 3, 8, 8) for name in ("truth", "refined")}
    given = torch.tensor([[True, False, True]] * 3)
    for folder, clip in (("one", 1), ("other", 2)):
        draw_clips(tmp_path / folder, latents, given, [clip], ["a prompt"], Repeat())
    pictures = {path.name for path in (tmp_path / "one").iterdir()}
    assert pictures == {"clip_0.png", "clip_0.gif"}
    one, other = ((tmp_path / name / "clip_0.png").read_bytes() for name in ("one", "other"))
    assert one != other
    with Image.open(tmp_path / "one/clip_0.gif") as shown:
        assert shown.n_frames == 3  # equal frames become one that lasts
