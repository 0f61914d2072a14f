"""Cost measurements with a fake clock and sensor; nothing here asserts on real time."""

from __future__ import annotations

import math
import sys
import threading
from types import SimpleNamespace

import pytest
import torch

from braid.common import timing
from braid.radiance.evaluation import hardware
from braid.radiance.evaluation.hardware import (
    PowerMeter,
    SensorError,
    measure_frames,
    power_sensor,
    trapezoid_mean,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


class Ticks:
    """A clock that shows the given times, one a call."""

    def __init__(self, *times: float) -> None:
        self.times = list(times)

    def __call__(self) -> float:
        return self.times.pop(0)


def test_the_trapezoid_of_a_linear_sensor_is_exact_at_uneven_times() -> None:
    times = [0.0, 0.1, 0.5, 0.55, 2.0]
    assert trapezoid_mean([(t, 100 + 50 * t) for t in times]) == pytest.approx(150)


def test_the_trapezoid_of_a_sine_converges() -> None:
    samples = [(t, 200 + 100 * math.sin(t)) for t in [math.pi * i / 400 for i in range(401)]]
    assert trapezoid_mean(samples) == pytest.approx(200 + 100 * 2 / math.pi, abs=1e-2)


def test_the_trapezoid_weighs_by_time_not_by_sample() -> None:
    crowded = [(0.0, 10.0), (0.1, 10.0), (0.2, 10.0), (0.3, 10.0), (1.0, 10.0), (3.0, 110.0)]
    assert trapezoid_mean(crowded) == pytest.approx((10 * 1 + 60 * 2) / 3)


def test_one_instant_is_its_own_average() -> None:
    assert trapezoid_mean([(2.0, 70.0)]) == 70
    assert trapezoid_mean([(2.0, 70.0), (2.0, 90.0)]) == 70


def test_the_meter_samples_at_both_ends_and_in_between() -> None:
    watts = iter([100.0, 300.0, 200.0])
    meter = PowerMeter(lambda: next(watts), clock=Ticks(10, 11, 14), period=3600)
    with meter:
        meter.sample()
    assert meter.average() == pytest.approx((200 * 1 + 250 * 3) / 4)
    assert meter.reason is None


def test_the_meter_samples_in_the_background() -> None:
    enough = threading.Event()
    seen = []

    def sensor() -> float:
        seen.append(threading.current_thread())
        if len(seen) >= 4:
            enough.set()
        return 50.0

    with PowerMeter(sensor, period=1e-3) as meter:
        assert enough.wait(timeout=30)
    assert meter.average() == pytest.approx(50)
    assert len(set(seen)) == 2


def test_a_sensor_that_fails_on_the_way_gives_no_figure_but_a_reason() -> None:
    readings = iter([100.0])

    def sensor() -> float:
        for value in readings:
            return value
        raise SensorError("NVML: GPU is lost")

    with PowerMeter(sensor, period=3600) as meter:
        pass
    assert (meter.average(), meter.reason) == (None, "NVML: GPU is lost")


def test_a_cpu_run_has_no_power_figure_but_a_reason() -> None:
    with PowerMeter(power_sensor(CPU)) as meter:
        pass
    assert meter.average() is None
    assert meter.reason == "NVML reads NVIDIA GPUs only, the run was on cpu"


class FakeNvml(SimpleNamespace):
    """Just enough of pynvml: one device whose power is 123.456 W."""

    class NVMLError(Exception):
        pass

    def nvmlInit(self) -> None:  # noqa: N802
        if self.broken:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetHandleByUUID(self, name: str) -> str:  # noqa: N802
        return name

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:  # noqa: N802
        if self.lost:
            raise self.NVMLError("GPU is lost")
        assert handle == "GPU-abc"
        return 123456


def fake(monkeypatch: pytest.MonkeyPatch, broken: bool = False, lost: bool = False) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(broken=broken, lost=lost))
    properties = SimpleNamespace(uuid="abc")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)


def test_nvml_milliwatts_become_watts(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch)
    sensor = power_sensor(CUDA)
    assert not isinstance(sensor, str)
    assert sensor() == pytest.approx(123.456)


def test_nvmls_own_words_are_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, broken=True)
    assert power_sensor(CUDA) == "NVML: Driver Not Loaded"
    fake(monkeypatch, lost=True)
    with PowerMeter(power_sensor(CUDA)) as meter:
        pass
    assert (meter.average(), meter.reason) == (None, "NVML: GPU is lost")


def test_frames_are_timed_after_one_that_warms_up(monkeypatch: pytest.MonkeyPatch) -> None:
    rendered: list[int] = []
    monkeypatch.setattr(timing.time, "perf_counter", Ticks(100, 102))
    cost = measure_frames(rendered.append, 5, CPU)
    assert rendered == [0, 0, 1, 2, 3, 4]
    assert (cost.frames, cost.fps) == (5, 2.5)
    assert cost.power_w is None
    assert cost.power_reason


class Frame:
    """A rendered frame that says how many like it there are."""

    alive = 0

    def __init__(self, _: int) -> None:
        Frame.alive += 1
        Frame.most = max(Frame.most, Frame.alive)

    def __del__(self) -> None:
        Frame.alive -= 1

    most = 0


def test_no_frame_is_kept() -> None:
    measure_frames(Frame, 8, CPU)
    assert Frame.most == 1


needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="peaks are reset on Linux alone")


@needs_linux
def test_peak_memory_is_that_of_rendering_whatever_was_held_before() -> None:
    held, spent = torch.ones(2**25), torch.ones(2**26)  # 128 and 256 MiB
    del spent
    cost = measure_frames(lambda _: torch.ones(2**24).sum(), 2, CPU)  # 64 MiB
    assert cost.peak_memory_mib == pytest.approx(64, abs=16)
    assert cost.peak_memory_of == "the process, above what was held before"
    assert held.sum() == 2**25


def test_without_a_peak_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden() -> float:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(hardware, "reset_peak_rss_mib", forbidden)
    cost = measure_frames(lambda _: None, 1, CPU)
    assert cost.peak_memory_mib is None
    assert cost.peak_memory_of.endswith("cannot be reset here (Permission denied)")


@pytest.mark.parametrize("frames", [0, -1])
def test_fewer_than_one_frame_is_refused(frames: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1, got {frames}"):
        measure_frames(lambda _: None, frames, CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_run_reports_cuda_memory_and_power() -> None:
    held = torch.ones(2**25, device=CUDA)
    cost = measure_frames(lambda _: torch.ones(2**24, device=CUDA).sum(), 20, CUDA)
    assert cost.peak_memory_mib == pytest.approx(64, abs=8)
    assert held.sum() == 2**25
    assert "CUDA" in cost.peak_memory_of
    assert cost.power_w is None or cost.power_w > 1
