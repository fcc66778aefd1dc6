"""What a run needs besides tensors to go on, and what may differ when it does."""

import dataclasses
import importlib.metadata
import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from ...data.errors import DataError
from ...data.json_checks import Count, JsonRecord, read_json
from ...models.weights.manifest import CheckpointError
from ..settings.experiment import flatten

# Where and how a run computes: the mathematics are the same up to rounding and precision.
MAY_CHANGE_SECTIONS: Final = frozenset({"engine", "tracking"})

_RUN_SETTINGS: Final = (
    # When it ends, and how often it does what.
    *("steps", "log_every", "evaluate_every", "save_every", "max_nonfinite", "allow_plan_change", "progress"),
    # Where its checkpoints lie, and how many.
    *("dir", "keep_last", "keep_every", "checkpoint_url", "push_deadline_s"),
)
_DATA_SETTINGS: Final = (
    # How the same windows get here; the data themselves are held by the plan's fingerprint.
    *("shards", "cache_dir", "cache_gb", "deadline_s", "quarantine"),
    *("threads", "readers", "prefetch_steps", "prefetch_mb", "decoded_mb"),
    # What changes neither the weights nor the windows that they see.
    "evaluation_windows",
)
MAY_CHANGE: Final = frozenset(
    {*(f"run.{name}" for name in _RUN_SETTINGS), *(f"data.{name}" for name in _DATA_SETTINGS)}
    | {"model.checkpoint_blocks", "init_from"}
)
"""Settings that may differ between a checkpoint and the run that goes on from it, beside those of whole sections."""

MAY_CHANGE_WHEN_ASKED: Final = frozenset(
    {"data.micro_batch", "data.lanes", "data.block_mb", "plan.micro_batch", "plan.lanes", "plan.block_bytes"}
)
"""Settings that change the order of windows and the batch statistics: only with `--run.allow_plan_change true`."""

ADDED_LATER: Final[Mapping[str, Any]] = {
    "data.test_share": 0.0,
    "data.train_times": None,
    "data.validation_times": None,
    "data.test_times": None,
    "model.ensemble": False,
    "optim.layer_decay": 1.0,
    "optim.ema_decay": None,
    "optim.lr_scaling": "linear",
}
"""Settings that older checkpoints do not hold, and the value at which a run is what it was without them."""

_ABSENT = object()


@dataclass(frozen=True, kw_only=True)
class TrainState(JsonRecord):
    """What a run needs besides tensors to go on; plain JSON values throughout.

    Args:
        step: Global steps done.
        epoch: Epoch of the next step.
        seed: Seed of everything random.
        config: The resolved configuration, nested by section.
        plan: Fingerprint of the plan: data, selection, split, batches, lanes, block.
        loss_scale: Of fp16 training, None without one.
        loss_scale_good_steps: Good gradients in a row since that scale last changed.
        optimizer_steps: Updates done, by parameter name.
        versions: Of the packages that wrote this.
        data: What the run learns from: source, grid, cadence, times of its parts; {} if not recorded.
        metrics: Held-out figures of this step, where it was saved for them; else `skipped_steps`: updates left out
            so far.
        schema_version: Of the file's format.
    """

    step: Count
    epoch: int
    seed: int
    config: dict[str, Any]
    plan: dict[str, Any]
    loss_scale: float | None
    optimizer_steps: dict[str, float]
    versions: dict[str, str]
    data: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    loss_scale_good_steps: int = 0
    schema_version: Literal[1] = 1


def installed_versions() -> dict[str, str]:
    """Name the versions that shape a checkpoint; a package that is not installed is left out."""
    versions = {"python": sys.version.split()[0]}
    for name in ("rainspark", "torch", "numpy", "safetensors", "timm", "accelerate", "deepspeed"):
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def check_resume(
    saved: TrainState, config: Mapping[str, Any], plan: Mapping[str, Any], *, allow_plan_change: bool
) -> list[str]:
    """Compare a checkpoint with the run that is asked to go on from it.

    Args:
        saved: of the checkpoint.
        config: the run's resolved configuration, nested by section.
        plan: fingerprint of the run's plan.
        allow_plan_change: accept the changes of `MAY_CHANGE_WHEN_ASKED` too.

    Returns:
        One line for each accepted change, "key: saved X, asked Y".

    Raises:
        CheckpointError: something else differs; all of it is named.
    """
    # Both as flat tables; what an older checkpoint does not hold was as if switched off.
    now = flatten({**config, "plan": plan})
    before = {key: value for key, value in ADDED_LATER.items() if key in now}
    before |= flatten({**saved.config, "plan": saved.plan})

    lines = {
        key: f"{key}: saved {_shown(before.get(key, _ABSENT))}, asked {_shown(now.get(key, _ABSENT))}"
        for key in sorted(before.keys() | now.keys())
        if not _same(before.get(key, _ABSENT), now.get(key, _ABSENT))
    }
    # Every difference is free, on request, or refused.
    on_request = [key for key in lines if key in MAY_CHANGE_WHEN_ASKED]
    free = [key for key in lines if key in MAY_CHANGE or key.partition(".")[0] in MAY_CHANGE_SECTIONS]
    refused = [key for key in lines if key not in {*on_request, *free}]
    if not allow_plan_change:
        refused += on_request

    if refused:
        hint = " (micro-batch, lanes and block may change with --run.allow_plan_change true)" if on_request else ""
        raise CheckpointError(
            f"the checkpoint of step {saved.step} belongs to another run; set these back, or choose a new run.dir and "
            f"--init_from it{hint}:\n" + "\n".join(f"  {lines[key]}" for key in refused)
        )
    return list(lines.values())


def state_bytes(state: TrainState) -> bytes:
    """Write a state as strict JSON, tuples as lists.

    Raises:
        CheckpointError: A value is not plain JSON, NaN and infinity included.
    """
    try:
        text = json.dumps(dataclasses.asdict(state), indent=1, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the state of step {state.step} cannot be stored as plain JSON: {error}") from error
    return f"{text}\n".encode()


def parse_state(path: Path, raw: bytes) -> TrainState:
    """Read what `state_bytes` wrote.

    Args:
        path: The file that errors name.
        raw: Its content.

    Raises:
        CheckpointError: It is no such state; the key is named.
    """
    try:
        return read_json(TrainState, raw)
    except DataError as error:
        raise CheckpointError(f"{path}: {error}; use another checkpoint, or the Rainspark that wrote it") from error


def _same(old: Any, new: Any) -> bool:
    # True equals 1 for Python, not for a reader.
    return old is new or (isinstance(old, bool) == isinstance(new, bool) and bool(old == new))


def _shown(value: Any) -> str:
    return "nothing" if value is _ABSENT else json.dumps(value)
