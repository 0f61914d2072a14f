"""The evaluator of images: what each way of failing scores, and what it is called."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from braid.common.rng import generator
from braid.drifting.evaluation.images import (
    ERRORS,
    MEASURES,
    METHODS,
    Completion,
    ImageEvaluator,
    alpha_table,
    errors,
    headline,
    image_status,
    levels_table,
    methods_table,
    nearest,
    score,
)
from braid.drifting.image.refiner import ImageRefiner, KeypatchCorruption
from tests.drifting.image.configs import evaluation_config, keypatch_config, refiner_config

CLASSES = 3
CENTERS = 3 * torch.randn(CLASSES, 1, 4, 4, generator=generator(9))
SPREAD = torch.linspace(1.5, 0.3, 16).view(1, 4, 4)


def draw(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images and their classes, uneven in number."""
    classes = (torch.arange(count) % 4).clamp(max=CLASSES - 1)
    white = torch.randn(count, 1, 4, 4, generator=generator(seed))
    return CENTERS[classes] + SPREAD * white, classes


@cache
def evaluator(size: int = 200) -> ImageEvaluator:
    config = evaluation_config(components=6, neighbors=5)
    return ImageEvaluator(*draw(2 * size, 1), *draw(size, 2), config)


def status_of(images: Tensor) -> str:
    return image_status(evaluator().figures(images), evaluator().accuracy(evaluator().test))


def test_new_images_of_the_same_kind_are_ok() -> None:
    new, _ = draw(200, 3)
    figures = evaluator().figures(new)
    assert tuple(figures) == MEASURES
    assert figures["accuracy"] > 0.95
    assert figures["frechet"] < 1
    assert min(figures[name] for name in ("precision", "recall", "coverage")) > 0.8
    assert figures["variance_ratio"] == pytest.approx(1, abs=0.15)
    assert figures["memorization_ratio"] == pytest.approx(1, abs=0.1)
    assert status_of(new) == "ok"


def test_one_image_a_class_is_collapsed_though_a_classifier_likes_it() -> None:
    one = evaluator().train[:CLASSES][evaluator().test_classes]
    figures = evaluator().figures(one)
    assert figures["accuracy"] == 1
    assert figures["recall"] == 0
    assert figures["variance_ratio"] == pytest.approx(0, abs=1e-6)
    assert status_of(one) == "collapsed"


def test_wide_images_are_scattered_though_recall_is_full() -> None:
    wide = draw(200, 3)[0] + 6 * torch.randn(200, 1, 4, 4, generator=generator(4))
    assert evaluator().figures(wide)["recall"] > 0.9
    assert status_of(wide) == "scattered"


def test_copies_of_training_images_are_memorized_though_all_else_is_fine() -> None:
    copies, _ = draw(400, 1)
    copies = copies[:200]  # the same classes as the held-out images, in their order
    figures = evaluator().figures(copies)
    assert figures["memorization_ratio"] == pytest.approx(0, abs=1e-6)
    assert figures["recall"] > 0.8
    assert status_of(copies) == "memorized"
    half = torch.where((torch.arange(200) % 2 == 0).view(-1, 1, 1, 1), copies, draw(200, 3)[0])
    assert evaluator().figures(half)["memorization_ratio"] == pytest.approx(0.5, abs=0.1)


def test_images_of_other_classes_are_off_class() -> None:
    new, classes = draw(200, 3)
    shifted = new - CENTERS[classes] + CENTERS[(classes + 1) % CLASSES]
    assert evaluator().accuracy(shifted) < 0.05
    assert evaluator().figures(shifted)["variance_ratio"] == pytest.approx(1, abs=0.15)
    assert status_of(shifted) == "off_class"


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, "ok"),
        ({"variance_ratio": 1.4, "recall": 0.0}, "scattered"),
        ({"variance_ratio": 0.3}, "collapsed"),
        ({"recall": 0.05, "memorization_ratio": 0.1}, "collapsed"),
        ({"memorization_ratio": 0.4, "accuracy": 0.1}, "memorized"),
        ({"accuracy": 0.85}, "off_class"),
    ],
)
def test_statuses_in_order(change: dict[str, float], status: str) -> None:
    good = {"recall": 0.8, "variance_ratio": 0.9, "memorization_ratio": 1.0, "accuracy": 0.95}
    assert image_status(good | change, accuracy_real=1.0) == status
    assert image_status(good | {"accuracy": 0.4}, accuracy_real=0.42) == "ok"


