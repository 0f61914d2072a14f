import numpy as np
import pytest
import torch

from braid.radiance.features.table import (
    CellFeatures,
    FeatureSchema,
    Standardization,
    StoredFeatures,
    channel_balance,
    explained_variance,
    unexplained_variance,
)
from braid.radiance.features.vae import (
    FeatureVae,
    against_pca,
    kl_stable,
    pca_reconstruction,
    vae_report,
    vae_status,
)
from braid.radiance.scenes.grids import CellGrid
from tests.radiance.settings import aggregation_config, vae_sizes

COLUMNS = {"a": slice(0, 4), "b": slice(4, 6)}


def low_rank(count, seed=0):
    basis = torch.randn(2, 6, generator=torch.Generator().manual_seed(9))
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed)) @ basis


def balance():
    return channel_balance(COLUMNS).sqrt()


def test_pca_keeps_what_has_its_rank_and_all_when_full():
    training, validation = low_rank(100), low_rank(40, seed=1)
    kept = pca_reconstruction(training, validation, balance(), 2)
    torch.testing.assert_close(kept, validation, atol=1e-4, rtol=0)
    lost = pca_reconstruction(training, validation, balance(), 1)
    assert (lost - validation).square().mean() > 0.1
    torch.testing.assert_close(
        pca_reconstruction(training, validation, balance(), 24), validation, atol=1e-4, rtol=0
    )


def test_a_vae_can_start_as_pca_with_whitened_latents():
    noise = torch.randn(100, 6, generator=torch.Generator().manual_seed(4))
    training = low_rank(100) + 0.3 * noise + torch.arange(6)
    vae = FeatureVae(6, vae_sizes(3, 8)).start_from_pca(training, COLUMNS)
    latent = vae.encode(training).mean.detach()
    expected = pca_reconstruction(training, training, balance(), 3)
    torch.testing.assert_close(vae.decode(latent).detach(), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(latent.T @ latent / 100, torch.eye(3), atol=1e-4, rtol=0)
    wide = FeatureVae(6, vae_sizes(9, 8)).start_from_pca(training, COLUMNS)
    again = wide.decode(wide.encode(training).mean).detach()
    torch.testing.assert_close(again, training, atol=1e-3, rtol=0)


def stored(values, scale):
    """Features of two groups, the second half of the rows to validate on."""
    count = len(values)
    grid = CellGrid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (count, 1, 1))
    groups = {"a": tuple("abcd"), "b": ("e", "f")}
    schema = FeatureSchema(grid, aggregation_config(), groups)
    ones = torch.ones(count)
    table = CellFeatures(schema, torch.arange(count), values, ones, ones)
    bound = torch.full((6,), float("inf"))
    fitted = Standardization(torch.arange(6.0), torch.full((6,), scale), bound)
    return StoredFeatures(table, fitted, torch.arange(count) < count // 2)


def identity():
    vae = FeatureVae(6, vae_sizes(6))
    with torch.no_grad():
        vae.encoder.linear.weight.copy_(torch.cat([torch.eye(6), torch.zeros(6, 6)]))
        vae.encoder.linear.bias.zero_()
        vae.decoder.linear.weight.copy_(torch.eye(6))
        vae.decoder.linear.bias.zero_()
    return vae


def test_the_report_knows_a_perfect_and_an_empty_vae():
    features, vae = stored(low_rank(120), scale=3.0), identity()
    report = vae_report(vae, features, kl=[1.0] * 4)["vae"]
    assert report["recon_mse"] == pytest.approx(0, abs=1e-12)
    assert report["unexplained_fraction"] == pytest.approx(0, abs=1e-12)
    assert report["active_units"] == 6
    validation = features.standardized[60:]
    assert report["kl"] == pytest.approx(0.5 * float(validation.square().sum(1).mean()), rel=1e-5)
    assert report["kl_stable"]
    with torch.no_grad():
        vae.encoder.linear.weight.zero_()
    report = vae_report(vae, features, kl=[1.0, 2.0, 3.0, 4.0])
    # It decodes the mean, 0 1 2 3 4 5: the error is in the unit of the raw channels.
    raw = features.features.values[60:]
    expected = (raw - torch.arange(6.0)).square()
    assert report["vae"]["recon_mse"] == pytest.approx(expected.mean().item(), rel=1e-5)
    spread = (raw - raw.mean(0)).square().sum(0)
    lost = expected.sum(0)[4:].sum() / spread[4:].sum()
    assert report["vae"]["unexplained_fraction_b"] == pytest.approx(lost.item(), rel=1e-5)
    assert report["vae"]["active_units"] == 0
    assert not report["vae"]["kl_stable"]
    assert report["pca"]["recon_mse"] < 1e-8
    assert report["pca_raw"]["unexplained_fraction_a"] == pytest.approx(0, abs=1e-8)


def test_each_pca_is_the_best_linear_model_by_its_own_measure():
    noise = torch.randn(2000, 6, generator=torch.Generator().manual_seed(2))
    scale = torch.tensor([4.0, 4.0, 4.0, 4.0, 3.0, 3.0]).sqrt()
    features = stored(noise * scale, scale=1.0)
    report = vae_report(FeatureVae(6, vae_sizes(2)), features, kl=[])
    raw, balanced = report["pca_raw"], report["pca"]
    assert raw["recon_mse"] < balanced["recon_mse"]
    assert balanced["unexplained_fraction"] < raw["unexplained_fraction"]


def test_a_vae_that_is_no_better_than_pca_is_said_to_be_so():
    same = {"recon_mse": 1.0, "unexplained_fraction": 0.1}
    assert against_pca({"vae": same, "pca": same, "pca_raw": same}) == "no better than PCA"
    better = same | {"recon_mse": 0.9}
    line = against_pca({"vae": better, "pca": same, "pca_raw": same})
    assert line == "better than PCA: raw"


def test_unexplained_variance_is_none_of_truth_and_all_of_the_mean():
    target = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
    columns = {"a": slice(0, 3), "b": slice(3, 5)}
    predicted = target.clone()
    predicted[:, 3:] = target[:, 3:].mean(0)
    unexplained = unexplained_variance(predicted, target, columns)
    assert unexplained["a"] == 0
    assert unexplained["b"] == pytest.approx(1, abs=1e-6)
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
