"""Progress bars: on a terminal alone."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from braid.common import progress as module
from braid.common.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def drawn(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, **options: bool) -> str:
    monkeypatch.setattr("sys.stderr", stream)
    assert list(progress(range(4, 10), "train", "step", total=10, initial=4, **options)) == [
        *range(4, 10),
    ]
    return stream.getvalue()


def test_a_terminal_shows_what_how_much_and_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    text = drawn(monkeypatch, Terminal())
    assert re.search(r"train: +40%.* 4/10 \[00:00<\?, \?step/s\]", text)
    assert re.search(r"train: 100%.* 10/10 \[\d\d:\d\d<00:00, .*step(/s)?", text)


def test_a_log_ci_and_other_processes_see_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    assert drawn(monkeypatch, io.StringIO()) == ""
    assert drawn(monkeypatch, Terminal(), shown=False) == ""
    monkeypatch.setenv("CI", "true")
    assert drawn(monkeypatch, Terminal()) == ""


def test_no_other_module_draws_bars_of_its_own() -> None:
    own = Path(module.__file__)
    modules = [path for path in own.parents[1].rglob("*.py") if path != own]
    assert [path for path in modules if "tqdm" in path.read_text()] == []
