"""The judge of images: what each way of failing scores, and what it is called."""

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
    ImageJudge,
    complete,
    errors,
    image_status,
    nearest,
    summary,
)
from braid.drifting.image.corruption import KeypatchCorruption
from braid.drifting.image.refiner import ImageRefiner

CLASSES = 3
CENTRES = 3 * torch.randn(CLASSES, 1, 4, 4, generator=generator(9))
SPREAD = torch.linspace(1.5, 0.3, 16).view(1, 4, 4)


def draw(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images and their classes, uneven in number."""
    classes = (torch.arange(count) % 4).clamp(max=CLASSES - 1)
    white = torch.randn(count, 1, 4, 4, generator=generator(seed))
    return CENTRES[classes] + SPREAD * white, classes


@cache
def judge(size: int = 200) -> ImageJudge:
    return ImageJudge(*draw(2 * size, 1), *draw(size, 2), components=6, neighbours=5)


def status_of(images: Tensor) -> str:
    return image_status(judge().figures(images), judge().accuracy(judge().test))


def test_new_images_of_the_same_kind_are_ok() -> None:
    made, _ = draw(200, 3)
    figures = judge().figures(made)
    assert tuple(figures) == MEASURES
    assert figures["accuracy"] > 0.95
    assert figures["frechet"] < 1
    assert min(figures[name] for name in ("precision", "recall", "coverage")) > 0.8
    assert figures["variance_ratio"] == pytest.approx(1, abs=0.15)
    assert figures["memorisation_ratio"] == pytest.approx(1, abs=0.1)
    assert status_of(made) == "ok"


def test_one_image_a_class_is_collapsed_though_a_classifier_likes_it() -> None:
    one = judge().train[:CLASSES][judge().test_classes]
    figures = judge().figures(one)
    assert figures["accuracy"] == 1
    assert figures["recall"] == 0
    assert figures["variance_ratio"] == pytest.approx(0, abs=1e-6)
    assert status_of(one) == "collapsed"


def test_wide_images_are_scattered_though_recall_is_full() -> None:
    wide = draw(200, 3)[0] + 6 * torch.randn(200, 1, 4, 4, generator=generator(4))
    assert judge().figures(wide)["recall"] > 0.9
    assert status_of(wide) == "scattered"


def test_copies_of_training_images_are_memorised_though_all_else_is_fine() -> None:
    copies, _ = draw(400, 1)
    copies = copies[:200]  # the same classes as the held-out images, in their order
    figures = judge().figures(copies)
    assert figures["memorisation_ratio"] == pytest.approx(0, abs=1e-6)
    assert figures["recall"] > 0.8
    assert status_of(copies) == "memorised"
    half = torch.where((torch.arange(200) % 2 == 0).view(-1, 1, 1, 1), copies, draw(200, 3)[0])
    assert judge().figures(half)["memorisation_ratio"] == pytest.approx(0.5, abs=0.1)


def test_images_of_other_classes_are_off_class() -> None:
    made, classes = draw(200, 3)
    shifted = made - CENTRES[classes] + CENTRES[(classes + 1) % CLASSES]
    assert judge().accuracy(shifted) < 0.05
    assert judge().figures(shifted)["variance_ratio"] == pytest.approx(1, abs=0.15)
    assert status_of(shifted) == "off_class"


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, "ok"),
        ({"variance_ratio": 1.4, "recall": 0.0}, "scattered"),
        ({"variance_ratio": 0.3}, "collapsed"),
        ({"recall": 0.05, "memorisation_ratio": 0.1}, "collapsed"),
        ({"memorisation_ratio": 0.4, "accuracy": 0.1}, "memorised"),
        ({"accuracy": 0.85}, "off_class"),
    ],
)
def test_statuses_in_order(change: dict[str, float], status: str) -> None:
    good = {"recall": 0.8, "variance_ratio": 0.9, "memorisation_ratio": 1.0, "accuracy": 0.95}
    assert image_status(good | change, accuracy_real=1.0) == status
    assert image_status(good | {"accuracy": 0.4}, accuracy_real=0.42) == "ok"


def test_the_nearest_image_is_found_in_chunks_and_a_copy_is_at_no_distance() -> None:
    images, known = (torch.randn(n, 2, 3, 3, generator=generator(n)) for n in (600, 40))
    expected = cdist(images.flatten(1), known.flatten(1)).min(axis=1).mean()
    assert nearest(images, known) == pytest.approx(float(expected))
    assert nearest(known, known) == pytest.approx(0, abs=1e-6)


def test_real_images_are_measured_class_for_class() -> None:
    real = judge().real(generator(0))
    assert set(real) == set(MEASURES)
    assert real["accuracy"] == judge().accuracy(judge().test) > 0.95
    assert real["memorisation_ratio"] == 1
    assert 0 < real["frechet"] < 1
    assert real == judge().real(generator(0)) != judge().real(generator(1))
    chosen = judge()._class_for_class(generator(0))
    assert torch.equal(judge().train_classes[chosen], judge().test_classes)
    assert len(chosen.unique()) == len(chosen)


def test_large_images_reach_the_classifier_as_components() -> None:
    means = torch.randn(2, 1, 20, 20, generator=generator(5))
    classes = torch.arange(60) % 2
    images = means[classes] + torch.randn(60, 1, 20, 20, generator=generator(6))
    large = ImageJudge(
        images, classes, images[:30].flip(0), classes[:30].flip(0), components=4, neighbours=3
    )
    assert [name for name, _ in large.classifier.steps] == ["pca", "svc"]
    assert [name for name, _ in judge().classifier.steps] == ["svc"]
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
def test_what_cannot_be_judged_is_named(changes: dict[str, Any], message: str) -> None:
    train, train_classes = draw(40, 1)
    test, test_classes = draw(20, 2)
    given: dict[str, Any] = {
        "train_classes": train_classes,
        "test_classes": test_classes,
        "components": 4,
    }
    with pytest.raises(ValueError, match=message):
        ImageJudge(train=train, test=test, neighbours=3, **given | changes)


def refiner(keep: bool) -> ImageRefiner:
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "patch": 2,
        "dim": 8,
        "depth": 1,
        "heads": 2,
        "style": 8,
        "spread": 1.0,
    }
    return ImageRefiner((1, 4, 4), CLASSES, 3, **shape, keep_anchors_fixed=keep).eval()


@pytest.mark.parametrize("keep", [False, True])
def test_known_patches_are_measured_clamped_and_not_whatever_the_refiner_does(keep: bool) -> None:
    corruption = KeypatchCorruption((4, 4), 2, known=[1, 0], noise=0.5)
    truth, classes = draw(80, 2)
    model = refiner(keep)
    known, made = complete(model, corruption, truth, classes, 1, 1.0, generator(0))
    assert model.keep_anchors_fixed is keep
    assert tuple(sorted(made)) == tuple(sorted(METHODS))
    assert known.shape == truth.shape
    assert (known.sum((1, 2, 3)) == 4).all()
    for name in ("corrupted", "interpolated", "clamped"):
        assert errors(made[name], truth, known)["known_error"] == 0, name
    off = (made["unclamped"] - truth)[known]
    found = errors(made["unclamped"], truth, known)
    assert found["known_error"] == pytest.approx(float(off.square().mean()))
    missed = (made["unclamped"] - truth)[~known].square().mean()
    assert found["mse_missing"] == pytest.approx(float(missed))
    assert found["mse_all"] == pytest.approx(float((off.square().mean() + 3 * missed) / 4))
    assert torch.equal(made["clamped"], torch.where(known, truth, made["unclamped"]))
    noise = (made["corrupted"] - made["interpolated"])[~known]
    assert float(noise.std()) == pytest.approx(0.5, rel=0.15)
    other = complete(model, corruption, truth, classes, 1, 3.0, generator(0))[1]
    assert torch.equal(other["corrupted"], made["corrupted"])
    assert not torch.equal(other["unclamped"], made["unclamped"])


def test_nothing_known_has_no_error() -> None:
    corruption = KeypatchCorruption((4, 4), 2, known=[1, 0])
    truth, classes = draw(8, 2)
    known, made = complete(refiner(False), corruption, truth, classes, 2, 1.0, generator(0))
    found = errors(made["unclamped"], truth, known)
    assert found["known_error"] is None
    assert found["mse_missing"] == found["mse_all"]
    assert not made["interpolated"].any()
    assert torch.equal(made["clamped"], made["unclamped"])


def figures_of(level: float) -> dict[str, dict[str, float | None]]:
    """By method; every figure tells its level and its method apart."""
    return {
        name: dict.fromkeys((*MEASURES, *ERRORS), level + 0.01 * turn)
        for turn, name in enumerate(METHODS)
    }


REAL = dict.fromkeys(MEASURES, 0.5)


def test_the_summary_takes_generation_bare_and_the_fewest_known_by_method() -> None:
    levels = {8: figures_of(0.8), 4: figures_of(0.4), 0: figures_of(1.0)}
    brief = summary(levels, REAL, "unclamped")
    turn = METHODS.index("unclamped")
    assert brief["accuracy_real"] == brief["frechet_real"] == 0.5
    assert brief["accuracy_interpolated"] == levels[4]["interpolated"]["accuracy"]
    assert brief["frechet_refined"] == pytest.approx(0.4 + 0.01 * turn)
    assert brief["accuracy_generated"] == brief["recall"] == pytest.approx(1 + 0.01 * turn)
    assert brief["known_error_clamped"] == levels[4]["clamped"]["known_error"]
    assert brief["status"] == "ok"
    clamped = summary(levels, REAL, "clamped")
    assert clamped["frechet_refined"] == levels[4]["clamped"]["frechet"]
    assert clamped["frechet_generated"] == levels[0]["clamped"]["frechet"]


@pytest.mark.parametrize(
    ("known", "status", "lacks"), [(4, "status", "0"), (0, "status_refined", "number above 0")]
)
def test_a_level_that_was_not_trained_is_null_with_a_reason(
    known: int, status: str, lacks: str
) -> None:
    whole = summary({4: figures_of(1.0), 0: figures_of(1.0)}, REAL, "unclamped")
    brief = summary({known: figures_of(1.0)}, REAL, "unclamped")
    assert brief[status] is None
    assert brief.pop(f"{status}_reason") == f"image_corruption.known has no {lacks}"
    assert set(brief) == set(whole)
    missing = "generated" if known else "refined"
    assert brief[f"accuracy_{missing}"] is None
