"""Measure what a step allocates, tensor by tensor: the activations of a model, or a whole engine at work.

On the CPU the profiler sees every allocation of torch, so a peak is exact and needs no GPU; memory of libraries beside
torch's allocator (convolution workspaces, NCCL) is not in it.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from ...data.shards.index import Index
from ...data.stream.stream import Batch
from ...trainer.engine.processes import AUTOCAST_DTYPES
from ...trainer.engine.replicated import Forward
from ...trainer.forecasting.build import build_nowcaster
from ...trainer.settings.experiment import FinetuneConfig, TrainingConfig
from ...trainer.training.nowcast_task import build_nowcast_task
from ...trainer.training.pretrain_task import build_pretrain_task, build_spark
from ...trainer.training.task import Task

_MARK: Final = "rainspark mark: "


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """What torch held on the CPU in a stretch of work, beside what it held before the trace.

    Attributes:
        name: Of the mark that ended it.
        held: Bytes at its end.
        peak: Bytes at its worst moment.
    """

    name: str
    held: int
    peak: int


def mark(name: str) -> None:
    """End a stretch of a trace."""
    with record_function(f"{_MARK}{name}"):
        pass


def traced(work: Callable[[], None]) -> list[Stretch]:
    """Run work on the CPU and follow what it allocates, from mark to mark."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        work()

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        trace.export_chrome_trace(str(path))
        events: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    chosen = [event for event in events if _is_memory(event) or str(event.get("name", "")).startswith(_MARK)]

    # Follow the bytes held by address, in the order of time; a mark ends a stretch.
    live: dict[int, int] = {}
    held = peak = 0
    stretches = []
    for event in sorted(chosen, key=lambda event: float(event["ts"])):
        if not _is_memory(event):
            stretches.append(Stretch(name=event["name"].removeprefix(_MARK), held=held, peak=peak))
            peak = held
            continue

        address = event["args"]["Addr"]
        num_bytes = int(event["args"]["Bytes"])
        # What a thread of the process group lets go of is not seen; its address, taken again, shows it.
        held -= live.pop(address, 0)
        if num_bytes > 0:
            live[address] = num_bytes
            held += num_bytes
            peak = max(peak, held)
    return stretches


def _is_memory(event: dict[str, Any]) -> bool:
    return event.get("name") == "[memory]" and event["args"]["Device Type"] == 0


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Peak bytes of one micro-batch of a rank: forward and backward, the largest gradient included.

    Attributes:
        fixed: What does not grow with the windows.
        per_window: What each window adds.
    """

    fixed: int
    per_window: int

    def of(self, windows: int) -> int:
        """Give the bytes of so many windows."""
        return self.fixed + self.per_window * windows


def measure_activations(config: TrainingConfig, index: Index) -> Activations:
    """Run one micro-batch of one and one of two windows on the CPU, and count what they allocate at their peak.

    Under fp16 and bf16 this is the CPU's autocast, whose list of operations is close to CUDA's, not equal.
    """
    model: nn.Module
    task: Task
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if isinstance(config, FinetuneConfig):
            model = build_nowcaster(config.model)
            task = build_nowcast_task(config, model)
        else:
            model = build_spark(config)
            task = build_pretrain_task(config, model, index)
    if config.engine.precision == "fp64":
        model = model.double()

    # Gradients that are there already are added to in place, as those in the buckets of several ranks.
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)

    dtype = AUTOCAST_DTYPES[config.engine.precision]
    # torch's CPU convolutions know no half precision backward on every machine; bfloat16 is as wide.
    dtype = torch.bfloat16 if dtype is torch.float16 else dtype
    forward = Forward(model.train(), device_type="cpu", dtype=dtype, channels_last=config.engine.channels_last)
    # The first run makes what libraries keep, and does not count.
    _, peak_one, peak_two = (_peak(forward, task, _batch(index, windows, config.window)) for windows in (1, 1, 2))
    per_window = max(peak_two - peak_one, 1)
    return Activations(fixed=max(peak_one - per_window, 0), per_window=per_window)


def _batch(index: Index, windows: int, window: int) -> Batch:
    """Make windows of light rain with one missing pixel, which costs a mask."""
    counts = np.random.default_rng(0).integers(0, 50, (windows, window, index.rows, index.cols)).astype(np.uint16)
    counts[0, 0, 0, 0] = index.missing_count
    return Batch(
        counts_bthw=torch.from_numpy(counts),
        scale_mmh_b=torch.full((windows,), 0.12, dtype=torch.float64),
        has_missing=True,
        window_b=np.arange(windows),
        index_b=np.arange(windows),
        step=0,
        micro_step=0,
        epoch=0,
    )


def _peak(forward: nn.Module, task: Task, batch: Batch) -> int:
    prepared = task.prepare(batch)

    def work() -> None:
        loss: Tensor = task.step(forward, prepared).loss
        loss.backward()  # type: ignore[no-untyped-call]
        del loss
        mark("end")

    return traced(work)[-1].peak
