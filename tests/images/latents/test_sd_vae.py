from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import avg_pool2d

from braid.common.torchvision import mend_torchvision
from braid.images.latents.sd_vae import SdVae, decoder, load_sd_vae
from tests.images.stand_in_vae import SCALE, SHIFT, StandInVae, install

PIXELS = 2 * torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(0)) - 1


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    (tmp_path / "config.json").touch()
    return install(monkeypatch)


def test_latents_are_shifted_and_scaled_means(tmp_path: Path, loads: list[Any]) -> None:
    latents = load_sd_vae(tmp_path).encode(PIXELS)
    assert latents.shape == (3, 4, 2, 3)
    torch.testing.assert_close(latents[:, :3], (4 * avg_pool2d(PIXELS, 8) - SHIFT) * SCALE)
    options, model = loads[0]
    assert options["local_files_only"] is options["use_safetensors"] is True  # never a pickle
    assert not model.weight.requires_grad


def test_pictures_of_latents_are_un_normalized(tmp_path: Path, loads: list[Any]) -> None:
    flat = avg_pool2d(PIXELS, 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    show = decoder("latent", tmp_path)
    pictures = show(load_sd_vae(tmp_path).encode(flat))
    assert show.name == "SD-VAE"
    torch.testing.assert_close(pictures, flat / 2 + 0.5)
    assert load_sd_vae(tmp_path).decode(torch.zeros(2, 4, 2, 3)).shape == (2, 3, 16, 24)


def test_a_model_without_a_shift() -> None:
    latents = SdVae(StandInVae(scaling_factor=2.0)).encode(PIXELS)
    torch.testing.assert_close(latents[:, :3], 8 * avg_pool2d(PIXELS, 8))


def test_pixels_are_their_own_pictures() -> None:
    show = decoder("pixel")
    assert show.name == "pixels"
    torch.testing.assert_close(show(PIXELS), PIXELS / 2 + 0.5)
    extreme = show(3 * PIXELS)
    assert (extreme.min(), extreme.max()) == (0, 1)


def test_latents_without_a_model_say_so() -> None:
    show = decoder("latent")
    assert show.name == "three latent channels, not the VAE"
    latents = torch.tensor([-3.0, -1.0, 0.0, 1.0]).expand(2, 4, 1, 4)
    expected = torch.tensor([0.0, 0.25, 0.5, 0.75]).expand(2, 3, 1, 4)
    torch.testing.assert_close(show(latents), expected)


def test_a_folder_without_a_model(tmp_path: Path, loads: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"images\.sd_vae: .*/none: no such folder"):
        load_sd_vae(tmp_path / "none")
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"images\.sd_vae: .*: no AutoencoderKL \(no config\)"):
        load_sd_vae(tmp_path)


def test_without_diffusers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"images\.sd_vae needs diffusers: pip install"):
        load_sd_vae(tmp_path)


def test_diffusers_own_model(tmp_path: Path) -> None:
    mend_torchvision()
    model = pytest.importorskip("diffusers").AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    )
    model.save_pretrained(tmp_path)
    vae = load_sd_vae(tmp_path)
    latents = vae.encode(PIXELS)
    assert latents.shape == (3, 4, 2, 3)
    expected = model.eval().encode(PIXELS).latent_dist.mean.detach() * 0.18215
    torch.testing.assert_close(latents, expected)
    shown = vae.decode(latents)
    torch.testing.assert_close(shown, model.decode(expected / 0.18215).sample.detach())
