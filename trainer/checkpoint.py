"""The portable checkpoint: one format, whatever engine or world size wrote it, and no pickle in it.

    RUN/checkpoints/step-00000100/
        model.safetensors       parameters and buffers by name
        optimizer.safetensors   moments by "<parameter name>.<moment>"
        ema.safetensors         averaged weights by name, where a run keeps them
        state.json              step, epoch, seed, configuration, plan, loss scale, step counts, versions
        MANIFEST.json           size and SHA-256 of each, written last

One process writes (rank 0 of the run that owns the folder). A checkpoint is written into a temporary folder, made
durable, renamed, read back, and only then are older ones removed: a kill at any moment leaves an older whole one.

`python -m trainer.checkpoint list|verify|show RUN_OR_CHECKPOINT` looks at what is there.
"""

import argparse
import dataclasses
import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import safetensors.torch
import torch
from safetensors import SafetensorError

from models.manifest import (
    MANIFEST_NAME,
    STEP_FOLDER,
    CheckpointError,
    check_digest,
    latest_verified,
    read_manifest,
    step_folders,
    verify_folder,
    write_manifest,
)
from trainer.state import TrainState, check_resume, installed_versions, parse_state, state_bytes

__all__ = [
    "CheckpointError",
    "Loaded",
    "TrainState",
    "best_checkpoint",
    "check_resume",
    "chosen_weights",
    "installed_versions",
    "load",
    "main",
    "save",
]

CHECKPOINTS_FOLDER: Final = "checkpoints"
MODEL_FILE: Final = "model.safetensors"
OPTIMIZER_FILE: Final = "optimizer.safetensors"
AVERAGE_FILE: Final = "ema.safetensors"
STATE_FILE: Final = "state.json"
BEST_FOLDER: Final = "best"
"""Where a fine-tuning run keeps the checkpoints that were the best on its validation part, in a run's layout."""
LEAST_KEPT: Final = 2
"""With one checkpoint kept, damage to it on the disk would cost the run."""

