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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import safetensors.torch
import torch

from ...models.weights.manifest import (
    AVERAGE_FILE,
    MANIFEST_NAME,
    MODEL_FILE,
    CheckpointError,
    check_digest,
    checkpoints_of,
    latest_verified,
    read_manifest,
    step_folders,
    step_of,
    verify_folder,
    write_manifest,
)
from .retention import steps_to_remove
from .state import TrainState, parse_state, state_bytes
from .whole_folder import checkpoint_errors, discard, sweep, writing_folder

OPTIMIZER_FILE: Final = "optimizer.safetensors"
STATE_FILE: Final = "state.json"

_STORED_DTYPES = frozenset(
    {torch.float32, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool}
)
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
    checkpoints = checkpoints_of(folder)
    final = checkpoints / f"step-{state.step:08d}"
    state_json = state_bytes(state)
    tensors = {MODEL_FILE: _storable(MODEL_FILE, model), OPTIMIZER_FILE: _storable(OPTIMIZER_FILE, optimizer)}
    if average:
        tensors[AVERAGE_FILE] = _storable(AVERAGE_FILE, average)

    # Refused values and types have raised by now: nothing is written for them.
    sweep(checkpoints)
    if not _is_whole(final):
        with checkpoint_errors(final, "written"), writing_folder(final) as temporary:
            _write(temporary, state_json, tensors)
        # What the disk gives back, not what it was given.
        verify_folder(final)

    # Only now that the new one is proved may older ones go.
    folders = dict(step_folders(checkpoints))
    going = steps_to_remove(
        folders, lambda step: _is_whole(folders[step]), new=state.step, keep_last=keep_last, keep_every=keep_every
    )
    for step in going:
        try:
            discard(folders[step])
        except OSError as error:
            _logger.warning("Old checkpoint %s could not be removed: %s", folders[step], error)
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
    if step_of(folder.name) is None and not (folder / MANIFEST_NAME).exists():
        newest = latest_verified(checkpoints_of(folder))
        if newest is None:
            raise CheckpointError(f"{folder}: no checkpoint there; expected a run's folder or a checkpoint's")
        path = newest

    # The very bytes that are compared with the manifest are those that are used.
    files = read_manifest(path)
    if absent := sorted({MODEL_FILE, OPTIMIZER_FILE, STATE_FILE} - files.keys()):
        raise CheckpointError(f"{path}: not a training checkpoint: it has no {', '.join(absent)}")
    contents: dict[str, bytes] = {}
    for name, entry in files.items():
        with checkpoint_errors(path / name, "read"):
            contents[name] = (path / name).read_bytes()
        check_digest(path / name, entry, len(contents[name]), hashlib.sha256(contents[name]).hexdigest())

    state = parse_state(path / STATE_FILE, contents.pop(STATE_FILE))
    if step_of(path.name) not in (None, state.step):
        raise CheckpointError(f"{path}: holds step {state.step}, not the step of its name; give it its right name")

    tensors: dict[str, dict[str, torch.Tensor]] = {}
    for kind, name in {"model": MODEL_FILE, "optimizer": OPTIMIZER_FILE, "average": AVERAGE_FILE}.items():
        with checkpoint_errors(path / name, "read as safetensors"):
            tensors[kind] = safetensors.torch.load(contents.pop(name)) if name in contents else {}
    return Loaded(state=state, path=path, **tensors)


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


def _write(folder: Path, state_json: bytes, tensors: Mapping[str, dict[str, torch.Tensor]]) -> None:
    """Write the files of a checkpoint, the manifest last."""
    (folder / STATE_FILE).write_bytes(state_json)
    for name, named in tensors.items():
        with checkpoint_errors(folder / name, "written"):
            safetensors.torch.save_file(named, folder / name)
        # safetensors creates its files for the owner alone; a shared run folder follows the umask like everything else.
        shutil.copymode(folder / STATE_FILE, folder / name)
    write_manifest(folder)


def _is_whole(folder: Path) -> bool:
    try:
        verify_folder(folder)
    except CheckpointError:
        return False
    return True
