import pytest
import torch

from braid.radiance.distillation.features import alignment, linear_cka, mean_cosine


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_cka_is_invariant_to_rotation_shift_and_scale():
    x = normal(200, 8)
    rotation = torch.linalg.qr(normal(8, 8, seed=1))[0]
    assert linear_cka(x, 3 * x @ rotation + 5) == pytest.approx(1.0, abs=1e-5)


def test_cka_is_the_normalized_similarity_of_gram_matrices():
    x, y = normal(50, 4).double(), normal(50, 6, seed=1).double() + 1
    centering = torch.eye(50, dtype=torch.float64) - 1 / 50
    k, m = centering @ x @ x.T @ centering, centering @ y @ y.T @ centering
    expected = (k * m).sum() / (k.norm() * m.norm())
    assert linear_cka(x, y) == pytest.approx(expected.item(), rel=1e-10)


def test_independent_features_have_next_to_no_cka():
    assert linear_cka(normal(5000, 8), normal(5000, 8, seed=1)) < 0.01
    assert linear_cka(normal(100, 8), torch.ones(100, 3)) == 0


def test_cosine_of_opposites_and_equals():
    x = normal(20, 5)
    assert mean_cosine(x, 2 * x) == pytest.approx(1.0)
    assert mean_cosine(x, -x) == pytest.approx(-1.0)


def test_the_report_has_a_name_for_each_figure():
    x = normal(50, 5)
    report = alignment(x, x, x, {"a": slice(0, 5)})
    assert report == pytest.approx(
        dict.fromkeys(("cosine", "cka", "explained_variance", "explained_variance_a"), 1.0)
    )
