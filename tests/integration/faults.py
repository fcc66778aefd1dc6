"""Faults that whole runs meet: ranks that are late, die or fail, disks that fail, values that are not finite.

What a rank of `tests.fault_server` calls lies here, at the top of the module: (rank, plain arguments) -> exit code.
"""

import hashlib
import json
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from rainspark.data.errors import ConfigError, DataError
from rainspark.data.exit_codes import ExitCode
from rainspark.data.store.storage import open_storage
from rainspark.data.stream.stream import Batch
from rainspark.models.weights.manifest import CheckpointError
from rainspark.trainer.checkpoint.folder import Loaded, save
from rainspark.trainer.checkpoint.share import share
from rainspark.trainer.checkpoint.state import TrainState
from rainspark.trainer.checkpoint.transfer import pull_latest, push
from rainspark.trainer.engine.engine import Engine
from rainspark.trainer.engine.replicated import UpdateResult
from rainspark.trainer.processes.entry import run_entry, run_process, set_up_logging
from rainspark.trainer.settings.engine import EngineConfig
from rainspark.trainer.training.run import TrainingRun
from rainspark.trainer.training.task import PreparedBatch, StepOutput
from tests.fault_server import Fault, disarm
from tests.integration.runs import finetune, train

SLEEP_S = 3600.0

# A rank that does something wrong in one step of the real command.


def _sleep() -> None:
    time.sleep(SLEEP_S)


def _stand_still() -> None:
    """Stop this process, once the others can have read what it does; a child of it wakes it up when they have ended."""
    time.sleep(0.5)
    parent = os.getpid()
    if os.fork() == 0:
        time.sleep(30)
        os.kill(parent, signal.SIGCONT)
        os._exit(0)
    os.kill(parent, signal.SIGSTOP)


def _die() -> None:
    """Be killed, once the others can have read what this rank does."""
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)


def _fail(error: Exception) -> None:
    raise error


def _be_stopped() -> None:
    signal.raise_signal(signal.SIGUSR2)
    signal.raise_signal(signal.SIGTERM)


DEEDS: dict[str, Callable[[], None]] = {
    "sleep": _sleep,
    "stand still": _stand_still,
    "die": _die,
    "crash": partial(_fail, ZeroDivisionError("a rank that crashes on purpose")),
    "settings": partial(_fail, ConfigError("a setting that only this rank finds wrong")),
    "data": partial(_fail, DataError("damage that only this rank meets")),
    "checkpoint": partial(_fail, CheckpointError("a checkpoint that only this rank finds wrong")),
    "stop": _be_stopped,
}


def train_with_deed(rank: int, argv: list[str], plan: dict[str, Any]) -> int:
    """Be a rank of the real command, one of which does something in a step.

    Args:
        rank: This rank.
        argv: The command line.
        plan: `rank`: which one; `deed`: what it does, see `DEEDS`, or "absent"; `where`: "start" (while it
            waits for the others), "open" (before the first step), "read", "forward", "save"; `step`: in which step,
            from 1.
    """
    if plan["rank"] == rank:
        if plan["deed"] == "absent":
            return 0
        if plan["where"] == "start":
            _stop_later()
        else:
            _lie_in_wait(plan)
    try:
        run_process(lambda: finetune(argv))
    except SystemExit as end:
        return int(end.code or 0)


def _stop_later() -> None:
    """Have this rank asked to stop while it waits for the others, who come later."""
    pid = os.getpid()
    if os.fork() == 0:
        time.sleep(3)
        os.kill(pid, signal.SIGUSR2)
        os._exit(0)


def _lie_in_wait(plan: dict[str, Any]) -> None:
    original = TrainingRun.run
    act = DEEDS.get(plan["deed"], _die)
    step: int = plan.get("step", 0)

    def run(self: TrainingRun[Any]) -> ExitCode:
        match plan["where"]:
            case "open":
                act()
            case "read":
                vars(self.stream)["steps"] = partial(_read, self.stream.steps, step, act)
            case "forward":
                compute = self.task.step
                vars(self.task)["step"] = partial(_forward, compute, self.engine, plan, act)
            case "save":
                vars(self.saver)["save"] = partial(_save, self.saver.save, step, act)
        return original(self)

    TrainingRun.run = run  # type: ignore[method-assign]


def _read(
    steps: Callable[[int, int], Iterator[list[Batch]]], step: int, act: Callable[[], None], first: int, stop: int
) -> Iterator[list[Batch]]:
    for number, batches in enumerate(steps(first, stop), start=first + 1):
        if number == step:
            act()
        yield batches


def _forward(
    compute: Callable[..., StepOutput], engine: Engine, plan: dict[str, Any], act: Callable[[], None], *batch: Any
) -> StepOutput:
    output = compute(*batch)
    if engine.heartbeat.doing == f"forward, step {plan['step']}":
        act()
    return output


