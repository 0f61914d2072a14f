"""Pictures of refined clips (strips, animations, the trade-off) and of images (sheets of tiles)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from importlib import import_module
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional

from braid.common.plotting import BLUE, INK, ORANGE, PALE, save, styled

if TYPE_CHECKING:
    from braid.drifting.evaluation import clips, images

GIF_SCALE = 2  # screen pixels a side of a video pixel
FRAME_MS = 120
_GIF_COLORS = 32  # more, and dithering, only make it larger
_PNG_COLORS = 128
_CAPTION = 16  # pixels above a GIF
_FRAME = (213, 94, 0)  # color of given frames
_MARKERS = "oDs^vPX<>"  # of methods, which may lie on one another


class NamedDecode(Protocol):
    """Latents [n, C, T, H, W] to frames [n, F, h, w, 3], images [n, C, H, W] to [n, 1 or 3, h, w].

    What is shown is in [0, 1].
    """

    @property
    def name(self) -> str:
        """How pictures say what decoded them."""

    def __call__(self, values: Tensor, /) -> Tensor:
        """What is shown."""


def draw_evaluation(
    folder: Path,
    completed: clips.Completed,
    test: clips.Sample,
    figures: Mapping[str, Mapping[str, Any]],  # by method
    count: int,  # of clips
    decode: NamedDecode,
) -> None:
    """The first clip of each kind of motion, or else of each class, the worst, and the trade-off.

    `first.png` and `worst.png` compare refined with interpolated and real clips; `clip_0` and so on
    are strips and animations of the first ones by every method.
    """
    folder.mkdir()
    latents = {"real": test.latents, **{n: row.clips for n, row in completed.methods.items()}}
    three = {name: latents[name] for name in ("interpolated", "refined", "real")}
    labels = completed.classes if test.words is None else test.words["family"]
    errors = (latents["refined"] - test.latents).square().mean((1, 2, 3, 4))
    shown = {
        "first": (first_of_each(labels, count), "first held-out clip of each motion"),
        "worst": (largest(errors, count), "held-out clips of the largest error"),
    }
    for name, (chosen, title) in shown.items():
        captions = [f"{test.prompts[clip]}   error {errors[clip]:.2f}" for clip in chosen]
        path = folder / f"{name}.png"
        draw_overview(path, three, completed.given, chosen, captions, title, decode)
    for number, clip in enumerate(shown["first"][0]):
        one = {name: values[clip] for name, values in latents.items()}
        path, title = folder / f"clip_{number}", f"«{test.prompts[clip]}»"
        draw_clip(path, one, completed.given, title, decode, animated=list(three))
    title = f"{len(test.prompts)} held-out clips"
    tradeoff(folder / "tradeoff.png", figures, "interpolated", title)


def first_of_each(labels: Tensor, count: int) -> list[int]:
    """The first clips [count] at most, no two of one label while there are others."""
    before: dict[int, int] = {}
    turns = []
    for label in labels.tolist():
        turns.append(before.get(label, 0))
        before[label] = turns[-1] + 1
    order = sorted(range(len(turns)), key=lambda clip: (turns[clip], clip))
    return order[:count]


def largest(errors: Tensor, count: int) -> list[int]:
    """The clips [count] of the largest errors [n], the worst first."""
    return errors.argsort(descending=True, stable=True)[:count].tolist()


def draw_overview(
    path: Path,
    methods: Mapping[str, Tensor],  # name to latents [n, C, T, H, W], in the rows' order
    given: Tensor,  # [T] bool, keyframes
    shown: Sequence[int],  # which clips
    captions: Sequence[str],  # of those
    title: str,
    decode: NamedDecode,
) -> None:
    """Some clips in one picture: of each a row a method, the given latent frames framed."""
    panels = []
    for clip in shown:
        frames = {name: decode(values[clip][None])[0] for name, values in methods.items()}
        panels.append(_panel(frames, given))
    height, width = panels[0].shape[:2]
    inches = 7.5
    tall = inches * height / width + 0.25
    with styled():
        tallest = tall * len(panels) + 0.3
        figure = Figure(figsize=(inches + 1, tallest))
        axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
        edges = {"left": 0.95 / (inches + 1), "right": 0.995, "bottom": 0.02 / tallest}
        figure.subplots_adjust(**edges, top=1 - 0.5 / tallest, hspace=0.25 * len(panels) / tallest)
        for ax, panel, caption in zip(axes, panels, captions, strict=True):
            ax.imshow(panel, interpolation="nearest")
            side = height / len(methods)
            ax.set(xticks=[], yticks=[side * (row + 0.5) for row in range(len(methods))])
            ax.set_yticklabels(methods, fontsize=7)
            ax.tick_params(length=0)
            ax.spines[:].set_visible(False)
            ax.set_title(caption, fontsize=7, loc="left", pad=2)
        marks = "; framed: given" if given.any() else ""
        heading = f"{title}{marks}   decoder: {decode.name}"
        figure.suptitle(heading, fontsize=8, y=1 - 0.1 / tallest)
        save(figure, path)
    _reduce(path)


def _panel(
    methods: Mapping[str, Tensor],  # frames [F, h, w, 3]
    given: Tensor,  # [T] bool
) -> NDArray[np.uint8]:
    """Two frames a latent frame of each method side by side, given ones framed, [h, w, 3]."""
    rows = []
    for frames in methods.values():
        stride = (len(frames) - 1) // (len(given) - 1)
        shown = torch.arange(0, len(frames), max(1, stride // 2))
        pixels = _bytes(frames[shown])
        cells = np.full((len(pixels), *(side + 4 for side in pixels.shape[1:3]), 3), 255, np.uint8)
        cells[given[(shown + stride - 1) // stride].numpy()] = _FRAME
        cells[:, 2:-2, 2:-2] = pixels
        rows.append(np.concatenate(list(cells), axis=1))
    return np.concatenate(rows)


def _keyframes(given: Tensor, count: int) -> tuple[list[int], int]:
    """The last video frame of each given latent frame, and video frames a latent frame."""
    stride = (count - 1) // (len(given) - 1)
    return [stride * frame for frame in given.nonzero().flatten().tolist()], stride


def _bytes(frames: Tensor) -> NDArray[np.uint8]:
    """Colors in [0, 1] as bytes."""
    pixels: NDArray[np.uint8] = (frames.clamp(0, 1).cpu().numpy() * 255 + 0.5).astype(np.uint8)
    return pixels


def draw_clip(
    path: Path,  # without an ending
    methods: Mapping[str, Tensor],  # name to latents [C, T, H, W], in the rows' order
    given: Tensor,  # [T] bool, keyframes
    title: str,
    decode: NamedDecode,
    animated: Sequence[str] = (),  # of the methods; none: all
    mp4: bool = False,  # where PyAV is installed
) -> list[Path]:
    """A strip (.png) and an animation (.gif, perhaps .mp4 too) of one clip; the files written."""
    frames = {name: decode(latents[None])[0] for name, latents in methods.items()}
    keyframes, stride = _keyframes(given, len(next(iter(frames.values()))))
    title = f"{title}   decoder: {decode.name}"
    endings = [".png", ".gif", *([".mp4"] if mp4 and find_spec("av") else [])]
    files = [path.with_name(f"{path.name}{ending}") for ending in endings]
    strip(files[0], frames, keyframes, stride, title)
    pictures = side_by_side({name: frames[name] for name in animated or frames}, keyframes)
    for file, write in zip(files[1:], (save_gif, save_mp4), strict=False):
        write(file, pictures)
    return files


def strip(
    path: Path,
    methods: Mapping[str, Tensor],  # name to frames [F, h, w, 3] in [0, 1], in the rows' order
    given: Sequence[int],  # frames that are keyframes
    every: int,  # this many frames is one column
    title: str,
) -> None:
    """One clip: a row for each method, a column for some frames; keyframes are marked."""
    size = 0.6
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
    _reduce(path)


def _reduce(path: Path) -> None:
    """A PNG in few colors: a third of the bytes, and the eye hardly sees it."""
    with Image.open(path) as picture:
        reduced = picture.convert("RGB").quantize(_PNG_COLORS, dither=Image.Dither.NONE)
    reduced.save(path, optimize=True)


def side_by_side(
    methods: Mapping[str, Tensor],  # name to frames [F, h, w, 3] in [0, 1]
    given: Sequence[int] = (),  # frames that are keyframes
) -> list[Image.Image]:
    """The methods' clips beside one another: names above, a bar over given frames."""
    clips = [_bytes(frames) for frames in methods.values()]
    pixels = np.concatenate(clips, axis=2).repeat(GIF_SCALE, axis=1).repeat(GIF_SCALE, axis=2)
    width = pixels.shape[2] // len(clips)
    pictures = []
    for number, frame in enumerate(pixels):
        picture = Image.new("RGB", (frame.shape[1], frame.shape[0] + _CAPTION), "white")
        picture.paste(Image.fromarray(frame), (0, _CAPTION))
        draw = ImageDraw.Draw(picture)
        for column, name in enumerate(methods):
            draw.text((column * width + 2, 0), name, fill="black")
        if number in given:
            draw.rectangle((0, _CAPTION - 3, frame.shape[1], _CAPTION - 1), fill=_FRAME)
        pictures.append(picture)
    return pictures


