"""From a prompt alone to a clip in two network calls, and whether it shows what was asked for.

    prompt -> keyframes (phase 1) -> interpolation -> refinement (phase 2)

Clips of held-out prompts are read by a reader of its own, trained on real train clips alone, and
compared with the held-out clips as a distribution, beside other ways to the same clips.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from braid.common.progress import progress
from braid.common.rng import generator
from braid.drifting.config import DriftEvaluationConfig, TextToClipConfig
from braid.drifting.evaluation.clips import NEIGHBORS, Embed, Sample, rows_beside
from braid.drifting.evaluation.pictures import (
    NamedDecode,
    draw_clip,
    draw_overview,
    first_of_each,
    largest,
)
from braid.drifting.evaluation.reader import HEADS, NO_WORDS, Viewer, WordReader, Words
from braid.drifting.video.corruption import Corruption, as_proposals
from braid.drifting.video.keyframes import KeyframeGenerator, keyframes_of
from braid.drifting.video.refiner import AnyRefiner, finish
from braid.metrics.distances import RandomConvolutions, frechet_distance, manifold

ASKED = 0.6  # of digits and of motions, that are read as asked for
IGNORED = 1.5  # times what is read with other prompts: less is as if there were none
COLLAPSED = 0.5  # of the coverage that true keyframes have


class Generated(NamedTuple):
    """Clips made from n prompts."""

    interpolated: Tensor  # [n, C, T, H, W]
    clips: Tensor  # [n, C, T, H, W]
    classes: Tensor  # [n] pseudo-classes of prompts and keyframes


@dataclass(frozen=True)
class Pipeline:
    """What makes clips of text embeddings."""

    embed: Embed  # texts and clips to h
    label: Callable[[Tensor], Tensor]  # h to pseudo-classes
    corruption: Corruption
    network: KeyframeGenerator
    refiner: AnyRefiner
    alphas: tuple[float, float]  # guidance of both phases; 1: none
    seed: int

    def keyframes(
        self,
        texts: Tensor,  # [n, L, D]
    ) -> tuple[Tensor, Tensor]:
        """Keyframes by regression alone and by phase 1, each [n, C, K, H, W]."""
        prompts = self.embed(texts, None)
        classes, draw = self.label(prompts), generator(self.seed, "phase 1")
        return keyframes_of(self.network, prompts, classes, draw, self.alphas[0])

    @torch.no_grad()
    def complete(
        self,
        texts: Tensor,  # [n, L, D]
        keyframes: Tensor,  # [n, C, K, H, W]
    ) -> Generated:
        """Clips between keyframes, which are proposals where the refiner was trained on such."""
        count, channels, _, *sides = keyframes.shape
        frames, placed = self.corruption.frames, self.corruption.coarsest
        latents = keyframes.new_zeros(count, channels, frames, *sides)
        latents[:, :, placed] = keyframes
        mask = torch.zeros(count, frames, dtype=torch.bool)
        mask[:, placed] = True
        draw = generator(self.seed, "text to clip")
        start = self.corruption.impute(latents, mask, torch.arange(count), draw)
        if self.corruption.config.student_replace_prob > 0:
            start = as_proposals(start)
        classes = self.label(self.embed(texts, start.latents))
        rows = rows_beside(self.refiner, texts, start.latents, self.embed)
        level, alpha = self.corruption.levels, self.alphas[1]
        given = self.refiner, self.corruption, start, classes, level, alpha, None, rows, draw
        return Generated(start.latents, finish(*given), classes)

    def __call__(
        self,
        texts: Tensor,  # [n, L, D]
    ) -> Generated:
        """Clips of texts alone, in two network calls."""
        return self.complete(texts, self.keyframes(texts)[1])


# ---- Figures -------------------------------------------------------------------------------------


class Evaluation(NamedTuple):
    """Clips by method, and figures of each."""

    clips: Mapping[str, Tensor]  # name to [n, C, T, H, W]
    figures: Mapping[str, dict[str, Any]]
    right: Tensor  # [n, heads] bool, words of `generated` that are read as asked for


def evaluate(
    pipeline: Pipeline,
    paired: KeyframeGenerator,
    test: Sample,
    train: Sample,
    decode: NamedDecode,
    config: DriftEvaluationConfig,
) -> Evaluation:
    """Clips of held-out prompts, by each way to them.

    `generated` is the pipeline, `paired` the same with phase 1 by regression, `closed_form` with
    regression in closed form, `interpolated` without phase 2, `shuffled` are the clips of other
    prompts, `true_keyframes` phase 2 from the held-out clips' own keyframes, `real` these clips,
    which as a distribution are compared with train clips.
    """
    texts, truth = test.texts, test.latents
    closed_form, keyframes = pipeline.keyframes(texts)
    generated = pipeline.complete(texts, keyframes)
    regression = Pipeline(**{**vars(pipeline), "network": paired})
    placed = truth[:, :, pipeline.corruption.coarsest]
    clips = {
        "generated": generated.clips,
        "paired": regression(texts).clips,
        "closed_form": pipeline.complete(texts, closed_form).clips,
        "interpolated": generated.interpolated,
        "shuffled": generated.clips.roll(1, 0),
        "true_keyframes": pipeline.complete(texts, placed).clips,
        "real": truth,
    }
    calls = {"generated": 2, "paired": 2, "closed_form": 1, "interpolated": 1, "true_keyframes": 1}
    space = RandomConvolutions(truth.shape[1])
    real = space.points(truth)
    figures: dict[str, dict[str, Any]] = {}
    for name, latents in clips.items():
        chosen = torch.randperm(len(train.latents), generator=generator(pipeline.seed, "real"))
        other = train.latents[chosen[: len(truth)]] if name == "real" else latents
        points = space.points(other)
        frechet = {"frechet": frechet_distance(real, points)}
        figures[name] = {"calls": calls.get(name), **frechet, **manifold(real, points, NEIGHBORS)}
    right = _read(pipeline, clips, figures, test.words, train, decode, config)
    return Evaluation(clips, figures, right)


def _read(
    pipeline: Pipeline,
    clips: Mapping[str, Tensor],
    figures: dict[str, dict[str, Any]],  # to which what is read is added
    words: Words | None,  # that were asked for
    train: Sample,
    decode: NamedDecode,
    config: DriftEvaluationConfig,
) -> Tensor:
    """Which words of generated clips are read as asked for, [n, heads] bool."""
    count = len(clips["real"])
    if words is None or train.words is None:
        for row in figures.values():
            row["reader_reason"] = NO_WORDS
        return torch.zeros(count, len(HEADS), dtype=torch.bool)
    given = torch.zeros(pipeline.corruption.frames, dtype=torch.bool)
    given[pipeline.corruption.coarsest] = True
    viewer, draw = Viewer(decode, given), generator(pipeline.seed, "reader", "whole")
    reader = WordReader(viewer(train.latents), train.words, config.reader_steps, draw)
    right = {}
    for name, latents in progress(clips.items(), "read", "method"):
        read = reader(viewer(latents))
        right[name] = torch.stack([read[head] == words[head] for head in HEADS], 1)
        shares = right[name].float().mean(0).tolist()
        figures[name] |= {f"reader_{head}": x for head, x in zip(HEADS, shares, strict=True)}
    most = {head: train.words[head].mode().values for head in HEADS}
    figures["chance"] = {
        f"reader_{head}": float((words[head] == most[head]).float().mean()) for head in HEADS
    }
    return right["generated"]


def headline(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The figures that are compared first."""
    made = figures["generated"]
    return {
        "reader_digit": made.get("reader_digit"),
        "reader_motion": made.get("reader_motion"),
        "reader_digit_shuffled": figures["shuffled"].get("reader_digit"),
        "reader_digit_real": figures["real"].get("reader_digit"),
        "frechet": made["frechet"],
        "coverage": made["coverage"],
        "status": status_of(figures),
    }


