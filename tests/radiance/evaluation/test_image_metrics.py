"""Metrics against closed forms and slow float64 references; baselines and named states."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from braid.radiance.evaluation import image_metrics
from braid.radiance.evaluation.image_metrics import (
    evaluate,
    foreground_psnr,
    psnr,
    ssim,
    status,
    trivial_predictions,
    validation_psnr,
)
from braid.radiance.scenes.blender import Views
from tests.radiance.pictures import noise, views


def test_psnr_of_a_constant_offset() -> None:
    truth = 0.5 * noise(3, 8, 8, 3)
    offset = torch.tensor([0.1, 0.01, 0.5])
    shifted = truth + offset[:, None, None, None]
    torch.testing.assert_close(psnr(shifted, truth), -20 * offset.log10(), rtol=0, atol=1e-3)


def test_psnr_of_uniform_noise() -> None:
    amplitude = 0.2
    error = amplitude * (2 * noise(1, 300, 300, 3) - 1)
    expected = -10 * math.log10(amplitude**2 / 3)
    assert float(psnr(error, torch.zeros_like(error))) == pytest.approx(expected, abs=0.03)


def test_psnr_of_equal_images_is_finite() -> None:
    assert float(psnr(noise(1, 4, 4, 3), noise(1, 4, 4, 3))) == pytest.approx(100)


def test_foreground_psnr_is_of_the_foreground_alone() -> None:
    truth, alpha = noise(2, 6, 6, 3), torch.zeros(2, 6, 6)
    alpha[0, :3] = 0.51
    alpha[0, 3:] = 0.5
    image = truth.clone()
    image[0, :3] += 0.1
    image[0, 3:] -= 0.7
    measured = foreground_psnr(image, truth, alpha)
    assert float(measured[0]) == pytest.approx(20, abs=1e-3)
    assert math.isnan(float(measured[1]))


def test_background_dilutes_the_error_by_the_foregrounds_fraction() -> None:
    scene = views()
    image = scene.on_white()
    image = torch.where(scene.alpha[..., None] > 0.5, image * 0.5, image)
    fraction = float((scene.alpha > 0.5).float().mean())
    whole = psnr(image, scene.on_white())
    foreground = foreground_psnr(image, scene.on_white(), scene.alpha)
    np.testing.assert_allclose(whole - foreground, -10 * math.log10(fraction), atol=1e-4)


def reference_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Wang et al.'s formula written out: a float64 loop over windows."""
    offset = np.arange(11) - 5
    window = np.exp(-(offset[:, None] ** 2 + offset**2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for row in range(x.shape[0] - 10):
        for column in range(x.shape[1] - 10):
            for channel in range(3):
                a = x[row : row + 11, column : column + 11, channel].astype(float)
                b = y[row : row + 11, column : column + 11, channel].astype(float)
                ma, mb = (window * a).sum(), (window * b).sum()
                va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
                cov = (window * (a - ma) * (b - mb)).sum()
                top = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4)
                values.append(top / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)))
    return float(np.mean(values))


def test_ssim_agrees_with_a_loop_over_windows() -> None:
    x = noise(2, 15, 13, 3)
    y = (x + 0.3 * (noise(2, 15, 13, 3, seed=1) - 0.5)).clamp(0, 1)
    x[1, 2:], y[1, 2:] = 1, 1  # a white background
    expected = [reference_ssim(a, b) for a, b in zip(x.numpy(), y.numpy(), strict=True)]
    np.testing.assert_allclose(ssim(x, y), expected, atol=2e-6)


def test_ssim_agrees_with_scikit_images_recipe() -> None:
    """gaussian_weights=True, use_sample_covariance=False: scipy's filter, borders cropped."""
    x, y = noise(1, 40, 30, 3), noise(1, 40, 30, 3, seed=1)

    def blur(image: np.ndarray) -> np.ndarray:
        return gaussian_filter(image, sigma=1.5, truncate=3.5, axes=(0, 1))

    a, b = x[0].double().numpy(), y[0].double().numpy()
    ma, mb = blur(a), blur(b)
    va, vb, cov = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
    map_ = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
    assert float(ssim(x, y)) == pytest.approx(map_[5:-5, 5:-5].mean(), abs=2e-6)


def test_ssim_of_equal_and_of_constant_images() -> None:
    x = noise(1, 12, 12, 3)
    assert float(ssim(x, x)) == pytest.approx(1, abs=1e-6)
    a, b = 0.2, 0.6
    flat = ssim(torch.full((1, 12, 12, 3), a), torch.full((1, 12, 12, 3), b))
    assert float(flat) == pytest.approx((2 * a * b + 1e-4) / (a**2 + b**2 + 1e-4), abs=3e-5)


def test_ssim_refuses_images_smaller_than_its_window() -> None:
    with pytest.raises(ValueError, match="at least 11 pixels, got 12x10"):
        ssim(noise(1, 10, 12, 3), noise(1, 10, 12, 3))