def _save(save: Callable[..., Any], step: int, act: Callable[[], None], state: TrainState, exported: Any) -> Any:
    if state.step == step:
        act()
    return save(state, exported)


# Disks that fail below a run's folder or a store.


def state_of(step: int) -> TrainState:
    """Give the state of a small checkpoint."""
    return TrainState(step=step, epoch=0, seed=0, config={}, plan={}, loss_scale=None, optimizer_steps={}, versions={})


def tensors_of(step: int) -> dict[str, Tensor]:
    """Give the tensors of a small checkpoint."""
    return {f"weight{number}": torch.full((300,), float(step) + number) for number in range(3)}


def save_small(run: Path, step: int, *, keep_last: int = 2, keep_every: int | None = None) -> Path:
    """Write a small checkpoint."""
    return save(run, state_of(step), tensors_of(step), tensors_of(step), keep_last=keep_last, keep_every=keep_every)


def save_under(_rank: int, run: str, step: int, fault: dict[str, Any]) -> int:
    """Save with a fault; 0 when it was reported as saved, 6 for a CheckpointError, 1 for any other."""
    return _under(fault, Path(run) / "checkpoints", lambda: save_small(Path(run), step))


def push_under(_rank: int, checkpoint: str, store: str, fault: dict[str, Any]) -> int:
    """Copy a checkpoint to a folder with a fault."""
    return _under(fault, Path(store), lambda: push(Path(checkpoint), open_storage(store), keep_last=2))


def pull_under(_rank: int, run: str, store: str, fault: dict[str, Any]) -> int:
    """Fetch the newest checkpoint of a folder with a fault."""
    return _under(fault, Path(run), lambda: pull_latest(open_storage(store), Path(run)))


def _under(fault: dict[str, Any], folder: Path, work: Callable[[], object]) -> int:
    def done() -> ExitCode:
        work()
        return ExitCode.DONE

    Fault(**fault).arm(folder)
    code = run_entry(done)
    disarm()
    return code


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
    collectives = _Collectives(plan.get("collective", 0) if is_victim else 0)
    fault = Fault(**plan.get("fault", {}))
    runs: list[TrainingRun[Any]] = []

    def arm(run: TrainingRun[Any]) -> None:
        fault.arm(run.folder / "checkpoints")
        collectives.is_active = True

    def prepare(run: TrainingRun[Any]) -> None:
        runs.append(run)
        if is_victim and plan.get("step") is None:
            arm(run)
        save_without = run.loop.hooks.save

        def save_with_fault(finished: int) -> None:
            is_chosen = is_victim and plan.get("step") == finished
            if is_chosen:
                arm(run)
            save_without(finished)
            if is_chosen:
                disarm()
                collectives.is_active = False

        run.loop.hooks = replace(run.loop.hooks, save=save_with_fault, evaluate=lambda _: {})

    code = run_entry(lambda: train(argv, stop_in_step=plan.get("stop_in_step"), change=prepare))
    disarm()
    if is_victim and plan.get("count"):
        Path(plan["count"]).write_text(str(collectives.number))
    if code == ExitCode.DONE:
        hashes = {name: _hash(buffer) for name, buffer in runs[0].engine.bare_model.named_buffers()}
        (runs[0].folder / f"buffers-{rank}.json").write_text(json.dumps(hashes, sort_keys=True))
    return code


def train_apart(rank: int, argvs: list[list[str]], stop_in_step: int | None) -> int:
    """Train with a command line of this rank's own, as on nodes whose disks differ."""
    set_up_logging(0, logging.WARNING)
    return run_entry(lambda: train(argvs[rank], stop_in_step=stop_in_step))


def share_small(rank: int, folder: str) -> int:
    """Share a checkpoint that only the main rank has, and leave in a file what this rank got."""
    engine = Engine(EngineConfig(device="cpu"))
    generator = torch.Generator().manual_seed(0)
    model = {
        "a": torch.randn(3, 4, generator=generator),
        "count": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "double": torch.randn(2, dtype=torch.float64, generator=generator),
        "none": torch.empty(0, 3),
    }
    path = Path("x/step-00000003")
    loaded = Loaded(state=state_of(3), model=model, optimizer={"a.m": model["a"] * 2}, average={}, path=path)
    nothing = share(engine, None)
    shared = share(engine, loaded if rank == 0 else None)
    engine.shutdown(clean=True)
    if nothing is not None or shared is None or (shared.state, shared.path) != (loaded.state, loaded.path):
        return 1
    for name, tensors, expected in (("model", shared.model, model), ("optimizer", shared.optimizer, loaded.optimizer)):
        save_file(tensors, Path(folder) / f"{name}-{rank}.safetensors")
        save_file(expected, Path(folder) / f"{name}-expected.safetensors")
    return len(shared.average)


