"""What ranks of the fault server do: save, copy, fetch and train, with a fault waiting for them."""

import hashlib
import json
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from rainspark.data.exit_codes import ExitCode
from rainspark.data.store.storage import open_storage
from rainspark.trainer.checkpoint.folder import Loaded, save
from rainspark.trainer.checkpoint.share import share
from rainspark.trainer.checkpoint.state import TrainState
from rainspark.trainer.checkpoint.transfer import pull_latest, push
from rainspark.trainer.engine.engine import Engine, EngineConfig
from rainspark.trainer.processes.entry import run_entry, set_up_logging
from rainspark.trainer.training.run import TrainingRun
from tests.fault_server import Fault, disarm
from tests.integration import nowcast_runs, runs

COLLECTIVES = (
    "all_reduce", "broadcast", "broadcast_object_list", "all_gather_object", "barrier", "all_gather", "reduce",
    "all_gather_into_tensor", "reduce_scatter_tensor",
)  # fmt: skip


def state_of(step: int) -> TrainState:
    """Give the state of a small checkpoint."""
    return TrainState(
        step=step, epoch=0, seed=0, config={}, plan={}, loss_scale=None, optimizer_steps={}, versions={}
    )  # fmt: skip


def tensors_of(step: int) -> dict[str, torch.Tensor]:
    """Give the tensors of a small checkpoint."""
    return {f"weight{number}": torch.full((300,), float(step) + number) for number in range(3)}


def save_small(run: Path, step: int, *, keep_last: int = 2, keep_every: int | None = None) -> Path:
    """Write a small checkpoint."""
    return save(run, state_of(step), tensors_of(step), tensors_of(step), keep_last=keep_last, keep_every=keep_every)


def save_under(_rank: int, run: str, step: int, fault: dict[str, Any]) -> int:
    """Save with a fault; 0 when it was reported as saved, 6 for a CheckpointError, 1 for any other."""
    Fault(**fault).arm(Path(run) / "checkpoints")
    code = run_entry(lambda: (save_small(Path(run), step), ExitCode.DONE)[1])
    disarm()
    return code


def push_under(_rank: int, checkpoint: str, store: str, fault: dict[str, Any]) -> int:
    """Copy a checkpoint to a folder with a fault."""
    Fault(**fault).arm(Path(store))

    def work() -> ExitCode:
        push(Path(checkpoint), open_storage(store), keep_last=2)
        return ExitCode.DONE

    code = run_entry(work)
    disarm()
    return code


def pull_under(_rank: int, run: str, store: str, fault: dict[str, Any]) -> int:
    """Fetch the newest checkpoint of a folder with a fault."""
    Fault(**fault).arm(Path(run))
    code = run_entry(lambda: (pull_latest(open_storage(store), Path(run)), ExitCode.DONE)[1])
    disarm()
    return code


def arguments(shards: Path, run: Path, **overrides: object) -> list[str]:
    """Build the command line of the smallest run of all: SmaAt-UNet of width 2, four steps, each of them saved.

    A rank that was killed is missed after some seconds, which go with `engine.timeout_s`.
    """
    settings: dict[str, object] = {
        "run__steps": 4, "run__save_every": 1, "run__keep_last": 2, "run__evaluate_every": 1000,
        "data__validation_share": 0, "data__crop": 32, "model__name": "smaat_unet", "model__smaat_width": 2,
        "model__frames_in": 2, "model__frames_out": 1,
        "run__push_deadline_s": 55, "engine__timeout_s": 60,
    }  # fmt: skip
    return nowcast_runs.arguments(shards, run, **(settings | overrides))


def train_under(rank: int, argv: list[str], plan: dict[str, Any]) -> int:
    """Train as one rank of a run without evaluations, and leave the hashes of this rank's buffers beside it.

    Args:
        rank: This rank.
        argv: The command line.
        plan: `rank`: whom the faults are for, -1 for all; `step`: at whose save they wait, None for the whole training;
            `fault`: of the disk; `collective`: the collective before which the rank is killed, counted from there on, 0
            for none; `count`: file to leave the number of collectives in; `stop_in_step`: a SIGTERM; `environment`:
            variables to set.
    """
    os.environ.update(plan.get("environment", {}))
    set_up_logging(0, logging.WARNING)
    is_victim = plan.get("rank") in (rank, -1)
    counted = _Collectives(plan.get("collective", 0) if is_victim else 0)
    fault = Fault(**plan.get("fault", {}))
    kept: list[TrainingRun[Any]] = []

    def prepare(run: TrainingRun[Any]) -> None:
        kept.append(run)
        if is_victim and plan.get("step") is None:
            fault.arm(run.folder / "checkpoints")
            counted.is_active = True
        save = run.loop.hooks.save

        def save_under_fault(finished: int) -> None:
            chosen = is_victim and plan.get("step") == finished
            if chosen:
                fault.arm(run.folder / "checkpoints")
                counted.is_active = True
            save(finished)
            if chosen:
                disarm()
                counted.is_active = False

        run.loop.hooks = replace(run.loop.hooks, save=save_under_fault, evaluate=None)

    train = nowcast_runs.train if "--model.smaat_width" in argv else runs.train
    code = run_entry(lambda: train(argv, stop_in_step=plan.get("stop_in_step"), change=prepare))
    disarm()
    if is_victim and plan.get("count"):
        Path(plan["count"]).write_text(str(counted.number))
    if code == ExitCode.DONE:
        hashes = {name: _hash(buffer) for name, buffer in kept[0].engine.bare_model.named_buffers()}
        (kept[0].folder / f"buffers-{rank}.json").write_text(json.dumps(hashes, sort_keys=True))
    return code


def train_apart(rank: int, argvs: list[list[str]], stop_in_step: int | None) -> int:
    """Train with a command line of this rank's own, as on nodes whose disks differ."""
    set_up_logging(0, logging.WARNING)
    return run_entry(lambda: nowcast_runs.train(argvs[rank], stop_in_step=stop_in_step))


def share_small(rank: int, folder: str) -> int:
    """Share a checkpoint that only the main rank has, and leave in a file what this rank got."""
    engine = Engine(EngineConfig(device="cpu"))
    generator = torch.Generator().manual_seed(0)
    model = {
        "a": torch.randn(3, 4, generator=generator), "count": torch.tensor(7), "flags": torch.tensor([True, False]),
        "double": torch.randn(2, dtype=torch.float64, generator=generator), "none": torch.empty(0, 3),
    }  # fmt: skip
    loaded = Loaded(
        state=state_of(3), model=model, optimizer={"a.m": model["a"] * 2}, average={}, path=Path("x/step-00000003")
    )
    nothing = share(engine, None)
    shared = share(engine, loaded if rank == 0 else None)
    engine.shutdown(clean=True)
    if nothing is not None or shared is None or (shared.state, shared.path) != (loaded.state, loaded.path):
        return 1
    for name, tensors, expected in (("model", shared.model, model), ("optimizer", shared.optimizer, loaded.optimizer)):
        save_file(tensors, Path(folder) / f"{name}-{rank}.safetensors")
        save_file(expected, Path(folder) / f"{name}-expected.safetensors")
    return len(shared.average)


def _hash(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()


class _Collectives:
    """Counts this process' collectives while active, and kills it before the chosen one."""

    def __init__(self, target: int) -> None:
        self.number, self.is_active, self._target = 0, False, target
        for name in COLLECTIVES:
            setattr(dist, name, self._counting(getattr(dist, name)))

    def _counting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if self.is_active:
                self.number += 1
                if self.number == self._target:
                    os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return counted
