import math
import sys
from types import ModuleType

import pytest
import torch

from braid.radiance.gaussians import splat
from braid.radiance.gaussians import splat as tiles
from braid.radiance.gaussians.gaussians import Gaussians
from braid.radiance.gaussians.splat import project
from braid.radiance.scenes.cameras import Cameras
from tests.radiance import splat_reference
from tests.radiance.few_splats import NAMES, camera, one, random_gaussians, together


def image_and_gradients(renderer, gaussians):
    leaves = Gaussians(*(getattr(gaussians, name).clone().requires_grad_() for name in NAMES))
    rendered = renderer(leaves)
    generator = torch.Generator().manual_seed(1)
    loss = sum((torch.randn(out.shape, generator=generator) * out).sum() for out in rendered)
    loss.backward()
    return rendered, [getattr(leaves, name).grad for name in NAMES]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("spread", "tile"), [(0.5, 4), (0.5, 16), (3.0, 4)])
def test_image_and_gradients_agree_with_the_reference(dtype, spread, tile):
    cameras = camera(23, 17)
    gaussians = random_gaussians(60, spread=spread)
    expected, expected_gradients = image_and_gradients(
        lambda g: splat_reference.render(g, cameras, 0), gaussians
    )
    gaussians = Gaussians(*(getattr(gaussians, name).to(dtype) for name in NAMES))
    rendered, gradients = image_and_gradients(
        lambda g: splat.render(g, cameras, 0, tile=tile), gaussians
    )
    for got, want in zip([*rendered, *gradients], [*expected, *expected_gradients], strict=True):
        scale = max(1.0, want.detach().abs().max().item())
        torch.testing.assert_close(got.double(), want, atol=1e-5 * scale, rtol=0)


