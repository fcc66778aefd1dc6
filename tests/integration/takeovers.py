"""Runs that are stopped on some number of processes and taken up on others, under other engines."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from rainspark.data.stream.stream import Batch
from rainspark.models.weights.manifest import latest_verified
from rainspark.trainer.checkpoint.folder import save
from rainspark.trainer.training.run import TrainingRun
from tests.integration.runs import built, train

Seen = dict[str, list[list[int]]]
"""By step, [index in the global batch, window] of what a rank was given, in its order."""


def hashes(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Hash every tensor's type, shape and bytes."""
    digests = {}
    for name, value in tensors.items():
        head = f"{value.dtype} {tuple(value.shape)} ".encode()
        digests[f"{kind} {name}"] = hashlib.sha256(head + value.contiguous().numpy().tobytes()).hexdigest()
    return digests


def saved_hashes(run: Path) -> dict[str, str]:
    """Hash every tensor of a run's newest checkpoint: weights, buffers, moments, averages."""
    newest = latest_verified(run / "checkpoints")
    assert newest is not None
    files = {"model": "model", "optimizer": "optimizer", "average": "ema"}
    digests: dict[str, str] = {}
    for kind, name in files.items():
        path = newest / f"{name}.safetensors"
        digests |= hashes(kind, load_file(path)) if path.exists() else {}
    return digests


def note_windows(seen: Seen, batches: list[Batch]) -> None:
    """Note which windows a step's batches hold."""
    for batch in batches:
        rows = zip(batch.index_b.tolist(), batch.window_b.tolist(), strict=True)
        seen.setdefault(str(batch.step), []).extend([index, window] for index, window in rows)


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

    def __call__(self, run: TrainingRun[Any]) -> None:
        """Export, and stand between the stream and the loop."""
        state = run.engine.export_state()
        for kind in ("model", "optimizer", "average"):
            self.taken_up |= hashes(kind, getattr(state, kind))
        self.steps_done = sorted(set(state.optimizer_steps.values()))
        steps = run.stream.steps

        def recorded(first_step: int, stop_step: int) -> Iterator[list[Batch]]:
            for batches in steps(first_step, stop_step):
                note_windows(self.seen, batches)
                yield batches

        vars(run.stream)["steps"] = recorded


def train_recorded(jobs: list[tuple[list[str], int | None]]) -> list[dict[str, Any]]:
    """Train several runs one after another on the same ranks, each to its end or to a stop."""
    reports = []
    for argv, stop_in_step in jobs:
        recorder = Recorder()
        code = int(train(argv, stop_in_step=stop_in_step, change=recorder))
        reports.append({"code": code, **vars(recorder)})
    return reports


def take_up(commands: list[list[str]], save_as: str) -> list[dict[str, Any]]:
    """Take up several runs without training, and save each again beside it where a name is given."""
    reports = []
    for argv in commands:
        with built(argv) as run:
            recorder = Recorder()
            recorder(run)
            state = run.engine.export_state()
            if save_as and run.engine.is_main:
                step, folder = run.state_of(run.first_step, state), run.folder.with_name(save_as)
                save(folder, step, state.model, state.optimizer, keep_last=2, average=state.average)
            reports.append({"step": run.first_step, **vars(recorder)})
    return reports


def both(
    _rank: int, jobs: list[tuple[list[str], int | None]], commands: list[list[str]], save_as: str = ""
) -> dict[str, Any]:
    """Take up some runs, then train others, in one start of the processes."""
    return {"taken up": take_up(commands, save_as), "trained": train_recorded(jobs)}


def in_order(seen_by_rank: list[Seen]) -> dict[int, list[int]]:
    """List the windows of every step that the ranks trained on, by their index in the global batch."""
    steps: dict[int, list[list[int]]] = {}
    for seen in seen_by_rank:
        for step, rows in seen.items():
            steps.setdefault(int(step), []).extend(rows)
    ordered = {step: sorted(rows) for step, rows in steps.items()}
    assert all([index for index, _ in rows] == list(range(len(rows))) for rows in ordered.values())
    return {step: [window for _, window in rows] for step, rows in ordered.items()}
