"""What a render costs on this machine: frames per second, peak memory, average power.

None of these figures is deterministic: they belong beside the quality figures, not among them.
Peak memory is what rendering takes beyond what the process held before, the model included in
that: measured before anything else is rendered, for memory that was freed would be taken again.
Power is read from NVML (package `nvidia-ml-py`) by a background thread and averaged as the
trapezoid of its samples; where it cannot be read it is None, with the reason.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from types import TracebackType

import torch

from braid.common.timing import peak_rss_mib, reset_peak_rss_mib, timed
from braid.training.distributed import barrier, is_main

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
    peak_memory_mib: float | None
    peak_memory_of: str  # what the peak was measured of, or why there is none
    power_w: float | None
    power_reason: str | None  # why there is no power figure


def frame_cost(
    render: Callable[[int], object],
    frames: int,
    device: torch.device,
) -> dict[str, float | int | str | None]:
    """`measure_frames` by the first of several processes, while the others wait with nothing."""
    cost = asdict(measure_frames(render, frames, device)) if is_main() else {}
    barrier()
    return cost


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
    peak = PeakMemory(device)
    render(0)
    with PowerMeter(power_sensor(device)) as meter:
        _, seconds = timed(lambda: _each(render, frames), device)
    mib, source = peak.read()
    return FrameCost(frames, frames / seconds, mib, source, meter.average(), meter.reason)


def _each(render: Callable[[int], object], frames: int) -> None:
    for frame in range(frames):
        render(frame)  # not kept


class PeakMemory:
    """Peak memory from when it is made to `read`, above what was held when it was made."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.before = device, 0.0  # MiB
        self.reason: str | None = None
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device) / MIB
            return
        try:
            self.before = reset_peak_rss_mib()
        except OSError as error:
            self.reason = f"the peak of the process cannot be reset here ({error.strerror})"

    def read(self) -> tuple[float | None, str]:
        """The peak in MiB, and what it is the peak of; or None and why."""
        if self.reason is not None:
            return None, self.reason
        if self.device.type == "cuda":
            peak, source = torch.cuda.max_memory_allocated(self.device) / MIB, "CUDA tensors"
        else:
            peak, source = peak_rss_mib(), "the process"
        return max(0.0, peak - self.before), f"{source}, above what was held before"


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