def test_trivial_predictions_are_what_they_say() -> None:
    truth, train = views(2, seed=0), views(3, seed=1)
    trivial = trivial_predictions(truth, train)
    assert all(image.shape == (2, 16, 16, 3) for image in trivial.values())
    inside = truth.alpha > 0.5
    color = trivial["silhouette"][inside]
    mean = train.rgba[..., :3][train.alpha > 0.5].mean(dim=0)
    torch.testing.assert_close(color, mean.expand_as(color))
    assert bool((trivial["silhouette"][~inside] == 1).all())
    assert bool((trivial["white"] == 1).all())
    torch.testing.assert_close(trivial["mean_image"][1], train.on_white().mean(dim=0))
    torch.testing.assert_close(trivial["mean_color"][0, 3, 4], train.on_white().mean((0, 1, 2)))


def test_named_states() -> None:
    assert status(9.79, psnr_white=9.5, psnr_silhouette=17) == "collapsed"
    assert status(9.21, psnr_white=9.5, psnr_silhouette=17) == "collapsed"
    assert status(9.81, psnr_white=9.5, psnr_silhouette=17) == "below_silhouette"
    assert status(2.0, psnr_white=9.5, psnr_silhouette=17) == "below_silhouette"
    assert status(17.0, psnr_white=9.5, psnr_silhouette=17) == "below_silhouette"
    assert status(17.1, psnr_white=9.5, psnr_silhouette=17) == "ok"
    assert status(math.nan, psnr_white=9.5, psnr_silhouette=17) == "below_silhouette"


def test_evaluation_names_every_figure_and_knows_a_blank_image() -> None:
    truth, train = views(2, seed=0), views(3, seed=1)
    blank = torch.ones(2, 16, 16, 3)
    evaluation = evaluate(blank, truth, train, teacher=blank, weights=None)
    figures = evaluation.figures
    assert list(figures) == [
        "psnr",
        "ssim",
        "lpips",
        "lpips_reason",
        "psnr_foreground",
        "status",
        "psnr_vs_teacher",
    ]
    assert list(evaluation.baselines) == ["white", "mean_color", "mean_image", "silhouette"]
    assert figures["psnr"] == evaluation.baselines["white"]
    assert figures["status"] == "collapsed"
    assert figures["psnr_vs_teacher"] == pytest.approx(100)
    assert figures["lpips"] is None
    assert figures["lpips_reason"]
    perfect = evaluate(truth.on_white(), truth, train, blank, None).figures
    assert perfect["status"] == "ok"
    assert perfect["psnr_vs_teacher"] == figures["psnr"]


def test_the_headline_is_short_and_the_table_has_the_rest() -> None:
    truth, train = views(2, seed=0), views(3, seed=1)
    evaluation = evaluate(0.9 * truth.on_white(), truth, train, truth.on_white(), None)
    headline = evaluation.headline()
    names = {"psnr", "ssim", "lpips", "psnr_foreground", "psnr_silhouette", "status"}
    assert set(headline) == {*names, "psnr_vs_teacher"}
    of_the_teacher = evaluate(truth.on_white(), truth, train, None, None)
    assert set(of_the_teacher.headline()) == names  # it is not compared with itself
    model, *trivial = evaluation.rows("lego", "sh", {}, parameters=12)
    assert (model["scene"], model["variant"], model["parameters"]) == ("lego", "sh", 12)
    assert evaluation.figures.items() <= model.items()
    assert "white background" in str(model["conventions"])
    assert trivial[0] == {
        "scene": "lego",
        "variant": "baseline_white",
        "psnr": evaluation.baselines["white"],
    }
    assert trivial[-1]["psnr"] == headline["psnr_silhouette"]


def test_colors_are_scored_as_a_screen_shows_them() -> None:
    truth, train = views(2, seed=0), views(3, seed=1)
    glaring = truth.on_white() + 3.0 * (truth.on_white() == 1)
    assert evaluate(glaring, truth, train, glaring, None).figures["psnr"] == pytest.approx(100)
    assert validation_psnr(glaring, truth) == pytest.approx(100)


def test_a_scene_without_foreground_has_no_foreground_figure() -> None:
    scene = views(1)
    empty = Views(scene.cameras, torch.zeros_like(scene.rgba))
    figures = evaluate(scene.on_white(), empty, scene, scene.on_white(), None).figures
    assert figures["psnr_foreground"] is None


def test_a_device_holds_one_view_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, train = views(5), views(3)
    whole = evaluate(0.9 * truth.on_white(), truth, train, truth.on_white(), None).figures
    sizes: list[int] = []

    def noted(images: Tensor, truth: Tensor) -> Tensor:
        sizes.append(len(images))
        return ssim(images, truth)

    monkeypatch.setattr(image_metrics, "ssim", noted)
    device = torch.device("cpu")
    again = evaluate(0.9 * truth.on_white(), truth, train, truth.on_white(), None, device).figures
    assert again == whole
    assert sizes == [1] * 5
