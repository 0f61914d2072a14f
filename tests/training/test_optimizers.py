import math
from pathlib import Path

import pytest
import torch
from torch import nn

from braid.common.rng import generator
from braid.drifting.video.refiner import Attention
from braid.training import checkpoint
from braid.training.optimizers import Optimizer, adamw, hidden_matrices, muon


class Mixed(nn.Module):
    """A parameter of every kind that the optimizers tell apart."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.first = nn.Linear(3, 4)
        self.hidden = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 6, bias=False))
        self.grid = nn.Parameter(torch.randn(7, 4, 4))
        self.table = nn.Parameter(torch.randn(7, 9))
        self.head = nn.Linear(4, 5)
        self.head.weight = self.embedding.weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def learn(module: nn.Module, optimizer: Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        sum(p.square().sum() for p in module.parameters() if p.requires_grad).backward()
        optimizer.step()


def test_every_trainable_parameter_has_exactly_one_optimizer() -> None:
    module = Mixed()
    for optimizer in (adamw(module, lr=0.1), muon(module, lr=0.1, exclude=["first", "head"])):
        groups = [group for part in optimizer.parts.values() for group in part.param_groups]
        owned = sorted(id(p) for group in groups for p in group["params"])
        assert owned == sorted(id(p) for p in module.parameters() if p.requires_grad)


def test_muon_takes_the_hidden_linear_weights_and_nothing_else() -> None:
    module = Mixed()
    assert list(hidden_matrices(module)) == ["first.weight", "hidden.0.weight", "hidden.2.weight"]
    chosen = hidden_matrices(module, ["first", "hidden.2.weight"])
    assert list(chosen) == ["hidden.0.weight"]
    [group] = muon(module, lr=0.1, exclude=["first", "hidden.2"]).parts["muon"].param_groups
    assert [id(p) for p in group["params"]] == [id(module.hidden[0].weight)]
    with pytest.raises(ValueError, match="no module or parameter is called 'last'"):
        muon(module, lr=0.1, exclude=["last"])


def test_one_kernel_for_all_tensors_makes_the_same_steps() -> None:
    ends = []
    for fused in (False, True):
        torch.manual_seed(0)
        module = Mixed()
        optimizer = adamw(module, lr=0.01, weight_decay=0.1, fused=fused)
        both = (optimizer, muon(module, lr=0.01, fused=fused))
        assert all(
            each.parts["adamw"].defaults["fused"] is (True if fused else None) for each in both
        )
        learn(module, optimizer, 20)
        ends.append(nn.utils.parameters_to_vector(module.parameters()))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-4, atol=1e-6)


def test_biases_norms_and_gains_do_not_decay() -> None:
    module = Mixed()
    module.attention = Attention(8, heads=2)
    optimizer = muon(module, lr=0.1, weight_decay=0.3, exclude=["first"])
    decay = {
        id(parameter): group["weight_decay"]
        for part in optimizer.parts.values()
        for group in part.param_groups
        for parameter in group["params"]
    }
    kept = {"first.bias", "hidden.0.bias", "hidden.1.weight", "hidden.1.bias", "head.bias"}
    kept |= {"attention.scale", "attention.qkv.bias", "attention.out.bias"}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert decay[id(parameter)] == (0.0 if name in kept else 0.3), name


def test_a_module_of_one_kind_of_parameter_needs_one_optimizer() -> None:
    assert list(muon(nn.Linear(3, 3, bias=False), lr=0.1).parts) == ["muon"]
    assert list(muon(nn.LayerNorm(3), lr=0.1).parts) == ["adamw"]


def test_the_rate_multiplier_is_of_the_base_rate_in_all_parts() -> None:
    optimizer = muon(Mixed(), lr=0.2)
    optimizer.set_lr_multiplier(0.5)
    optimizer.set_lr_multiplier(0.25)
    assert optimizer.lr == 0.05
    rates = {group["lr"] for part in optimizer.parts.values() for group in part.param_groups}
    assert rates == {0.05}


def test_a_muon_update_is_near_orthogonal_at_the_size_of_adamws() -> None:
    module = nn.Linear(16, 16, bias=False)
    before = torch.eye(16) + 0.2 * torch.randn(16, 16, generator=generator(0))
    module.load_state_dict({"weight": before})
    learn(module, muon(module, lr=0.1), steps=1)
    update = (before - module.weight.detach()) / 0.1
    singular = torch.linalg.svdvals(update) / (0.2 * math.sqrt(16))
    assert singular.min() > 0.5
    assert singular.max() < 1.5


def test_the_state_of_the_split_survives_a_round_trip(tmp_path: Path) -> None:
    first, second = Mixed(), Mixed()
    one, two = muon(first, lr=0.01, exclude=["first"]), muon(second, lr=0.01, exclude=["first"])
    learn(first, one, steps=3)
    checkpoint.save(tmp_path / "state.pt", {"state": one.state_dict()})
    second.load_state_dict(first.state_dict())
    two.load_state_dict(checkpoint.load(tmp_path / "state.pt")["state"])
    learn(first, one, steps=3)
    learn(second, two, steps=3)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
