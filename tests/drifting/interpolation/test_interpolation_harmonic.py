import itertools

import pytest
import torch

from braid.common.rng import generator
from braid.drifting.interpolation import interpolation as module
from braid.drifting.interpolation.interpolation import Laplacian, mean_by_distance, solve_harmonic
from tests.drifting import configs

GRIDS = [(7,), (4, 5), (3, 4, 3)]
USUAL = configs.harmonic(sigma_feature=0.8, sigma_space=0.7, lambda_reg=0.01)
every_grid = pytest.mark.parametrize("grid", GRIDS)


@pytest.fixture(params=[0, module.DENSE], ids=["iterated", "factorized"], autouse=True)
def way(request, monkeypatch):
    """Both ways to solve a system."""
    monkeypatch.setattr(module, "DENSE", request.param)


def usual(**changes):
    return USUAL.model_copy(update=changes)


def random(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed))


def problem(grid, batch=3, channels=2, fraction=0.3):
    """Values, which of them are known, and a start."""
    known = torch.rand(batch, *grid, generator=generator(1)) < fraction
    known.view(batch, -1)[:, 0] = True
    return random(batch, channels, *grid), known, random(batch, channels, *grid, seed=2)


def dense_laplacian(features, config):
    """L of one clip [C, *grid], edge by edge, in float64."""
    nodes = list(itertools.product(*(range(n) for n in features.shape[1:])))
    result = torch.zeros(len(nodes), len(nodes), dtype=torch.float64)
    for (i, a), (j, b) in itertools.combinations(enumerate(nodes), 2):
        offset = torch.tensor(a) - torch.tensor(b)
        if offset.abs().max() == 1:
            unlike = (features[(slice(None), *a)] - features[(slice(None), *b)]).square().mean()
            exponent = (
                unlike.double() / config.sigma_feature**2
                + offset.square().sum() / config.sigma_space**2
            )
            weight = torch.exp(-exponent / 2)
            result[i, j] = result[j, i] = -weight
            result[i, i] += weight
            result[j, j] += weight
    return result


def dense_solution(values, known, start, config):
    """One clip [C, *grid] by the formula of the module's docstring."""
    first = torch.where(known, values, start)
    L = dense_laplacian(first, config)
    k, u = known.flatten(), ~known.flatten()
    x = first.flatten(1).double().T
    system = L[u][:, u] + config.lambda_reg * torch.eye(int(u.sum()))
    x[u] = torch.linalg.solve(system, -L[u][:, k] @ x[k] + config.lambda_reg * x[u])
    return x.T.reshape(values.shape)


def matrix(graph, grid):
    """The Laplacian's matrix, applied to one unit vector after another."""
    count = torch.Size(grid).numel()
    units = torch.eye(count).view(1, count, *grid)
    return graph(units).reshape(count, count)


@every_grid
@pytest.mark.parametrize("lambda_reg", [0.0, 0.01, 3.0])
def test_agrees_with_a_dense_solve(grid, lambda_reg):
    values, known, start = problem(grid)
    settings = usual(lambda_reg=lambda_reg)
    actual = solve_harmonic(values, known, start, settings)
    for clip in range(3):
        expected = dense_solution(values[clip], known[clip], start[clip], settings)
        torch.testing.assert_close(actual[clip].double(), expected, atol=2e-4, rtol=0)


@every_grid
def test_the_operator_is_a_symmetric_positive_laplacian(grid):
    features = random(1, 2, *grid)
    actual = matrix(Laplacian(features, USUAL), grid)
    torch.testing.assert_close(actual, actual.T)
    torch.testing.assert_close(actual.sum(1), torch.zeros(len(actual)), atol=1e-6, rtol=0)
    assert torch.linalg.eigvalsh(actual.double()).min() > -1e-6
    torch.testing.assert_close(actual.double(), dense_laplacian(features[0], USUAL))
    torch.testing.assert_close(Laplacian(features, USUAL).degree.flatten(), actual.diagonal())


@every_grid
@pytest.mark.parametrize("lambda_reg", [0.0, 0.1])
def test_constants_are_kept(grid, lambda_reg):
    _, known, _ = problem(grid)
    values = torch.full((3, 2, *grid), 1.7)
    actual = solve_harmonic(values, known, values, usual(lambda_reg=lambda_reg))
    assert torch.equal(actual, values)


def test_corners_of_one_make_a_square_of_one():
    """A Laplacian whose diagonal forgets all but one edge of a node gives -1 here."""
    known = torch.zeros(1, 4, 4, dtype=torch.bool)
    known[:, [0, 0, 3, 3], [0, 3, 0, 3]] = True
    start = torch.zeros(1, 1, 4, 4)
    settings = configs.harmonic(sigma_feature=1e6, sigma_space=1.0, lambda_reg=0.0)
    actual = solve_harmonic(torch.ones(1, 1, 4, 4), known, start, settings)
    torch.testing.assert_close(actual, torch.ones(1, 1, 4, 4), atol=1e-5, rtol=0)


@every_grid
def test_without_a_pull_no_value_leaves_the_range_of_the_known(grid):
    values, known, start = problem(grid)
    actual = solve_harmonic(values, known, 10 * start, usual(sigma_feature=10.0, lambda_reg=0.0))
    inside = torch.where(known[:, None], values, torch.nan)
    low, high = (
        torch.stack([fold(c[c.isfinite()]) for c in inside.flatten(0, 1)]).view(3, 2, 1)
        for fold in (torch.min, torch.max)
    )
    assert (actual.flatten(2) >= low - 1e-3).all()
    assert (actual.flatten(2) <= high + 1e-3).all()


