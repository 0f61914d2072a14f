"""Refined clips: how they are evaluated, and how a storyboard is completed.

They are evaluated as a distribution, against their keyframes, and by a reader. Every measure is
outside of the loss, and every method (interpolation, one step, many steps, other conditions, other
real clips) is scored by the same ones on the same held-out clips.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from braid.common.progress import progress
from braid.common.rng import generator
from braid.common.timing import timed
from braid.drifting.config import CorruptionConfig, DriftEvaluationConfig, MazeCorruptionConfig
from braid.drifting.evaluation.reader import (
    HEADS,
    NO_WORDS,
    ClipReader,
    Viewer,
    Words,
    sharpness,
    stray_color,
)
from braid.drifting.interpolation.interpolation import FRECHET_RATIO, METHODS, interpolate
from braid.drifting.interpolation.keyframes import level_counts, nested_masks
from braid.drifting.video.corruption import Corrupted, Corruption
from braid.drifting.video.motion import Decode
from braid.drifting.video.refiner import AnyRefiner, cold_sample, finish, refine
from braid.metrics.distances import (
    PcaSpace,
    RandomConvolutions,
    covered,
    energy_distance,
    frechet_distance,
    manifold,
)

NEIGHBORS = 5  # of precision, recall, density, coverage, as in Naeem et al.
REFERENCE = "interpolated"  # the method whose figures are the unit: always linear
PAIRED_RATIO = 1.25  # of the paired error that counts as off the mark

Figures = Mapping[str, Any]
ReadWords = Callable[[Sequence[str]], Words | None]  # of prompts
Embed = Callable[[Tensor | None, Tensor | None], Tensor]  # texts and clips to h [n, d]


class Clips(Protocol):
    """A data set of clips."""

    def indices(self, split: str) -> NDArray[np.int64]:
        """The clips of a split."""

    def latents(self, indices: NDArray[np.int64]) -> Tensor:
        """Their latents, [B, C, T, H, W]."""

    def texts(self, indices: NDArray[np.int64]) -> Tensor:
        """Their text embeddings, [B, L, D]."""

    def prompts(self, indices: NDArray[np.int64]) -> list[str]:
        """Their prompts."""


class Sample(NamedTuple):
    """Real clips."""

    latents: Tensor  # [n, C, T, H, W]
    texts: Tensor  # [n, L, D]
    prompts: Sequence[str]
    words: Words | None  # of the prompts, if these are built-in ones; also their motions' `family`

    @classmethod
    def of(cls, clips: Clips, split: str, count: int, read: ReadWords) -> Sample:
        """The first clips of a split, `count` at most."""
        chosen = clips.indices(split)[:count]
        prompts = clips.prompts(chosen)
        return cls(clips.latents(chosen), clips.texts(chosen), prompts, read(prompts))


class Method(NamedTuple):
    """The clips of one method and what they cost."""

    clips: Tensor  # [n, C, T, H, W]
    refiner: str  # of `drift.refiners`; empty: none
    calls: int  # of a network, a clip
    milliseconds: float  # a clip, on this machine


class Completed(NamedTuple):
    """Held-out clips, completed from their keyframes by each method."""

    given: Tensor  # [T] bool, the keyframes, which are the same in all clips
    classes: Tensor  # [n] pseudo-classes
    methods: Mapping[str, Method]


def complete(
    test: Sample,  # missing frames are not read
    classify: Callable[[Tensor, Tensor], Tensor],  # texts and clips to pseudo-classes
    corruption: Corruption,
    refiner: AnyRefiner,
    paired: AnyRefiner,
    config: DriftEvaluationConfig,
    draw: torch.Generator,  # of the noise that the refiners start from
    embed: Embed | None = None,  # what refiners may take beside the class
) -> Completed:
    """Fill clips in between evenly placed keyframes of the coarsest level, by each method.

    `interpolated` is linear, whatever the refiners start from, which is `start` where it differs.
    `refined` is one step of the refiner (of one that is trained to, a step a level) with the given
    keyframes clamped, `unclamped` the same without, `shuffled` the same with another clip's class
    and text; `paired` one step of the refiner trained by regression, `cold` that refiner from level
    to level. Classes are of text and keyframes, as of a storyboard, with what is between them
    interpolated.
    """
    truth, level = test.latents, corruption.levels
    masks = nested_masks(len(truth), truth.shape[2], corruption.counts)
    start = corruption.impute(truth, masks[-1], torch.arange(len(truth)), draw)
    classes = classify(test.texts, start.latents)

    texts = rows_beside(refiner, test.texts, start.latents, embed)

    def run(name: str, alpha: float, clamp: bool, other: int = 0) -> Callable[[], Tensor]:
        model, labels = {one: refiner, two: paired}[name], classes.roll(other)
        rows = None if texts is None else texts.roll(other, 0)
        given = start, labels, level, alpha, clamp, rows
        return lambda: finish(model, corruption, *given, draw)

    alpha, (one, two) = config.alpha, (config.refiner, config.paired)
    calls = 1 if refiner.target == "clip" else level
    runs: dict[str, tuple[str, int, Callable[[], Tensor]]] = {
        "interpolated": ("", 0, lambda: linear(truth, masks[-1], corruption.config)),
        "start": ("", 0, lambda: start.latents),
        "refined": (one, calls, run(one, alpha, True)),
        "unclamped": (one, calls, run(one, alpha, False)),
        "shuffled": (one, calls, run(one, alpha, True, other=1)),
        "paired": (two, 1, run(two, 1.0, True)),
        "cold": (
            two,
            level,
            lambda: cold_sample(paired, corruption, truth, masks, classes, 1.0, draw, texts),
        ),
    }
    if corruption.config.interpolator == "linear" and corruption.config.noise == "none":
        del runs["start"]
    first = Corrupted(*(values[:1] for values in start))
    warm = None if texts is None else texts[:1]
    refine(
        refiner, first, classes[:1], level, alpha, None, warm
    )  # the first call warms the device up
    methods = {
        name: _timed(*run, len(truth), truth.device)
        for name, run in progress(runs.items(), "complete", "method")
    }
    return Completed(masks[-1, 0], classes, methods)


def rows_beside(
    refiner: AnyRefiner,
    texts: Tensor | None,  # [n, L, D]
    clips: Tensor,  # [n, C, T, H, W], of whose frames the given ones are as they should be
    embed: Embed | None,
) -> Tensor | None:
    """What a refiner takes beside the class: the texts, their embedding as one row, or nothing.

    Raises:
        ValueError: it takes the embedding, and there is nothing that embeds.
    """
    if refiner.config.beside != "embedding":
        return texts
    if embed is None:
        raise ValueError("drift.refiner.beside is embedding, expected what embeds text and frames")
    return embed(texts, clips)[:, None]


def linear(clips: Tensor, mask: Tensor, config: CorruptionConfig | MazeCorruptionConfig) -> Tensor:
    """Missing frames interpolated linearly: the reference, whatever refiners start from."""
    return interpolate(clips, mask, config.model_copy(update={"interpolator": "linear"}))


def _timed(
    refiner: str, calls: int, run: Callable[[], Tensor], count: int, device: torch.device
) -> Method:
    clips, seconds = timed(run, device)
    return Method(clips, refiner, calls, 1000 * seconds / count)


def costs(completed: Completed) -> dict[str, float]:
    """What the clock says of each method."""
    return {f"milliseconds_{name}": row.milliseconds for name, row in completed.methods.items()}


# ---- Figures of each method ----------------------------------------------------------------------


def compare(
    completed: Completed,
    test: Sample,
    train: Sample,
    decode: Decode,
    config: DriftEvaluationConfig,
    device: torch.device,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Figures of each method, of other real clips, and of chance.

    `real` has two meanings: as a distribution, how far train clips are from the held-out ones; to
    the reader, the held-out clips themselves. The former is no floor for completions, which share
    their keyframes with the held-out clips: a perfect one is at distance 0.
    """
    spaces = RandomConvolutions(test.latents.shape[1]), PcaSpace(train.latents, config.components)
    evaluator = ClipEvaluator(test.latents, completed, *spaces, device)
    clips = {name: method.clips for name, method in completed.methods.items()}
    figures: dict[str, dict[str, Any]] = {
        name: {**evaluator.distances(latents), **evaluator.errors(latents)}
        for name, latents in clips.items()
    }
    chosen = torch.randperm(len(train.latents), generator=generator(seed, "real"))
    others = train.latents[chosen[: len(test.latents)]]
    figures |= {"real": evaluator.distances(others, completions=False), "chance": {}}
    viewer, count = Viewer(decode, completed.given), config.read_clips
    reader = TrainedReader(viewer, test, train, config, seed)
    read = {**clips, "real": test.latents}
    for name, latents in progress(read.items(), "read", "method"):
        figures[name] |= reader.figures(latents[:count])
    figures["chance"] |= reader.chance()
    return figures


