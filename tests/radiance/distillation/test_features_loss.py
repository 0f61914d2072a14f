import pytest
import torch
from scipy.stats import chisquare

from braid.radiance.distillation.features import (
    FeatureLoss,
    Points,
    feature_weight,
    mask_weight,
    reconstruction_gate,
)
from braid.radiance.features.table import apply_heads
from braid.radiance.features.vae import FeatureVae
from braid.radiance.scenes.grids import CellGrid
from braid.radiance.student.marching import draw_points
from tests.radiance.settings import distill_config, vae_sizes
from tests.radiance.tiny_objectives import stored_features

GRID = CellGrid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (4, 4, 4))
NETWORKS = 6


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make_loss(vae=None, compared=None, **settings):
    values = torch.randn(64, 4, generator=generator(1))
    stored = stored_features(GRID, torch.arange(64), values)
    if compared:
        compared = stored.features.schema.select(compared)
    loss = FeatureLoss(stored, (NETWORKS, 8), distill_config(**settings), vae, compared)
    torch.nn.init.normal_(loss.heads, generator=generator(4))
    return loss


def batch(count=500):
    return Points(
        torch.randn(count, 8, generator=generator(2)),
        torch.randint(NETWORKS, (count,), generator=generator(3)),
        torch.randint(64, (count,), generator=generator(5)),
        torch.rand(count, generator=generator(6)),
    )


def test_terms_follow_the_formulas():
    loss = make_loss(l2=2.0, cosine=0.5, threshold=0.2, soft_transition=0.3)
    points = batch()
    terms = loss(points, 0.25)
    predicted = apply_heads(loss.heads, points.features, points.network)
    target = loss.target[points.row]
    gap = predicted - target
    square = (gap[:, :3].square().mean(1) + gap[:, 3].square()) / 2
    weight = mask_weight(points.certainty, 0.2, 0.3)
    torch.testing.assert_close(loss.mask(points), weight)
    torch.testing.assert_close(terms["feature_l2"], 2.0 * 0.25 * (weight * square).mean())
    root = torch.tensor([1 / 6, 1 / 6, 1 / 6, 1 / 2]).sqrt()
    similar = torch.cosine_similarity(predicted * root, target * root)
    torch.testing.assert_close(
        terms["feature_cosine"], 0.5 * 0.25 * (weight * (1 - similar)).mean()
    )


def test_heads_fitted_to_linear_features_pay_next_to_nothing():
    loss = make_loss(cosine=1.0)
    points = batch(3000)
    mix = torch.randn(4, 8, generator=generator(7))
    points = points._replace(features=loss.target[points.row] @ mix)
    before = sum(loss(points, 1.0).values()).item()
    loss.fit(points)
    assert sum(loss(points, 1.0).values()).item() < 1e-3 * before
    own = points.network == 2
    torch.testing.assert_close(loss.means[2], loss.target[points.row[own]].mean(0))


def test_the_decoder_is_frozen_but_gradients_pass_through_it():
    vae = FeatureVae(4, vae_sizes(2, 8))
    loss = make_loss(vae=vae)
    points = batch()
    points.features.requires_grad_()
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    terms = loss(points, 1.0)
    assert set(terms) == {"feature_l2", "feature_cosine", "feature_latent"}
    terms["feature_l2"].backward()
    assert points.features.grad.abs().sum() > 0
    assert loss.heads.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in vae.parameters())
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())


def test_a_vae_variant_may_compare_fewer_groups_than_its_vae_has():
    vae = FeatureVae(4, vae_sizes(4))
    whole, part = make_loss(vae=vae), make_loss(vae=vae, compared=["opacity"])
    points = batch()
    assert torch.equal(part.predict(points), whole.predict(points)[:, 3:])
    assert torch.equal(part.target, whole.target[:, 3:])
    assert torch.equal(part.latents, whole.latents)


def test_cells_that_the_vae_loses_are_gated():
    vae = FeatureVae(4, vae_sizes(4))
    with torch.no_grad():
        vae.encoder.linear.weight.copy_(torch.cat([torch.eye(4), torch.zeros(4, 4)]))
        vae.encoder.linear.bias.zero_()
        vae.decoder.linear.weight.copy_(torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0])))
        vae.decoder.linear.bias.zero_()
    loss = make_loss(vae=vae, gate_tau=0.1)
    lost = loss.target[:, 3].square() / 2  # one of two groups
    torch.testing.assert_close(loss.gate, 1 / (1 + lost / 0.1))
    torch.testing.assert_close(loss.latents, loss.target)
    points = batch()
    gap = apply_heads(loss.heads, points.features, points.network) - loss.latents[points.row]
    gated = loss.mask(points) * loss.gate[points.row]
    torch.testing.assert_close(
        loss(points, 1.0)["feature_latent"], (gated * gap.square().mean(1)).mean()
    )
    assert reconstruction_gate(torch.tensor([0.0, 0.1]), 0.1).tolist() == [1.0, 0.5]


def test_no_points_cost_nothing_but_keep_the_graph():
    loss = make_loss()
    terms = loss(Points(*(column[:0] for column in batch())), 1.0)
    sum(terms.values()).backward()
    assert all(term.item() == 0 for term in terms.values())


def test_the_table_is_no_part_of_the_state():
    assert list(make_loss().state_dict()) == ["heads"]


def test_points_are_drawn_by_weight_on_solid_rays_only():
    weights = torch.tensor([0.1, 0.5, 0.0, 0.4, 0.3, 0.2])
    ray = torch.tensor([0, 0, 1, 1, 2, 2])
    alpha = torch.tensor([0.6, 0.9, 0.4])
    drawn = draw_points(weights, ray, alpha, 50_000, generator(), solid=0.5)
    observed = torch.bincount(drawn, minlength=6)
    assert observed[[2, 4, 5]].tolist() == [0, 0, 0]
    assert chisquare(observed[[0, 1, 3]], [5_000, 25_000, 20_000]).pvalue > 1e-3


def test_no_solid_ray_gives_no_points():
    weights, ray = torch.ones(3), torch.zeros(3, dtype=torch.int64)
    assert len(draw_points(weights, ray, torch.zeros(1), 10, generator())) == 0
    assert len(draw_points(weights[:0], ray[:0], torch.zeros(1), 10, generator())) == 0


def test_the_schedule_rises_then_decays_to_its_floor():
    steps = (0, 5, 10, 20, 30, 99)
    weights = [feature_weight(step, warmup=10, decay=20, floor=0.01) for step in steps]
    assert weights == pytest.approx([0.0, 0.5, 1.0, 0.1, 0.01, 0.01])
    assert feature_weight(0, warmup=0, decay=20, floor=0.5) == 1.0


def test_an_exponential_decay_to_nothing_is_refused():
    with pytest.raises(ValueError, match="floor > 0"):
        feature_weight(0, warmup=1, decay=1, floor=0.0)
