"""Progress bars: how much is done, how fast, how long it will take.

They are drawn on a terminal alone, and not under continuous integration, which sets CI: a log
would keep every state of a bar.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def progress(
    items: Iterable[Item],
    what: str,  # is going on
    unit: str,  # what one item is
    *,
    total: int | None = None,  # where the items have no length
    initial: int = 0,  # done before
    shown: bool = True,  # False in all processes but one
) -> tqdm[Item]:
    """The items, with a bar on standard error."""
    hidden = True if not shown or os.environ.get("CI") else None  # None: no terminal, no bar
    return tqdm(items, what, total, initial=initial, unit=unit, disable=hidden)
