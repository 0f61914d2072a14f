"""LPIPS with a trunk of random weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from braid.common.torchvision import mend_torchvision
from braid.radiance.evaluation.image_metrics import Lpips, evaluate
from tests.radiance.pictures import noise, views

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the format of torchvision's AlexNet file, without the classifier."""
    mend_torchvision()
    from torchvision.models import alexnet

    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = {k: v for k, v in alexnet(weights=None).state_dict().items() if "features" in k}
    path = tmp_path_factory.mktemp("trunk") / "alexnet.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def lpips(trunk: Path) -> Lpips:
    return Lpips(trunk, CPU)


def test_lpips_is_zero_for_equal_images_symmetric_and_positive_for_others(
    lpips: Lpips, trunk: Path
) -> None:
    x, y = noise(2, 40, 40, 3), noise(2, 40, 40, 3, seed=1)
    assert lpips(x, x).tolist() == [0, 0]
    torch.testing.assert_close(lpips(x, y), lpips(y, x))
    assert bool((lpips(x, y) > 1e-4).all())
    assert lpips.sha256 == hashlib.sha256(trunk.read_bytes()).hexdigest()


def test_lpips_takes_its_trunk_from_the_file(lpips: Lpips, trunk: Path, tmp_path: Path) -> None:
    state = torch.load(trunk, weights_only=True)
    other = tmp_path / "other.pth"
    torch.save({k: v * 1.5 if k == "features.10.bias" else v for k, v in state.items()}, other)
    x, y = noise(1, 40, 40, 3), noise(1, 40, 40, 3, seed=1)
    assert float(lpips(x, y)) != float(Lpips(other, CPU)(x, y))


def test_lpips_agrees_with_its_definition(lpips: Lpips, trunk: Path) -> None:
    """Five stages, unit channels, squared difference, linear heads; from [0, 1] images."""
    x, y = noise(1, 48, 48, 3), noise(1, 48, 48, 3, seed=1)
    heads = [getattr(lpips.model, f"lin{i}").model[-1].weight.detach() for i in range(5)]
    total = torch.zeros(())
    stages = zip(alexnet_stages(trunk, x), alexnet_stages(trunk, y), heads, strict=True)
    for a, b, head in stages:
        a, b = a / (a.norm(dim=1, keepdim=True) + 1e-10), b / (b.norm(dim=1, keepdim=True) + 1e-10)
        total = total + ((a - b) ** 2 * head).sum(dim=1).mean()
    assert float(lpips(x, y)) == pytest.approx(float(total), rel=1e-4)


def alexnet_stages(path: Path, image: torch.Tensor) -> list[torch.Tensor]:
    """Activations after each convolution of the AlexNet trunk, written out."""
    state = torch.load(path, weights_only=True)
    shift = torch.tensor([-0.030, -0.088, -0.188])
    scale = torch.tensor([0.458, 0.448, 0.450])
    x = ((2 * image - 1 - shift) / scale).permute(0, 3, 1, 2)
    stages = []
    for layer, stride, padding in ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1)):
        if layer in (3, 6):
            x = torch.nn.functional.max_pool2d(x, 3, 2)
        weight, bias = state[f"features.{layer}.weight"], state[f"features.{layer}.bias"]
        x = torch.nn.functional.conv2d(x, weight, bias, stride, padding).relu()
        stages.append(x)
    return stages


def test_building_lpips_leaves_the_global_generator_alone(trunk: Path) -> None:
    before = torch.random.get_rng_state()
    Lpips(trunk, CPU)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_bad_trunk_files_are_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.pth"
    with pytest.raises(ValueError, match=r"bad\.pth: cannot read LPIPS trunk weights"):
        Lpips(bad, CPU)
    bad.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"bad\.pth: not a PyTorch state dict"):
        Lpips(bad, CPU)
    for content in ({"features.0.weight": torch.zeros(3)}, {"a": torch.zeros(3)}):
        torch.save(content, bad)
        with pytest.raises(ValueError, match=r"bad\.pth: not the state dict of torchvision's"):
            Lpips(bad, CPU)
    torch.save([1, 2], bad)
    with pytest.raises(ValueError, match=r"bad\.pth: expected a state dict, got list"):
        Lpips(bad, CPU)


def test_an_evaluation_says_which_lpips_it_measured(trunk: Path) -> None:
    scene = views(1, size=40)
    truth = scene.on_white()
    figures = evaluate(0.9 * truth, scene, scene, truth, trunk).figures
    assert isinstance(figures["lpips"], float)
    assert figures["lpips"] > 0
    assert (figures["lpips_net"], figures["lpips_version"]) == ("alex", "0.1")
    assert len(str(figures["lpips_weights_sha256"])) == 64
    assert "lpips_reason" not in figures