class TrainedReader:
    """Scores what decoded clips show; without words in the prompts, only how sharp they are."""

    def __init__(
        self,
        viewer: Viewer,
        test: Sample,
        train: Sample,
        config: DriftEvaluationConfig,
        seed: int,
    ) -> None:
        count = config.read_clips
        self.viewer, self.real = viewer, viewer(test.latents[:count])
        self.words = self.reader = None
        if train.words is not None and test.words is not None:
            self.words = {head: test.words[head][:count] for head in HEADS}
            view, steps = viewer(train.latents), config.reader_steps
            self.reader = ClipReader(view, train.words, steps, seed)

    def figures(self, clips: Tensor) -> dict[str, Any]:
        """Of clips in the place of the held-out ones."""
        view = self.viewer(clips, self.real)
        sharp = {"sharpness": sharpness(view, self.real), "stray_color": stray_color(view)}
        if self.reader is None or self.words is None:
            return {**sharp, "reader_reason": NO_WORDS}
        return {**sharp, **self.reader.figures(view, self.real, self.words)}

    def chance(self) -> dict[str, Any]:
        """Of a reader that has not seen the clips."""
        if self.reader is None or self.words is None:
            return {"reader_reason": NO_WORDS}
        return self.reader.chance(self.real, self.words)


class ClipEvaluator:
    """Scores clips against held-out real ones."""

    def __init__(
        self,
        truth: Tensor,  # [n, C, T, H, W] held-out clips
        completed: Completed,
        convolutions: RandomConvolutions,
        pca: PcaSpace,
        device: torch.device,
    ) -> None:
        self.truth, self.given = truth, completed.given
        self.classes = completed.classes.numpy()
        self.convolutions, self.pca = convolutions.to(device), pca
        self.real = convolutions.points(truth)
        self.real_pca = pca.points(truth)

    def distances(self, clips: Tensor, completions: bool = True) -> dict[str, float]:
        """How far clips [n, C, T, H, W] are from the held-out ones as a distribution.

        `completions` are of these very clips, in their order; otherwise they are independent.
        """
        points, pca = self.convolutions.points(clips), self.pca.points(clips)
        hit = covered(self.real, points, NEIGHBORS)
        by_class = [hit[self.classes == label].mean() for label in np.unique(self.classes)]
        return {
            "frechet": frechet_distance(self.real, points),
            "frechet_pca": frechet_distance(self.real_pca, pca),
            "energy": energy_distance(self.real, points, matched=completions),
            "energy_pca": energy_distance(self.real_pca, pca, matched=completions),
            **manifold(self.real, points, NEIGHBORS),
            "class_coverage": float(np.mean(by_class)),
            **self._motion(clips),
        }

    def errors(self, clips: Tensor) -> dict[str, float]:
        """How far clips are from the very clips that their keyframes were taken from."""
        error = (clips - self.truth).square().mean(dim=(1, 3, 4))
        return {
            "mse_missing": float(error[:, ~self.given].mean()),
            "mse_all": float(error.mean()),
            "keyframe_mse": float(error[:, self.given].mean()),
        }

    def _motion(self, clips: Tensor) -> dict[str, float]:
        """Energy of frame-to-frame differences and of their changes, over the truth's."""
        steps, real = clips.diff(dim=2), self.truth.diff(dim=2)
        acceleration = steps.diff(dim=2).square().mean() / real.diff(dim=2).square().mean()
        return {
            "motion_energy": float(steps.square().mean() / real.square().mean()),
            "acceleration_energy": float(acceleration),
        }


