"""A linear head per network of a KiloNeRF, from its penultimate features to teacher features.

The networks of a grid share no basis, so one projector would have to decode hundreds of unrelated
ones. A head is the ridge regression of its network's points,

    W = (X'X + ridge tr(X'X) / H I)^-1 X'Y,    b = mean(Y) - mean(X) W,

with X and Y centered. What the heads predict on other points, beside what the networks' mean
targets alone predict, says how much of the teacher's features a student's features hold.
"""

from __future__ import annotations

import torch
from torch import Tensor

RIDGE = 0.03  # of the mean variance of a feature; held-out points choose it
TILE = 16  # points that share one gathered head


def fit_heads(
    features: Tensor,  # [P, H]
    target: Tensor,  # [P, C]
    network: Tensor,  # [P] int64, of each point
    networks: int,
) -> Tensor:
    """The heads, [networks, H + 1, C], the bias last; those without points predict the mean."""
    exact_x, exact_y = features.cpu().double(), target.cpu().double()
    heads = exact_y.new_zeros(networks, features.shape[1] + 1, target.shape[1])
    heads[:, -1] = exact_y.mean(dim=0)
    order = torch.argsort(network.cpu(), stable=True)
    counts = torch.bincount(network.cpu(), minlength=networks).tolist()
    for index, rows in enumerate(torch.split(order, counts)):
        if len(rows):
            heads[index] = _ridge(exact_x[rows], exact_y[rows])
    return heads.to(features)


def _ridge(x: Tensor, y: Tensor) -> Tensor:
    """One head, [H + 1, C]."""
    mean_x, mean_y = x.mean(dim=0), y.mean(dim=0)
    x, y = x - mean_x, y - mean_y
    gram = x.T @ x
    size = float(gram.diagonal().mean()) if len(gram) else 0.0
    if size == 0:  # features that do not vary here
        return torch.cat([torch.zeros(x.shape[1], y.shape[1]).to(x), mean_y[None]])
    gram = gram + RIDGE * size * torch.eye(len(gram)).to(gram)
    weight = torch.linalg.solve(gram, x.T @ y)
    return torch.cat([weight, (mean_y - mean_x @ weight)[None]])


def apply_heads(
    heads: Tensor,  # [networks, H + 1, C]
    features: Tensor,  # [P, H]
    network: Tensor,  # [P] int64
) -> Tensor:
    """What each point's own head predicts, [P, C].

    Points are laid into tiles of one network each, so that a head is gathered once per tile.
    """
    counts = torch.bincount(network, minlength=len(heads))
    tiles = -(-counts // TILE)
    order = torch.argsort(network, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    rank = rank - (counts.cumsum(0) - counts)[network]  # among the points of its network
    place = (tiles.cumsum(0) - tiles)[network] * TILE + rank
    owner = torch.repeat_interleave(torch.arange(len(heads), device=tiles.device), tiles)
    ones = torch.nn.functional.pad(features, (0, 1), value=1.0)
    rows = ones.new_zeros(len(owner) * TILE, ones.shape[1]).index_copy(0, place, ones)
    tiled = rows.view(len(owner), TILE, ones.shape[1])
    predicted = torch.bmm(tiled, heads.index_select(0, owner)).flatten(0, 1)
    return predicted.index_select(0, place)
