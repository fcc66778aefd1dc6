"""Memory a rank, measured and as the formula says: `python -m tests.bench.memory [--encoders NAME] [--worlds 1 2 4]`.

Every line is a fresh set of processes that train a few steps through the real engine. On the CPU torch's
allocations are followed one by one (exact; `launch.doctor.memory_trace`); on a GPU they are torch.cuda's. "predicted"
is `launch.doctor.memory_formula.rank_memory`, with activations measured on one process.
"""

import argparse
import gc
import os
from datetime import UTC, datetime

import numpy as np
import torch
from torch import Tensor

from rainspark.launch.doctor.memory_formula import RankMemory, rank_memory, size_of
from rainspark.launch.doctor.memory_trace import mark, traced
from rainspark.models.encoder import build_encoder
from rainspark.models.masking import visible_positions
from rainspark.models.spark import SparK
from rainspark.trainer.engine.engine import Engine
from rainspark.trainer.settings.engine import EngineConfig
from rainspark.trainer.settings.optim import OptimConfig
from tests.distributed import run_ranks

FRAMES = 12
STAGES = ("ddp", "0", "1", "2", "3")
STEPS = 3


def engine_config(stage: str, device: str = "cpu") -> EngineConfig:
    """Settings of a variant by its name."""
    return EngineConfig(
        zero_stage=None if stage == "ddp" else int(stage), device=device, timeout_s=300  # type: ignore[arg-type]
    )  # fmt: skip


def inputs(size: int, windows: int, device: torch.device | str, ratio: float = 0.6) -> tuple[Tensor, Tensor]:
    """Frames of random rain and visible positions."""
    generator, grid = np.random.default_rng(0), (size // 32, size // 32)
    positions = np.stack([visible_positions(grid, ratio, generator) for _ in range(windows)])
    return torch.rand(windows, FRAMES, size, size, device=device), torch.from_numpy(positions).to(device)


def build(encoder: str, width: int) -> SparK:
    """The pretraining model."""
    return SparK(build_encoder(encoder, FRAMES), decoder_width=width)


def train(engine: Engine, frames: Tensor, positions: Tensor, micro_steps: int, step: int) -> None:
    """One step of the engine, with a mark after its last backward."""
    engine.start_step()
    for micro_step in range(micro_steps):
        with engine.accumulate(last=micro_step == micro_steps - 1):
            output = engine.model(frames, positions)
        engine.backward(engine.bare_model.loss_sum(output) / positions.numel())  # type: ignore[operator]
        del output
    mark(f"backward {step}")
    zero = torch.zeros((), device=frames.device)
    engine.update(rate=1e-4, decay=0.0, skip=zero, average_decay=0.9)


def activations_of(encoder: str, width: int, size: int, windows: int) -> int:
    """Peak bytes of a forward and backward pass on one process, gradients being there."""
    model = build(encoder, width).train()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    frames, positions = inputs(size, windows, torch.device("cpu"))

    def work() -> None:
        loss = model.loss_sum(model(frames, positions)) / positions.numel()
        loss.backward()  # type: ignore[no-untyped-call]
        mark("end")

    return traced(work)[-1].peak


def measure(
    _rank: int, stage: str, optim: OptimConfig, encoder: str, width: int, size: int, windows: int, micro_steps: int
) -> dict[str, int]:
    """What one rank allocates: bytes held between steps, and at the peak."""
    on_gpu = torch.cuda.is_available()
    if stage == "ddp" and os.environ["WORLD_SIZE"] == "1":
        # A launcher's LOCAL_RANK makes Accelerate wrap one process too, which a run that is started alone does not see.
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            del os.environ[name]
    engine = Engine(engine_config(stage, "cuda" if on_gpu else "cpu"))
    frames, positions = inputs(size, windows, engine.device)

    def work() -> None:
        torch.manual_seed(0)
        engine.prepare(build(encoder, width), optim, micro_batch=windows * engine.world_size)
        engine.model.train()
        mark("prepared")
        for step in range(STEPS):
            train(engine, frames, positions, micro_steps, step)
            # Wrappers leave cycles, which the collector lets go of at any time.
            gc.collect()
            mark(f"step {step}")

    if on_gpu:
        held_before = torch.cuda.memory_allocated()
        work()
        held, peak = torch.cuda.memory_allocated() - held_before, torch.cuda.max_memory_allocated() - held_before
    else:
        stretches = traced(work)
        held, peak = stretches[-1].held, max(stretch.peak for stretch in stretches[1:])
    engine.shutdown(clean=True)
    return {"held": held, "peak": peak}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--encoders", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--windows", type=int, default=2, help="a micro-batch of a rank")
    parser.add_argument("--micro-steps", type=int, default=1)
    parser.add_argument("--worlds", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--optimizer", choices=("adamw", "lamb", "sgd"), default="adamw")
    parser.add_argument("--ema", type=float)
    given = parser.parse_args()
    # What the profiler of the ranks tells on standard error as it starts.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    optim = OptimConfig(name=given.optimizer, ema_decay=given.ema)
    print(f"{datetime.now(UTC):%Y-%m-%d}, torch {torch.__version__}, {os.cpu_count()} cores, {given}")
    print("| model | ranks | variant | held: predicted, MB | measured / predicted | peak: predicted, MB | "
          "measured / predicted |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    for encoder in given.encoders:
        size = size_of(build(encoder, given.width))
        activations = activations_of(encoder, given.width, given.size, given.windows)
        for world in given.worlds:
            for stage in given.stages:
                said: RankMemory = rank_memory(
                    size, optim, engine_config(stage), world_size=world, micro_steps=given.micro_steps,
                    activations=activations,
                )  # fmt: skip
                settings = (stage, optim, encoder, given.width, given.size, given.windows, given.micro_steps)
                found = run_ranks(measure, world, *settings, timeout_s=600, init_group=False)
                held, peak = (max(rank[name] for rank in found) for name in ("held", "peak"))
                print(f"| {encoder}, {size.parameters / 1e6:.1f} M | {world} | {stage} | {said.resident / 1e6:.0f} | "
                      f"{held / said.resident:.3f} | {said.peak / 1e6:.0f} | "
                      f"{peak / said.peak:.3f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
