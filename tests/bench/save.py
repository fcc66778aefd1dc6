"""What checkpoints cost: `python -m tests.bench.save` times saves and resumes against the size of the model.

A save halts the training for gather + write + verify + prune; `stall share` is that time over `--save_every` steps of
this machine, and `1% at` the step time below which it would exceed 1% of them. Raw is a plain write with fsync of as
many bytes, in the same folder, right before; medians of `--rounds` saves. A resume reads, verifies and imports.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rainspark.trainer.checkpoint import folder as checkpoint
from rainspark.trainer.checkpoint.share import as_engine_state
from rainspark.trainer.engine.engine import Engine
from rainspark.trainer.processes.entry import StopSignal
from rainspark.trainer.settings.experiment import PretrainConfig
from rainspark.trainer.settings.parse import parse_config
from rainspark.trainer.training.pretraining import Pretraining
from tests.integration.runs import arguments, make_shards

MODELS = (("resnet18", 128), ("resnet18", 768), ("resnet50", 768), ("resnet101", 768))
PARTS = {"_write": "write", "verify_folder": "verify", "_prune": "prune"}
"""Functions of trainer/checkpoint/folder.py by what their time is called; `prune` verifies the checkpoint before."""


@contextmanager
def timed(spent: dict[str, list[float]]) -> Iterator[None]:
    """Time the parts of a save while inside; a part that another one calls counts for the outer one."""
    before = {name: getattr(checkpoint, name) for name in PARTS}
    inside: list[str] = []

    def timing(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if inside:
                return function(*args, **kwargs)
            inside.append(name)
            start_s = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                inside.pop()
                spent.setdefault(PARTS[name], []).append(time.perf_counter() - start_s)

        return call

    for name, function in before.items():
        setattr(checkpoint, name, timing(name, function))
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(checkpoint, name, function)


def raw_write_s(folder: Path, num_bytes: int) -> float:
    """Write and fsync that many bytes."""
    block, path = os.urandom(1 << 20), folder / "raw"
    start_s = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(num_bytes >> 20):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    spent_s = time.perf_counter() - start_s
    path.unlink()
    return spent_s


def no_figures(finished: int) -> dict[str, float]:
    """Stand for an evaluation."""
    del finished
    return {}


def nothing(finished: int) -> None:
    """Stand for a save."""
    del finished


def measure(shards: Path, folder: Path, encoder: str, width: int, rounds: int, save_every: int) -> str:
    """Time one model; returns its row."""
    argv = arguments(
        shards, folder / "run", model__encoder=encoder, model__decoder_width=width, data__global_batch=8,
        data__micro_batch=8, run__steps=4, run__evaluate_every=100, data__validation_share=0, engine__device="auto",
    )  # fmt: skip
    config = parse_config(argv, PretrainConfig, prog="bench")
    engine = Engine(config.engine)
    try:
        run = Pretraining(config, engine, StopSignal())
        run._evaluate, run._save = no_figures, nothing  # type: ignore[method-assign]
        start_s = time.perf_counter()
        run.run()
        step_s = (time.perf_counter() - start_s) / 4
        spent: dict[str, list[float]] = {}
        raw, stalls, loads, imports = [], [], [], []
        for number in range(1, rounds + 3):
            start_s = time.perf_counter()
            exported = engine.export_state()
            gather_s = time.perf_counter() - start_s
            num_bytes = sum(
                t.numel() * t.element_size() for t in (*exported.model.values(), *exported.optimizer.values())
            )
            raw.append(raw_write_s(folder, num_bytes))
            with timed(spent):
                start_s = time.perf_counter()
                checkpoint.save(folder, run.state_of(number, exported), exported.model, exported.optimizer, keep_last=2)
            stalls.append(gather_s + time.perf_counter() - start_s)
            spent.setdefault("gather", []).append(gather_s)
        for _ in range(rounds):
            start_s = time.perf_counter()
            loaded = checkpoint.load(folder)
            read_s = time.perf_counter()
            engine.import_state(as_engine_state(loaded))
            loads.append(read_s - start_s)
            imports.append(time.perf_counter() - read_s)
    finally:
        engine.shutdown(clean=True)
    median = {name: statistics.median(values[-rounds:]) for name, values in spent.items()}
    stall_s, raw_s = statistics.median(stalls[-rounds:]), statistics.median(raw[-rounds:])
    load_s, import_s = statistics.median(loads), statistics.median(imports)
    return (
        f"| {encoder}, {width} | {num_bytes / 1e6:.0f} | {median['gather']:.2f} | {median['write']:.2f} | "
        f"{median['verify']:.2f} | {median['prune']:.2f} | {stall_s:.2f} | {num_bytes / 1e6 / stall_s:.0f} | "
        f"{stall_s / raw_s:.1f} | {stall_s / step_s:.1f} | {stall_s / step_s / save_every:.2%} | "
        f"{stall_s / save_every / 0.01 * 1000:.0f} | {load_s:.2f} + {import_s:.2f} | {num_bytes / 1e6 / load_s:.0f} |"
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.save", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=None, help="where to write, on the disk in question")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save_every", type=int, default=500)
    options = parser.parse_args()
    torch.manual_seed(0)
    print(
        "| model, decoder width | MB | gather s | write s | verify s | prune s | stall s | MB/s | stall / raw | "
        "stall / step | stall share | 1% at, ms a step | resume: read + import s | read MB/s |"
    )
    print("|---" * 14 + "|")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        shards = make_shards(Path(folder), hours=3)
        for encoder, width in MODELS:
            with tempfile.TemporaryDirectory(dir=folder) as place:
                row = measure(shards, Path(place), encoder, width, options.rounds, options.save_every)
            print(row, flush=True)


if __name__ == "__main__":
    main()