def headline(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The figures that a reader compares first: ratios of refined clips to interpolated ones.

    `reader_ratio` is to real clips: the mean of digit's and motion's accuracy on missing frames.
    """
    refined, plain, real = figures["refined"], figures[REFERENCE], figures["real"]

    def ratio(measure: str, other: Mapping[str, Any] = plain) -> float | None:
        if refined.get(measure) is None or not other[measure]:
            return None
        return float(refined[measure] / other[measure])

    read = [ratio(measure, real) for measure in ("digit_missing", "motion_missing")]
    ratios = {
        "frechet_ratio": ratio("frechet"),
        "frechet_pca_ratio": ratio("frechet_pca"),
        "paired_error_ratio": ratio("mse_missing"),
        "reader_ratio": None if None in read else sum(filter(None, read)) / len(read),
        "ghost_ratio": ratio("ghost"),
    }
    return {
        **ratios,
        "motion_energy": refined["motion_energy"],
        "status": drift_status(refined, plain),
    }


def methods_table(
    figures: Mapping[str, Mapping[str, Any]],  # by method
    completed: Completed,
    steps: Mapping[str, int | None],  # of training, by refiner, see config.py's `trained_steps`
    read: int,  # clips that are read, at most: the columns from `sharpness` on
) -> list[dict[str, Any]]:
    """A row for each method: training steps, network calls and clips, and all figures."""
    rows = []
    count = len(completed.classes)
    clips = {"clips": count, "clips_read": min(read, count)}
    for name, row in figures.items():
        method = completed.methods.get(name)
        trained = steps.get(method.refiner) if method else None
        counts = {"steps": trained, "calls": method.calls if method else None}
        rows.append({"method": name, **counts, **clips, **row})
    return rows


def drift_status(refined: Figures, interpolated: Figures) -> str:
    """`ok`, or what is wrong with refined clips beside linear interpolation, worst first.

    What the reader says counts where there are words to read.
    """
    if refined["recall"] < 0.5 * interpolated["recall"]:
        return "collapsed"
    if refined["frechet"] > FRECHET_RATIO * interpolated["frechet"]:
        return "no_better_than_interpolation"
    if refined["frechet_pca"] >= interpolated["frechet_pca"]:
        return "worse_in_pca"
    if refined["mse_missing"] > PAIRED_RATIO * interpolated["mse_missing"]:
        return "off_the_mark"
    if "ghost" in refined and refined["ghost"] > interpolated["ghost"]:
        return "more_ghosts_than_interpolation"
    if "ghost" in refined and refined["digit_missing"] < interpolated["digit_missing"]:
        return "less_legible_than_interpolation"
    return "ok"


def interpolation_table(
    truth: Tensor,  # [n, C, T, H, W]
    config: CorruptionConfig,
) -> list[dict[str, float]]:
    """Mean squared errors of all interpolators at evenly placed keyframes, a row a level.

    Levels count from 1: at level 0 nothing is missing. A row has `keyframes` and, for each
    interpolator, `<name>_mse_missing` over the missing frames and `<name>_mse_all` over all.
    """
    counts = level_counts(truth.shape[2], config)
    rows: list[dict[str, float]] = []
    masks = nested_masks(len(truth), truth.shape[2], counts).to(truth.device)
    for level, mask in list(enumerate(masks))[1:]:
        row: dict[str, float] = {"level": level, "keyframes": counts[level]}
        for method in METHODS:
            settings = config.model_copy(update={"interpolator": method})
            error = (interpolate(truth, mask, settings) - truth).square().mean((1, 3, 4))
            row[f"{method}_mse_missing"] = float(error[~mask].mean())
            row[f"{method}_mse_all"] = float(error.mean())
        rows.append(row)
    return rows


# ---- From a storyboard, a few given latent frames and a text, to a full clip ---------------------


def given_frames(keyframes: Sequence[int], frames: int) -> Tensor:
    """The mask [1, T] of a storyboard's keyframes.

    Raises:
        ValueError: fewer than two keyframes, or one that the clip does not have.
    """
    if len(set(keyframes)) < 2 or not all(0 <= frame < frames for frame in keyframes):
        raise ValueError(
            f"keyframes are {list(keyframes)}, expected two or more of 0 to {frames - 1}"
        )
    mask = torch.zeros(1, frames, dtype=torch.bool)
    mask[0, list(keyframes)] = True
    return mask


def impute_given(
    latents: Tensor,  # [1, C, T, H, W]
    mask: Tensor,  # [1, T]
    corruption: Corruption,
    generator: torch.Generator,
) -> Corrupted:
    """The refiner's start; frames that are not given are not read.

    Raises:
        ValueError: a given frame is not finite, or the clip has another number of frames.
    """
    if not latents.movedim(2, 1)[mask].isfinite().all():
        raise ValueError("a given latent frame holds NaN or infinite values")
    return corruption.impute(latents, mask, torch.zeros(1, dtype=torch.long), generator)


@torch.no_grad()
def complete_storyboard(
    latents: Tensor,  # [1, C, T, H, W]
    text: Tensor | None,  # [1, L, D]
    keyframes: Sequence[int],  # the given latent frames
    corruption: Corruption,
    assign: Callable[[Tensor | None, Tensor], Tensor],  # text and latents to classes [1]
    refiner: AnyRefiner,
    alpha: float,  # guidance; 1: none
    seed: int,
    embed: Embed | None = None,  # what the refiner may take beside the class
) -> tuple[dict[str, Tensor], Tensor, int]:
    """`interpolated` and `refined` latents [C, T, H, W], the mask of given ones [T], the class.

    Raises:
        ValueError: keyframes that the clip does not have, or a given frame that is not finite.
    """
    given = given_frames(keyframes, latents.shape[2])
    draw = generator(seed, "storyboard")
    start = impute_given(latents, given, corruption, draw)
    classes, rows = assign(text, start.latents), rows_beside(refiner, text, start.latents, embed)
    level = level_of(len(set(keyframes)), corruption.counts)
    (full,) = finish(refiner, corruption, start, classes, level, alpha, True, rows, draw)
    shown = {"interpolated": start.latents[0], "refined": full.contiguous()}
    return shown, given[0], int(classes)


def level_of(keyframes: int, counts: Sequence[int]) -> int:
    """The training level whose number of keyframes is nearest; the coarser of two."""
    levels = range(1, len(counts))
    return min(levels, key=lambda level: (abs(counts[level] - keyframes), -level))
