"""Copies of checkpoints between a run's folder and a store, an object store or another folder.

    URL/checkpoints/step-00000100/      the files of checkpoint/folder.py; MANIFEST.json last, and only if absent

A step without a manifest was never finished and counts for nothing. Older steps are removed only after a newer one is
there in full. This module loads no torch: a process of its own copies (trainer/checkpoint/push.py).
"""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ...data.errors import DataError
from ...data.store.storage import Storage, copy_out
from ...data.whole_file import PARTIAL_SUFFIX
from ...models.weights.manifest import (
    CHECKPOINTS_FOLDER,
    MANIFEST_NAME,
    CheckpointError,
    check_digest,
    parse_manifest,
    step_folders,
    step_of,
    verify_folder,
)
from .retention import steps_to_remove
from .whole_folder import checkpoint_errors, writing_folder

_BLOCK_BYTES: Final = 64 << 20
_FETCHES: Final = 3
_logger = logging.getLogger(__name__)


def push(
    folder: Path,
    storage: Storage,
    *,
    keep_last: int,
    keep_every: int | None = None,
    notify: Callable[[str], None] = lambda _: None,
) -> None:
    """Copy one checkpoint to a store, then remove the oldest ones there. One process calls this.

    A step that is already there with the same manifest is left as it is. Milestones (multiples of `keep_every`) of the
    run's folder that the store lacks, because it failed when they were new, follow at the end.

    Args:
        folder: A checkpoint's folder, RUN/checkpoints/step-XXXXXXXX.
        storage: Holds a run's checkpoints below `checkpoints/`.
        keep_last: Checkpoints that stay, 2 or more; the two newest whole ones always stay.
        keep_every: Steps whose multiples stay for ever besides; None for none.
        notify: Gets the name of each file that has arrived.

    Raises:
        CheckpointError: The folder is not whole, the store holds another checkpoint of that step, or it fails.
    """
    new = step_of(folder.name)
    if new is None:
        raise CheckpointError(f"{folder}: not a checkpoint's folder; expected step-XXXXXXXX")
    with checkpoint_errors(folder, "copied"):
        if storage.folder is not None:
            # What copies that were killed have left in a folder; a store shows nothing that is not complete.
            for path in (storage.folder / CHECKPOINTS_FOLDER).glob(f"step-*/.*{PARTIAL_SUFFIX}"):
                path.unlink(missing_ok=True)
        _copy(folder, storage, notify)
        _prune(storage, new, keep_last=keep_last, keep_every=keep_every)

        # Milestones that the store missed while it failed.
        finished = finished_in(storage)
        for step, milestone in step_folders(folder.parent):
            if keep_every and step % keep_every == 0 and milestone.name not in finished:
                _copy(milestone, storage, notify)


def pull_latest(storage: Storage, folder: Path, *, newer_than: int | None = None) -> Path | None:
    """Fetch the newest whole checkpoint of a store into a run's folder; broken and unfinished ones are passed over.

    Args:
        storage: Holds a run's checkpoints below `checkpoints/`.
        folder: The run's folder.
        newer_than: Steps up to this one are not looked at; None: all are.

    Returns:
        The checkpoint's folder, verified; None where the store holds no newer one that was ever finished.

    Raises:
        CheckpointError: There are finished ones and none is whole, the store fails, or the disk does.
    """
    # From the newest on: the first one that is whole is taken.
    problems: list[str] = []
    with checkpoint_errors(folder, "fetched"):
        for step, name, is_finished in _steps(storage):
            if newer_than is not None and step <= newer_than:
                break
            try:
                return pull(storage, name, folder / CHECKPOINTS_FOLDER)
            except CheckpointError as error:
                _logger.warning("Checkpoint passed over: %s", error)
                problems += [str(error)] if is_finished else []

    if problems and newer_than is None:
        raise CheckpointError(
            f"{storage.url}: none of {len(problems)} checkpoints is whole; remove them, or choose another "
            "run.checkpoint_url:\n" + "\n".join(f"  {problem}" for problem in problems)
        )
    return None


def pull(storage: Storage, name: str, checkpoints: Path) -> Path:
    """Fetch one checkpoint; what was damaged on the way is fetched again, and all is verified before it gets its name.

    Args:
        storage: Holds a run's checkpoints below `checkpoints/`.
        name: The checkpoint's folder name.
        checkpoints: The folder that it comes into; what has its name there is replaced.

    Raises:
        CheckpointError: It is not whole.
        DataError: The store fails.
        OSError: The disk fails.
    """
    manifest, files = _read_manifest(storage, name)
    with writing_folder(checkpoints / name) as folder:
        for file, entry in files.items():
            path = f"{CHECKPOINTS_FOLDER}/{name}/{file}"
            # Damaged on the way, or in the store? A second look shows.
            for _ in range(_FETCHES):
                with (folder / file).open("wb") as target:
                    sha256 = copy_out(storage, path, entry["bytes"], target.write)
                if sha256 == entry["sha256"]:
                    break
            check_digest(f"{storage.url}/{path}", entry, entry["bytes"], sha256)
        (folder / MANIFEST_NAME).write_bytes(manifest)
        verify_folder(folder)
    _logger.info("Checkpoint fetched: %s from %s", checkpoints / name, storage.url)
    return checkpoints / name


def finished_in(storage: Storage) -> list[str]:
    """List the folder names of a store's checkpoints that have a manifest, newest first.

    Raises:
        DataError: The store cannot be listed.
    """
    return [name for _, name, is_finished in _steps(storage) if is_finished]


