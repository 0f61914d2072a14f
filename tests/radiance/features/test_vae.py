import math

import pytest
import torch

from braid.radiance.features.table import channel_balance
from braid.radiance.features.vae import (
    BestVae,
    FeatureVae,
    Posterior,
    VaeObjective,
    load_vae,
    save_vae,
)
from braid.radiance.scenes.grids import CellGrid
from tests.radiance.settings import vae_config, vae_sizes
from tests.radiance.tiny_objectives import stored_features

COLUMNS = {"a": slice(0, 4), "b": slice(4, 5)}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_kl_is_that_of_torch_distributions():
    posterior = Posterior(
        torch.randn(50, 3, generator=generator()), torch.linspace(-10, 4, 150).view(50, 3)
    )
    normal = torch.distributions.Normal(posterior.mean, (0.5 * posterior.log_variance).exp())
    standard = torch.distributions.Normal(0.0, 1.0)
    expected = torch.distributions.kl_divergence(normal, standard)
    torch.testing.assert_close(posterior.kl(), expected, rtol=1e-5, atol=1e-5)


def test_samples_have_the_posterior_moments():
    posterior = Posterior(torch.full((100_000, 1), 2.0), torch.full((100_000, 1), math.log(0.25)))
    sample = posterior.sample(generator())
    assert sample.mean().item() == pytest.approx(2.0, abs=0.01)
    assert sample.std().item() == pytest.approx(0.5, abs=0.01)


def test_balance_is_the_mean_over_groups_of_group_means():
    square = torch.rand(7, 5, generator=generator())
    expected = (square[:, :4].mean(1) + square[:, 4]) / 2
    torch.testing.assert_close(square @ channel_balance(COLUMNS), expected)


def test_log_variance_stays_within_its_limits():
    vae = FeatureVae(5, vae_sizes(2))
    posterior = vae.encode(1e4 * torch.randn(20, 5, generator=generator()))
    assert posterior.log_variance.min() == -10
    assert posterior.log_variance.max() == 4


def test_a_latent_pays_only_above_its_free_bits_and_beta_warms_up():
    vae = FeatureVae(5, vae_sizes(3))
    for parameter in vae.parameters():
        torch.nn.init.zeros_(parameter)  # the posterior is the prior: no KL
    values = torch.randn(64, 5, generator=generator())
    config = vae_config(batch=64, beta=0.5, steps=20, beta_warmup=0.5, free_bits=0.02)
    objective = VaeObjective(vae, values, COLUMNS, config)
    terms = objective(5, generator())
    assert terms["kl"].item() == pytest.approx(0.25 * 3 * 0.02)
    terms["kl"].backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in vae.parameters())
    assert [objective.beta(step) for step in (0, 5, 10, 99)] == [0.0, 0.25, 0.5, 0.5]


def test_the_same_generator_gives_the_same_terms():
    vae = FeatureVae(5, vae_sizes(2, 8))
    values = torch.randn(64, 5, generator=generator())
    objective = VaeObjective(vae, values, COLUMNS, vae_config(batch=16))
    first, second = objective(2000, generator(3)), objective(2000, generator(3))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_data_are_no_part_of_the_state():
    vae = FeatureVae(5, vae_sizes(2, 8))
    objective = VaeObjective(vae, torch.randn(64, 5), COLUMNS, vae_config())
    assert all(name.startswith("vae.") for name in objective.state_dict())


