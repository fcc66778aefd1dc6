"""Runs whose input, loss or gradient is not finite on one rank at known steps, and runs that leave these steps out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from rainspark.models.weights.manifest import step_folders
from rainspark.trainer.engine.engine import Engine, UpdateResult
from rainspark.trainer.training.finetuning import Finetuning
from rainspark.trainer.training.pretraining import Pretraining
from rainspark.trainer.training.task import PreparedBatch, StepOutput
from tests.integration import nowcast_runs, runs

KINDS = ("input", "loss", "infinite loss", "gradient", "infinite gradient")


@dataclass(frozen=True)
class Fault:
    """What goes wrong on one rank in one micro-batch: one of `KINDS`."""

    step: int
    micro_step: int
    rank: int
    kind: str


def digest(engine: Engine) -> list[int]:
    """Sums over the bits of all that this rank holds: weights, moments, counts, buffers, averages, without a word."""
    held = [getattr(p, "ds_tensor", p) for p in engine.bare_model.parameters()] + list(engine.bare_model.buffers())
    held += [value for state in engine._prepared.optimizer.state.values() for value in state.values()]
    held += [] if engine._average is None else list(engine._average.values.values())
    return [int(_bits(value.detach()).sum(dtype=torch.int64)) for value in held]


def _bits(value: Tensor) -> Tensor:
    return value.contiguous().view(torch.int32) if value.dtype == torch.float32 else value


class Watch:
    """Brings the faults into a run or, with `poisoned` False, has the update of their steps left out; and looks on.

    Attributes:
        skipped: Steps whose update was skipped.
        unchanged: Steps after which everything was as before their first micro-batch.
    """

    def __init__(self, faults: Sequence[Fault], *, poisoned: bool) -> None:
        self.faults = {(fault.step, fault.micro_step): fault for fault in faults}
        self.bad_steps = {fault.step for fault in faults}
        self.poisoned = poisoned
        self.skipped: list[int] = []
        self.unchanged: list[int] = []
        self._step, self._micro_step = -1, -1
        self._before: list[int] = []
        self._armed: str | None = None

    def __call__(self, run: Pretraining | Finetuning) -> None:
        """Stand between the loop, the task and the engine."""
        engine, task = run.engine, run.task
        start, step, update = engine.start_step, task.step, engine.update
        places = [p for p in engine.bare_model.parameters() if p.requires_grad]
        # One element of one weight: under ZeRO only one rank ever sees it in its part.
        for place in (places[0], places[-1]):
            place.register_hook(self._spoil)  # type: ignore[no-untyped-call]

        def start_step() -> None:
            self._step, self._micro_step, self._before = self._step + 1, -1, digest(engine)
            start()

        def watched_step(model: Callable[..., Any], batch: PreparedBatch) -> StepOutput:
            if not engine.model.training:
                return step(model, batch)  # type: ignore[arg-type]
            self._micro_step += 1
            fault = self.faults.get((self._step, self._micro_step))
            kind = fault.kind if fault is not None and self.poisoned and fault.rank == engine.rank else ""
            self._armed = kind if "gradient" in kind else None
            if kind == "input":
                batch = replace(batch, scale_mmh_b=batch.scale_mmh_b * torch.nan)
            output = step(model, batch)  # type: ignore[arg-type]
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

        for target, name, value in (
            (engine, "start_step", start_step), (task, "step", watched_step), (engine, "update", watched_update),
        ):  # fmt: skip
            setattr(target, name, value)

    def _spoil(self, gradient: Tensor) -> Tensor:
        if self._armed is None:
            return gradient
        spoiled = gradient.clone()
        spoiled[(-1,) * spoiled.ndim] = torch.inf if "infinite" in self._armed else torch.nan
        return spoiled


def train_watched(_rank: int, jobs: list[tuple[list[str], list[Fault], bool]]) -> list[dict[str, Any]]:
    """Train several runs one after another on the same ranks; (command line, faults, whether they happen)."""
    found = []
    for argv, faults, poisoned in jobs:
        watch = Watch(faults, poisoned=poisoned)
        train: Any = nowcast_runs.train if "--model.frames_in" in argv else runs.train
        code = int(train(argv, change=watch))
        found.append({"code": code, "skipped": watch.skipped, "unchanged": watch.unchanged})
    return found


def checkpoints(run: Path) -> dict[str, Tensor]:
    """Read every tensor of every checkpoint of a run: weights, buffers, moments, averages."""
    found: dict[str, Tensor] = {}
    for number, folder in step_folders(run / "checkpoints"):
        for path in sorted(folder.glob("*.safetensors")):
            found |= {f"step {number} {path.stem} {name}": value for name, value in load_file(path).items()}
    return found
