"""The refiner starts as the identity, keeps what is given, takes clips of any size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from braid.drifting.video.refiner import Refiner, load_refiner, save_refiner
from tests.drifting import configs


def make(clamp: bool = False, trained: bool = True) -> Refiner:
    torch.manual_seed(0)
    refiner = Refiner(3, 5, 3, configs.refiner(depth=2, heads=4, clamp=clamp))
    if trained:
        for parameter in refiner.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return refiner


def inputs(size: tuple[int, int] = (4, 6), frames: int = 5) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    mask = torch.zeros(2, frames, dtype=torch.bool)
    mask[:, [0, -1]] = True
    clips = torch.randn(2, 3, frames, *size, generator=draw)
    return [clips, mask, mask.float(), torch.tensor([0, 4]), torch.tensor([1, 2]), torch.ones(2)]


def test_an_untrained_refiner_returns_its_input() -> None:
    given = inputs()
    assert torch.equal(make(trained=False)(*given), given[0])


@pytest.mark.parametrize("size", [(4, 6), (5, 3), (1, 1)])
def test_clips_of_any_size_keep_their_shape(size: tuple[int, int]) -> None:
    given = inputs(size, frames=3)
    refined = make()(*given)
    assert refined.shape == given[0].shape
    assert (refined - given[0]).abs().amax(dim=(1, 2, 3, 4)).min() > 0


def test_clamped_keyframes_are_kept_bit_for_bit_and_others_are_not() -> None:
    given = inputs()
    kept = make(clamp=True)(*given)
    free = make(clamp=False)(*given)
    assert torch.equal(kept[:, :, [0, -1]], given[0][:, :, [0, -1]])
    assert not torch.equal(free[:, :, [0, -1]], given[0][:, :, [0, -1]])
    assert torch.equal(kept[:, :, 1:-1], free[:, :, 1:-1])
    for configured in (True, False):  # an argument goes before what is configured
        assert torch.equal(make(clamp=configured)(*given, clamp=True), kept)
        assert torch.equal(make(clamp=configured)(*given, clamp=False), free)


@pytest.mark.parametrize("which", [2, 3, 4, 5])
def test_each_condition_changes_the_result(which: int) -> None:
    given = inputs()
    before = make()(*given)
    given[which] = (given[which] + 1) % 3 if which in (3, 4) else given[which] * 0.5 + 0.7
    assert not torch.allclose(make()(*given), before)


def test_time_and_space_are_told_apart() -> None:
    given = inputs()
    given[0] = given[0][:, :, :1, :1, :1].expand_as(given[0]).clone()
    given[2] = torch.ones_like(given[2])
    refined = make()(*given)
    assert refined.std(dim=2).min() > 1e-4
    assert refined[..., ::2, ::2].std(dim=(-1, -2)).min() > 1e-4


def test_clips_of_a_batch_are_independent() -> None:
    given = inputs()
    alone = make()(*[values[:1] for values in given])
    torch.testing.assert_close(make()(*given)[:1], alone, rtol=1e-4, atol=1e-5)


def test_a_stored_refiner_computes_the_same(tmp_path: Path) -> None:
    refiner = make(clamp=True)
    save_refiner(tmp_path / "refiner", refiner)
    assert torch.equal(load_refiner(tmp_path / "refiner")(*inputs()), refiner(*inputs()))
    (tmp_path / "refiner/model.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"refiner: expected config\.json and model"):
        load_refiner(tmp_path / "refiner")


def test_heads_that_do_not_divide_the_width_are_named() -> None:
    with pytest.raises(ValueError, match=r"refiner\.dim is 24"):
        Refiner(3, 5, 3, configs.refiner(heads=5))
