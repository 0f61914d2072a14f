"""What students are trained on in Stage 2."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from braid.radiance.distillation import features as stage_2
from braid.radiance.distillation.features import AlignmentProbe, FeatureObjective, feature_curves
from braid.radiance.features.vae import FeatureVae
from braid.training.ema import Ema
from braid.training.trainer import TrainResult
from tests.radiance.mask_law import uniform_mask_mean
from tests.radiance.settings import distill_config, vae_sizes
from tests.radiance.tiny_objectives import Spy, feature_loss, features, fit, response
from tests.radiance.tiny_teacher import seeded


def test_the_mask_is_diagnosed_and_within_its_range() -> None:
    objective = features(feature_loss(threshold=0.3, soft_transition=0.4, mask="face"))
    terms = objective(2, seeded())
    assert set(terms) == {"color", "opacity", "depth", "feature_l2", "feature_cosine"}
    logged = {name: float(value) for name, value in objective.diagnostics.items()}
    assert logged["feature_weight"] == 0.5
    low, mean, high = (logged[f"feature_mask_weight_{which}"] for which in ("p05", "mean", "p95"))
    assert 0 == low < mean < high <= 1
    assert mean == pytest.approx(uniform_mask_mean(0.3, 0.4), abs=0.15)
    assert logged["samples_per_ray"] > 0
    everywhere = features(feature_loss(threshold=0.0, soft_transition=0.0))
    everywhere(2, seeded())
    assert float(everywhere.diagnostics["feature_mask_weight_p05"]) == 1.0


def test_a_view_of_nothing_solid_leaves_features_alone() -> None:
    objective = features(feature_loss())
    with torch.no_grad():
        objective.field.weights.zero_()  # translucent all over
    objective.response.field.density_scale = 1e-3
    terms = objective(4, seeded())
    assert terms["feature_l2"] == terms["feature_cosine"] == 0
    assert objective.diagnostics["feature_mask_weight_mean"] == 0
    sum(terms.values()).backward()


def test_the_control_is_the_response_to_the_bit() -> None:
    control, alone = features(None), response()
    for step in range(3):
        mine, theirs = control(step, seeded(step)), alone(step, seeded(step))
        assert list(mine) == list(theirs)
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
        assert control.diagnostics == alone.diagnostics


def test_features_do_not_change_the_response_of_the_same_draw() -> None:
    with_features, alone = features(feature_loss()), response()
    mine, theirs = with_features(3, seeded(3)), alone(3, seeded(3))
    for name in theirs:
        torch.testing.assert_close(mine[name], theirs[name])


def test_the_frozen_decoder_takes_no_gradient_and_the_student_does() -> None:
    vae = FeatureVae(4, vae_sizes(3, 8))
    objective = features(feature_loss(vae))
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    terms = objective(4, seeded())
    assert set(terms) >= {"feature_l2", "feature_cosine", "feature_latent"}
    sum(term for name, term in terms.items() if name.startswith("feature_")).backward()
    assert objective.field.weights.grad.abs().sum() > 0
    assert objective.features.heads.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in vae.parameters())
    fit(objective, 3)
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert not any(parameter.requires_grad for parameter in vae.parameters())


def test_the_schedule_weighs_the_feature_terms_alone() -> None:
    objective = features(feature_loss())
    silent, half, full = (objective(step, seeded()) for step in (0, 2, 4))
    assert silent["feature_l2"] == 0
    torch.testing.assert_close(2 * half["feature_l2"], full["feature_l2"])
    torch.testing.assert_close(half["color"], full["color"])


@pytest.mark.parametrize("training", [True, False])
def test_measuring_the_alignment_moves_nothing(training: bool) -> None:
    objective = features(feature_loss(FeatureVae(4, vae_sizes(3, 8))), hard=0.5)
    objective(0, seeded())
    objective.train(training)
    objective.features.vae.eval()
    modes = [module.training for module in objective.modules()]
    state = {name: value.clone() for name, value in objective.state_dict().items()}
    figures = objective.alignment(seed=9)
    assert [module.training for module in objective.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in objective.state_dict().items())
    explained = {f"explained_variance{which}" for which in ("", "_sh", "_opacity")}
    baselines = {f"explained_variance_{which}" for which in ("by_network", "before")}
    assert set(figures) == {"cosine", "cka", *explained, *baselines}
    assert objective.alignment(seed=9) == figures


def test_features_learned_are_features_aligned() -> None:
    loss = feature_loss(l2=1.0, threshold=0.0, soft_transition=0.0, decay=0.9, floor=0.8)
    objective = features(loss)
    before = objective.alignment(seed=0)
    assert before["explained_variance"] == objective.before["explained_variance"]
    assert before["explained_variance"] > before["explained_variance_by_network"]
    fit(objective, 40)
    after = objective.alignment(seed=0)
    assert after["explained_variance"] > before["explained_variance"] + 0.1
    assert after["explained_variance_before"] == before["explained_variance"]


def test_alignment_is_of_points_in_the_teacher_s_cells() -> None:
    objective = features(feature_loss(cells=62))
    whole = features(feature_loss()).alignment(seed=9)
    part = objective.alignment(seed=9)
    assert list(part) == list(whole)
    assert part["cosine"] != whole["cosine"]


def test_nothing_solid_has_no_alignment() -> None:
    objective = features(feature_loss())
    objective.field.density_scale = 1e-6
    assert objective.alignment(seed=9) == {}


def test_the_control_has_no_alignment() -> None:
    with pytest.raises(ValueError, match="compares no features"):
        features(None).alignment(seed=0)


def probed(objective: nn.Module, steps: int) -> dict[int, dict[str, float]]:
    probe = AlignmentProbe(steps, seed=0)
    rows = {step: probe(step, objective) for step in range(1, steps + 1)}
    return {step: row for step, row in rows.items() if row is not None}


class Counted(FeatureObjective):
    """An alignment without the work."""

    def alignment(self, seed: int) -> dict[str, float]:
        return {"cosine": float(seed)}


def test_alignment_is_probed_at_20_60_and_100_percent() -> None:
    objective = Counted(response(), feature_loss(), distill_config())
    assert list(probed(objective, 50)) == [10, 30, 50]
    assert list(probed(objective, 1)) == [1]
    rows = probed(objective, 5)
    assert list(rows) == [1, 3, 5]
    assert {row["cosine"] for row in rows.values()} == {0.0}  # at the same points each time
    assert probed(features(None), 5) == {}
    assert probed(response(), 5) == {}


def test_alignment_is_that_of_the_averages_which_are_what_is_stored() -> None:
    objective = features(feature_loss())
    ema = Ema(objective, 0.9)
    before = objective.alignment(0)
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=seeded()))
    probe = AlignmentProbe(1, seed=0)
    assert probe(1, objective, ema) == before != probe(1, objective)


def test_points_are_drawn_where_rays_of_importance_see(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, calls = features(feature_loss(), hard=0.7, rays=512), []
    objective(4, seeded())

    def spy(weights: Tensor, ray: Tensor, alpha: Tensor, count: int, draws: torch.Generator):
        calls.append((weights, ray, alpha, count))
        return weights.nonzero()[:count, 0]

    monkeypatch.setattr(stage_2, "draw_points", spy)
    kept = objective.response.loss = Spy()
    objective(5, seeded(1))
    (weights, ray, alpha, count), (marched, _, _, importance) = calls[0], kept.seen
    assert count == 300
    assert not weights.requires_grad
    has_row = objective.features.rows(marched.samples.points) >= 0
    torch.testing.assert_close(weights, (marched.weights * importance[ray] * has_row).detach())
    assert torch.equal(alpha, marched.alpha.detach())
    assert importance.max() > 1.1 * importance.min()


def test_curves_have_their_columns_with_and_without_features() -> None:
    row = {"step": 0, "loss": 2.0, "color": 1.0, "gradient_norm_color": 3.0}
    control = {name: (rows, columns) for name, rows, columns in feature_curves(TrainResult([row]))}
    assert set(control) == {"feature_loss", "feature_mask", "gradient_norms", "alignment"}
    assert control["gradient_norms"][0] == [{"step": 0, "gradient_norm_color": 3.0}]
    assert all(rows == [] for name, (rows, _) in control.items() if name != "gradient_norms")
    with_features = row | {"feature_l2": 0.5, "feature_mask_weight_mean": 0.2}
    result = TrainResult([with_features], probes={"alignment": [{"step": 1, "cosine": 0.3}]})
    curves = {name: rows for name, rows, _ in feature_curves(result)}
    assert curves["feature_loss"] == [{"step": 0, "feature_l2": 0.5}]
    assert curves["feature_mask"] == [{"step": 0, "feature_mask_weight_mean": 0.2}]
    assert curves["alignment"] == [{"step": 1, "cosine": 0.3}]
    assert all(columns[0] == "step" for _, _, columns in feature_curves(result))