def save_gif(path: Path, pictures: Sequence[Image.Image]) -> None:
    """An animation of few colors."""
    # One palette for all frames: what does not change costs nothing then.
    palette = Image.fromarray(np.concatenate([np.asarray(frame) for frame in pictures]))
    palette = palette.quantize(_GIF_COLORS)
    first, *rest = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in pictures)
    first.save(path, save_all=True, append_images=rest, duration=FRAME_MS, loop=0)


def save_mp4(path: Path, pictures: Sequence[Image.Image]) -> None:
    """A film in H.264, by PyAV."""
    with import_module("av").open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(1000, FRAME_MS))
        stream.width, stream.height = pictures[0].size  # even, as `GIF_SCALE` is
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            frame = import_module("av").VideoFrame.from_image(picture)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def tradeoff(
    path: Path,
    methods: Mapping[str, Mapping[str, float]],  # name to figures of `ClipEvaluator`
    reference: str,  # the method whose figures are the unit
    title: str,
) -> None:
    """Distribution against paired error, of methods that have one, relative to a reference's.

    On logarithmic scales: good methods are near one another and far from the reference.
    """
    paired = {name: row for name, row in methods.items() if "mse_missing" in row}
    with styled():
        figure = Figure(figsize=(7.2, 3.4), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        for ax, measure in zip(axes, ("frechet", "frechet_pca"), strict=True):
            for (name, figures), marker in zip(paired.items(), cycle(_MARKERS), strict=False):
                x = figures[measure] / methods[reference][measure]
                y = figures["mse_missing"] / methods[reference]["mse_missing"]
                color = PALE if name == reference else ORANGE if "refined" in name else BLUE
                ax.scatter(x, y, color=color, marker=marker, s=36, alpha=0.8, lw=0, label=name)
            ax.axvline(1, color=PALE, lw=0.8, ls=":", zorder=0)
            ax.axhline(1, color=PALE, lw=0.8, ls=":", zorder=0)
            ax.set(xlabel=f"{measure} / {reference}'s", xscale="log", yscale="log")
            ax.margins(0.1)
            for axis in (ax.xaxis, ax.yaxis):
                axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.set_major_formatter(StrMethodFormatter("{x:g}"))
                axis.set_minor_locator(NullLocator())
        axes[0].set_ylabel(f"error of missing frames / {reference}'s")
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=6, frameon=False)
        heading = f"{title}; lower left is better; scales are logarithmic"
        figure.suptitle(heading, fontsize=9, color=INK)
        save(figure, path)


