"""Rows come in the given order, and each is read once while there is room."""

import numpy as np
import pytest
import torch

from braid.data.row_cache import RowCache

STORED = torch.randn(20, 3, 2, generator=torch.Generator().manual_seed(0)).half()


@pytest.mark.parametrize("room", [0, 1, 7, 100])
def test_rows_are_those_stored_and_no_more_are_kept_than_fit(room: int) -> None:
    cache = RowCache(20, (3, 2), torch.float16, room * 12 + 5)
    read: list[int] = []

    def reader(rows: np.ndarray) -> torch.Tensor:
        assert len(set(rows.tolist())) == len(rows)
        read.extend(rows.tolist())
        return STORED[rows]

    draw = np.random.default_rng(1)
    for size in [*range(1, 9)] * 6:
        rows = draw.integers(0, 20, size)
        assert torch.equal(cache.get(rows, reader), STORED[rows])
    counts = np.bincount(read, minlength=20)
    assert (counts == 1).sum() == min(room, 20)
    assert counts.max() > 1 or room >= 20


def test_no_row_is_read_where_none_is_asked_for() -> None:
    cache = RowCache(4, (2,), torch.float32, 100)
    assert cache.get(np.array([], np.int64), lambda rows: pytest.fail("read")).shape == (0, 2)
