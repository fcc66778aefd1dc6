"""Runs that are stopped on some number of processes and taken up on others, under other engines."""

import hashlib
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from rainspark.data.stream.stream import Batch
from rainspark.models.weights.manifest import latest_verified
from rainspark.trainer.checkpoint.folder import save
from rainspark.trainer.engine.engine import Engine, EngineState
from rainspark.trainer.processes.entry import StopSignal
from rainspark.trainer.settings.experiment import PretrainConfig
from rainspark.trainer.settings.parse import parse_config
from rainspark.trainer.training.pretraining import Pretraining
from tests.integration.runs import train

Seen = dict[str, list[list[int]]]
"""By step, [place in the global batch, window] of what a rank was given, in its order."""


def hashes(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """SHA-256 of every tensor's type, shape and bytes."""
    found = {}
    for name, value in tensors.items():
        head = f"{value.dtype} {tuple(value.shape)} ".encode()
        found[f"{kind} {name}"] = hashlib.sha256(head + value.contiguous().numpy().tobytes()).hexdigest()
    return found


def saved_hashes(run: Path) -> dict[str, str]:
    """Hash every tensor of a run's newest checkpoint: weights, buffers, moments, averages."""
    newest = latest_verified(run / "checkpoints")
    assert newest is not None
    names = {"model": "model", "optimizer": "optimizer", "average": "ema"}
    return {
        key: value
        for kind, name in names.items()
        if (newest / f"{name}.safetensors").exists()
        for key, value in hashes(kind, load_file(newest / f"{name}.safetensors")).items()
    }


def exported_hashes(state: EngineState) -> dict[str, str]:
    """Hash every tensor of what an engine exports; {} on ranks but the first."""
    kinds = {"model": state.model, "optimizer": state.optimizer, "average": state.average}
    return {key: value for kind, tensors in kinds.items() for key, value in hashes(kind, tensors).items()}


class Recorder:
    """Looks at what a run took up and which windows it then trains on.

    Attributes:
        taken_up: Hashes of what the engine exports right after the start; rank 0.
        steps_done: Updates of the parameters so far, as the engine has them; rank 0.
        seen: The windows.
    """

    def __init__(self) -> None:
        self.taken_up: dict[str, str] = {}
        self.steps_done: list[float] = []
        self.seen: Seen = {}

    def __call__(self, run: Pretraining) -> None:
        """Export, and stand between the stream and the loop."""
        state = run.engine.export_state()
        self.taken_up, self.steps_done = exported_hashes(state), sorted(set(state.optimizer_steps.values()))
        steps = run.stream.steps

        def recorded(first_step: int, stop_step: int) -> Generator[list[Batch], None, None]:
            for batches in steps(first_step, stop_step):
                for batch in batches:
                    rows = zip(batch.index_b.tolist(), batch.window_b.tolist(), strict=True)
                    self.seen.setdefault(str(batch.step), []).extend([place, window] for place, window in rows)
                yield batches

        run.stream.steps = recorded  # type: ignore[method-assign]


def train_recorded(jobs: list[tuple[list[str], int | None]]) -> list[dict[str, Any]]:
    """Train several runs one after another on the same ranks, each to its end or to a stop."""
    found = []
    for argv, stop_in_step in jobs:
        recorder = Recorder()
        code = int(train(argv, stop_in_step=stop_in_step, change=recorder))
        found.append({"code": code, **vars(recorder)})
    return found


def take_up(commands: list[list[str]], save_as: str) -> list[dict[str, Any]]:
    """Take up several runs without training, and save each again beside it where a name is given."""
    found = []
    for argv in commands:
        config = parse_config(argv, PretrainConfig, prog="test")
        engine = Engine(config.engine)
        try:
            run = Pretraining(config, engine, StopSignal())
            recorder = Recorder()
            recorder(run)
            state = engine.export_state()
            if save_as and engine.is_main:
                step, folder = run.state_of(run.first_step, state), run.folder.with_name(save_as)
                save(folder, step, state.model, state.optimizer, keep_last=2, average=state.average)
            found.append({"step": run.first_step, **vars(recorder)})
        finally:
            engine.shutdown(clean=True)
    return found


def both(
    _rank: int, jobs: list[tuple[list[str], int | None]], commands: list[list[str]], save_as: str = ""
) -> dict[str, Any]:
    """Take up some runs, then train others, in one start of the processes."""
    return {"taken up": take_up(commands, save_as), "trained": train_recorded(jobs)}


def in_order(ranks: list[dict[str, Any]], job: int) -> dict[int, list[int]]:
    """The windows of every step that the ranks trained on, by their place in the global batch."""
    steps: dict[int, list[list[int]]] = {}
    for rank in ranks:
        for step, rows in rank["trained"][job]["seen"].items():
            steps.setdefault(int(step), []).extend(rows)
    places = {step: sorted(rows) for step, rows in steps.items()}
    assert all([place for place, _ in rows] == list(range(len(rows))) for rows in places.values())
    return {step: [window for _, window in rows] for step, rows in places.items()}