def test_a_linear_vae_reaches_probabilistic_pca():
    """With one group MSE + beta KL is 2 sigma^2 / F times the negative ELBO, sigma^2 = beta F / 2.

    Its optimum is probabilistic PCA with that noise (Tipping & Bishop 1999; Lucas et al. 2019):
    decoder variances lambda - sigma^2 along the leading axes, and no use for an axis whose
    lambda is below sigma^2.
    """
    torch.manual_seed(0)
    spectrum = torch.tensor([4.0, 2.0, 1.0, 0.1, 0.05, 0.05])
    axes = torch.linalg.qr(torch.randn(6, 6, generator=generator(1)))[0]
    values = torch.randn(512, 6, generator=generator(2))
    values = values - values.mean(0)
    values = torch.linalg.qr(values)[0] * math.sqrt(512) * spectrum.sqrt() @ axes.T
    noise = 0.4
    objective = VaeObjective(
        FeatureVae(6, vae_sizes(4)),
        values,
        {"all": slice(0, 6)},
        vae_config(batch=512, beta=2 * noise / 6, steps=1, beta_warmup=1.0, free_bits=0.0),
    )
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 800)
    random = generator(4)
    for step in range(800):
        optimizer.zero_grad()
        sum(objective(step + 1, random).values()).backward()
        optimizer.step()
        schedule.step()
    weight = objective.vae.decoder.linear.weight.detach()
    expected = torch.cat([spectrum[:3] - noise, torch.zeros(3)])
    learned = torch.linalg.eigvalsh(weight @ weight.T).flip(0)
    torch.testing.assert_close(learned, expected, atol=0.12, rtol=0.04)
    leading = torch.linalg.svd(weight)[0][:, :3]
    torch.testing.assert_close(
        torch.linalg.matrix_norm(leading.T @ axes[:, :3]),
        torch.tensor(math.sqrt(3)),
        atol=5e-3,
        rtol=0,
    )
    with torch.no_grad():
        loss = sum(float(sum(objective(2, random).values())) for _ in range(50)) / 50
    model = expected + noise  # spectrum of the model's covariance
    bound = 0.5 * (model.log() + spectrum / model).sum() - 0.5 * 6 * math.log(noise)
    assert loss == pytest.approx(2 * noise / 6 * bound.item(), rel=0.02)


def features():
    grid = CellGrid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (5, 5, 5))
    return stored_features(grid, torch.arange(125), torch.randn(125, 4, generator=generator()))


def test_a_saved_vae_computes_the_same_on_its_part_of_the_features(tmp_path):
    stored, config = features(), vae_config(groups=("opacity", "sh"), harmonics=0)
    part = stored.select(config.groups, config.harmonics)
    vae = FeatureVae(part.features.schema.channels, vae_sizes(2, 8))
    save_vae(tmp_path / "vae", vae, config, part.features.schema.hash)
    again, read = load_vae(tmp_path / "vae", stored)
    assert read.features.schema == part.features.schema
    values = part.standardized
    assert torch.equal(again.encode(values).mean, vae.encode(values).mean)
    assert torch.equal(again.decode(values[:, :2]), vae.decode(values[:, :2]))


def test_a_vae_of_other_features_or_a_missing_one_is_refused(tmp_path):
    save_vae(tmp_path / "vae", FeatureVae(4, vae_sizes(2, 8)), vae_config(), "abc")
    with pytest.raises(ValueError, match="trained on feature schema abc"):
        load_vae(tmp_path / "vae", features())
    with pytest.raises(ValueError, match=r"nothing: expected config.json"):
        load_vae(tmp_path / "nothing", features())
    (tmp_path / "vae" / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"vae: expected config.json and model.safetensors"):
        load_vae(tmp_path / "vae", features())


def some_best(vae, **values):
    config = vae_config(validate_every=10, steps=40, beta_warmup=0.5, **values)
    cells = torch.randn(30, 4, generator=generator())
    return BestVae(vae, cells, torch.full((4,), 0.25), config)


def test_the_weights_that_validate_best_are_kept_and_can_be_resumed():
    vae = FeatureVae(4, vae_sizes(2, 8))
    best = some_best(vae)
    good = {name: value.clone() for name, value in vae.state_dict().items()}
    first = best(20, vae)["error"]
    torch.nn.init.normal_(vae.decoder.linear.weight, std=20.0)
    assert best(25, vae) is None
    assert best(30, vae)["error"] > first
    again = some_best(vae)
    again.load_state_dict(best.state_dict())
    again.restore()
    assert all(torch.equal(value, good[name]) for name, value in vae.state_dict().items())
    assert (again.step, again.error) == (20, first)


def test_weights_of_the_warm_up_are_no_candidates():
    """Their KL says nothing about the objective; the start's error is kept to be compared with."""
    vae = FeatureVae(4, vae_sizes(2, 8))
    best = some_best(vae)
    assert best(10, vae)["error"] == best.start_error
    torch.nn.init.normal_(vae.decoder.linear.weight, std=20.0)
    worse = best(20, vae)["error"]
    assert worse > best.start_error
    assert (best.step, best.error) == (20, worse)


def test_the_last_step_is_a_candidate_if_none_before_it_was():
    vae = FeatureVae(4, vae_sizes(2, 8))
    best = some_best(vae)
    best.config = best.config.model_copy(update={"validate_every": 100})
    assert best(30, vae) is None
    assert best(40, vae) is not None
    assert best.step == 40
