import math

import pytest
import torch
from threadpoolctl import threadpool_info  # type: ignore[import-untyped]

from braid.common.rng import generator
from braid.training.device import autocast, pick_device, set_threads, set_up


def test_streams_are_reproducible_and_differ_in_every_part_of_their_name() -> None:
    names = [(0,), (1,), (0, 1), (0, "1"), (0, 1, 2), (0, 2, 1), (0, 12), (0, "rays", 1)]
    draws = [torch.randn(1000, generator=generator(*name)) for name in names]
    again = [torch.randn(1000, generator=generator(*name)) for name in names]
    assert all(torch.equal(a, b) for a, b in zip(draws, again, strict=True))
    correlations = torch.corrcoef(torch.stack(draws)) - torch.eye(len(names))
    assert correlations.abs().max() < 5 / math.sqrt(1000)


def test_consecutive_steps_draw_like_one_uniform_stream() -> None:
    first = torch.cat([torch.rand(1, generator=generator(0, "step", i)) for i in range(2000)])
    counts = torch.histc(first, 10, 0, 1)
    assert (counts - 200).square().sum() / 200 < 27.9  # chi-squared, 9 degrees, p = 0.001


def test_devices_that_are_absent_and_unknown_settings_are_named() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(ValueError, match="device 'tpu' is not available here, expected auto or"):
        pick_device("tpu")
    with pytest.raises(ValueError, match="device 'cuda' is not available"):
        pick_device("cuda", local_rank=10_000)
    for count in (0, -2):
        with pytest.raises(ValueError, match=f"threads is {count}, expected 1 or more"):
            set_threads(count)
    expected = "expected float32, bfloat16 or float16"
    with pytest.raises(ValueError, match=f"precision is 'half', {expected}"):
        autocast(torch.device("cpu"), "half")


def test_linear_algebra_has_the_threads_it_is_given() -> None:
    threads = torch.get_num_threads()
    try:
        for count in (2, 1):
            set_threads(count)
            pools = [each for each in threadpool_info() if each["user_api"] == "blas"]
            assert pools
            assert {each["num_threads"] for each in pools} == {count}
    finally:
        set_threads(threads)


def test_set_up_is_deterministic_and_flushes_denormals() -> None:
    threads = torch.get_num_threads()
    try:
        weights = []
        for _ in range(2):
            assert set_up("cpu", 1, seed=3) == torch.device("cpu")
            weights.append(torch.nn.Linear(4, 4).weight)
        assert torch.equal(*weights)
        assert torch.get_num_threads() == 1
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.tensor([1e-40]).mul(1).item() == 0
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)
