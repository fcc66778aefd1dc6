"""Latency and memory of one forecast: `python -m tests.bench.forecast [--quick] [--device cpu|cuda] [--threads 1]`.

12 frames of 288 x 288 in, 12 out, one window; rain in mm/h to rain in mm/h. Times are medians of runs that take turns;
memory is the peak that a process adds from before its first forecast to after it, each in a process of its own.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from rainspark.data.units import KNMI_MMH_PER_COUNT, ModelSpace
from rainspark.models.baselines.extrapolation import Extrapolation
from rainspark.models.baselines.simple import Advection
from rainspark.trainer.forecasting.build import build_nowcaster
from rainspark.trainer.forecasting.forecaster import rain_of
from rainspark.trainer.settings.model import NowcastConfig
from tests.data.radar_files import storms
from tests.peak_memory import added_bytes

SPACE = ModelSpace(kind="log", scale_mmh=1.0)
RUNS = {
    "resnet18, width 128, advected": NowcastConfig(encoder="resnet18", decoder_width=128, translation="identity"),
    "resnet50, width 768, advected, mixer": NowcastConfig(encoder="resnet50", translation="mixer"),
    "resnet26, width 768, published": NowcastConfig(encoder="resnet26", translation="linear", head="patch"),
    "smaat_unet, width 64": NowcastConfig(name="smaat_unet"),
}
BASELINES = ("advection (ours)", "extrapolation (pysteps)")
KINDS = (*RUNS, *BASELINES)


def forecast_of(kind: str, device: torch.device) -> Callable[[], None]:
    """Make the call to time."""
    counts = torch.from_numpy(storms(12, 288, 288, seed=4).astype("float32"))
    rain_mmh_bthw = (counts * KNMI_MMH_PER_COUNT)[None].to(device)
    if kind in BASELINES:
        baseline = Advection() if kind == BASELINES[0] else Extrapolation()
        return lambda: _finish(baseline.forecast(rain_mmh_bthw, None, 12))
    config = RUNS[kind]
    model = build_nowcaster(config).to(device).eval()

    def run() -> None:
        with torch.no_grad():
            forecast = model(SPACE.from_mmh(rain_mmh_bthw), None, None)
            _finish(rain_of(forecast, rain_mmh_bthw, None, space=SPACE, match=config.match))

    return run


def _finish(rain_mmh_bthw: torch.Tensor) -> None:
    float(rain_mmh_bthw.sum())


def latencies_s(kinds: list[str], device: torch.device, rounds: int) -> dict[str, list[float]]:
    """Time forecasts, one of each kind a round."""
    calls = {kind: forecast_of(kind, device) for kind in kinds}
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for kind, call in calls.items():
            start_s = time.perf_counter()
            call()
            times[kind].append(time.perf_counter() - start_s)
    return times


def peak_mb(kind: str, device: str, threads: int) -> float:
    """Measure the memory that the first forecast adds, in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.forecast", "--memory-of", kind, "--device", device]
    command += ["--threads", str(threads)]
    root = Path(__file__).resolve().parents[2]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, cwd=root).stdout.split()[-1])


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description="Latency and memory of a forecast.")
    parser.add_argument("--quick", action="store_true", help="small models and two rounds")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    if arguments.memory_of:
        added = added_bytes(forecast_of(arguments.memory_of, device), arguments.device)
        sys.stdout.write(f"{added / 1e6:.1f}\n")
        return
    kinds = [kind for kind in KINDS if not arguments.quick or "width 768" not in kind]
    if device.type == "cuda":
        kinds.remove(BASELINES[1])
    rounds = 2 if arguments.quick else arguments.rounds
    where = platform.processor() if device.type == "cpu" else torch.cuda.get_device_name()
    sys.stdout.write(f"torch {torch.__version__}, {arguments.threads} threads, {device} {where}\n")
    times = latencies_s(kinds, device, rounds)
    base = statistics.median(times[BASELINES[0]])
    for kind in kinds:
        median = statistics.median(times[kind])
        memory = peak_mb(kind, arguments.device, arguments.threads)
        sys.stdout.write(f"{kind:<40} {1e3 * median:8.0f} ms  {median / base:6.2f}x  {memory:8.0f} MB\n")


if __name__ == "__main__":
    main()
