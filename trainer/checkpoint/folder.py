"""The portable checkpoint: one format, whatever engine or world size wrote it, and no pickle in it.

    RUN/checkpoints/step-00000100/
        model.safetensors       parameters and buffers by name
        optimizer.safetensors   moments by "<parameter name>.<moment>"
        ema.safetensors         averaged weights by name, where a run keeps them
        state.json              step, epoch, seed, configuration, plan, loss scale, step counts, versions
        MANIFEST.json           size and SHA-256 of each, written last

One process writes (rank 0 of the run that owns the folder). A checkpoint is written into a temporary folder, made
durable, renamed, read back, and only then are older ones removed: a kill at any moment leaves an older whole one.

`rainspark checkpoint list|verify|show PLACE` looks at what is there, see trainer/checkpoint/__main__.py.
"""

import hashlib
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import safetensors.torch
import torch
from safetensors import SafetensorError

from ...data.whole_file import make_durable
from ...models.weights.manifest import (
    CHECKPOINTS_FOLDER,
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
from .retention import LEAST_KEPT, steps_to_remove
from .state import TrainState, check_resume, installed_versions, parse_state, state_bytes

__all__ = [
    "CHECKPOINTS_FOLDER",
    "CheckpointError",
    "Loaded",
    "TrainState",
    "best_checkpoint",
    "check_resume",
    "chosen_weights",
    "installed_versions",
    "load",
    "save",
]

MODEL_FILE: Final = "model.safetensors"
OPTIMIZER_FILE: Final = "optimizer.safetensors"
AVERAGE_FILE: Final = "ema.safetensors"
STATE_FILE: Final = "state.json"
BEST_FOLDER: Final = "best"
"""Where a fine-tuning run keeps the checkpoints that were the best on its validation part, in a run's layout."""

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
    keep_every: int | None = None,
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
        keep_every: steps whose multiples stay for ever besides; None for none.
        average: averaged weights by name, where there are any.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: a value cannot be stored, or the disk is full or read-only: the temporary folder is gone and
            the older checkpoints are untouched.
    """
    if keep_last < LEAST_KEPT:
        raise CheckpointError(f"run.keep_last is {keep_last}; it must be {LEAST_KEPT} or more")
    checkpoints = checkpoints_of(folder)
    final = checkpoints / f"step-{state.step:08d}"
    state_json = state_bytes(state)
    tensors = {MODEL_FILE: _storable(MODEL_FILE, model), OPTIMIZER_FILE: _storable(OPTIMIZER_FILE, optimizer)}
    if average:
        tensors[AVERAGE_FILE] = _storable(AVERAGE_FILE, average)
    with _disk_errors(checkpoints):
        if not checkpoints.is_dir():
            checkpoints.mkdir(parents=True)
            make_durable(checkpoints.parent)
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
    _prune(checkpoints, state.step, keep_last=keep_last, keep_every=keep_every)
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
        found = latest_verified(checkpoints_of(folder))
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
        found = best_checkpoint(source) or latest_verified(checkpoints_of(source))
        if found is None:
            return source
        path = found
    files = verify_folder(path)
    names = [name for name in (AVERAGE_FILE, MODEL_FILE) if name in files]
    return path / names[0] if names else source


def checkpoints_of(folder: Path) -> Path:
    """Find the folder of a run's checkpoints; a `checkpoints` folder is given back."""
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
    write_manifest(temporary)
    for name in (STATE_FILE, *tensors, MANIFEST_NAME):
        make_durable(temporary / name)
    make_durable(temporary)


def _publish(temporary: Path, final: Path) -> None:
    if final.exists():
        _discard(final)
    temporary.rename(final)
    make_durable(final.parent)


def _problem(folder: Path) -> CheckpointError | None:
    try:
        verify_folder(folder)
    except CheckpointError as error:
        return error
    return None


def _prune(checkpoints: Path, new: int, *, keep_last: int, keep_every: int | None) -> None:
    """Remove the oldest checkpoints, as `steps_to_remove` says."""
    folders = dict(step_folders(checkpoints))

    def is_whole(step: int) -> bool:
        return _problem(folders[step]) is None

    for step in steps_to_remove(folders, is_whole, new=new, keep_last=keep_last, keep_every=keep_every):
        try:
            _discard(folders[step])
        except OSError as error:
            _logger.warning("Old checkpoint %s could not be removed: %s", folders[step], error)


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
