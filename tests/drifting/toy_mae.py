"""A tiny masked autoencoder and clips for it, for the tests of training and evaluating one."""

import torch

from braid.drifting.mae.latent_mae import LatentMae
from braid.drifting.mae.objective import MaeObjective, Masking
from tests.drifting import configs

MASKING = Masking(configs.masking())


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def data(count=40, classes=4):
    """Clips of one random picture a class, at a random place of a line in time."""
    pictures = torch.randn(classes, 3, 1, 4, 4, generator=generator(1))
    labels = torch.arange(count) % classes
    ramp = torch.linspace(0.5, 1.5, 5)[None, None, :, None, None]
    return pictures[labels] * ramp, labels


def toy_mae_objective(classes=4, **changes):
    torch.manual_seed(0)
    values, labels = data()
    mae = LatentMae(3, 8, (1, 1), classes)
    clips = changes.pop("clips", torch.arange(len(values)))
    labels = changes.pop("labels", labels)
    config = configs.mae(**changes)
    return MaeObjective(mae, MASKING, lambda i: values[i], clips, labels, config), values