# ---- Images --------------------------------------------------------------------------------------
# Sheets of tiles, a row an image or a class.

ROWS = 10  # classes in a picture, at most
TILE, MARGIN, HEADING = 0.3, 0.12, 0.4  # inches
LETTER = 0.05  # inches of a letter of a name
MISSING = (0.80, 0.86, 0.93)  # color of patches that are not given


def draw_completions(
    folder: Path,
    completed: Mapping[int, images.Completed],  # by given patches, from fine to coarse
    refined: str,  # the method of the refiner's own images
    truth: Tensor,  # [n, C, H, W]
    shown: Tensor,  # [rows, samples], which images; a row a class
    names: Sequence[str],  # of the rows
    decode: NamedDecode,
) -> None:
    """`classes.png`, samples of the coarsest level, and `levels.png`, one image of each class."""
    given, level = list(completed.items())[-1]
    images = level.images[refined]
    draw_classes(folder / "classes.png", given, images, truth, shown, names, decode)
    draw_levels(folder / "levels.png", completed, refined, truth, shown[:, 0], names, decode)


def draw_classes(
    path: Path,
    given: int,  # patches that the images were completed from, 0: generated
    refined: Tensor,  # [n, C, H, W]
    real: Tensor,  # [n, C, H, W] of the same classes
    shown: Tensor,  # [rows, samples], which ones; a row a class
    names: Sequence[str],  # of the rows
    decode: NamedDecode,
) -> None:
    """A row of images refined in one step and one of real images for each class."""
    source = f"one step from {given} given patches" if given else "one step from noise"
    panels = {
        name: decode(images[shown.flatten()]).unflatten(0, shown.shape)
        for name, images in ((source, refined), ("real, held out", real))
    }
    sheet(path, panels, names, [], f"decoder: {decode.name}")


