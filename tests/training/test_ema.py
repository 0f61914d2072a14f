import pytest
import torch
from torch import nn

from braid.training.ema import Ema


def set_to(module: nn.Module, value: float) -> None:
    with torch.no_grad():
        module.weight.fill_(value)


def test_the_average_follows_its_closed_form() -> None:
    module = nn.Linear(1, 1, bias=False)
    set_to(module, 2.0)
    ema = Ema(module, decay=0.3)
    expected = 2.0
    for step, value in enumerate([5.0, -1.0, 4.0, 0.5, 7.0]):
        set_to(module, value)
        ema.update(step)
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert ema.average["weight"].item() == pytest.approx(expected, rel=1e-6)


def test_a_constant_is_its_own_average_to_the_bit() -> None:
    module = nn.Linear(5, 5)
    ema = Ema(module, decay=0.99)
    for step in range(20):
        ema.update(step)
    assert torch.equal(ema.average["weight"], module.weight)


def test_averages_are_copied_over_the_weights() -> None:
    module = nn.Linear(1, 1, bias=False)
    set_to(module, 1.0)
    ema = Ema(module, decay=0.5)
    set_to(module, 3.0)
    ema.copy_to(module)
    assert module.weight.item() == 1.0


def test_averages_stand_in_for_the_weights_for_a_while() -> None:
    module = nn.Linear(1, 1, bias=False)
    set_to(module, 2.0)
    ema = Ema(module, decay=0.5)
    set_to(module, 6.0)
    with pytest.raises(KeyError), ema.applied(module):
        assert module.weight.item() == 2.0
        raise KeyError
    assert module.weight.item() == 6.0
    assert ema.average["weight"].item() == 2.0


def test_the_average_survives_a_round_trip_and_skips_what_is_frozen() -> None:
    module, another = (nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)) for _ in range(2))
    for each in (module, another):
        each[1].requires_grad_(False)
    ema, other = Ema(module, decay=0.5), Ema(another, decay=0.5)
    other.load_state_dict(ema.state_dict())
    assert all(torch.equal(other.average[name], ema.average[name]) for name in ema.average)
    assert list(ema.average) == ["0.weight", "0.bias"]
