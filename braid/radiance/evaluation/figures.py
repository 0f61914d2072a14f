"""Figures of a distillation: residual maps, the publication figure, trade-off chart and summary.

Equal inputs give equal bytes: PNGs carry no date and no version, and the style does not depend on
the reader's matplotlib settings. A residual is the absolute difference, mean over the channels, on
one fixed scale, so that maps of different runs can be laid side by side.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from braid.common.plotting import BLUE, GREEN, ORANGE, PALE, save, styled
from braid.radiance.evaluation.image_metrics import psnr
from braid.radiance.scenes.renders import load_images

RESIDUAL_LIMIT = 0.25  # residual, in [0, 1], at which the color scale ends
RESIDUAL_COLORS = "magma"
CELL = 1.3  # inches; side of an image
FIRST_STAGE = "response"  # the student of Stage 1B; the others are variants of Stage 2


def pictured_frames(wanted: Sequence[int], views: int) -> list[int]:
    """Those of the wanted test views that the scene has.

    Raises:
        ValueError: it has none of them.
    """
    frames = [frame for frame in wanted if frame < views]
    if not frames:
        raise ValueError(
            f"radiance.evaluation.figure_frames: expected one of 0 to {views - 1}, "
            f"got {list(wanted)}"
        )
    return frames


def publication_figure(
    path: Path,
    renders: Mapping[str, tuple[list[int], dict[str, Tensor]]],  # of students, as they are stored
) -> None:
    """Ground truth, teacher and the students on the pictured test views."""
    frames, images = next(iter(renders.values()))
    models = {"teacher": images["teacher"]}
    models |= {_title(name): stored["after"] for name, (_, stored) in renders.items()}
    image_table(path, images["truth"], models, frames)


def _title(student: str) -> str:
    return "Stage 1B" if student == FIRST_STAGE else f"Stage 2\n{student}"


def image_table(
    path: Path,
    truth: Tensor,  # [N, H, W, 3] over white
    models: Mapping[str, Tensor],  # name to [N, H, W, 3] over white, in the order of the columns
    frames: Sequence[int],  # of the N test views
) -> None:
    """Views down: the ground truth, every model's render with its PSNR, every model's residual."""
    residuals = {f"residual\n{name}": (images - truth).abs() for name, images in models.items()}
    rows, columns = len(frames), 1 + len(models) + len(residuals)
    with styled():
        size = (CELL * columns + 0.8, (CELL + 0.16) * rows + 0.35)
        tight = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
        figure = Figure(figsize=size, layout=tight)
        axes = figure.subplots(rows, columns, squeeze=False)
        for column, (name, stack) in enumerate({"ground truth": truth, **models}.items()):
            _column(axes[:, column], name, stack)
        for ax, frame in zip(axes[:, 0], frames, strict=True):
            ax.set_ylabel(f"test view {frame}")
        for column, stack in enumerate(models.values(), start=1):
            for ax, value in zip(axes[:, column], psnr(stack, truth).tolist(), strict=True):
                ax.set_xlabel(f"{value:.2f} dB", labelpad=2)
        for column, (name, stack) in enumerate(residuals.items(), start=1 + len(models)):
            _column(axes[:, column], name, stack.mean(dim=-1))
        _color_bar(figure, axes)
        save(figure, path)


MOVIE_SIDE = 240  # pixels that a smaller frame is enlarged to, by a whole factor
FRAME_TIME = 80  # milliseconds


def movie(
    path: Path,
    teacher: Tensor,  # [N, H, W, 3] over white
    student: Tensor,  # [N, H, W, 3] over white
) -> None:
    """A GIF of the teacher, the student and the residual between them, side by side."""
    residual = (student - teacher).abs().mean(dim=-1).cpu().numpy() / RESIDUAL_LIMIT
    colors = colormaps[RESIDUAL_COLORS](residual.clip(0, 1))[..., :3]
    parts = [teacher.clamp(0, 1).cpu().numpy(), student.clamp(0, 1).cpu().numpy(), colors]
    factor = max(1, MOVIE_SIDE // teacher.shape[1])
    rows = (np.concatenate(parts, axis=2) * 255).round().astype(np.uint8)
    height, width = rows.shape[1] * factor, rows.shape[2] * factor
    frames = [  # colors are reduced before a frame is enlarged, which has no more of them
        Image.fromarray(row).quantize(dither=Image.Dither.NONE).resize((width, height))
        for row in rows
    ]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=FRAME_TIME, loop=0)


def _column(axes: NDArray[np.object_], name: str, images: Tensor) -> None:
    """Color images [N, H, W, 3], or residuals [N, H, W], below each other."""
    axes[0].set_title(name, pad=4)
    for ax, image in zip(axes, images.clamp(0, 1).cpu().numpy(), strict=True):
        ax.imshow(image, cmap=RESIDUAL_COLORS, vmin=0, vmax=RESIDUAL_LIMIT)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)


def _color_bar(figure: Figure, axes: Any) -> None:
    scale = ScalarMappable(Normalize(0, RESIDUAL_LIMIT), RESIDUAL_COLORS)
    bar = figure.colorbar(scale, ax=axes, extend="max", fraction=0.02, pad=0.01, aspect=30)
    bar.set_label("absolute residual")
    bar.outline.set_visible(False)


@dataclass(frozen=True)
class Tradeoff:
    """A model's place in the trade-off chart."""

    name: str
    psnr: float  # dB
    fps: float
    peak_memory_mib: float | None


