"""Judge refined and generated images by an independent classifier and beside real held-out images.

Writes metrics/drift_image.json, a table of corruption levels, one of guidance, and pictures. Three
seconds for the built-in digits.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from braid.common.rng import generator
from braid.drifting.config import ImageEvaluation
from braid.drifting.evaluation.evaluation import flattened
from braid.drifting.evaluation.images import Figures, ImageJudge, complete, errors, summary
from braid.drifting.evaluation.pictures import draw_classes, draw_levels, of_each_class
from braid.drifting.image.corruption import KeypatchCorruption
from braid.drifting.image.refiner import ImageRefiner, load_image_refiner
from braid.drifting.video.sampling import refine
from braid.images.data.image_set import ImageSet, open_image_set
from braid.images.latents.sd_vae import decoder
from braid.stage.context import Stage, open_stage
from braid.stage.records import Row
from braid.training.device import set_up

TIMED = 20  # calls, of which the median counts

Made = tuple[Tensor, Mapping[str, Tensor]]  # known pixels, and images by method


def main() -> None:
    """Run the stage."""
    with open_stage("evaluate_drift_image") as stage:
        hardware, seed = stage.params.hardware, stage.params.seed
        device = set_up(hardware.device, hardware.threads, seed)
        settings = stage.params.image_evaluation
        images = open_image_set(stage.dep("data/images"), cache_mib=stage.params.images.cache_mib)
        decode = decoder(images.input_space, stage.params.images.sd_vae)
        judge = _judge(images, settings)
        truth, classes = judge.test, judge.test_classes
        refiner, corruption = _refiner(stage, images)
        refiner = refiner.to(device)
        own = "clamped" if refiner.keep_anchors_fixed else "unclamped"
        draw, coarsest = generator(seed, "test images"), corruption.levels

        def make(alpha: float) -> dict[int, Made]:
            """All levels but the one that knows all, by the number of known patches."""
            return {
                known: complete(refiner, corruption, truth, classes, level, alpha, draw)
                for level, known in enumerate(corruption.counts)
                if level
            }

        made = make(settings.alpha)
        levels = {known: _figures(judge, *each) for known, each in made.items()}
        real = judge.real(generator(seed, "real images"))
        stage.write_metrics({**summary(levels, real, own), "images": len(truth)})
        stage.write_curve("plots/drift_image_levels.csv", _table(levels, real))
        guided = {alpha: make(alpha) for alpha in settings.alphas}
        sweep = _sweep(judge, guided, own, stage.params.image_batches.alpha_max)
        stage.write_curve("plots/drift_image_alpha.csv", sweep)
        first = torch.arange(1)
        one = corruption(truth[first], torch.full_like(first, coarsest), first, draw)
        stage.runtime["milliseconds_one_step"] = _milliseconds(
            lambda: refine(refiner, one, classes[first], coarsest, settings.alpha)
        )

        pictures = stage.out("plots/drift_image_evaluation")
        pictures.mkdir()
        shown = of_each_class(classes, settings.samples)
        names = [images.class_names[each] for each in classes[shown[:, 0]].tolist()]
        known, (_, by) = list(made.items())[-1]
        draw_classes(pictures / "classes.png", known, by[own], truth, shown, names, decode)
        ladder = {
            known: (where, by["interpolated"], by[own]) for known, (where, by) in made.items()
        }
        draw_levels(pictures / "levels.png", ladder, truth, shown[:, 0], names, decode)


def _refiner(stage: Stage, images: ImageSet) -> tuple[ImageRefiner, KeypatchCorruption]:
    """The refiner, and the corruption that it was trained for."""
    folder = stage.dep("models/drift_image")
    refiner = load_image_refiner(folder)
    corruption = KeypatchCorruption(
        images.shape[1:], refiner.patch, **stage.params.image_corruption.model_dump()
    )
    found = [refiner.config[name] for name in ("shape", "classes", "levels")]
    expected = [list(images.shape), images.classes, corruption.levels + 1]
    if found != expected:
        raise ValueError(
            f"{folder}: refines images {found[0]} of {found[1]} classes at {found[2]} levels, "
            f"expected {expected[0]}, {expected[1]} and {expected[2]}"
        )
    return refiner, corruption


def _judge(images: ImageSet, settings: ImageEvaluation) -> ImageJudge:
    """One that knows training images and holds test images against what is made."""
    train = images.indices("train", settings.train_images)
    test = images.indices("test", settings.test_images)
    return ImageJudge(
        images.images(train),
        images.conditions[train],
        images.images(test),
        images.conditions[test],
        components=settings.components,
        neighbours=settings.neighbours,
    )


def _figures(judge: ImageJudge, known: Tensor, made: Mapping[str, Tensor]) -> dict[str, Figures]:
    """What each method scores."""
    return {
        name: {**judge.figures(each), **errors(each, judge.test, known)}
        for name, each in made.items()
    }


def _table(levels: Mapping[int, Mapping[str, Figures]], real: Mapping[str, float]) -> list[Row]:
    """A row a level."""
    return [{"known": known, **flattened({**each, "real": real})} for known, each in levels.items()]


def _sweep(
    judge: ImageJudge,
    guided: Mapping[float, Mapping[int, Made]],  # by alpha
    own: str,
    alpha_max: float,  # of the training; what lies above is extrapolated
) -> list[Row]:
    """A row a guidance alpha: `<measure>_<known patches>`."""
    rows: list[Row] = []
    for alpha, made in guided.items():
        scored = {str(known): judge.figures(each[own]) for known, (_, each) in made.items()}
        rows.append({"alpha": alpha, "trained": int(alpha <= alpha_max), **flattened(scored)})
    return rows


def _milliseconds(call: Callable[[], Tensor]) -> float:
    """Of one call once it is warm."""
    seconds = []
    for _ in range(TIMED + 1):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return round(1000 * statistics.median(seconds[1:]), 3)


if __name__ == "__main__":
    main()
