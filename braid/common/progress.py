"""What a person at a terminal is shown: progress bars, and faults of a command in one line.

Bars say how much is done, how fast, how long it will take. They are drawn on a terminal alone, and
not under continuous integration, which sets CI: a log would keep every state of a bar.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable
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


def run_command(
    name: str,  # of the module below braid
    doc: str | None,  # its docstring, which --help shows
    add_options: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], None],
) -> None:
    """Run `python -m braid.<name>`; a fault in what the user gave ends it in one line."""
    parser = argparse.ArgumentParser(prog=f"python -m braid.{name}", description=doc)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_options(parser)
    try:
        run(parser.parse_args())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {name}: {' '.join(str(error).split())}")
