import pytest
import torch
from scipy import stats

from braid.drifting.training.memory_bank import MemoryBank, MemoryBanks


def numbered(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def filled(capacity: int = 4) -> MemoryBanks:
    """Class 0 holds 0 to 5 as far as it can, class 1 nothing, class 2 20 and 21."""
    banks = MemoryBanks(3, capacity, (1,))
    banks.push(torch.tensor([0, 2, 0, 0, 2]), numbered(0, 20, 1, 2, 21))
    banks.push(torch.tensor([0, 0, 0]), numbered(3, 4, 5))
    return banks


def contents(banks: MemoryBanks, c: int) -> list[float]:
    return sorted(banks.samples[c, : banks.sizes[c], 0].tolist())


def test_the_newest_of_each_class_are_kept():
    banks = filled()
    assert banks.sizes.tolist() == [4, 0, 2]
    assert contents(banks, 0) == [2, 3, 4, 5]
    assert contents(banks, 2) == [20, 21]
    banks.push(torch.tensor([0]), numbered(6))
    assert contents(banks, 0) == [3, 4, 5, 6]


def test_of_a_push_longer_than_the_bank_the_last_are_kept():
    banks = filled()
    banks.push(torch.tensor([2] * 11 + [1]), numbered(*range(30, 41), 7))
    assert contents(banks, 2) == [37, 38, 39, 40]
    assert contents(banks, 1) == [7]
    banks.push(torch.tensor([2]), numbered(41))
    assert contents(banks, 2) == [38, 39, 40, 41]


def test_many_small_pushes_are_one_large_one():
    classes = torch.randint(0, 3, (50,), generator=generator())
    samples = torch.rand(50, 2, generator=generator())
    at_once, piecewise = MemoryBanks(3, 7, (2,)), MemoryBanks(3, 7, (2,))
    at_once.push(classes, samples)
    for start in range(0, 50, 6):
        piecewise.push(classes[start : start + 6], samples[start : start + 6])
    assert torch.equal(at_once.samples, piecewise.samples)


def test_draws_are_without_replacement_and_of_the_given_class():
    banks = filled()
    for seed in range(20):
        drawn = banks.draw(torch.tensor([0, 2, 0]), 2, generator(seed))
        assert drawn.samples.shape == (3, 2, 1)
        first, second, again = drawn.samples[..., 0].tolist()
        assert len(set(first)) == len(set(again)) == 2
        assert set(first) | set(again) <= {2, 3, 4, 5}
        assert sorted(second) == [20, 21]
        assert drawn.counts.tolist() == [2, 2, 2]
    assert banks.fallbacks == 0


def test_a_class_that_holds_too_few_repeats_them_and_one_that_holds_none_says_so():
    banks = filled()
    drawn = banks.draw(torch.tensor([0, 1, 2]), 4, generator())
    assert drawn.counts.tolist() == [4, 0, 4]
    assert set(drawn.samples[2, :, 0].tolist()) <= {20, 21}
    assert (drawn.samples[1] == 0).all()
    assert banks.fallbacks == 2
    banks.draw(torch.tensor([2, 2]), 3, generator())
    assert banks.fallbacks == 4


def test_every_sample_is_drawn_equally_often():
    banks = filled()
    classes = torch.zeros(4000, dtype=torch.int64)
    drawn = banks.draw(classes, 2, generator())
    first = torch.bincount(drawn.samples[:, 0, 0].long(), minlength=6)[2:]
    assert stats.chisquare(first.numpy()).pvalue > 0.01
    pairs = (10 * drawn.samples[:, 0, 0] + drawn.samples[:, 1, 0]).long()
    assert stats.chisquare(torch.unique(pairs, return_counts=True)[1].numpy()).pvalue > 0.01
    repeated = banks.draw(classes + 2, 4, generator()).samples.flatten().long()
    assert stats.chisquare(torch.bincount(repeated)[20:].numpy()).pvalue > 0.01


def test_banks_go_on_bit_for_bit_from_their_state(tmp_path):
    banks = filled()
    banks.draw(torch.tensor([1]), 1, generator())
    torch.save(banks.state_dict(), tmp_path / "state.pt")
    resumed = MemoryBanks(3, 4, (1,))
    resumed.push(torch.tensor([1]), numbered(9))  # whatever was there goes
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for bank in (banks, resumed):
        bank.push(torch.tensor([1, 0]), numbered(10, 6))
    drawn = [bank.draw(torch.tensor([0, 1, 2]), 3, generator(5)) for bank in (banks, resumed)]
    assert torch.equal(drawn[0].samples, drawn[1].samples)
    assert banks.fallbacks == resumed.fallbacks == 3
    assert len(banks.state_dict()["samples"]) == 7


def test_the_nearest_samples_are_those_of_loops_over_all():
    draw = torch.Generator().manual_seed(3)
    banks = MemoryBanks(2, 8, (2, 3))
    samples = torch.randn(14, 2, 3, generator=draw)
    banks.push(torch.tensor([0] * 8 + [1] * 6), samples)
    near = torch.randn(2, 3, 2, 3, generator=draw)
    actual = banks.draw(torch.tensor([1, 0]), 4, generator(), near).samples
    for row, kept in enumerate((samples[8:], samples[:8])):
        distances = [min(float((s - x).norm()) for x in near[row]) for s in kept]
        expected = sorted(range(len(kept)), key=distances.__getitem__)[:4]
        assert torch.equal(actual[row], kept[expected])
    assert banks.fallbacks == 0


def test_the_nearest_of_a_class_with_too_few_are_all_of_it_in_turn():
    banks = MemoryBanks(3, 4, (1,))
    banks.push(torch.tensor([2, 2]), numbered(7, 9))
    near = torch.tensor([10.0]).view(1, 1, 1)
    drawn = banks.draw(torch.tensor([2]), 4, generator(), near)
    assert drawn.samples.flatten().tolist() == [9, 7, 9, 7]
    assert banks.fallbacks == 1


def test_the_state_of_other_banks_is_refused():
    with pytest.raises(ValueError, match="another size"):
        MemoryBanks(2, 4, (1,)).load_state_dict(filled().state_dict())
    with pytest.raises(ValueError, match="another size"):
        MemoryBanks(3, 2, (1,)).load_state_dict(filled().state_dict())
    with pytest.raises(ValueError, match="another size"):
        MemoryBanks(3, 4, (2,)).load_state_dict(filled().state_dict())


def test_samples_are_kept_without_their_graph():
    banks = MemoryBanks(1, 2, (1,))
    banks.push(torch.tensor([0]), numbered(1).requires_grad_())
    drawn = banks.draw(torch.tensor([0]), 1, generator())
    assert not drawn.samples.requires_grad


def test_the_global_bank_draws_from_all_classes():
    bank = MemoryBank(3, (1,))
    with pytest.raises(ValueError, match="nothing was pushed"):
        bank.draw(1, generator())
    bank.push(numbered(0, 1, 2, 3))
    assert bank.size == 3
    assert sorted(bank.draw(3, generator()).flatten().tolist()) == [1, 2, 3]
    other = MemoryBank(3, (1,))
    other.load_state_dict(bank.state_dict())
    assert torch.equal(bank.draw(2, generator(1)), other.draw(2, generator(1)))


def test_bad_input_is_named():
    banks = filled()
    with pytest.raises(ValueError, match="expected samples"):
        banks.push(torch.tensor([0, 1]), numbered(1))
    with pytest.raises(ValueError, match="expected classes below 3"):
        banks.push(torch.tensor([3]), numbered(1))
    with pytest.raises(ValueError, match="a class keeps 4"):
        banks.draw(torch.tensor([0]), 5, generator())
    with pytest.raises(ValueError, match="expected classes and a capacity"):
        MemoryBanks(0, 4, (1,))
