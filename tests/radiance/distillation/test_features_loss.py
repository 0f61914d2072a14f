import pytest
import torch
from scipy.stats import chisquare

from braid.radiance.distillation.features import (
    FeatureLoss,
    Projector,
    draw_points,
    face_distance,
    feature_weight,
    mask_weight,
    reconstruction_gate,
)
from braid.radiance.features.vae import FeatureVae
from braid.radiance.scenes.cells import CellGrid
from tests.radiance.mask_law import uniform_mask_mean
from tests.radiance.settings import distill_config, vae_sizes
from tests.radiance.tiny_objectives import stored_features

GRID = CellGrid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (4, 4, 4))
STUDENT_GRID = CellGrid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (2, 2, 2))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def table(cells):
    values = torch.randn(len(cells), 4, generator=generator(1))
    return stored_features(GRID, cells, values)


def make_loss(cells=None, vae=None, **settings):
    torch.manual_seed(0)
    stored = table(torch.arange(64) if cells is None else cells)
    return FeatureLoss(stored, 8, STUDENT_GRID, distill_config(**settings), vae)


def batch(count=500):
    student = torch.randn(count, 8, generator=generator(2))
    return student, torch.rand(count, 3, generator=generator(3))


def test_terms_follow_the_formulas():
    loss = make_loss(l2=2.0, cosine=0.5, threshold=0.2, soft_transition=0.3)
    student, points = batch()
    terms, mask = loss(student, points, 0.25)
    target = table(torch.arange(64)).standardized[GRID.index(points)]
    gap = loss.projector(student) - target
    square = (gap[:, :3].square().mean(1) + gap[:, 3].square()) / 2
    weight = mask_weight(face_distance(points, STUDENT_GRID), 0.2, 0.3)
    torch.testing.assert_close(mask, weight)
    torch.testing.assert_close(terms["feature_l2"], 2.0 * 0.25 * (weight * square).mean())
    root = torch.tensor([1 / 6, 1 / 6, 1 / 6, 1 / 2]).sqrt()
    similar = torch.cosine_similarity(loss.projector(student) * root, target * root)
    torch.testing.assert_close(
        terms["feature_cosine"], 0.5 * 0.25 * (weight * (1 - similar)).mean()
    )


def test_a_perfect_student_pays_nothing():
    loss = make_loss()
    _, points = batch()
    student = loss.standardized[loss.rows(points)]
    loss.projector = torch.nn.Identity()
    assert all(float(term) < 1e-6 for term in loss(student, points, 1.0).terms.values())


def test_points_without_a_teacher_row_weigh_nothing():
    loss = make_loss(cells=torch.tensor([0, 5, 63]), threshold=0.0, soft_transition=0.0)
    student, points = batch()
    terms, mask = loss(student, points, 1.0)
    occupied = torch.isin(GRID.index(points), torch.tensor([0, 5, 63]))
    assert torch.equal(mask, occupied.float())
    only = loss(student[occupied], points[occupied], 1.0).terms
    fraction = float(occupied.float().mean())
    expected = fraction * only["feature_l2"].item()
    assert terms["feature_l2"].item() == pytest.approx(expected, rel=1e-5)


def test_the_logged_mask_mean_obeys_the_law_of_uniform_points():
    loss = make_loss(threshold=0.3, soft_transition=0.1)
    student, points = batch(100_000)
    mask = loss(student, points, 1.0).mask
    assert mask.mean().item() == pytest.approx(uniform_mask_mean(0.3, 0.1), abs=5e-3)


def test_the_decoder_is_frozen_but_gradients_pass_through_it():
    vae = FeatureVae(4, vae_sizes(2, 8))
    loss = make_loss(vae=vae)
    student, points = batch()
    student.requires_grad_()
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    terms = loss(student, points, 1.0).terms
    assert set(terms) == {"feature_l2", "feature_cosine", "feature_latent"}
    terms["feature_l2"].backward()
    assert student.grad.abs().sum() > 0
    assert all(parameter.grad.abs().sum() > 0 for parameter in loss.projector.parameters())
    assert all(p.grad is None and not p.requires_grad for p in vae.parameters())
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())


def test_cells_that_the_vae_loses_are_gated():
    vae = FeatureVae(4, vae_sizes(4))
    with torch.no_grad():
        vae.encoder.linear.weight.copy_(torch.cat([torch.eye(4), torch.zeros(4, 4)]))
        vae.encoder.linear.bias.zero_()
        vae.decoder.linear.weight.copy_(torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0])))
        vae.decoder.linear.bias.zero_()
    loss = make_loss(vae=vae, gate_tau=0.1)
    lost = loss.standardized[:, 3].square() / 2  # one of two groups
    torch.testing.assert_close(loss.gate, 1 / (1 + lost / 0.1))
    torch.testing.assert_close(loss.latents, loss.standardized)
    student, points = batch()
    terms, mask = loss(student, points, 1.0)
    row = loss.rows(points)
    gap = (loss.projector(student) - loss.latents[row]).square().mean(1)
    torch.testing.assert_close(terms["feature_latent"], (mask * loss.gate[row] * gap).mean())
    assert reconstruction_gate(torch.tensor([0.0, 0.1]), 0.1).tolist() == [1.0, 0.5]


def test_no_points_cost_nothing_but_keep_the_graph():
    loss = make_loss()
    terms = loss(torch.empty(0, 8), torch.empty(0, 3), 1.0).terms
    sum(terms.values()).backward()
    assert all(term.item() == 0 for term in terms.values())


def test_the_table_is_no_part_of_the_state():
    assert all(name.startswith("projector.") for name in make_loss().state_dict())


def test_projector_depth_counts_linear_layers():
    for depth in (1, 2, 4):
        projector = Projector(8, 4, hidden=16, depth=depth)
        assert sum(isinstance(layer, torch.nn.Linear) for layer in projector.modules()) == depth


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