def test_gradcheck_of_a_tiny_scene():
    gaussians = random_gaussians(3, degree=1)
    gaussians.means *= 0.3
    cameras = camera(6, 5, focal=12.0)

    def function(*values):
        return splat.render(Gaussians(*values), cameras, 0, tile=4)

    inputs = [getattr(gaussians, name).requires_grad_() for name in NAMES]
    assert torch.autograd.gradcheck(function, inputs, eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("tile", [1, 3, 5, 8, 64])
def test_image_does_not_depend_on_the_tile_size(tile):
    gaussians, cameras = random_gaussians(50, seed=3), camera(21, 18)
    expected = splat.render(gaussians, cameras, 0, tile=4)
    for got, want in zip(splat.render(gaussians, cameras, 0, tile=tile), expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-12, rtol=0)


def test_image_does_not_depend_on_the_batches(monkeypatch):
    gaussians, cameras = random_gaussians(50, seed=3), camera(21, 18)
    expected = splat.render(gaussians, cameras, 0)
    monkeypatch.setattr(tiles, "_CHUNK", 64)
    for got, want in zip(splat.render(gaussians, cameras, 0), expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-12, rtol=0)


def test_order_of_the_gaussians_does_not_matter():
    gaussians, cameras = random_gaussians(40), camera(20, 20)
    shuffled = gaussians[torch.randperm(40, generator=torch.Generator().manual_seed(0))]
    for got, want in zip(
        splat.render(shuffled, cameras, 0), splat.render(gaussians, cameras, 0), strict=True
    ):
        torch.testing.assert_close(got, want, atol=1e-12, rtol=0)


def test_round_gaussian_on_the_axis_has_the_closed_form_alpha_and_color():
    cameras = camera(33, 33, distance=4.0, focal=40.0)
    rendered = splat.render(one(scale=0.15, opacity=0.8, gray=0.7), cameras, 0)
    variance = (40.0 * 0.15 / 4.0) ** 2 + 0.3
    place = torch.arange(33, dtype=torch.float64) + 0.5 - 16.5
    squared = place[:, None] ** 2 + place[None, :] ** 2
    expected = 0.8 * torch.exp(-squared / (2 * variance))
    expected = torch.where(expected < 1 / 255, 0, expected)
    torch.testing.assert_close(rendered.alpha, expected)
    torch.testing.assert_close(rendered.rgb, (0.7 * expected)[..., None].expand(33, 33, 3))
    assert rendered.depth[16, 16] == pytest.approx(4.0)


def test_alpha_sums_to_the_integral_of_a_two_dimensional_gaussian():
    gaussians = one(scale=0.3, opacity=0.9)
    gaussians.log_scales = torch.log(torch.tensor([[0.3, 0.12, 0.2]], dtype=torch.float64))
    gaussians.quaternions = torch.tensor([[0.9, 0.0, 0.0, 0.4]], dtype=torch.float64)
    rendered = splat.render(gaussians, camera(80, 80, focal=60.0), 0)
    magnification = 60.0 / 4.0
    determinant = ((magnification * 0.3) ** 2 + 0.3) * ((magnification * 0.12) ** 2 + 0.3)
    cut = 1 / 255  # the tail below 1/255 of alpha is left out: its integral is 2 pi sqrt(det) / 255
    expected = (0.9 - cut) * 2 * math.pi * math.sqrt(determinant)
    assert float(rendered.alpha.sum()) == pytest.approx(expected, rel=2e-3)


def test_depth_is_the_distance_along_the_unit_ray():
    # A wall of wide splats in the plane z = 0: the distance grows with the angle.
    grid = torch.linspace(-3, 3, 13, dtype=torch.float64).tolist()
    wall = together(*(one((x, y, 0.0), scale=0.5) for x in grid for y in grid))
    cameras = camera(15, 11, distance=2.0)
    rendered = splat.render(wall, cameras, 0)
    directions = cameras.view_rays(0).directions.view(11, 15, 3)
    torch.testing.assert_close(
        rendered.depth, 2.0 / -directions[..., 2].double(), rtol=1e-6, atol=0
    )


def test_nearer_of_two_splats_hides_the_farther():
    near, far = one((0, 0, 1.0), opacity=0.9, gray=1.0), one((0, 0, -1.0), opacity=0.9, gray=0.0)
    swapped = one((0, 0, -1.0), opacity=0.9, gray=1.0), one((0, 0, 1.0), opacity=0.9, gray=0.0)
    cameras = camera(9, 9)
    bright = splat.render(together(near, far), cameras, 0).rgb[4, 4, 0]
    dark = splat.render(together(*swapped), cameras, 0).rgb[4, 4, 0]
    peak = splat.render(near, cameras, 0).alpha[4, 4]
    assert float(bright) == pytest.approx(float(peak))
    assert float(dark) == pytest.approx(
        float(0.1 * splat.render(swapped[0], cameras, 0).alpha[4, 4]), rel=0.1
    )


def test_what_lies_behind_the_camera_changes_nothing_and_has_zero_finite_gradients():
    cameras = camera(16, 16)
    front = random_gaussians(10)
    hidden = random_gaussians(30, seed=5)
    hidden.means[:, 2] = torch.linspace(3.81, 9.0, 30)  # the camera is at 4, near plane at 3.8
    hidden.means[3] = torch.tensor([0.0, 0.0, 4.0])  # in the camera itself
    expected = splat.render(front, cameras, 0)
    rendered, gradients = image_and_gradients(
        lambda g: splat.render(g, cameras, 0), together(front, hidden)
    )
    for got, want in zip(rendered, expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-12, rtol=0)
    for gradient in gradients:
        assert gradient.isfinite().all()
        assert gradient[10:].eq(0).all()
        assert gradient[:10].ne(0).any()


def test_needles_thousands_of_pixels_long_stay_finite():
    needles = together(*(one((0.3, 0.3, 3.7), scale=1e-4, dtype=torch.float32) for _ in range(20)))
    needles.log_scales[:, 0] = 6.0
    needles.quaternions = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    cameras = camera(16, 16, dtype=torch.float32)
    xx, xy, yy = project(needles, cameras, 0).covariances
    assert (xx * yy - xy * xy).min() <= 0  # rounding has the last word in this determinant
    rendered, gradients = image_and_gradients(lambda g: splat.render(g, cameras, 0), needles)
    assert rendered.alpha.max() > 0
    assert all(values.isfinite().all() for values in (*rendered, *gradients))


def test_view_without_a_visible_splat_is_empty_and_differentiable():
    cameras = camera(8, 8)
    rendered, gradients = image_and_gradients(
        lambda g: splat.render(g, cameras, 0), one((0.0, 0.0, 50.0))
    )
    assert all(out.eq(0).all() for out in rendered)
    assert all(gradient.eq(0).all() for gradient in gradients)


def test_opaque_front_stops_what_lies_behind():
    stack = together(*(one((0, 0, 0.5 - 0.1 * i), 2.0, 0.98, gray=float(i >= 3)) for i in range(6)))
    rendered = splat.render(stack, camera(5, 5), 0)
    assert float(rendered.rgb[2, 2].max()) == 0.0  # 0.02^3 < 1e-4 is left behind the first three
    assert float(rendered.alpha[2, 2]) == pytest.approx(1 - 0.02**3, rel=1e-6)


def test_slopes_beyond_the_field_are_clamped_in_the_jacobian_only():
    cameras = camera(20, 20, focal=20.0)
    splats = project(one((3.6, 0.0, 0.0), scale=0.1), cameras, 0)
    assert float(splats.centers[0]) == pytest.approx(20.0 * 3.6 / 4 + 10)
    limit = 1.3 * 0.5
    assert float(splats.covariances[0]) == pytest.approx(
        (20.0 * 0.1 / 4) ** 2 * (1 + limit**2) + 0.3
    )


def test_rendering_twice_gives_the_same_bytes():
    gaussians, cameras = random_gaussians(80, torch.float32), camera(30, 30)
    runs = [image_and_gradients(lambda g: splat.render(g, cameras, 0), gaussians) for _ in range(2)]
    for first, second in zip([*runs[0][0], *runs[0][1]], [*runs[1][0], *runs[1][1]], strict=True):
        assert torch.equal(first, second)


def test_backend_that_is_unknown_or_cannot_run_is_refused():
    with pytest.raises(ValueError, match="auto, torch or gsplat, got 'cuda'"):
        splat.render(one(), camera(4, 4), 0, backend="cuda")
    with pytest.raises(ValueError, match="CUDA device"):
        splat.render(one(), camera(4, 4), 0, backend="gsplat")


def test_gsplat_is_given_activated_values_and_opencv_cameras(monkeypatch):
    """A stand-in that renders its arguments with the reference."""
    gaussians, cameras = random_gaussians(20), camera(12, 10)
    expected = splat.render(gaussians, cameras, 0)
    flip = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)

    def rasterization(*, means, quats, scales, opacities, colors, viewmats, Ks, **options):
        assert options["sh_degree"] == 3
        assert options["render_mode"] == "RGB+D"
        splats = Gaussians(means, scales.log(), quats, torch.logit(opacities), colors)
        pose = torch.linalg.inv(viewmats[0]) * flip
        seen = Cameras(pose[None], float(Ks[0, 0, 0]), options["width"], options["height"])
        rendered = splat_reference.render(splats, seen, 0)
        z = rendered.depth * rendered.alpha * -seen.view_rays(0).directions[:, 2].view(10, 12)
        image = torch.cat([rendered.rgb, z[..., None]], dim=-1)
        return image[None], rendered.alpha[None, ..., None], {}

    module = ModuleType("gsplat")
    module.rasterization = rasterization
    monkeypatch.setitem(sys.modules, "gsplat", module)
    rendered = splat._render_gsplat(gaussians, cameras, 0)
    for got, want in zip(rendered, expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_cpu():
    gaussians, cameras = random_gaussians(60, torch.float32), camera(23, 17, dtype=torch.float32)
    expected = splat.render(gaussians, cameras, 0)
    device = torch.device("cuda")
    rendered = splat.render(gaussians.to(device), cameras.to(device), 0, backend="torch")
    for got, want in zip(rendered, expected, strict=True):
        torch.testing.assert_close(got.cpu(), want, atol=1e-4, rtol=0)
