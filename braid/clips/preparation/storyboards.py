"""Storyboards: a few given latent frames and a prompt, from files, pictures or a video.

    mine.safetensors   `latents` [C, T, H, W], of which only the given frames are read, and perhaps
                       `embedding` [L, D], the prompt's text embedding, padded with zero rows
    mine/              a picture for each given frame, in the order of their names; it stands still
                       for the video frames of its latent frame
    mine.gif, .mp4     a video, as long as the clip whatever its own length; of its latents only the
                       given frames are read

Pictures and frames are cropped around their center to the clips' geometry and encoded as the clips
were. Without a text the class is that of the keyframes alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from braid.clips.codec.codec import (
    SPACE_STRIDE,
    TIME_STRIDE,
    TRANSFORM,
    WAN_MEAN,
    WAN_STD,
    encode,
    load_wan,
)
from braid.clips.preparation.moving_digits import ROWS, WIDTH, embed_prompt
from braid.clips.shards.words import WordTable

HELD_OUT = "data/clips"  # the source that stands for a held-out clip
ANIMATIONS = (".gif", ".webp", ".png", ".apng")  # what Pillow reads; the rest needs PyAV
_SYSTEM_FILES = ("Thumbs.db", "desktop.ini")  # beside hidden ones
_FRAME_MS = 100  # of an animation that does not say

Encode = Callable[[Tensor], Tensor]  # video [1, 3, F, h, w] in [0, 1] to latents [1, C, T, H, W]
Frames = Iterator[tuple[float, Callable[[], Image.Image]]]  # how long each is shown, its picture


class Clips(Protocol):
    """A data set of clips, which a storyboard's clip is to be like."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """C, T, H, W of their latents."""

    @property
    def text_shape(self) -> tuple[int, int]:
        """L, D of their text embeddings."""

    @property
    def words(self) -> WordTable | None:
        """What embeds prompts, unless their embeddings lie in the shards."""

    @property
    def codec(self) -> str:
        """What encoded them."""

    def indices(self, split: str) -> NDArray[np.int64]:
        """The clips of a split."""

    def latents(self, indices: NDArray[np.int64]) -> Tensor:
        """Their latents, [B, C, T, H, W]."""

    def texts(self, indices: NDArray[np.int64]) -> Tensor:
        """Their text embeddings, [B, L, D]."""


def open_storyboard(
    source: str,  # a .safetensors, a folder of pictures, a video file, or HELD_OUT
    clip: int,  # which of the held-out clips
    keyframes: Sequence[int],  # latent frames of the pictures
    prompt: str | None,
    clips: Clips,
    wan_vae: Path | None = None,  # folder of an AutoencoderKLWan
) -> tuple[Tensor, Tensor | None]:
    """Latents [1, C, T, H, W] and text [1, L, D] of what the source names; there may be no text.

    Raises:
        ValueError: a file cannot be read, or there is no such held-out clip.
    """
    text: Tensor | None = None
    path = Path(source)
    if source == HELD_OUT:
        latents, text = held_out_clip(clips, clip)
    elif path.suffix == ".safetensors":
        latents, text = load_storyboard(path)
    elif path.is_dir():
        latents = picture_latents(pictures_of(path), keyframes, clips, wan_vae)
    else:
        latents = video_latents(path, clips, wan_vae)
    return latents, text if prompt is None else prompt_text(prompt, clips)


def prompt_text(prompt: str, clips: Clips) -> Tensor:
    """A prompt's text embedding, [1, L, D].

    Raises:
        ValueError: the clips' embeddings are neither the built-in ones nor of a table of words,
            which alone can be made here.
    """
    if clips.words is not None:
        return clips.words([prompt])
    if clips.text_shape != (ROWS, WIDTH):
        raise ValueError("prompt: of the built-in clips only; a .safetensors has an `embedding`")
    return embed_prompt(prompt)[None].float()