def status_of(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """`ok`, or what is wrong with clips made from prompts, worst first."""
    made, shuffled = figures["generated"], figures["shuffled"]
    asked = [f"reader_{head}" for head in ("digit", "motion") if f"reader_{head}" in made]
    if any(made[head] <= IGNORED * shuffled[head] for head in asked):
        return "prompts_ignored"
    if any(made[head] < ASKED for head in asked):
        return "not_as_asked"
    if made["coverage"] < COLLAPSED * figures["true_keyframes"]["coverage"]:
        return "collapsed"
    return "ok"


# ---- Pictures ------------------------------------------------------------------------------------


def draw_generated(
    folder: Path,
    evaluation: Evaluation,
    test: Sample,
    config: TextToClipConfig,
    decode: NamedDecode,
) -> None:
    """The first clip of each kind of motion, or of all, and those that are read worst."""
    folder.mkdir()
    shown_methods = ("generated", "true_keyframes", "real")
    rows = {name.replace("_", " "): evaluation.clips[name] for name in shown_methods}
    labels = torch.zeros(len(test.prompts)) if test.words is None else test.words["family"]
    none = torch.zeros(test.latents.shape[2], dtype=torch.bool)  # is given
    wrong = (~evaluation.right).sum(1).float()
    shown = {
        "first": (first_of_each(labels, config.strips), "first held-out prompt of each motion"),
        "worst": (largest(wrong, config.strips), "prompts of which the fewest words are read"),
    }
    for name, (chosen, title) in shown.items():
        captions = [f"{test.prompts[clip]}   read: {_named(evaluation, clip)}" for clip in chosen]
        draw_overview(folder / f"{name}.png", rows, none, chosen, captions, title, decode)
    for number, clip in enumerate(shown["first"][0]):
        one = {name: values[clip] for name, values in rows.items()}
        draw_clip(folder / f"clip_{number}", one, none, f"«{test.prompts[clip]}»", decode)


def draw_each(
    folder: Path,
    prompts: Sequence[str],
    clips: Tensor,  # [n, C, T, H, W]
    decode: NamedDecode,
) -> None:
    """A strip and an animation of each prompt's clip, with PyAV a film too."""
    none = torch.zeros(clips.shape[2], dtype=torch.bool)  # is given
    for number, (prompt, clip) in enumerate(zip(prompts, clips, strict=False)):
        path = folder / f"prompt_{number}"
        draw_clip(path, {"generated": clip}, none, f"«{prompt}»", decode, mp4=True)


def write_generated(folder: Path, prompts: Sequence[str], clips: Tensor) -> None:
    """`clips.safetensors` with `latents` [n, C, T, H, W], and `prompts.txt`, a line each."""
    folder.mkdir()
    (folder / "clips.safetensors").write_bytes(save({"latents": clips.contiguous()}))
    (folder / "prompts.txt").write_text("".join(f"{line}\n" for line in prompts), "utf-8")


def _named(evaluation: Evaluation, clip: int) -> str:
    """The kinds of words that are read as asked for."""
    flags = evaluation.right[clip].tolist()
    return ", ".join(head for head, right in zip(HEADS, flags, strict=True) if right) or "none"