def verify_in(storage: Storage, name: str, *, by_size: bool = False) -> dict[str, dict[str, Any]]:
    """Read every file of a checkpoint in a store and compare it with the manifest.

    Args:
        storage: Holds a run's checkpoints below `checkpoints/`.
        name: The checkpoint's folder name.
        by_size: Compare the sizes only, and read nothing but the manifest.

    Returns:
        {file name: {"bytes": int, "sha256": str}}.

    Raises:
        CheckpointError: Naming the file, what was expected and what was found.
        DataError: The store fails.
    """
    _, files = _read_manifest(storage, name)
    for file, entry in files.items() if not by_size else ():
        path = f"{CHECKPOINTS_FOLDER}/{name}/{file}"
        check_digest(f"{storage.url}/{path}", entry, entry["bytes"], copy_out(storage, path, entry["bytes"]))
    return files


def _steps(storage: Storage) -> list[tuple[int, str, bool]]:
    """List a store's checkpoints, (step, folder name, whether it has a manifest), newest first."""
    paths = set(storage.names(f"{CHECKPOINTS_FOLDER}/"))
    names = {path.split("/")[1] for path in paths if path.count("/") > 1}
    manifests = {name: f"{CHECKPOINTS_FOLDER}/{name}/{MANIFEST_NAME}" for name in names}
    steps = ((step, name, manifests[name] in paths) for name in names if (step := step_of(name)) is not None)
    return sorted(steps, reverse=True)


def _read_manifest(storage: Storage, name: str) -> tuple[bytes, dict[str, dict[str, Any]]]:
    """Read a checkpoint's manifest, and compare names and sizes with what is there."""
    # Names and sizes tell an unfinished copy without reading it.
    prefix = f"{CHECKPOINTS_FOLDER}/{name}"
    names = storage.names(f"{prefix}/")
    if f"{prefix}/{MANIFEST_NAME}" not in names:
        raise CheckpointError(f"{storage.url}/{prefix}: no {MANIFEST_NAME}: its writing never ended")
    manifest = storage.read(f"{prefix}/{MANIFEST_NAME}")
    files = parse_manifest(f"{storage.url}/{prefix}/{MANIFEST_NAME}", manifest)
    for file, entry in files.items():
        size = storage.size(f"{prefix}/{file}") if f"{prefix}/{file}" in names else "no"
        if size != entry["bytes"]:
            raise CheckpointError(f"{storage.url}/{prefix}/{file}: {size} bytes, the manifest says {entry['bytes']}")
    return manifest, files


def _whole_manifest(storage: Storage, name: str) -> bytes | None:
    """Read a checkpoint's manifest; None where a file is missing or has another size than it says."""
    try:
        return _read_manifest(storage, name)[0]
    except CheckpointError:
        return None


def _copy(folder: Path, storage: Storage, notify: Callable[[str], None]) -> None:
    """Copy one whole checkpoint: small files first, so that a store that takes nothing is known soon."""
    files = verify_folder(folder)
    manifest = (folder / MANIFEST_NAME).read_bytes()
    prefix = f"{CHECKPOINTS_FOLDER}/{folder.name}"
    another = CheckpointError(
        f"{storage.url}/{prefix}: holds another checkpoint of this step; it belongs to another run: choose another "
        "run.checkpoint_url, or remove what is there"
    )

    # What is there in full stays; what is not whole is made an unfinished one first.
    there = _whole_manifest(storage, folder.name)
    if there not in (None, manifest):
        raise another
    if there is None:
        if storage.exists(f"{prefix}/{MANIFEST_NAME}"):
            _logger.warning("%s/%s: replaced: it was not whole", storage.url, prefix)
            storage.delete(f"{prefix}/{MANIFEST_NAME}")
        for name, entry in sorted(files.items(), key=lambda item: int(item[1]["bytes"])):
            path = f"{prefix}/{name}"
            with storage.writer(path) as target, (folder / name).open("rb") as source:
                shutil.copyfileobj(source, target, _BLOCK_BYTES)
            if (size := storage.size(path)) != entry["bytes"]:
                raise CheckpointError(f"{storage.url}/{path}: {size} bytes arrived of {entry['bytes']}; push it again")
            notify(path)

        # The manifest last, and only if none is there: of two runs with one address one gets an error.
        try:
            storage.write(f"{prefix}/{MANIFEST_NAME}", manifest, if_absent=True)
        except DataError as error:
            if storage.exists(f"{prefix}/{MANIFEST_NAME}"):
                raise another from error
            raise
    notify(f"{prefix}/{MANIFEST_NAME}")


def _prune(storage: Storage, new: int, *, keep_last: int, keep_every: int | None) -> None:
    """Remove older checkpoints, as `steps_to_remove` says, and remains of older ones that were never finished."""
    steps = _steps(storage)
    names = {step: name for step, name, is_finished in steps if is_finished}

    def is_whole(step: int) -> bool:
        return _whole_manifest(storage, names[step]) is not None

    going = steps_to_remove(names, is_whole, new=new, keep_last=keep_last, keep_every=keep_every)
    remains = [name for step, name, is_finished in steps if not is_finished and step < new]
    for name in [*(names[step] for step in going), *remains]:
        paths = storage.names(f"{CHECKPOINTS_FOLDER}/{name}/")
        # The manifest first: what is left of a removal that was cut off is no checkpoint any more.
        for path in sorted(paths, key=lambda path: not path.endswith(f"/{MANIFEST_NAME}")):
            storage.delete(path)
