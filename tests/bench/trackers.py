"""What trackers cost a training step: `python -m tests.bench.trackers` compares runs with and without services.

Each round starts one process a case, in turn: metrics.jsonl and TensorBoard only, and besides them all four services on
this machine, or with servers that are absent, slow, hang or answer 500. A step is a ResNet-18's forward and backward
pass, and every step is logged, ten times as often as the default. Measured once the libraries are loaded:

    ratio     median step time over that of the same round without services; the median over rounds, and its range
    log       share of the training thread's CPU time that goes to log(), which never waits
    threads   CPU time of all other threads of the process, against the training thread's: what they could take from it
              if they always ran instead of it
    start     seconds until the libraries are loaded, longer over the same time without services
"""

import argparse
import base64
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

CASES = ("none", "offline", "absent", "slow", "hangs", "500")
NUM_METRICS = 25


def one(case: str, folder: Path, warm_s: float, steps: int, batch: int) -> dict[str, float]:
    """Train in this process and measure."""
    import torch
    from accelerate import PartialState
    from torchvision.models import resnet18  # type: ignore[import-untyped]

    from rainspark.trainer.settings.tracking import TrackingConfig
    from rainspark.trainer.tracking.trackers import open_trackers

    torch.set_num_threads(1)
    PartialState(cpu=True)
    model = resnet18()
    images = torch.randn(batch, 3, 224, 224)
    services = () if case == "none" else ("neptune", "trackio", "mlflow", "wandb")
    trackers = open_trackers(folder, TrackingConfig(services=services, close_s=0), resume_step=None)
    times: list[float] = []
    step, log_s, train_s, others_s, begin = 0, 0.0, 0.0, 0.0, time.perf_counter()
    while len(times) < steps:
        start, mine, all_threads = time.perf_counter(), time.thread_time(), time.process_time()
        model(images).sum().backward()
        logged = time.thread_time()
        trackers.log(step, {f"part/metric_{number}": step / (number + 1) for number in range(NUM_METRICS)})
        if start - begin > warm_s:
            end = time.thread_time()
            times.append(time.perf_counter() - start)
            log_s += end - logged
            train_s += end - mine
            others_s += time.process_time() - all_threads - (end - mine)
        step += 1
    found = {
        "step_s": statistics.median(times), "log": log_s / train_s, "threads": others_s / train_s,
        "warm_steps": step - len(times),
    }  # fmt: skip
    trackers.close()
    return found


@contextmanager
def _environment(case: str) -> Iterator[dict[str, str]]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "MLFLOW", "NEPTUNE"))}
    if case in ("none", "offline"):
        yield clean
        return
    fault = "none" if case == "absent" else case
    with subprocess.Popen(
        [sys.executable, "-m", "tests.tracker_server", fault], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        url = "http://127.0.0.1:9" if case == "absent" else server.stdout.readline().strip()
        token = base64.b64encode(json.dumps({"api_address": url, "api_url": url}).encode()).decode()
        yield {
            **clean, "MLFLOW_TRACKING_URI": url, "WANDB_BASE_URL": url, "WANDB_API_KEY": "0123456789" * 4,
            "TRACKIO_SERVER_URL": url, "TRACKIO_WRITE_TOKEN": "a-token", "NEPTUNE_MODE": "async",
            "NEPTUNE_API_TOKEN": token, "NEPTUNE_PROJECT": "someone/rainspark",
        }  # fmt: skip
        server.terminate()


def _measured(case: str, arguments: argparse.Namespace) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder, _environment(case) as environment:
        command = [
            sys.executable, "-m", "tests.bench.trackers", "--case", case, "--folder", folder, "--warm-s",
            str(arguments.warm_s), "--steps", str(arguments.steps), "--batch", str(arguments.batch),
        ]  # fmt: skip
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--warm-s", type=float, default=12.0)
    parser.add_argument("--cases", nargs="+", choices=CASES[1:], default=CASES[1:])
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case is not None:
        print(json.dumps(one(arguments.case, arguments.folder, arguments.warm_s, arguments.steps, arguments.batch)))
        sys.stdout.flush()
        # Services that hang are left behind.
        os._exit(0)
    rounds = [
        {case: _measured(case, arguments) for case in ("none", *arguments.cases)} for _ in range(arguments.rounds)
    ]
    print(f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {arguments}")
    base = statistics.median(found["none"]["step_s"] for found in rounds)
    print(
        f"step without services: {base * 1000:.0f} ms, of which log() "
        f"{rounds[0]['none']['log']:.2%}, other threads {rounds[0]['none']['threads']:.2%}"
    )
    print(f"{'case':<10}{'ratio':>8}{'range':>18}{'log':>9}{'threads':>9}{'start':>9}")
    for case in arguments.cases:
        ratios = sorted(found[case]["step_s"] / found["none"]["step_s"] for found in rounds)
        log, cpu = (statistics.median(found[case][key] for found in rounds) for key in ("log", "threads"))
        start = statistics.median(
            (found["none"]["warm_steps"] - found[case]["warm_steps"]) * found["none"]["step_s"] for found in rounds
        )
        span = f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
        print(f"{case:<10}{statistics.median(ratios):>8.3f}{span:>18}{log:>9.3%}{cpu:>9.2%}{start:>8.1f}s")


if __name__ == "__main__":
    main()