def tradeoff_chart(
    path: Path,
    students: Sequence[Tradeoff],
    teacher: Tradeoff,
    baselines: Mapping[str, float],  # PSNR, dB
    memory_of: str,  # what the peak was measured of
    title: str,
) -> None:
    """Write PSNR, frames per second and peak memory of every student, in three panels.

    The Stage 1B student is set off by color from the Stage 2 ones. The teacher is a line in every
    panel; `baselines` are lines of PSNR. Without a figure of each model's memory there is no panel.
    """
    panels: list[tuple[str, str, list[float], dict[str, float]]] = [
        ("PSNR (dB)", "{:.2f}", [s.psnr for s in students], {"teacher": teacher.psnr, **baselines}),
        ("frames per second", "{:.2f}", [s.fps for s in students], {"teacher": teacher.fps}),
    ]
    peaks = [model.peak_memory_mib for model in (*students, teacher)]
    memory = [peak for peak in peaks if peak is not None]
    if len(memory) == len(peaks):
        *values, line = memory
        panels.append((f"peak memory (MiB)\n{memory_of}", "{:.0f}", values, {"teacher": line}))
    colors = [BLUE if s.name == FIRST_STAGE else ORANGE for s in students]
    with styled():
        figure = Figure(figsize=(9.2, 1.75 + 0.3 * len(students)), layout="constrained")
        across = (1.5, 1, 1)[: len(panels)]
        axes = figure.subplots(1, len(panels), sharey=True, width_ratios=across)
        for ax, (label, form, values, lines) in zip(axes, panels, strict=True):
            _dots(ax, values, colors, form)
            _reference_lines(ax, lines, form)
            ax.set_xlabel(label)
        axes[0].set_yticks(range(len(students)), [s.name for s in students])
        axes[0].set_ylim(len(students) - 0.4, -0.6)
        _key(figure)
        figure.suptitle(title, fontsize=10)
        save(figure, path)


def _dots(ax: Axes, values: Sequence[float], colors: Sequence[str], form: str) -> None:
    """One dot a row; the values stand in a column of their own, clear of all lines."""
    rows = range(len(values))
    ax.hlines(rows, 0, values, color=colors, linewidth=1.2, alpha=0.35)
    ax.scatter(values, rows, color=colors, s=26, zorder=3)
    for row, value in zip(rows, values, strict=True):
        beside = ax.get_yaxis_transform()  # across in fractions of the axes, down in rows
        ax.text(1.13, row, form.format(value), transform=beside, ha="right", va="center")
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)


def _reference_lines(ax: Axes, lines: dict[str, float], form: str) -> None:
    """Named vertical lines, the teacher's solid; names at two heights, so that neighbors fit."""
    ax.set_xlim(0, 1.06 * max(ax.dataLim.x1, *lines.values()))
    for rank, (name, value) in enumerate(sorted(lines.items(), key=lambda line: -line[1])):
        color, dashes = (GREEN, "-") if name == "teacher" else (PALE, ":")
        ax.axvline(value, color=color, ls=dashes, lw=1.1)
        ax.annotate(
            f"{name} {form.format(value)}",
            (value, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3 + 9 * (rank % 2)),
            textcoords="offset points",
            ha="center",
            fontsize=7,
            color=color,
        )


def _key(figure: Figure) -> None:
    """Which color is which stage."""
    entries = ((BLUE, "Stage 1B: response"), (ORANGE, "Stage 2"))
    handles = [figure.axes[0].scatter([], [], color=c, s=26, label=name) for c, name in entries]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)


# ---- The summary: quality, cost, size and boundary mask of all models of a scene -----------------

Row = Mapping[str, Any]

# First columns of the summary, in order; others follow as the tables of the models have them.
COLUMNS = (
    *("scene", "variant", "psnr", "ssim", "lpips", "psnr_foreground", "psnr_vs_teacher", "status"),
    *("psnr_val", "feature_explained_variance", "feature_explained_variance_by_network"),
    *("fps", "peak_memory_mib", "power_w", "train_seconds", "parameters", "bytes", "steps"),
)
COLLAPSED = 0.05  # mean weight below which the boundary mask leaves next to nothing to learn from