def _hash(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()


class _Collectives:
    """Counts this process' collectives while active, and kills it before the chosen one."""

    NAMES = (
        *("all_reduce", "broadcast", "broadcast_object_list", "all_gather_object", "barrier", "all_gather", "reduce"),
        *("all_gather_into_tensor", "reduce_scatter_tensor"),
    )

    def __init__(self, target: int) -> None:
        self.number = 0
        self.is_active = False
        self._target = target
        for name in self.NAMES:
            setattr(dist, name, partial(self._call, getattr(dist, name)))

    def _call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.is_active:
            self.number += 1
            if self.number == self._target:
                os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)


# Values that are not finite, on one rank, at known steps.

KINDS = ("input", "loss", "infinite loss", "gradient", "infinite gradient")


@dataclass(frozen=True)
class Poison:
    """What goes wrong on one rank in one micro-batch: one of `KINDS`."""

    step: int
    micro_step: int
    rank: int
    kind: str


def digest(engine: Engine) -> list[int]:
    """Sum the bits of all that this rank holds, without a collective: weights, moments, counts, buffers, averages."""
    held = [getattr(p, "ds_tensor", p) for p in engine.bare_model.parameters()] + list(engine.bare_model.buffers())
    held += [value for state in engine._prepared.optimizer.state.values() for value in state.values()]
    held += [] if engine._average is None else list(engine._average.values.values())
    return [int(_bits(value.detach()).sum(dtype=torch.int64)) for value in held]


def _bits(value: Tensor) -> Tensor:
    return value.contiguous().view(torch.int32) if value.dtype == torch.float32 else value


class Watch:
    """Brings poisons into a run or, with `poisoned` False, has the update of their steps left out; and looks on.

    Attributes:
        skipped: Steps whose update was skipped.
        unchanged: Steps after which everything was as before their first micro-batch.
    """

    def __init__(self, poisons: Sequence[Poison], *, poisoned: bool) -> None:
        self.poisons = {(poison.step, poison.micro_step): poison for poison in poisons}
        self.bad_steps = {poison.step for poison in poisons}
        self.poisoned = poisoned
        self.skipped: list[int] = []
        self.unchanged: list[int] = []
        self._step = -1
        self._micro_step = -1
        self._before: list[int] = []
        self._armed: str | None = None

    def __call__(self, run: TrainingRun[Any]) -> None:
        """Stand between the loop, the task and the engine."""
        engine, task = run.engine, run.task
        start, step, update = engine.start_step, task.step, engine.update
        trained = [p for p in engine.bare_model.parameters() if p.requires_grad]
        # One element of one weight: under ZeRO only one rank ever sees it in its part.
        for parameter in (trained[0], trained[-1]):
            parameter.register_hook(self._spoil)  # type: ignore[no-untyped-call]

        def start_step() -> None:
            self._step += 1
            self._micro_step = -1
            self._before = digest(engine)
            start()

        def watched_step(model: Callable[..., Any], batch: PreparedBatch) -> StepOutput:
            if not engine.model.training:
                return step(model, batch)
            self._micro_step += 1
            poison = self.poisons.get((self._step, self._micro_step))
            kind = poison.kind if poison is not None and self.poisoned and poison.rank == engine.rank else ""
            self._armed = kind if "gradient" in kind else None
            if kind == "input":
                batch = replace(batch, scale_mmh_b=batch.scale_mmh_b * torch.nan)
            output = step(model, batch)
            if "loss" in kind:
                output = replace(output, loss=output.loss * (torch.inf if "infinite" in kind else torch.nan))
            return output

        def watched_update(*, skip: Tensor, **settings: Any) -> UpdateResult:
            if not self.poisoned and self._step in self.bad_steps:
                skip = skip + 1
            result = update(skip=skip, **settings)
            if bool(result.skipped):
                self.skipped.append(self._step)
            if digest(engine) == self._before:
                self.unchanged.append(self._step)
            return result

        vars(engine).update(start_step=start_step, update=watched_update)
        vars(task)["step"] = watched_step

    def _spoil(self, gradient: Tensor) -> Tensor:
        if self._armed is None:
            return gradient
        spoiled = gradient.clone()
        spoiled[(-1,) * spoiled.ndim] = torch.inf if "infinite" in self._armed else torch.nan
        return spoiled


def train_watched(_rank: int, jobs: list[tuple[list[str], list[Poison], bool]]) -> list[dict[str, Any]]:
    """Train several runs one after another on the same ranks; (command line, poisons, whether they happen)."""
    reports = []
    for argv, poisons, poisoned in jobs:
        watch = Watch(poisons, poisoned=poisoned)
        code = int(train(argv, change=watch))
        reports.append({"code": code, "skipped": watch.skipped, "unchanged": watch.unchanged})
    return reports
