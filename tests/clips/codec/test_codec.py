from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from braid.clips.codec.codec import TRANSFORM, WAN_MEAN, WAN_STD, decode, decoder, encode
from braid.common.torchvision import mend_torchvision


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


EXAMPLES = noise(5, 16, 3, 4, 6)


def test_built_in_clips_are_decoded_by_their_transform() -> None:
    video = torch.rand(2, 3, 9, 16, 24)
    decoded = decoder(TRANSFORM, examples=EXAMPLES)
    frames = decoded(encode(video))
    assert decoded.name == "space-time transform"
    assert frames.shape == (2, 9, 16, 24, 3)
    expected = decode(encode(video)).clamp(0, 1)
    torch.testing.assert_close(frames.permute(0, 4, 1, 2, 3), expected)
    extreme = decoded(100 * noise(1, 16, 2, 1, 1))
    assert (extreme.min(), extreme.max()) == (0, 1)


def test_another_codec() -> None:
    with pytest.raises(ValueError, match="codec is 'vqgan', expected space_time_transform or wan"):
        decoder("vqgan", examples=EXAMPLES)


# ---- The preview -----------------------------------------------------------------------------


def test_the_preview_shows_principal_components() -> None:
    mixed = torch.einsum("dc,bcthw->bdthw", noise(16, 16, seed=1), EXAMPLES) + 3
    preview = decoder("wan", examples=mixed)
    frames = preview(mixed)
    assert preview.name == "linear preview, not the VAE"
    assert frames.shape == (5, 9, 4, 6, 3)
    cells = mixed.movedim(1, -1).reshape(-1, 16).numpy()
    components = PCA(3).fit(cells)
    scores = components.transform(cells) / np.sqrt(components.explained_variance_)
    expected = np.clip(0.5 + scores.reshape(5, 3, 4, 6, 3) / 4, 0, 1)
    for channel in range(3):  # each up to its sign
        shown = frames[:, ::4, ..., channel].numpy()
        gaps = [
            np.abs(shown - score).max()
            for score in (expected[..., channel], 1 - expected[..., channel])
        ]
        assert min(gaps) < 1e-3


def test_the_preview_holds_still_between_latent_frames() -> None:
    frames = decoder("wan", examples=EXAMPLES)(EXAMPLES)
    for start, stop in ((1, 5), (5, 9)):
        assert (frames[:, start:stop] == frames[:, start : start + 1]).all()
    assert not torch.equal(frames[:, 0], frames[:, 1])


def test_the_colors_of_the_preview_are_fitted_once() -> None:
    preview, again = (decoder("wan", examples=EXAMPLES) for _ in range(2))
    one, other = noise(2, 16, 3, 4, 6, seed=2), noise(2, 16, 3, 4, 6, seed=3)
    assert torch.equal(preview(torch.cat([one, other]))[:2], preview(one))
    assert torch.equal(preview(one), again(one))


def test_a_preview_of_constant_latents_is_gray() -> None:
    preview = decoder("wan", examples=torch.ones(2, 16, 2, 3, 3))
    torch.testing.assert_close(
        preview(torch.ones(1, 16, 2, 3, 3)), torch.full((1, 5, 3, 3, 3), 0.5)
    )


# ---- The VAE ---------------------------------------------------------------------------------


class FakeVae(torch.nn.Module):
    """Shows the first three denormalized channels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.latents: list[torch.Tensor] = []

    def decode(self, latents: torch.Tensor) -> SimpleNamespace:
        assert not self.training
        self.latents.append(latents)
        return SimpleNamespace(sample=self.weight * latents[:, :3].tanh())


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A stand-in for diffusers; what its loader was called with, and the model it gave."""
    calls: list[Any] = []

    def from_pretrained(folder: Path, **options: Any) -> FakeVae:
        if not (Path(folder) / "config.json").exists():
            raise OSError("no config")
        calls.extend([options, FakeVae()])
        return calls[1]

    module = ModuleType("diffusers")
    module.AutoencoderKLWan = SimpleNamespace(from_pretrained=from_pretrained)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "diffusers", module)
    return calls


def test_the_vae_gets_latents_denormalized(tmp_path: Path, loads: list[Any]) -> None:
    (tmp_path / "config.json").touch()
    wan = decoder("wan", examples=EXAMPLES, wan_vae=tmp_path)
    frames = wan(EXAMPLES)
    options, vae = loads
    assert wan.name == "Wan VAE"
    assert options["local_files_only"] is options["use_safetensors"] is True  # never a pickle
    assert not vae.weight.requires_grad
    latents = torch.cat(vae.latents)
    expected = np.array(WAN_STD)[:, None] * EXAMPLES[2].flatten(1).numpy()
    expected += np.array(WAN_MEAN)[:, None]
    np.testing.assert_allclose(latents[2].flatten(1), expected, atol=1e-5)
    shown = (latents[:, :3].tanh() + 1) / 2
    torch.testing.assert_close(frames, shown.permute(0, 2, 3, 4, 1))


def test_the_constants_are_those_of_diffusers() -> None:
    mend_torchvision()
    config = pytest.importorskip("diffusers").AutoencoderKLWan(base_dim=8).config
    assert (list(WAN_MEAN), list(WAN_STD)) == (config.latents_mean, config.latents_std)


def test_a_folder_without_a_model(tmp_path: Path, loads: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"clips\.wan_vae: .*/none: no such folder"):
        decoder("wan", examples=EXAMPLES, wan_vae=tmp_path / "none")
    with pytest.raises(ValueError, match=r"clips\.wan_vae: .*: no AutoencoderKLWan \(no config"):
        decoder("wan", examples=EXAMPLES, wan_vae=tmp_path)


def test_without_diffusers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"clips\.wan_vae needs diffusers: pip install -e"):
        decoder("wan", examples=EXAMPLES, wan_vae=tmp_path)


def test_built_in_clips_need_no_vae(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert decoder(TRANSFORM, examples=EXAMPLES, wan_vae=tmp_path).name == "space-time transform"
