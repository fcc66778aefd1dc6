"""Throughput, communication share and messages of DDP and ZeRO on 1, 2 and 4 processes.

`python -m tests.bench.scaling` times every variant twice, by as many processes: connected, as a run is, and
unconnected, where each trains the same through the same engine as the only rank of a run of its own, all at the same
time. The two sets take turns, step by step. Both feel the same crowd on the cores and do the engine's own work; what
connected steps take beyond unconnected ones is communication and waiting for other ranks: "communication" in the
table, 0 by definition for one process. Messages are what the profiler sees handed to the process group in one step, a
rank, against the bytes of the parameters. tests/bench/SCALING.md says what follows from it.
"""

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing
from torch.profiler import ProfilerActivity, profile

from rainspark.trainer.engine.engine import Engine
from rainspark.trainer.settings.optim import OptimConfig
from tests.bench.memory import STAGES, build, engine_config, inputs, train
from tests.distributed import run_ranks

PREFIX = "c10d::"
FLOAT_BYTES = 4
WARM_STEPS = 2
TIMEOUT_S = 900


def _sizes(dims: Any) -> int:
    """Add up the values of one tensor's shape, or of a list of them."""
    if not isinstance(dims, list) or not dims:
        return 0
    if all(isinstance(size, int) for size in dims):
        return math.prod(dims)
    return sum(_sizes(some) for some in dims)


def messages(work: Callable[[], None]) -> dict[str, int]:
    """Bytes handed to the process group by operation: the whole tensor that is reduced or gathered."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as trace:
        work()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        trace.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    found: Counter[str] = Counter()
    for event in events:
        name = str(event.get("name", ""))
        if name.startswith(PREFIX) and "Input Dims" in event.get("args", {}):
            sizes = [_sizes(dims) for dims in event["args"]["Input Dims"]]
            found[name.removeprefix(PREFIX)] += FLOAT_BYTES * max(sizes, default=0)
    return dict(found)


def measure(rank: int, world: int, stage: str, together: Barrier, given: dict[str, Any]) -> dict[str, Any]:
    """One variant on `world` connected processes and as many unconnected ones."""
    connected = rank < world
    own = {"WORLD_SIZE": str(world)}
    if not connected:
        port = int(os.environ["MASTER_PORT"]) + rank
        own = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": str(port)}
    os.environ |= own
    frames, positions = inputs(given["size"], given["windows"], torch.device("cpu"))
    engine = Engine(engine_config(stage))
    engine.prepare(
        build(given["encoder"], given["width"]), OptimConfig(), micro_batch=given["windows"] * engine.world_size
    )
    engine.model.train()

    def step() -> None:
        train(engine, frames, positions, 1, 0)

    times = []
    for _ in range(WARM_STEPS + given["rounds"]):
        together.wait(TIMEOUT_S)
        if not connected:
            together.wait(TIMEOUT_S)
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
        if connected:
            together.wait(TIMEOUT_S)
    results = {"step_s": times[WARM_STEPS:], "messages": messages(step)}
    engine.shutdown(clean=True)
    return results


def report(world: int, stage: str, given: argparse.Namespace, model_bytes: int) -> None:
    """Measure one variant on one number of processes and print its line.

    In processes of its own: DeepSpeed keeps groups of an engine that is gone, and a second one asks for them.
    """
    count = world if world == 1 else 2 * world
    together = torch.multiprocessing.get_context("spawn").Barrier(count)
    found = run_ranks(measure, count, world, stage, together, vars(given), timeout_s=TIMEOUT_S, init_group=False)
    # The slowest rank is what a step takes.
    steps, apart = (
        [max(times) for times in zip(*(rank["step_s"] for rank in ranks), strict=True)]
        for ranks in (found[:world], found[-world:])
    )
    step_s, apart_s = statistics.median(steps), statistics.median(apart)
    share = statistics.median(1 - own / step for own, step in zip(apart, steps, strict=True))
    sent = found[0]["messages"]
    kinds = ", ".join(f"{name.strip('_')} {value / model_bytes:.2f}" for name, value in sorted(sent.items())
                      if value > 0.001 * model_bytes)  # fmt: skip
    print(f"| {world} | {stage} | {world * given.windows / step_s:.2f} | {given.windows / step_s:.2f} | "
          f"{given.windows / apart_s:.2f} | {share:.0%} | {sum(sent.values()) / 1e6:.0f} | "
          f"{kinds or 'none'} |", flush=True)  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--windows", type=int, default=4, help="a micro-batch of a rank")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--worlds", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    given = parser.parse_args()
    # What the profiler of the ranks tells on standard error as it starts.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    model_bytes = FLOAT_BYTES * sum(parameter.numel() for parameter in build(given.encoder, given.width).parameters())
    load = os.getloadavg()[0]
    print(f"{datetime.now(UTC):%Y-%m-%d}, torch {torch.__version__}, {os.cpu_count()} cores, load {load:.1f}; {given}")
    print(f"{given.encoder}, decoder width {given.width}: {model_bytes / 1e6:.1f} MB of parameters")
    print("| processes | variant | windows/s | a process | a process, unconnected | communication | "
          "messages a step, MB a rank | by operation, parameters = 1 |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    for world in given.worlds:
        for stage in given.stages:
            report(world, stage, given, model_bytes)
    print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