def draw_levels(
    path: Path,
    completed: Mapping[int, images.Completed],  # by given patches
    refined: str,  # the method of the refiner's own images
    truth: Tensor,  # [n, C, H, W]
    shown: Tensor,  # [rows], which images
    names: Sequence[str],  # of the rows
    decode: NamedDecode,
) -> None:
    """A row an image: what is given of it at each level, interpolated, refined, and the truth."""
    panels = {}
    real = decode(truth[shown])
    for given, level in completed.items():
        methods = [decode(level.images[name][shown]) for name in ("interpolated", refined)]
        pixels = blanked(real, level.given[shown])
        columns = [tiles.expand_as(pixels) for tiles in (pixels, *methods, real)]
        panels[f"{given} patches given"] = torch.stack(columns, dim=1)
    titles = ["given", "interpolated", "refined", "truth"]
    sheet(path, panels, names, titles, f"decoder: {decode.name}")


def sheet(
    path: Path,
    panels: Mapping[str, Tensor],  # title to pictures [rows, columns, 1 or 3, h, w] in [0, 1]
    rows: Sequence[str],  # names
    columns: Sequence[str],  # names, the same in every panel; none: no names
    title: str,
) -> None:
    """Panels of tiles side by side."""
    wide = [TILE * pictures.shape[1] for pictures in panels.values()]
    left, bottom = (LETTER * max(map(len, [*names, ""])) + MARGIN for names in (rows, columns))
    width = left + sum(wide) + MARGIN * len(wide)
    high = TILE * len(rows)
    height = bottom + high + HEADING
    with styled():
        figure = Figure(figsize=(width, height))
        for name, pictures, extent in zip(panels, panels.values(), wide, strict=True):
            ax = figure.add_axes((left / width, bottom / height, extent / width, high / height))
            pixels = tiled(pictures)
            ax.imshow(pixels, aspect="auto")
            ax.set_title(name, fontsize=7, pad=3)
            ax.spines[:].set_visible(False)
            ax.tick_params(length=0, pad=1, labelsize=6)
            ax.set_xticks(_centers(len(columns), pixels.shape[1]), columns, rotation=90)
            named = rows if ax is figure.axes[0] else []
            ax.set_yticks(_centers(len(named), pixels.shape[0]), named)
            left += extent + MARGIN
        figure.suptitle(title, fontsize=7, y=1 - 0.03 / height, va="top")
        save(figure, path)


def _centers(count: int, extent: int) -> list[float]:
    """Of `count` tiles along `extent` pixels."""
    return [(2 * turn + 1) * extent / (2 * count) - 0.5 for turn in range(count)]


def tiled(
    pictures: Tensor,  # [rows, columns, 1 or 3, h, w] in [0, 1]
) -> NDArray[np.float32]:
    """One color picture [H, W, 3] with white between and around the tiles."""
    gap = max(1, pictures.shape[-1] // 16)
    color = pictures.clamp(0, 1).cpu().expand(-1, -1, 3, -1, -1)
    padded = functional.pad(color, (gap, gap, gap, gap), value=1.0)
    joined: NDArray[np.float32] = padded.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1).numpy()
    return joined


def blanked(
    pictures: Tensor,  # [n, 1 or 3, h, w] in [0, 1]
    given: Tensor,  # [n, 1, H, W] bool, at the resolution of the images that were decoded
) -> Tensor:
    """Color pictures [n, 3, h, w] in which what is missing is a plain pale blue."""
    shown = functional.interpolate(given.float(), size=pictures.shape[-2:]) > 0.5
    color = torch.tensor(MISSING, device=pictures.device).view(3, 1, 1)
    return torch.where(shown, pictures, color)


def of_each_class(
    classes: Tensor,  # [n]
    samples: int,  # at most, of each class
    rows: int = ROWS,  # classes, at most: the lowest that have any
) -> Tensor:
    """Positions [rows, samples] of the first images of each class; as many as all of them have."""
    members = [(classes == label).nonzero().flatten() for label in classes.unique()[:rows]]
    fewest = min(samples, *map(len, members))
    return torch.stack([places[:fewest] for places in members])