def open_prompts(path: Path | None, clips: Clips) -> tuple[list[str], Tensor] | None:
    """Prompts and their text embeddings [n, L, D] of a file; None: there is none.

    A text file has a prompt on each line, a .safetensors `embedding` [n, L, D], padded with zero
    rows, whose prompts are numbered.

    Raises:
        ValueError: the file cannot be read, has no prompt, or embeddings of another shape.
    """
    if path is None:
        return None
    try:
        if path.suffix == ".safetensors":
            texts = load(path.read_bytes())["embedding"].float()
            prompts = [f"prompt {number}" for number in range(len(texts))]
        else:
            lines = path.read_text("utf-8").splitlines()
            prompts = [line.strip() for line in lines if line.strip()]
            texts = torch.cat([prompt_text(prompt, clips) for prompt in prompts or [""]])
    except (OSError, KeyError, UnicodeDecodeError, SafetensorError) as error:
        raise ValueError(f"{path}: expected a prompt a line, or embedding ({error})") from None
    if not prompts or texts.shape[1:] != clips.text_shape:
        expected = ", ".join(map(str, clips.text_shape))
        raise ValueError(
            f"{path}: expected prompts, of embedding [n, {expected}], got {list(texts.shape)}"
        )
    return prompts, texts


def held_out_clip(clips: Clips, number: int) -> tuple[Tensor, Tensor]:
    """Latents [1, C, T, H, W] and text [1, L, D] of a held-out clip.

    Raises:
        ValueError: there is no such clip.
    """
    held_out = clips.indices("test")
    if not 0 <= number < len(held_out):
        raise ValueError(f"held-out clips: clip is {number}, expected below {len(held_out)}")
    chosen = held_out[number : number + 1]
    return clips.latents(chosen), clips.texts(chosen)


def load_storyboard(path: Path) -> tuple[Tensor, Tensor | None]:
    """Latents [1, C, T, H, W] and, where there is one, text embedding [1, L, D] of a file.

    Raises:
        ValueError: the file is missing or broken, or a tensor is missing or of another shape.
    """
    try:
        stored = load(path.read_bytes())
        latents = stored["latents"].float()
    except (OSError, KeyError, SafetensorError) as error:
        raise ValueError(f"{path}: expected safetensors with latents ({error})") from None
    if latents.ndim != 4:
        raise ValueError(f"{path}: expected latents [C, T, H, W], got {list(latents.shape)}")
    if "embedding" not in stored:
        return latents[None], None
    embedding = stored["embedding"].float()
    if embedding.ndim != 2:
        raise ValueError(f"{path}: expected embedding [L, D], got {list(embedding.shape)}")
    return latents[None], embedding[None]


# ---- Pictures and videos to latents --------------------------------------------------------------


def encoder(codec: str, wan_vae: Path | None) -> Encode:
    """What encodes video as clips of a codec were.

    Raises:
        ValueError: clips of the Wan VAE without its folder, or a folder without such a model.
    """
    if codec == TRANSFORM:
        return encode
    if wan_vae is None:
        raise ValueError(
            f"clips.wan_vae is none, expected the folder of an AutoencoderKLWan: "
            f"pictures become latents of the codec {codec} by nothing else"
        )
    vae = load_wan(wan_vae)
    mean, std = (torch.tensor(values).view(-1, 1, 1, 1) for values in (WAN_MEAN, WAN_STD))

    def encode_wan(video: Tensor) -> Tensor:
        raw: Tensor = vae.encode(2 * video - 1).latent_dist.mode()
        return (raw - mean) / std

    return encode_wan


def pictures_of(path: Path) -> list[Path]:
    """A file, or those of a folder in the order of their names, 2 before 10; not system files."""
    if not path.is_dir():
        return [path]
    names = [file.name for file in path.iterdir() if file.is_file()]
    shown = [name for name in names if not name.startswith(".") and name not in _SYSTEM_FILES]
    return [path / name for name in sorted(shown, key=_natural)]


