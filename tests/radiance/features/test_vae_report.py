import numpy as np
import pytest
import torch

from braid.radiance.features.vae import (
    FeatureVae,
    explained_variance,
    kl_stable,
    pca_reconstruction,
    vae_report,
    vae_status,
)
from tests.radiance.settings import vae_sizes

COLUMNS = {"a": slice(0, 4), "b": slice(4, 6)}


def low_rank(count, seed=0):
    basis = torch.randn(2, 6, generator=torch.Generator().manual_seed(9))
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed)) @ basis


def test_pca_keeps_what_has_its_rank_and_all_when_full():
    training, validation = low_rank(100), low_rank(40, seed=1)
    kept = pca_reconstruction(training, validation, COLUMNS, 2)
    torch.testing.assert_close(kept, validation, atol=1e-4, rtol=0)
    lost = pca_reconstruction(training, validation, COLUMNS, 1)
    assert (lost - validation).square().mean() > 0.1
    torch.testing.assert_close(
        pca_reconstruction(training, validation, COLUMNS, 24), validation, atol=1e-4, rtol=0
    )


def test_a_vae_can_start_as_pca_with_whitened_latents():
    noise = torch.randn(100, 6, generator=torch.Generator().manual_seed(4))
    training = low_rank(100) + 0.3 * noise + torch.arange(6)
    vae = FeatureVae(6, vae_sizes(3, 8)).start_from_pca(training, COLUMNS)
    latent = vae.encode(training).mean.detach()
    expected = pca_reconstruction(training, training, COLUMNS, 3)
    torch.testing.assert_close(vae.decode(latent).detach(), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(latent.T @ latent / 100, torch.eye(3), atol=1e-4, rtol=0)
    wide = FeatureVae(6, vae_sizes(9, 8)).start_from_pca(training, COLUMNS)
    again = wide.decode(wide.encode(training).mean).detach()
    torch.testing.assert_close(again, training, atol=1e-3, rtol=0)


def test_the_report_knows_a_perfect_and_an_empty_vae():
    values = low_rank(60)
    vae = FeatureVae(6, vae_sizes(6))
    with torch.no_grad():
        vae.encoder.linear.weight.copy_(torch.cat([torch.eye(6), torch.zeros(6, 6)]))
        vae.encoder.linear.bias.zero_()
        vae.decoder.linear.weight.copy_(torch.eye(6))
        vae.decoder.linear.bias.zero_()
    report = vae_report(vae, values, values, COLUMNS, kl=[1.0] * 4)["vae"]
    assert report["mse"] == 0
    assert report["active_units"] == 6
    assert report["explained_variance_b"] == 1
    assert report["kl"] == pytest.approx(0.5 * float(values.square().sum(1).mean()), rel=1e-5)
    assert report["kl_stable"]
    with torch.no_grad():
        vae.encoder.linear.weight.zero_()
    report = vae_report(vae, values, values, COLUMNS, kl=[1.0, 2.0, 3.0, 4.0])
    balanced = (values[:, :4].square().mean() + values[:, 4:].square().mean()) / 2
    assert report["vae"]["mse"] == pytest.approx(balanced.item(), rel=1e-5)
    assert report["vae"]["active_units"] == 0
    assert not report["vae"]["kl_stable"]
    assert report["pca"]["mse"] < 1e-8
    assert report["pca"]["explained_variance_a"] == pytest.approx(1)


def test_explained_variance_is_one_for_truth_zero_for_the_mean():
    target = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
    columns = {"a": slice(0, 3), "b": slice(3, 5)}
    predicted = target.clone()
    predicted[:, 3:] = target[:, 3:].mean(0)
    explained = explained_variance(predicted, target, columns)
    assert explained["a"] == 1
    assert explained["b"] == pytest.approx(0, abs=1e-6)
    assert explained_variance(target, torch.ones(300, 5), {"a": slice(0, 5)}) == {"a": 0.0}


def test_kl_is_stable_when_its_end_is_level():
    steps = np.arange(1000)
    noise = np.random.default_rng(0).normal(0, 0.5, 1000)
    assert kl_stable(list(10 - 8 * np.exp(-steps / 50) + noise))
    assert not kl_stable(list(steps / 100 + noise))
    assert not kl_stable([10.0] * 900 + [1.0] * 50 + [2.0] * 50)
    assert not kl_stable([1.0] * 3)  # too few to tell
    assert kl_stable([1.0] * 4)


@pytest.mark.parametrize(
    ("mse", "stable", "status"),
    [
        (0.0008, True, "passed"),
        (0.0008, False, "kl_unstable"),
        (0.0009, True, "recon_above_gate"),
        (0.0009, False, "recon_above_gate"),
    ],
)
def test_the_gate_is_a_named_status(mse, stable, status):
    assert vae_status(mse, stable, gate=0.0008) == status