_STORED_DTYPES = frozenset(
    {torch.float32, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool}
)
_SAVING, _DISCARDED = ".saving-", ".discarded-"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A checkpoint that was whole: its state, its tensors (CPU) by name, and the folder it came from."""

    state: TrainState
    model: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    average: dict[str, torch.Tensor]
    path: Path


def save(
    folder: Path,
    state: TrainState,
    model: Mapping[str, torch.Tensor],
    optimizer: Mapping[str, torch.Tensor],
    *,
    keep_last: int,
    average: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Write one checkpoint, prove that it is whole, and remove the oldest ones. One process calls this, rank 0.

    A step that is already there and whole is left as it is; one that is damaged is replaced.

    Args:
        folder: the run's folder, or its `checkpoints` folder.
        state: everything but tensors.
        model: parameters and buffers by name, float32 or float64, integers for counters; any device and layout.
        optimizer: moments by "<parameter name>.<moment>", the same types.
        keep_last: checkpoints that stay, 2 or more; the two newest whole ones always stay.
        average: averaged weights by name, where there are any.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: a value cannot be stored, or the disk is full or read-only: the temporary folder is gone and
            the older checkpoints are untouched.
    """
    if keep_last < LEAST_KEPT:
        raise CheckpointError(f"run.keep_last is {keep_last}; it must be {LEAST_KEPT} or more")
    checkpoints = _checkpoints_folder(folder)
    final = checkpoints / f"step-{state.step:08d}"
    state_json = state_bytes(state)
    tensors = {MODEL_FILE: _storable(MODEL_FILE, model), OPTIMIZER_FILE: _storable(OPTIMIZER_FILE, optimizer)}
    if average:
        tensors[AVERAGE_FILE] = _storable(AVERAGE_FILE, average)
    with _disk_errors(checkpoints):
        checkpoints.mkdir(parents=True, exist_ok=True)
    _sweep(checkpoints)
    if _problem(final) is not None:
        temporary = checkpoints / f"{_SAVING}{final.name}"
        try:
            with _disk_errors(temporary):
                _write(temporary, state_json, tensors)
                _publish(temporary, final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        verify_folder(final)
    _prune(checkpoints, final, keep_last)
    return final


def load(folder: Path) -> Loaded:
    """Read a run's newest whole checkpoint, or one given checkpoint.

    No tensor is looked at before all files have the size and SHA-256 of the manifest, and the bytes that were
    compared are the bytes that are used.

    Args:
        folder: a run's folder, its `checkpoints` folder, or one checkpoint's folder.

    Raises:
        CheckpointError: there is none, or it is damaged; the file, what was expected and what was found are named.
    """
    path = folder
    if not (STEP_FOLDER.fullmatch(folder.name) or (folder / MANIFEST_NAME).exists()):
        found = latest_verified(_checkpoints_folder(folder))
        if found is None:
            raise CheckpointError(f"{folder}: no checkpoint there; expected a run's folder or a checkpoint's")
        path = found
    files = read_manifest(path)
    if absent := sorted({MODEL_FILE, OPTIMIZER_FILE, STATE_FILE} - files.keys()):
        raise CheckpointError(f"{path}: not a training checkpoint: it has no {', '.join(absent)}")
    raw: dict[str, bytes] = {}
    for name, entry in files.items():
        try:
            raw[name] = (path / name).read_bytes()
        except OSError as error:
            raise CheckpointError(f"{path / name}: cannot be read: {error}; use another checkpoint") from error
        check_digest(path / name, entry, len(raw[name]), hashlib.sha256(raw[name]).hexdigest())
    state = parse_state(path / STATE_FILE, raw.pop(STATE_FILE))
    if (match := STEP_FOLDER.fullmatch(path.name)) and int(match.group(1)) != state.step:
        raise CheckpointError(f"{path}: holds step {state.step}, not the step of its name; give it its right name")
    tensors: dict[str, dict[str, torch.Tensor]] = {}
    for name in (MODEL_FILE, OPTIMIZER_FILE, AVERAGE_FILE):
        if name not in raw:
            tensors[name] = {}
            continue
        try:
            tensors[name] = safetensors.torch.load(raw.pop(name))
        except SafetensorError as error:
            raise CheckpointError(f"{path / name}: not a safetensors file: {error}; use another checkpoint") from error
    return Loaded(
        state=state,
        model=tensors[MODEL_FILE],
        optimizer=tensors[OPTIMIZER_FILE],
        average=tensors[AVERAGE_FILE],
        path=path,
    )


def best_checkpoint(run: Path) -> Path | None:
    """Find a run's best checkpoint, the newest one in `RUN/best`; None where none was chosen.

    It may be damaged, and whoever reads it must say so: the one before it is another model.
    """
    folders = step_folders(run / BEST_FOLDER / CHECKPOINTS_FOLDER)
    return folders[0][1] if folders else None


def chosen_weights(source: Path) -> Path:
    """Find the file of a run that its weights should be taken from.

    Args:
        source: a run's folder: its best checkpoint, else its newest; a checkpoint's folder; or a file of weights, and
            that is given back.

    Returns:
        The averaged weights of that checkpoint where it has them, else its weights; `source` where it is no such folder
        and what reads it has to say so.

    Raises:
        CheckpointError: the checkpoint is damaged.
    """
    path = source
    if not (source / MANIFEST_NAME).exists():
        found = best_checkpoint(source) or latest_verified(_checkpoints_folder(source))
        if found is None:
            return source
        path = found
    files = verify_folder(path)
    names = [name for name in (AVERAGE_FILE, MODEL_FILE) if name in files]
    return path / names[0] if names else source


def _checkpoints_folder(folder: Path) -> Path:
    return folder if folder.name == CHECKPOINTS_FOLDER else folder / CHECKPOINTS_FOLDER


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Turn the errors of a disk into one that names the file and says that nothing older was touched."""
    try:
        yield
    except OSError as error:
        name, cause = error.filename or path, error.strerror or str(error)
        raise CheckpointError(f"{name}: cannot be written: {cause}; older checkpoints are untouched") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path}: cannot be written: {error}; older checkpoints are untouched") from error


def _storable(file: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Bring tensors to the CPU, dense and row-major, each with memory of its own (safetensors refuses others)."""
    stored: dict[str, torch.Tensor] = {}
    memory: set[int] = set()
    for name, tensor in tensors.items():
        if tensor.dtype not in _STORED_DTYPES or tensor.layout != torch.strided:
            raise CheckpointError(
                f"{file}: {name} is {tensor.dtype}, {tensor.layout}; a checkpoint holds dense float32 or float64 "
                "(and integers): convert it before saving"
            )
        dense = tensor.detach().cpu().contiguous()
        if dense.untyped_storage().data_ptr() in memory:
            dense = dense.clone()
        memory.add(dense.untyped_storage().data_ptr())
        stored[name] = dense
    return stored


def _write(temporary: Path, state_json: bytes, tensors: Mapping[str, dict[str, torch.Tensor]]) -> None:
    temporary.mkdir()
    (temporary / STATE_FILE).write_bytes(state_json)
    for name, named in tensors.items():
        with _disk_errors(temporary / name):
            safetensors.torch.save_file(named, temporary / name)
        # safetensors creates its files for the owner alone; a shared run folder follows the umask like everything else.
        shutil.copymode(temporary / STATE_FILE, temporary / name)
    for name in (STATE_FILE, *tensors):
        _sync(temporary / name)
    write_manifest(temporary)
    _sync(temporary)


def _publish(temporary: Path, final: Path) -> None:
    if final.exists():
        _discard(final)
    temporary.rename(final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _problem(folder: Path) -> CheckpointError | None:
    try:
        verify_folder(folder)
    except CheckpointError as error:
        return error
    return None


def _prune(checkpoints: Path, new: Path, keep_last: int) -> None:
    """Remove the oldest checkpoints; what stays holds `new` and at least one other whole one, if there is any."""
    num_kept = num_whole = 1
    for _, folder in step_folders(checkpoints):
        if folder == new:
            continue
        whole = num_whole < LEAST_KEPT and _problem(folder) is None
        if num_kept < keep_last or whole:
            num_kept, num_whole = num_kept + 1, num_whole + whole
            continue
        try:
            _discard(folder)
        except OSError as error:
            _logger.warning("Old checkpoint %s could not be removed: %s", folder, error)


def _discard(folder: Path) -> None:
    # Renamed first, so that a kill amid the removal leaves no folder that looks like a damaged checkpoint.
    aside = folder.with_name(f"{_DISCARDED}{folder.name}")
    folder.rename(aside)
    _remove(aside)


def _sweep(checkpoints: Path) -> None:
    """Remove what saves that were killed have left."""
    for prefix in (_SAVING, _DISCARDED):
        for path in checkpoints.glob(f"{prefix}*"):
            try:
                _remove(path)
            except OSError as error:
                raise CheckpointError(f"{path}: left by a save that died, cannot be removed: {error}") from error


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 when all that was asked for is whole, 4 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m trainer.checkpoint", description="Look at checkpoints.")
    parser.add_argument("command", choices=("list", "verify", "show"))
    parser.add_argument("path", type=Path, metavar="RUN_OR_CHECKPOINT", help="a run's folder or one checkpoint's")
    arguments = parser.parse_args(argv)
    path: Path = arguments.path
    single = (path / MANIFEST_NAME).exists() or STEP_FOLDER.fullmatch(path.name) is not None
    folders = [path] if single else [folder for _, folder in step_folders(_checkpoints_folder(path))]
    if not folders:
        sys.stderr.write(f"{path}: no checkpoint there; expected a run's folder or a checkpoint's\n")
        return 4
    return _show(path) if arguments.command == "show" else _tabulate(folders, reasons=arguments.command == "verify")


def _tabulate(folders: Sequence[Path], *, reasons: bool) -> int:
    sys.stdout.write(f"{'checkpoint':<16} {'written (UTC)':<20} {'bytes':>14}  verified\n")
    problems = []
    for folder in folders:
        problem = _problem(folder)
        manifest, written, num_bytes = folder / MANIFEST_NAME, "-", 0
        if manifest.is_file():
            written = datetime.fromtimestamp(manifest.stat().st_mtime, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        if folder.is_dir():
            num_bytes = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
        verdict = "yes" if problem is None else "NO"
        sys.stdout.write(f"{folder.name:<16} {written:<20} {num_bytes:>14,}  {verdict}\n")
        problems += [problem] if problem else []
    for problem in problems if reasons else ():
        sys.stderr.write(f"{problem}\n")
    return 4 if problems else 0


def _show(path: Path) -> int:
    try:
        loaded = load(path)
    except CheckpointError as error:
        sys.stderr.write(f"{error}\n")
        return 4
    lines = [str(loaded.path)]
    for name, tensors in (("model", loaded.model), ("optimizer", loaded.optimizer), ("average", loaded.average)):
        num_values = sum(tensor.numel() for tensor in tensors.values())
        kinds = ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}))
        lines.append(f"{name}: {len(tensors)} tensors, {num_values:,} values ({kinds or 'none'})")
    state = dataclasses.asdict(loaded.state)
    counts = sorted(set(state.pop("optimizer_steps").values()))
    lines += [f"optimizer steps: {', '.join(f'{count:g}' for count in counts) or 'none'}", json.dumps(state, indent=2)]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