def test_a_chain_is_linear_interpolation():
    values, known = random(1, 3, 9), torch.zeros(1, 9, dtype=torch.bool)
    known[0, [0, 3, 8]] = True
    settings = configs.harmonic(sigma_feature=1e6, sigma_space=1.0, lambda_reg=0.0)
    actual = solve_harmonic(values, known, torch.zeros(1, 3, 9), settings)
    torch.testing.assert_close(actual[..., 1], values[..., [0, 3]] @ torch.tensor([2 / 3, 1 / 3]))
    torch.testing.assert_close(actual[..., 4], values[..., [3, 8]] @ torch.tensor([0.8, 0.2]))


@every_grid
def test_the_solution_is_where_the_energy_is_flat(grid):
    values, known, start = problem(grid)
    first = torch.where(known[:, None], values, start)
    x = solve_harmonic(values, known, start, USUAL).requires_grad_()
    graph = Laplacian(first, USUAL)
    smooth = sum((w * (x[a] - x[b]).square()).sum() for a, b, w in graph.edges)
    pull = USUAL.lambda_reg * (x - first).square().sum()
    (slope,) = torch.autograd.grad((smooth + pull) / 2, x)
    torch.testing.assert_close(slope * ~known[:, None], torch.zeros_like(x), atol=1e-4, rtol=0)


def test_gradients_reach_the_known_values():
    values, known, start = (part.double() for part in problem((4, 3), batch=1, channels=1))
    solve = usual(sigma_feature=1e6)  # edges that hang on the values are no part of this
    assert torch.autograd.gradcheck(
        lambda v: solve_harmonic(v, known.bool(), start, solve),
        values.requires_grad_(),
        atol=1e-3,
        nondet_tol=0,
    )


def test_a_strong_pull_gives_the_start():
    values, known, start = problem((4, 5))
    actual = solve_harmonic(values, known, start, usual(lambda_reg=1e6))
    torch.testing.assert_close(actual, torch.where(known[:, None], values, start))


def test_an_edge_in_the_start_holds_values_apart():
    values = torch.zeros(1, 1, 2, 8)
    values[..., 4:] = 5.0
    known = torch.zeros(1, 2, 8, dtype=torch.bool)
    known[..., [0, 7]] = True
    aware, blind = (
        solve_harmonic(values, known, values, usual(lambda_reg=0.0, sigma_feature=sigma_feature))
        for sigma_feature in (0.7, 1e6)
    )
    torch.testing.assert_close(aware, values, atol=1e-3, rtol=0)
    assert (blind - values).abs().max() > 1


@pytest.mark.parametrize("key", configs.HARMONIC)
def test_every_setting_counts(key):
    values, known, start = problem((4, 5))
    before = solve_harmonic(values, known, start, USUAL)
    other = solve_harmonic(values, known, start, usual(**{key: 3 * getattr(USUAL, key)}))
    assert (before - other).abs().max() > 0.01


@pytest.mark.parametrize(
    "solve",
    [
        lambda v, k, start: solve_harmonic(v, k, start, USUAL),
        lambda v, k, _: mean_by_distance(v, k),
    ],
    ids=["harmonic", "inverse_distance"],
)
def test_nothing_of_unknown_values_is_read(solve):
    values, known, start = problem((3, 4, 3))
    actual, kept = solve(values, known, start), known[:, None].expand_as(values)
    assert torch.equal(actual[kept], values[kept])
    assert torch.equal(solve(values.where(kept, torch.nan), known, start), actual)


def test_a_hard_system_in_the_batch_changes_no_other():
    values, known, start = problem((6, 6), batch=4, fraction=0.2)
    known[3] = False
    known[3, 0, 0] = True  # many more iterations than the rest
    whole = solve_harmonic(values, known, start, usual(lambda_reg=0.0))
    for clip in range(4):
        one = (part[clip : clip + 1] for part in (values, known, start))
        alone = solve_harmonic(*one, usual(lambda_reg=0.0))
        assert torch.equal(alone[0], whole[clip])


def test_the_iterations_are_bounded(monkeypatch):
    values, known, start = problem((6, 6))
    monkeypatch.setattr(module, "STEPS_AT_MOST", 1)
    assert solve_harmonic(values, known, start, USUAL).isfinite().all()


def test_nodes_behind_edges_keep_the_start():
    values, known, start = problem((4, 5))
    actual = solve_harmonic(values, known, start, usual(sigma_feature=1e-3))
    torch.testing.assert_close(
        actual, torch.where(known[:, None], values, start), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("sigma_feature", [1e-3, 0.03, 0.1, 0.3])
def test_edges_too_weak_for_float32_break_nothing(sigma_feature):
    values, known, start = problem((9, 8, 8), batch=2)
    settings = configs.harmonic(sigma_feature=sigma_feature, lambda_reg=0.0)
    actual = solve_harmonic(values, known, start, settings)
    assert actual.abs().max() <= values.abs().max() + 0.01


@every_grid
def test_inverse_distance_node_by_node(grid):
    values, known, _ = problem(grid)
    actual = mean_by_distance(values, known).flatten(2)
    nodes = torch.tensor(list(itertools.product(*(range(n) for n in grid))))
    for clip in range(3):
        given = known[clip].flatten()
        for node in (~given).nonzero()[:, 0]:
            weight = 1 / (nodes[given] - nodes[node]).square().sum(1).float()
            mean = (values[clip].flatten(1)[:, given] * weight).sum(1) / weight.sum()
            torch.testing.assert_close(actual[clip, :, node], mean)
