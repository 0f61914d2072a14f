import pytest
import torch
from scipy import stats

from braid.common.rng import normals, outputs, splitmix64, uniforms

IDS = torch.arange(50)


def splitmix64_by_the_book(state):
    """Steele, Lea and Flood's generator on Python's unbounded integers."""
    while True:
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        yield z ^ (z >> 31)


@pytest.mark.parametrize("key", [0, 1, -1, 2**62 + 12345, -(2**63)])
def test_outputs_are_those_of_splitmix64(key):
    expected = splitmix64_by_the_book(key % 2**64)
    found = splitmix64(torch.tensor([key]), 20)[0].tolist()
    assert [z % 2**64 for z in found] == [next(expected) for _ in range(20)]


def test_the_published_first_output_of_seed_0():
    assert int(splitmix64(torch.zeros(1, dtype=torch.int64), 1)) % 2**64 == 0xE220A8397B1DCDAF


def test_numbers_depend_on_the_clip_and_not_on_its_batch():
    whole = normals(3, "noise", IDS, 7)
    assert torch.equal(whole[20:30], normals(3, "noise", IDS[20:30], 7))
    assert torch.equal(whole.flip(0), normals(3, "noise", IDS.flip(0), 7))


def test_seeds_purposes_and_clips_give_other_numbers():
    streams = [outputs(0, "a", IDS, 9), outputs(1, "a", IDS, 9), outputs(0, "b", IDS, 9)]
    assert len(torch.unique(torch.stack(streams))) == 3 * 50 * 9


def test_uniforms_are_uniform_and_never_0_or_1():
    numbers = uniforms(0, "u", torch.arange(200), 1000).flatten()
    assert 0 < numbers.min() < 1e-4
    assert 1 - 1e-4 < numbers.max() < 1
    assert stats.kstest(numbers.numpy(), "uniform").pvalue > 0.01


@pytest.mark.parametrize("count", [1, 6, 7])
def test_normals_come_in_the_number_asked_for(count):
    assert normals(0, "n", IDS, count).shape == (50, count)


def test_normals_are_normal_and_independent():
    numbers = normals(0, "n", torch.arange(200), 1000)
    assert stats.kstest(numbers.flatten().numpy(), "norm").pvalue > 0.01
    for pair in (numbers, numbers.square() - 1):  # between clips, inside one, one angle's two
        assert abs(float((pair[1:] * pair[:-1]).mean())) < 0.02
        assert abs(float((pair[:, 1:] * pair[:, :-1]).mean())) < 0.02
        assert abs(float((pair[:, 500:] * pair[:, :500]).mean())) < 0.02
