"""What ranks of the fault server do when one of them is late, dies, fails or is told to stop, each for one test."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from rainspark.data.errors import ConfigError, DataError
from rainspark.data.exit_codes import ExitCode
from rainspark.data.stream.stream import Batch
from rainspark.models.weights.manifest import CheckpointError
from rainspark.trainer.processes.entry import run_process
from rainspark.trainer.training.pretraining import Pretraining, main

SLEEP_S = 3600.0


def _sleeps(_run: Pretraining) -> None:
    time.sleep(SLEEP_S)


def _stands_still(_run: Pretraining) -> None:
    """Stop this process, once the others can have read what it does; a child of it wakes it up when they have ended."""
    time.sleep(0.5)
    parent = os.getpid()
    if os.fork() == 0:
        time.sleep(30)
        os.kill(parent, signal.SIGCONT)
        os._exit(0)
    os.kill(parent, signal.SIGSTOP)


def _dies(_run: Pretraining) -> None:
    """Be killed, once the others can have read what this rank does."""
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)


def _crashes(_run: Pretraining) -> None:
    raise ZeroDivisionError("a rank that crashes on purpose")


def _finds_bad_settings(_run: Pretraining) -> None:
    raise ConfigError("a setting that only this rank finds wrong")


def _finds_bad_data(_run: Pretraining) -> None:
    raise DataError("damage that only this rank meets")


def _finds_a_bad_checkpoint(_run: Pretraining) -> None:
    raise CheckpointError("a checkpoint that only this rank finds wrong")


def _is_told_to_stop(_run: Pretraining) -> None:
    signal.raise_signal(signal.SIGUSR2)
    signal.raise_signal(signal.SIGTERM)


DEEDS: dict[str, Callable[[Pretraining], None]] = {
    "sleep": _sleeps,
    "stand still": _stands_still,
    "die": _dies,
    "crash": _crashes,
    "settings": _finds_bad_settings,
    "data": _finds_bad_data,
    "checkpoint": _finds_a_bad_checkpoint,
    "stop": _is_told_to_stop,
}


def train(rank: int, argv: list[str], plan: dict[str, Any]) -> int:
    """Be a rank of the real command, one of which does something in a step.

    Args:
        rank: This rank.
        argv: The command line.
        plan: `rank`: which one; `deed`: what it does, see `DEEDS`, "nonfinite" or "absent"; `where`: "start" (while
            it waits for the others), "open" (before the first step), "read", "forward", "save"; `step`: in which step,
            from 1.
    """
    if plan["rank"] == rank:
        if plan["deed"] == "absent":
            return 0
        if plan["where"] == "start":
            return _ended(lambda: _told_at_start(argv))
        _lie_in_wait(plan)
    return _ended(lambda: main(argv))


def _ended(work: Callable[[], ExitCode]) -> int:
    try:
        run_process(work)
    except SystemExit as end:
        return int(end.code or 0)


def _told_at_start(argv: list[str]) -> ExitCode:
    """Be told to stop while this rank waits for the others, who come later."""
    pid = os.getpid()
    if os.fork() == 0:
        time.sleep(3)
        os.kill(pid, signal.SIGUSR2)
        os._exit(0)
    return main(argv)


def _lie_in_wait(plan: dict[str, Any]) -> None:
    original, deed = Pretraining.run, DEEDS.get(plan["deed"], _dies)

    def run(self: Pretraining) -> ExitCode:
        match plan["where"]:
            case "open":
                deed(self)
            case "read":
                _before_reading(self, plan["step"], lambda: deed(self))
            case "forward":
                _in_forward(self, plan, lambda: deed(self))
            case "save":
                _in_save(self, plan["step"], lambda: deed(self))
        return original(self)

    Pretraining.run = run  # type: ignore[method-assign, assignment]


def _before_reading(run: Pretraining, step: int, act: Callable[[], None]) -> None:
    steps = run.stream.steps

    def waylaid(first_step: int, stop_step: int) -> Iterator[list[Batch]]:
        for number, batches in enumerate(steps(first_step, stop_step), start=first_step + 1):
            if number == step:
                act()
            yield batches

    vars(run.stream)["steps"] = waylaid


def _in_forward(run: Pretraining, plan: dict[str, Any], act: Callable[[], None]) -> None:
    compute, beat = run.task.step, run.engine.heartbeat

    def waylaid(model: Any, prepared: Any) -> Any:
        output = compute(model, prepared)
        if beat.doing == f"forward, step {plan['step']}":
            if plan["deed"] == "nonfinite":
                return replace(output, loss=output.loss * torch.nan)
            act()
        return output

    vars(run.task)["step"] = waylaid


def _in_save(run: Pretraining, step: int, act: Callable[[], None]) -> None:
    save = run.saver.save

    def waylaid(state: Any, exported: Any) -> Any:
        if state.step == step:
            act()
        return save(state, exported)

    vars(run.saver)["save"] = waylaid
