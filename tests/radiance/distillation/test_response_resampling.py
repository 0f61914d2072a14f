import pytest
import torch
from scipy.stats import chisquare

from braid.radiance.distillation import response
from braid.radiance.distillation.response import (
    RaySampler,
    SumTree,
    effective_sample_size,
    hard_fraction,
)
from tests.radiance.settings import rays_config

VIEWS, WIDTH, HEIGHT = 2, 11, 9
RAYS = VIEWS * WIDTH * HEIGHT


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def ray_errors():
    return torch.rand(RAYS, generator=generator(7)) ** 4


def experienced(tile=4, hard=0.5):
    sampler = RaySampler(VIEWS, WIDTH, HEIGHT, rays_config(tile=tile, hard=hard))
    sampler.update(torch.arange(RAYS), ray_errors())
    return sampler


def ray_probabilities(sampler):
    return sampler.probability(sampler.tile_of(torch.arange(RAYS)))


def of_tiles(sampler):
    return sampler.probability(torch.arange(len(sampler.sizes)))


@pytest.mark.parametrize("tile", [1, 4, 8, 16])
def test_probabilities_follow_the_mixture_and_sum_to_one(tile):
    sampler = experienced(tile)
    probability = ray_probabilities(sampler)
    error = sampler.errors[sampler.tile_of(torch.arange(RAYS))].double()
    torch.testing.assert_close(probability, 0.5 / RAYS + 0.5 * error / error.sum())
    assert probability.sum().item() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("tile", [1, 4])
def test_draws_follow_the_probabilities(tile):
    sampler = experienced(tile)
    ray, _ = sampler.draw(200_000, generator())
    observed = torch.bincount(ray, minlength=RAYS).numpy()
    assert chisquare(observed, 200_000 * ray_probabilities(sampler).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("hard", [0.0, 0.5, 0.9])
def test_the_weighted_loss_is_unbiased(hard):
    sampler = experienced(hard=hard)
    loss = ray_errors()
    ray, weight = sampler.draw(200_000, generator(1))
    assert (weight * loss[ray]).mean().item() == pytest.approx(loss.mean().item(), rel=0.02)
    exact = (ray_probabilities(sampler) * loss / (RAYS * ray_probabilities(sampler))).sum()
    assert exact.item() == pytest.approx(loss.mean().item())


def test_uniform_sampling_has_weights_of_one():
    sampler = experienced(hard=0.0)
    _, weight = sampler.draw(100, generator())
    torch.testing.assert_close(weight, torch.ones(100))
    assert effective_sample_size(weight).item() == pytest.approx(100)
    assert hard_fraction(torch.tensor([0.5, 2.0, 1.0, 0.1])) == 0.5


def test_fewer_effective_samples_the_more_uneven_the_weights():
    assert effective_sample_size(torch.tensor([1.0, 0.0, 0.0])).item() == 1
    assert effective_sample_size(torch.tensor([1.0, 3.0])).item() == pytest.approx(1.6)


def test_errors_are_running_means_that_start_at_the_first_one():
    sampler = RaySampler(1, 4, 2, rays_config(tile=2, decay=0.75))
    sampler.update(torch.tensor([0, 1, 2]), torch.tensor([1.0, 3.0, 10.0]))
    assert sampler.errors.tolist() == [2.0, 10.0]
    sampler.update(torch.tensor([5]), torch.tensor([6.0]))
    assert sampler.errors.tolist() == [3.0, 10.0]


def test_unseen_tiles_are_as_likely_as_the_average_seen_one():
    sampler = RaySampler(1, 6, 2, rays_config(tile=2))
    torch.testing.assert_close(of_tiles(sampler), torch.full((3,), 1 / 12).double())
    sampler.update(torch.tensor([0, 2]), torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(of_tiles(sampler) * 12, torch.tensor([0.75, 1.25, 1.0]).double())


def test_a_student_without_errors_is_sampled_evenly():
    sampler = RaySampler(1, 4, 4, rays_config(tile=2))
    sampler.update(torch.arange(16), torch.zeros(16))
    torch.testing.assert_close(of_tiles(sampler), torch.full((4,), 1 / 16).double())


def test_a_resumed_sampler_is_the_same_to_the_last_bit():
    first, second = experienced(tile=1), RaySampler(VIEWS, WIDTH, HEIGHT, rays_config(tile=1))
    for step in range(20):
        ray = first.draw(50, generator(step)).ray
        first.update(ray, torch.rand(50, generator=generator(step)))
    second.load_state_dict(first.state_dict())
    pairs = zip(first.tree.levels, second.tree.levels, strict=True)
    assert all(torch.equal(mine, its) for mine, its in pairs)
    assert torch.equal(first.draw(50, generator(2)).ray, second.draw(50, generator(2)).ray)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 64, 65, 1000])
def test_a_tree_finds_what_a_search_in_the_cumulative_sum_finds(count):
    leaves = torch.rand(count, 2, generator=generator(), dtype=torch.float64)
    factors = torch.tensor([0.3, 2.0], dtype=torch.float64)
    tree = SumTree(leaves.clone())
    rows = torch.randint(count, (5,), generator=generator()).unique()
    leaves[rows] = 0.1 * torch.ones(len(rows), 2, dtype=torch.float64)
    tree.set(rows, leaves[rows])
    torch.testing.assert_close(tree.total, leaves.sum(0))
    place = torch.rand(3000, generator=generator(1), dtype=torch.float64)
    ends = (leaves @ factors).cumsum(0)
    assert torch.equal(tree.find(place, factors), torch.searchsorted(ends, place * ends[-1]))
    assert tree.find(torch.ones(1, dtype=torch.float64), factors) < count


def test_processes_take_in_the_errors_of_all(monkeypatch):
    alone, together = experienced(), experienced()
    ray, error = torch.tensor([[1, 5], [60, 6]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])

    def all_gather(parts, values):
        both = ray if values.dtype == torch.int64 else error
        for part, row in zip(parts, both, strict=True):
            part.copy_(row)

    alone.update(ray.flatten(), error.flatten())
    monkeypatch.setattr(response.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(response.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(response.distributed, "all_gather", all_gather)
    together.update(ray[1], error[1])
    assert torch.equal(alone.errors, together.errors)


@pytest.mark.parametrize("hard", [-0.1, 1.0])
def test_a_wrong_fraction_is_refused(hard):
    with pytest.raises(ValueError, match=r"hard\n.*should be (less|greater) than"):
        rays_config(hard=hard)


def test_only_rays_that_exist_are_drawn_from_every_view():
    drawn = RaySampler(3, 6, 4, rays_config(hard=0.0, tile=4)).draw(2000, generator())
    assert set(drawn.ray.tolist()) == set(range(72))