def _natural(name: str) -> list[tuple[int, str]]:
    parts = re.findall(r"\d+|\D+", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def picture_latents(
    pictures: Sequence[Path],
    keyframes: Sequence[int],  # latent frame of each picture
    clips: Clips,
    wan_vae: Path | None,
) -> Tensor:  # [1, C, T, H, W]
    """Latents with the pictures at their frames; the others are zero and mean nothing.

    Raises:
        ValueError: not a frame for each picture, or a file that is no picture.
    """
    count = clips.shape[1]
    if len(keyframes) != len(pictures) or not all(0 <= frame < count for frame in keyframes):
        raise ValueError(
            f"{len(pictures)} pictures at frames {list(keyframes)}, "
            f"expected a frame of 0 to {count - 1} for each"
        )
    to_latents, (frames, size) = encoder(clips.codec, wan_vae), _geometry(clips)
    latents = torch.zeros(1, *clips.shape)
    for path, frame in zip(pictures, keyframes, strict=True):
        try:
            with Image.open(path) as picture:
                pixels = _fitted(picture, size)
        except (OSError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path}: not a readable picture ({error})") from None
        still = pixels[None, :, None].expand(-1, -1, frames, -1, -1)
        latents[:, :, frame] = to_latents(still)[:, :, frame]
    return latents


def video_latents(path: Path, clips: Clips, wan_vae: Path | None) -> Tensor:  # [1, C, T, H, W]
    """Latents of a whole video, faster or slower, so that it lasts as long as a clip.

    Raises:
        ValueError: a file that cannot be read, or that has a single frame.
    """
    to_latents, (frames, size) = encoder(clips.codec, wan_vae), _geometry(clips)
    read = _animation if path.suffix.lower() in ANIMATIONS else _video
    try:
        durations = [duration for duration, _ in read(path)]
        if len(durations) < 2:
            raise ValueError(f"{len(durations)} frames, expected two or more")
        chosen = frames_at(durations, frames)
        fitted = {
            number: _fitted(picture(), size)
            for number, (_, picture) in enumerate(read(path))
            if number in chosen
        }
    except (OSError, EOFError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable video ({error})") from None
    return to_latents(torch.stack([fitted[number] for number in chosen], dim=1)[None])


def frames_at(
    durations: Sequence[float],  # how long each frame is shown
    count: int,  # equal parts of the whole time
) -> list[int]:
    """Which frame is shown in the middle of each part."""
    ends = np.cumsum(durations)
    middles = (np.arange(count) + 0.5) * ends[-1] / count
    shown: list[int] = np.searchsorted(ends, middles, side="right").tolist()
    return shown


def _animation(path: Path) -> Frames:
    """Those of a file that Pillow reads."""
    with Image.open(path) as animation:
        for number in range(getattr(animation, "n_frames", 1)):
            animation.seek(number)
            animation.load()
            yield animation.info.get("duration") or _FRAME_MS, animation.copy


def _video(path: Path) -> Frames:
    """Those of a file that PyAV reads."""
    try:
        av = import_module("av")
    except ImportError:
        raise ValueError("it takes PyAV: pip install -e '.[video]'; a .gif does not") from None
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError("no video in it")
        for frame in container.decode(video=0):
            yield float((frame.duration or 1) * (frame.time_base or 1)), frame.to_image


def _geometry(clips: Clips) -> tuple[int, tuple[int, int]]:
    """Video frames of a clip, and their width and height."""
    _, count, height, width = clips.shape
    return TIME_STRIDE * (count - 1) + 1, (width * SPACE_STRIDE, height * SPACE_STRIDE)


def _fitted(picture: Image.Image, size: tuple[int, int]) -> Tensor:
    """Colors in [0, 1] of the largest part around the center, [3, h, w]."""
    upright = ImageOps.exif_transpose(picture).convert("RGB")
    fitted = ImageOps.fit(upright, size, Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(fitted).copy()).movedim(-1, 0) / 255
