"""The exponential moving average of a module's trainable parameters."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from braid.training.distributed import split_like
from braid.training.optimizers import trainable


class Ema:
    """Averages of the trainable parameters; buffers and frozen parameters have none.

    After update t (counted from 0) the average moves by 1 - min(decay, (1 + t) / (10 + t)): the
    start is forgotten soon (the warm-up of TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        followed = trainable(module)
        self.parameters = list(followed.values())
        self.average = {name: value.detach().clone() for name, value in followed.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the averages towards the parameters after update ``step``."""
        decay = min(self.decay, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(list(self.average.values()), self.parameters, step)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Overwrite the module's trainable parameters with their averages."""
        for name, parameter in trainable(module).items():
            parameter.copy_(self.average[name])

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """Within, the module has the averages instead of its parameters."""
        own = {name: value.detach().clone() for name, value in trainable(module).items()}
        self.copy_to(module)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in trainable(module).items():
                    parameter.copy_(own[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name."""
        return dict(self.average)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave."""
        for name, average in self.average.items():
            average.copy_(split_like(state[name], average))
