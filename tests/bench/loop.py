"""What the data cost a training run: `python -m tests.bench.loop` times the stream, the model and both together.

All three run in one process, in turn, several rounds; the figures are medians and the ratio of both to the model alone.
The stream alone has the machine to itself; "both" is the entry point's own loop, without evaluation and checkpoints.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from rainspark.data.stream.stream import Batch
from rainspark.trainer.engine.engine import Engine
from rainspark.trainer.processes.entry import StopSignal
from rainspark.trainer.settings.experiment import PretrainConfig
from rainspark.trainer.settings.parse import parse_config
from rainspark.trainer.training.loop import Hooks, Loop
from rainspark.trainer.training.pretraining import Pretraining
from tests.integration.runs import make_shards


class _Repeated:
    """One global batch again and again: the model without the data."""

    steps_per_epoch = 1

    def __init__(self, batches: list[Batch]) -> None:
        self._batches = batches

    def steps(self, first_step: int, stop_step: int) -> Iterator[list[Batch]]:
        """Give it for each step."""
        for _ in range(first_step, stop_step):
            yield self._batches

    def stats(self) -> dict[str, float]:
        """Tell that nothing is read."""
        return {}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _train_s(run: Pretraining, stream: object, steps: int) -> float:
    quiet = Hooks(
        log=lambda _step, _metrics: None,
        save=lambda _step: None,
        evaluate=lambda _step: {},
        name_windows=lambda _rows: [],
    )
    config = run.config
    loop = Loop(run.engine, run.task, stream, StopSignal(), config=config, hooks=quiet)  # type: ignore[arg-type]
    _wait(run.engine.device)
    start_s = time.perf_counter()
    loop.fit(config.run.steps - steps)
    _wait(run.engine.device)
    return time.perf_counter() - start_s


def _stream_s(run: Pretraining, steps: int) -> float:
    start_s = time.perf_counter()
    for _ in run.stream.steps(0, steps):
        pass
    return time.perf_counter() - start_s


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="resnet50")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=288)
    parser.add_argument("--precision", default="fp32")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shards = make_shards(Path(folder), hours=12, size=arguments.size)
        settings = {
            "data.shards": shards, "run.dir": Path(folder) / "run", "run.steps": 10**6,
            "data.global_batch": arguments.batch, "data.validation_share": 0, "model.encoder": arguments.encoder,
            "engine.precision": arguments.precision,
        }  # fmt: skip
        config = parse_config([f"--{key}={value}" for key, value in settings.items()], PretrainConfig, prog="bench")
        engine = Engine(config.engine)
        run = Pretraining(config, engine, StopSignal())
        run.engine.model.train()
        held = _Repeated(next(run.stream.steps(0, 1)))
        _train_s(run, held, 1)
        times: dict[str, list[float]] = {"stream alone": [], "model alone": [], "both": []}
        for _ in range(arguments.rounds):
            times["model alone"].append(_train_s(run, held, arguments.steps))
            times["both"].append(_train_s(run, run.stream, arguments.steps))
            times["stream alone"].append(_stream_s(run, arguments.steps))
        engine.shutdown(clean=True)
    windows = arguments.steps * arguments.batch
    ratios = [both / alone for both, alone in zip(times["both"], times["model alone"], strict=True)]
    print(f"{arguments.encoder}, {arguments.size} x {arguments.size} x 12, batch {arguments.batch}, {engine.device}")
    print("| part | windows/s | time, model alone = 1 |")
    print("|---|---|---|")
    for name, times_s in times.items():
        share = statistics.median(times_s) / statistics.median(times["model alone"])
        print(f"| {name} | {windows / statistics.median(times_s):.2f} | {share:.3f} |")
    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
    print(f"both / model alone, round by round: median {middle:.3f}, from {low:.3f} to {high:.3f}")


if __name__ == "__main__":
    main()
