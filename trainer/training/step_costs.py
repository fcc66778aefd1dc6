"""What steps cost: where their time goes, what is read, the ranks' memory; nothing here waits for the device."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import psutil
import torch
from torch import Tensor

MEGABYTE: Final = 1_000_000
READ_COUNTS: Final = (
    # Traffic, of files and of a store, and what it took.
    *("bytes_read", "requests", "store_bytes_read", "store_requests", "retries", "wait_s", "stall_s"),
    # The cache before a store, and what was lost to damage.
    *("cache_hits", "cache_misses", "cache_evictions", "quarantined", "windows_lost"),
)
"""What `Stream.stats` counts and the metrics report for every epoch, as data/epoch_*."""
READ_PEAKS: Final = ("held_bytes_peak", "decoded_bytes_peak")
"""The most that one pass over the data held at once, which the metrics report as data/*."""


@dataclass
class StepTimes:
    """When the parts of one step began and ended.

    On a GPU the marks are events, which are read once the step's figures have arrived: the host runs ahead, and its
    own clock says nothing.

    Args:
        device: Where the step is computed.
        data_s: Seconds that the host waited for the step's data.
    """

    device: torch.device
    data_s: float
    _host_s: list[float] = field(default_factory=list)
    _events: list[torch.cuda.Event] = field(default_factory=list)

    def mark(self) -> None:
        """End a part and begin the next: before the first forward, after the last backward pass, around the update."""
        if self.device.type == "cuda":
            # An event is recorded without waiting; its time is read when the figures have arrived.
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self._events.append(event)
        else:
            self._host_s.append(time.perf_counter())

    def part_s(self, number: int) -> float:
        """Give the seconds between two marks, part 0 lying between the first two; the device has come past both."""
        if self._events:
            return float(self._events[number].elapsed_time(self._events[number + 1])) / 1000
        return self._host_s[number + 1] - self._host_s[number]


class Speed:
    """Adds up the times of the steps between two lines of metrics.

    Its clock is the host's when a step had been handed to the device, without what evaluations and saves took.

    Args:
        global_batch: Windows an update.
    """

    def __init__(self, global_batch: int) -> None:
        self.global_batch = global_batch
        self.start(0, time.perf_counter())

    def start(self, step: int, clock_s: float) -> None:
        """Begin to count after so many finished steps."""
        self._start_s = clock_s
        self._step = step
        self._data_s = self._forward_backward_s = self._update_s = 0.0

    def add(self, times: StepTimes) -> None:
        """Take a step's times, once its figures have arrived."""
        self._data_s += times.data_s
        self._forward_backward_s += times.part_s(0)
        self._update_s += times.part_s(2)

    def line(self, finished: int, clock_s: float) -> dict[str, float]:
        """Give this rank's times per step since the last line, and begin anew.

        `time/data_s` is the host's wait for data, `time/forward_backward_s` and `time/update_s` are the device's, and
        `time/other_s` is what is left of the step: copies, sums over ranks that are none of these, gaps. Where a GPU
        computes while the host waits for data, the parts overlap.
        """
        num_steps = finished - self._step
        spent_s = clock_s - self._start_s
        # Read before the counters begin anew.
        parts_s = (self._data_s, self._forward_backward_s, self._update_s)
        self.start(finished, clock_s)
        if spent_s <= 0 or num_steps <= 0:
            return {}

        return {
            "windows_per_s": num_steps * self.global_batch / spent_s,
            "step_time_s": spent_s / num_steps,
            "data_wait_share": min(parts_s[0] / spent_s, 1.0),
            "time/data_s": parts_s[0] / num_steps,
            "time/forward_backward_s": parts_s[1] / num_steps,
            "time/update_s": parts_s[2] / num_steps,
            "time/other_s": max(spent_s - sum(parts_s), 0.0) / num_steps,
        }


def read_since(before: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    """Give the metrics of what a rank read between two readings of `Stream.stats`.

    Reading runs ahead: what the next epoch's first steps need may count as this one's.
    """
    counts = {f"data/epoch_{name}": now[name] - before.get(name, 0) for name in READ_COUNTS if name in now}
    return counts | {f"data/{name}": now[name] for name in READ_PEAKS if name in now}


def memory_tables(rank: int, world_size: int, device: torch.device) -> dict[str, Tensor]:
    """Give this rank's memory in tables of zeros: their sum over ranks holds all, and no maximum is asked for.

    Args:
        rank: This process.
        world_size: All of them.
        device: Where it computes.

    Returns:
        Megabytes by rank, by metric: resident memory and, on a GPU, its peak of memory in tensors.
    """
    own_mb = {"memory/cpu_mb": psutil.Process().memory_info().rss / MEGABYTE}
    if device.type == "cuda":
        own_mb["memory/gpu_peak_mb"] = torch.cuda.max_memory_allocated(device) / MEGABYTE
    # A row of zeros with one entry a rank: a sum over ranks puts the table together.
    tables = {name: torch.zeros(world_size, dtype=torch.float64, device=device) for name in own_mb}
    for name, value in own_mb.items():
        tables[name][rank].fill_(value)
    return tables


def device_name(device: torch.device) -> str:
    """Name what a rank computes on."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
