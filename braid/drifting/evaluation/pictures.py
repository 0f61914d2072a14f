"""Pictures of refined clips: strips of frames, animations, the trade-off between methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image
from torch import Tensor

from braid.common.plotting import BLUE, GREEN, INK, ORANGE, PALE, save, styled

GIF_SCALE = 2  # screen pixels a side of a video pixel
FRAME_MS = 120


class DecodeClips(Protocol):
    """What turns latents [n, C, T, H, W] into frames [n, F, h, w, 3] in [0, 1]."""

    @property
    def name(self) -> str:
        """How pictures say what decoded them."""

    def __call__(self, latents: Tensor) -> Tensor:
        """The frames."""


def draw_clips(
    folder: Path,
    methods: Mapping[str, Tensor],  # name to latents [n, C, T, H, W], in the rows' order
    given: Tensor,  # [n, T] bool, keyframes
    shown: Sequence[int],  # which clips
    prompts: Sequence[str],  # of those
    decode: DecodeClips,
) -> None:
    """A strip and an animation of some clips, `clip_0` and so on."""
    folder.mkdir(parents=True)
    for number, (clip, prompt) in enumerate(zip(shown, prompts, strict=True)):
        latents = {name: values[clip] for name, values in methods.items()}
        draw_clip(folder / f"clip_{number}", latents, given[clip], f"«{prompt}»", decode)


def draw_clip(
    path: Path,  # without an ending
    methods: Mapping[str, Tensor],  # name to latents [C, T, H, W], in the rows' order
    given: Tensor,  # [T] bool, keyframes
    title: str,
    decode: DecodeClips,
) -> None:
    """A strip (.png) and an animation (.gif) of one clip."""
    frames = {name: decode(latents[None])[0] for name, latents in methods.items()}
    count = len(next(iter(frames.values())))
    stride = (count - 1) // (len(given) - 1)  # frames a latent frame
    keyframes = [stride * frame for frame in given.nonzero().flatten().tolist()]
    title = f"{title}   decoder: {decode.name}"
    strip(path.with_suffix(".png"), frames, keyframes, stride, title)
    animation(path.with_suffix(".gif"), frames)


def strip(
    path: Path,
    methods: Mapping[str, Tensor],  # name to frames [F, h, w, 3] in [0, 1], in the rows' order
    given: Sequence[int],  # frames that are keyframes
    every: int,  # this many frames is one column
    title: str,
) -> None:
    """One clip: a row for each method, a column for some frames; keyframes are marked."""
    size = 0.85
    shown = range(0, len(next(iter(methods.values()))), every)
    with styled():
        figure = Figure(
            figsize=(size * len(shown) + 1.3, size * len(methods) + 0.55),
            layout=ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0),
        )
        axes = figure.subplots(len(methods), len(shown), squeeze=False)
        for row, (name, frames) in zip(axes, methods.items(), strict=True):
            for ax, frame in zip(row, shown, strict=True):
                ax.imshow(frames[frame].clamp(0, 1).cpu().numpy())
                ax.set(xticks=[], yticks=[])
                ax.spines[:].set(visible=frame in given, color=ORANGE, linewidth=1.5)
            row[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for ax, frame in zip(axes[0], shown, strict=True):
            ax.set_title(f"{frame}*" if frame in given else f"{frame}", fontsize=7, pad=2)
        figure.suptitle(f"{title}   (* given)", fontsize=8)
        save(figure, path)


def animation(path: Path, methods: Mapping[str, Tensor]) -> None:
    """The methods' clips [F, h, w, 3] side by side, as a GIF."""
    stacked = np.concatenate(
        [frames.clamp(0, 1).cpu().numpy() for frames in methods.values()], axis=2
    )
    pixels = (stacked * 255 + 0.5).astype(np.uint8)
    pixels = pixels.repeat(GIF_SCALE, axis=1).repeat(GIF_SCALE, axis=2)
    first, *rest = [Image.fromarray(frame) for frame in pixels]
    first.save(path, save_all=True, append_images=rest, duration=FRAME_MS, loop=0)


def tradeoff(
    path: Path,
    methods: Mapping[str, Mapping[str, float]],  # name to figures of `ClipEvaluator`
    reference: str,  # the method whose figures are the unit
    title: str,
) -> None:
    """Distribution against paired error, of methods that have one, relative to a reference's."""
    paired = {name: row for name, row in methods.items() if "mse_missing" in row}
    with styled():
        figure = Figure(figsize=(7.2, 3.2), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        for ax, measure in zip(axes, ("frechet", "frechet_pca"), strict=True):
            for turn, (name, figures) in enumerate(paired.items()):
                x = figures[measure] / methods[reference][measure]
                y = figures["mse_missing"] / methods[reference]["mse_missing"]
                color = PALE if name == reference else ORANGE if "refined" in name else BLUE
                ax.scatter(x, y, color=color, s=30, zorder=3)
                above = turn % 2  # neighbors in the list are near each other in the chart too
                ax.annotate(
                    name,
                    (x, y),
                    xytext=(0, 7 if above else -12),
                    textcoords="offset points",
                    ha="center",
                    fontsize=7,
                )
            ax.axvline(1, color=PALE, lw=0.8, ls=":")
            ax.axhline(1, color=PALE, lw=0.8, ls=":")
            ax.set_xlabel(f"{measure} / {reference}'s")
            ax.margins(0.18)
        axes[0].set_ylabel(f"error of missing frames / {reference}'s")
        axes[0].text(
            0.02, 0.94, "lower left is better", transform=axes[0].transAxes, color=GREEN, fontsize=7
        )
        figure.suptitle(title, fontsize=9, color=INK)
        save(figure, path)
