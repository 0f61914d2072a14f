"""What a render costs on this machine: frames per second, peak memory, average power.

None of these figures is deterministic: they belong beside the quality figures, not among them.
Power is read from NVML (package `nvidia-ml-py`) by a background thread and averaged as the
trapezoid of its samples; where it cannot be read it is None, with the reason.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType

import torch

from braid.common.timing import peak_rss_mib, timed

MIB = 2**20
SAMPLE_PERIOD = 0.05  # seconds between power samples

Sensor = Callable[[], float]  # watts
Clock = Callable[[], float]  # seconds


class SensorError(Exception):
    """A sensor that cannot be read; the message is the reason."""


@dataclass(frozen=True)
class FrameCost:
    """What rendering took."""

    frames: int  # timed, after one more that warms up
    fps: float
    peak_memory_mib: float
    peak_memory_of: str  # what the peak was measured of
    power_w: float | None
    power_reason: str | None  # why there is no power figure


@torch.no_grad()
def measure_frames(
    render: Callable[[int], object],
    frames: int,
    device: torch.device,
) -> FrameCost:
    """Time `render(0)` to `render(frames - 1)`, after an untimed `render(0)`.

    Raises:
        ValueError: fewer than one frame.
    """
    if frames < 1:
        raise ValueError(f"frames to measure must be at least 1, got {frames}")
    render(0)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with PowerMeter(power_sensor(device)) as meter:
        _, seconds = timed(lambda: [render(frame) for frame in range(frames)], device)
    peak, source = peak_memory(device)
    return FrameCost(frames, frames / seconds, peak, source, meter.average(), meter.reason)


def peak_memory(device: torch.device) -> tuple[float, str]:
    """Peak memory in MiB, and what it is the peak of."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB, "CUDA tensors while rendering"
    return peak_rss_mib(), "RSS of the whole process"


class PowerMeter:
    """Samples a sensor in the background for as long as its `with` block lasts.

    Takes a sample at either end as well, so that the trapezoid spans the whole block. A sensor
    given as text is one that cannot be read, and the text says why.
    """

    def __init__(
        self,
        sensor: Sensor | str,
        clock: Clock = time.monotonic,
        period: float = SAMPLE_PERIOD,
    ) -> None:
        self.reason = sensor if isinstance(sensor, str) else None
        self._sensor = None if isinstance(sensor, str) else sensor
        self._clock, self._period = clock, period
        self._samples: list[tuple[float, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> PowerMeter:
        self.sample()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.sample()

    def _run(self) -> None:
        while self._sensor is not None and not self._stop.wait(self._period):
            self.sample()

    def sample(self) -> None:
        """Read the sensor once; a failure ends the sampling and becomes the reason."""
        if self._sensor is None:
            return
        try:
            self._samples.append((self._clock(), self._sensor()))
        except SensorError as error:
            self._sensor, self.reason = None, str(error)

    def average(self) -> float | None:
        """Average power in watts, or None where there is a reason."""
        return None if self.reason is not None else trapezoid_mean(self._samples)


def trapezoid_mean(samples: list[tuple[float, float]]) -> float:
    """Time average of (seconds, value) samples joined by straight lines."""
    area = sum((t1 - t0) * 0.5 * (w0 + w1) for (t0, w0), (t1, w1) in pairwise(samples))
    duration = samples[-1][0] - samples[0][0]
    return area / duration if duration > 0 else samples[0][1]


def power_sensor(device: torch.device) -> Sensor | str:
    """The device's power in watts by NVML, or the reason why it cannot be read."""
    if device.type != "cuda":
        return f"NVML reads NVIDIA GPUs only, the run was on {device.type}"
    import pynvml

    try:
        pynvml.nvmlInit()
        # by UUID: NVML does not know the order that CUDA_VISIBLE_DEVICES gives
        name = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(name)
    except pynvml.NVMLError as error:
        return f"NVML: {error}"

    def read() -> float:
        try:
            return float(pynvml.nvmlDeviceGetPowerUsage(handle)) / 1000
        except pynvml.NVMLError as error:
            raise SensorError(f"NVML: {error}") from None

    return read
