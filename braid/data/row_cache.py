"""Samples of one shape that are read once and then kept in RAM, while there is room."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Rows = NDArray[np.int64]


class RowCache:
    """A cache over `count` rows of one shape, which keeps the first that are read."""

    def __init__(
        self, count: int, shape: tuple[int, ...], dtype: torch.dtype, capacity: int
    ) -> None:
        """The capacity is in bytes."""
        size = dtype.itemsize * int(np.prod(shape))
        self._kept = torch.empty(min(count, capacity // size), *shape, dtype=dtype)
        self._slots = np.full(count, -1)  # where a row is kept; -1: nowhere
        self._used = 0
        self._lock = Lock()

    def get(
        self,
        rows: Rows,  # [B], with repetitions or without
        read: Callable[[Rows], Tensor],  # different rows [b] to [b, ...]
    ) -> Tensor:
        """The rows in their order, [B, ...] as they are stored; what is not kept is read."""
        with self._lock:
            return self._get(rows, read)

    def _get(self, rows: Rows, read: Callable[[Rows], Tensor]) -> Tensor:
        slots = self._slots[rows]
        kept, absent = np.flatnonzero(slots >= 0), np.flatnonzero(slots < 0)
        if not len(absent):
            return self._kept[slots]
        different, place = np.unique(rows[absent], return_inverse=True)
        if len(different) == len(rows):  # each once and none kept: no further copy
            values = read(rows)
            self._keep(rows, values)
            return values
        values = read(different)
        self._keep(different, values)
        batch = torch.empty(len(rows), *self._kept.shape[1:], dtype=self._kept.dtype)
        batch[kept] = self._kept[slots[kept]]
        batch[absent] = values[place]
        return batch

    def _keep(self, rows: Rows, values: Tensor) -> None:
        rows = rows[: len(self._kept) - self._used]
        slots = self._used + np.arange(len(rows))
        self._kept[slots] = values[: len(rows)]
        self._slots[rows] = slots
        self._used += len(rows)