@dataclass(frozen=True)
class Model:
    """What was measured of one model of a scene."""

    table: Sequence[Row]  # its own row of quality and size first, then the trivial predictors'
    cost: Row  # of rendering: a `FrameCost`
    train_seconds: float
    mask: Sequence[float] = ()  # mean weight of the boundary mask at every logged step

    def row(self) -> dict[str, Any]:
        """Its row of the summary."""
        cost = ("fps", "peak_memory_mib", "power_w", "power_reason")
        return {
            **self.table[0],
            **{name: self.cost[name] for name in cost},
            "train_seconds": self.train_seconds,
            **mask_figures(self.mask),
        }

    def smaller(self) -> list[Row]:
        """Rows of the same model in fewer bytes: a teacher's SPZ, a student's half precision."""
        own = f"{self.table[0]['variant']}_"
        return [row for row in self.table[1:] if str(row["variant"]).startswith(own)]

    def tradeoff(self) -> Tradeoff:
        """Its place in the trade-off chart."""
        name, psnr = self.table[0]["variant"], float(self.table[0]["psnr"])
        return Tradeoff(name, psnr, self.cost["fps"], self.cost["peak_memory_mib"])

    def baseline(self, name: str) -> float:
        """PSNR of a trivial predictor."""
        rows = {row["variant"]: row for row in self.table}
        return float(rows[f"baseline_{name}"]["psnr"])


def published(students: Sequence[Model]) -> list[str]:
    """Who is in the publication figure: Stage 1B, `gaussian_all` and the best, where there are any.

    The best is the first by PSNR of the validation views, or of the test views without any.
    """
    rows = [student.table[0] for student in students]
    measure = "psnr_val" if all(row.get("psnr_val") for row in rows) else "psnr"
    best = max(rows, key=lambda row: float(row[measure]))["variant"]
    names = [row["variant"] for row in rows]
    return [name for name in dict.fromkeys((FIRST_STAGE, "gaussian_all", best)) if name in names]


def summary_rows(models: Sequence[Model]) -> Iterator[Row]:
    """A row per model of a scene and per smaller file of it, then one per trivial predictor."""
    for model in models:
        yield model.row()
        yield from model.smaller()
    yield from (row for row in models[0].table[1:] if row not in models[0].smaller())


def draw_tradeoff(path: Path, teacher: Model, students: Sequence[Model], title: str) -> None:
    """Write the trade-off chart of a scene, two trivial predictors among its lines."""
    tradeoff_chart(
        path,
        [student.tradeoff() for student in students],
        teacher.tradeoff(),
        {name: teacher.baseline(name) for name in ("silhouette", "white")},
        teacher.cost["peak_memory_of"],
        title,
    )


def sizes(models: Sequence[Model]) -> list[Row]:
    """Variant, PSNR and bytes of every model and of its smaller files."""
    rows = [row for model in models for row in (model.table[0], *model.smaller())]
    return [row for row in rows if row.get("bytes")]


def draw_sizes(path: Path, models: Sequence[Model], title: str) -> None:
    """Write PSNR against bytes, the teacher's files in a color of their own."""
    with styled():
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        ax = figure.subplots()
        for row in sizes(models):
            name, size, value = str(row["variant"]), float(row["bytes"]), float(row["psnr"])
            color = GREEN if name.startswith("teacher") else ORANGE
            color = BLUE if name.startswith(FIRST_STAGE) else color
            ax.scatter(size / 1e6, value, color=color, s=24)
            ax.annotate(name, (size / 1e6, value), (4, 2), textcoords="offset points", fontsize=6)
        ax.set(xscale="log", xlabel="megabytes", ylabel="PSNR (dB)", title=title)
        save(figure, path)


def draw_publication(path: Path, students: Sequence[Model], renders: Path) -> None:
    """Write the publication figure of a scene from its students' stored renders."""
    stored = {name: load_images(renders / f"{name}.npz") for name in published(students)}
    publication_figure(path, stored)


def mask_figures(weights: Sequence[float]) -> dict[str, Any]:
    """The boundary mask over a whole training; nothing where no features were compared."""
    if not weights:
        return {}
    mean = sum(weights) / len(weights)
    return {"feature_mask_weight_mean": mean, "feature_mask_state": mask_state(mean)}


def mask_state(mean: float) -> str:
    """`collapsed`, `saturated` (every weight is 1) or `ok`."""
    if mean < COLLAPSED:
        return "collapsed"
    return "saturated" if mean == 1.0 else "ok"


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV, every cell as it is written there."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