def test_the_nearest_image_is_found_in_chunks_and_a_copy_is_at_no_distance() -> None:
    images, references = (torch.randn(n, 2, 3, 3, generator=generator(n)) for n in (600, 40))
    expected = cdist(images.flatten(1), references.flatten(1)).min(axis=1).mean()
    assert nearest(images, references) == pytest.approx(float(expected))
    assert nearest(references, references) == pytest.approx(0, abs=1e-6)


def test_real_images_are_measured_class_for_class() -> None:
    real = evaluator().real(generator(0))
    assert set(real) == set(MEASURES)
    assert real["accuracy"] == evaluator().accuracy(evaluator().test) > 0.95
    assert real["memorization_ratio"] == 1
    assert 0 < real["frechet"] < 1
    assert real == evaluator().real(generator(0)) != evaluator().real(generator(1))
    chosen = evaluator()._class_for_class(generator(0))
    assert torch.equal(evaluator().train_classes[chosen], evaluator().test_classes)
    assert len(chosen.unique()) == len(chosen)


def test_large_images_reach_the_classifier_as_components() -> None:
    means = torch.randn(2, 1, 20, 20, generator=generator(5))
    classes = torch.arange(60) % 2
    images = means[classes] + torch.randn(60, 1, 20, 20, generator=generator(6))
    config = evaluation_config(components=4, neighbors=3)
    held_out = images[:30].flip(0), classes[:30].flip(0)
    large = ImageEvaluator(images, classes, *held_out, config)
    assert [name for name, _ in large.classifier.steps] == ["pca", "svc"]
    assert [name for name, _ in evaluator().classifier.steps] == ["svc"]
    assert large.accuracy(large.test) == 1
    assert large.accuracy(large.test.flip(0)) < 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"components": 17}, "components is 17, expected at most 16: 40 samples of 16"),
        ({"test_classes": torch.full((20,), 7)}, "class 7 has test images, but no training"),
        (
            {"train_classes": torch.zeros(40).long(), "test_classes": torch.zeros(20).long()},
            "one class, expected two or more",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_named(changes: dict[str, Any], message: str) -> None:
    train, train_classes = draw(40, 1)
    test, test_classes = draw(20, 2)
    classes = {"train_classes": train_classes, "test_classes": test_classes}
    given = {"components": 4, **classes, **changes}
    config = evaluation_config(components=given.pop("components"), neighbors=3)
    with pytest.raises(ValueError, match=message):
        ImageEvaluator(train=train, test=test, config=config, **given)


def completion(
    count: int = 80, keep: bool = False, given: tuple[int, ...] = (1, 0), noise: float = 0.5
) -> Completion:
    torch.manual_seed(0)
    small = {"patch": 2, "dim": 8, "depth": 1, "heads": 2, "style": 8, "spread": 1.0}
    config = refiner_config(**small, keep_anchors_fixed=keep)
    refiner = ImageRefiner((1, 4, 4), CLASSES, 3, config).eval()
    corruption = KeypatchCorruption((4, 4), 2, keypatch_config(given=given, noise=noise))
    return Completion(refiner, corruption, *draw(count, 2), generator(0))


@pytest.mark.parametrize("keep", [False, True])
def test_given_patches_are_measured_clamped_and_not_however_the_refiner_is_configured(
    keep: bool,
) -> None:
    work = completion(keep=keep)
    truth, level = work.truth, work.complete(1, alpha=1.0)
    given, images = level.given, level.images
    assert work.refined == ("clamped" if keep else "unclamped")
    assert tuple(sorted(images)) == tuple(sorted(METHODS))
    assert given.shape == truth.shape
    assert (given.sum((1, 2, 3)) == 4).all()
    for name in ("corrupted", "interpolated", "clamped"):
        assert errors(images[name], truth, given)["given_error"] == 0, name
    off = (images["unclamped"] - truth)[given]
    figures = errors(images["unclamped"], truth, given)
    assert figures["given_error"] == pytest.approx(float(off.square().mean()))
    missed = (images["unclamped"] - truth)[~given].square().mean()
    assert figures["mse_missing"] == pytest.approx(float(missed))
    assert figures["mse_all"] == pytest.approx(float((off.square().mean() + 3 * missed) / 4))
    assert torch.equal(images["clamped"], torch.where(given, truth, images["unclamped"]))
    noise = (images["corrupted"] - images["interpolated"])[~given]
    assert float(noise.std()) == pytest.approx(0.5, rel=0.15)
    other = work.complete(1, alpha=3.0).images
    assert torch.equal(other["corrupted"], images["corrupted"])
    assert not torch.equal(other["unclamped"], images["unclamped"])


def test_nothing_given_has_no_error() -> None:
    work = completion(8, noise=0.0)
    level = work.complete(2, alpha=1.0)
    figures = errors(level.images["unclamped"], work.truth, level.given)
    assert figures["given_error"] is None
    assert figures["mse_missing"] == figures["mse_all"]
    assert not level.images["interpolated"].any()
    assert torch.equal(level.images["clamped"], level.images["unclamped"])


def test_every_level_and_method_is_scored_and_tabled() -> None:
    work = completion(200)
    completed = work(alpha=1.0)
    assert list(completed) == [1, 0]
    levels = score(evaluator(), completed)
    assert {name for methods in levels.values() for name in methods} == set(METHODS)
    for given, methods in levels.items():
        for name, images in completed[given].images.items():
            assert methods[name].items() >= evaluator().figures(images).items()
    rows = levels_table(levels, {"accuracy": 0.75})
    assert [row["given"] for row in rows] == [1, 0]
    assert rows[0]["given_error_unclamped"] == levels[1]["unclamped"]["given_error"]
    assert {row["accuracy_real"] for row in rows} == {0.75}
    sweep = alpha_table(evaluator(), work, [1.0, 3.0], alpha_max=2.0)
    assert [(row["alpha"], row["trained"]) for row in sweep] == [(1.0, 1), (3.0, 0)]
    assert sweep[0]["frechet_0"] == levels[0]["unclamped"]["frechet"]
    assert sweep[1]["frechet_1"] != sweep[0]["frechet_1"]
    assert work.milliseconds(alpha=1.0) > 0


def figures_of(level: float) -> dict[str, dict[str, float | None]]:
    """By method; every figure tells its level and its method apart."""
    return {
        name: dict.fromkeys((*MEASURES, *ERRORS), level + 0.01 * turn)
        for turn, name in enumerate(METHODS)
    }


REAL = dict.fromkeys(MEASURES, 0.5)


def test_generation_and_the_fewest_given_patches_stand_for_all_levels() -> None:
    levels = {8: figures_of(0.8), 4: figures_of(0.4), 0: figures_of(1.0)}
    rows = {row["method"]: row for row in methods_table(levels, REAL, "unclamped", 446)}
    assert list(rows) == ["generated", "refined", *METHODS, "real"]
    assert [row.get("given") for row in rows.values()] == [0, *5 * [4], None]
    assert rows["generated"].items() >= levels[0]["unclamped"].items()
    assert rows["refined"].items() >= levels[4]["unclamped"].items()
    assert rows["clamped"].items() >= levels[4]["clamped"].items()
    assert rows["real"].items() >= REAL.items()
    assert (rows["generated"]["status"], rows["refined"]["status"]) == ("ok", "memorized")
    assert {row["images"] for row in rows.values()} == {446}
    brief = headline(list(rows.values()))
    assert brief == {
        "frechet": {
            "generated": pytest.approx(1.02),
            "refined": pytest.approx(0.42),
            "interpolated": pytest.approx(0.41),
            "real": 0.5,
        },
        "accuracy": brief["frechet"],
        "recall": pytest.approx(1.02),
        "status": "ok",
    }
    clamped = headline(methods_table(levels, REAL, "clamped", 446))
    assert clamped["frechet"]["refined"] == levels[4]["clamped"]["frechet"]
    assert clamped["frechet"]["generated"] == levels[0]["clamped"]["frechet"]


@pytest.mark.parametrize(
    ("given", "method", "lacks"), [(4, "generated", "0"), (0, "refined", "number above 0")]
)
def test_a_level_that_was_not_trained_is_null_with_a_reason(
    given: int, method: str, lacks: str
) -> None:
    whole = methods_table({4: figures_of(1.0), 0: figures_of(1.0)}, REAL, "unclamped", 446)
    rows = methods_table({given: figures_of(1.0)}, REAL, "unclamped", 446)
    missing = {row["method"]: row for row in rows}[method]
    assert missing["status"] is missing["accuracy"] is None
    assert missing["status_reason"] == f"image_drift.corruption.given has no {lacks}"
    assert [set(row) for row in rows] == [set(row) for row in whole]
    assert all(row.get("status_reason") is None for row in whole)
    assert headline(rows)["frechet"][method] is None
    assert (headline(rows)["status"] is None) == (method == "generated")
