"""What the clock and the operating system say."""

from types import SimpleNamespace

import pytest
import torch

from braid.common import timing
from braid.common.timing import peak_rss_mib, timed


def test_a_call_is_timed_and_its_result_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.5])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    assert timed(lambda: "done", torch.device("cpu")) == ("done", 2.5)


def test_the_device_is_waited_for_before_either_look_at_the_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: order.append("wait"))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: order.append("clock") or 0.0)
    timed(lambda: order.append("call"), torch.device("cuda"))
    assert order == ["wait", "clock", "call", "wait", "clock"]


@pytest.mark.parametrize(("platform", "expected"), [("linux", 3.0), ("darwin", 3 / 1024)])
def test_peak_memory_knows_its_platforms_unit(
    monkeypatch: pytest.MonkeyPatch, platform: str, expected: float
) -> None:
    usage = SimpleNamespace(ru_maxrss=3 * 1024)
    monkeypatch.setattr(timing.resource, "getrusage", lambda _: usage)
    monkeypatch.setattr(timing.sys, "platform", platform)
    assert peak_rss_mib() == pytest.approx(expected)
