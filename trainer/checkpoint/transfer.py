"""Copies of checkpoints between a run's folder and a store, an object store or another folder.

    URL/checkpoints/step-00000100/      the files of checkpoint/folder.py; MANIFEST.json last, and only if absent

A step without a manifest was never finished and counts for nothing. Older steps are removed only after a newer one is
there in full. This module loads no torch: a process of its own copies (trainer/checkpoint/push.py).
"""

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from ...data.errors import DataError
from ...data.store.storage import Storage
from ...data.whole_file import PARTIAL_SUFFIX, make_durable, write_whole
from ...models.weights.manifest import (
    CHECKPOINTS_FOLDER,
    MANIFEST_NAME,
    STEP_FOLDER,
    CheckpointError,
    check_digest,
    parse_manifest,
    step_folders,
    verify_folder,
)
from .retention import LEAST_KEPT, steps_to_remove

_BLOCK_BYTES: Final = 64 << 20
_FETCHES: Final = 3
_PULLING: Final = ".saving-pulled-"
"""Begins like the temporary folders of saves, which remove each other's remains."""
_Files = dict[str, dict[str, Any]]
_logger = logging.getLogger(__name__)


def push(
    folder: Path,
    storage: Storage,
    *,
    keep_last: int,
    keep_every: int | None = None,
    told: Callable[[str], None] = lambda _: None,
) -> None:
    """Copy one checkpoint to a store, then remove the oldest ones there. One process calls this.

    A step that is already there with the same manifest is left as it is. Milestones (multiples of `keep_every`) of the
    run's folder that the store lacks, because it failed when they were new, follow at the end.

    Args:
        folder: A checkpoint's folder, RUN/checkpoints/step-XXXXXXXX.
        storage: Holds a run's checkpoints below `checkpoints/`.
        keep_last: Checkpoints that stay, 2 or more; the two newest whole ones always stay.
        keep_every: Steps whose multiples stay for ever besides; None for none.
        told: Gets the name of each file that has arrived.

    Raises:
        CheckpointError: The folder is not whole, the store holds another checkpoint of that step, or it fails.
    """
    if not STEP_FOLDER.fullmatch(folder.name):
        raise CheckpointError(f"{folder}: not a checkpoint's folder; expected step-XXXXXXXX")
    with store_errors(folder):
        _sweep(storage)
    _copy(folder, storage, told)
    with store_errors(folder):
        _prune(storage, step_of(folder.name), keep_last=max(keep_last, LEAST_KEPT), keep_every=keep_every)
        there = set(finished_in(storage)) if keep_every else set()
    for step, milestone in step_folders(folder.parent) if keep_every else ():
        if step % (keep_every or 1) == 0 and milestone.name not in there:
            _copy(milestone, storage, told)


def _sweep(storage: Storage) -> None:
    """Remove what copies that were killed have left in a folder; a store shows nothing that is not complete."""
    if storage.folder is not None:
        for path in (storage.folder / CHECKPOINTS_FOLDER).glob(f"step-*/.*{PARTIAL_SUFFIX}"):
            path.unlink(missing_ok=True)


def _copy(folder: Path, storage: Storage, told: Callable[[str], None]) -> None:
    """Copy one whole checkpoint: small files first, so that a store that takes nothing is known soon."""
    files = verify_folder(folder)
    place = f"{CHECKPOINTS_FOLDER}/{folder.name}"
    manifest = (folder / MANIFEST_NAME).read_bytes()
    with store_errors(folder):
        if _is_pushed(storage, place, manifest, files):
            told(f"{place}/{MANIFEST_NAME}")
            return
        for name, entry in sorted(files.items(), key=lambda item: int(item[1]["bytes"])):
            _send(folder / name, storage, f"{place}/{name}", entry)
            told(f"{place}/{name}")
        try:
            storage.write(f"{place}/{MANIFEST_NAME}", manifest, if_absent=True)
        except DataError as error:
            if storage.exists(f"{place}/{MANIFEST_NAME}"):
                raise _of_another_run(storage, place) from error
            raise
        told(f"{place}/{MANIFEST_NAME}")


def pull_latest(storage: Storage, folder: Path, *, newer_than: int = -1) -> Path | None:
    """Fetch the newest whole checkpoint of a store into a run's folder; broken and unfinished ones are passed over.

    Args:
        storage: Holds a run's checkpoints below `checkpoints/`.
        folder: The run's folder, or its `checkpoints` folder.
        newer_than: Steps up to this one are not looked at.

    Returns:
        The checkpoint's folder, verified; None where the store holds no newer one that was ever finished.

    Raises:
        CheckpointError: There are finished ones and none is whole, the store fails, or the disk does.
    """
    checkpoints = folder if folder.name == CHECKPOINTS_FOLDER else folder / CHECKPOINTS_FOLDER
    problems: list[str] = []
    with store_errors(checkpoints):
        for step, name, is_finished in _steps(storage):
            if step <= newer_than:
                break
            where = f"{storage.url}/{CHECKPOINTS_FOLDER}/{name}"
            if not is_finished:
                _logger.warning("Checkpoint passed over: %s: no %s: its writing never ended", where, MANIFEST_NAME)
                continue
            try:
                return pull(storage, name, checkpoints)
            except CheckpointError as error:
                problems.append(str(error))
                _logger.warning("Checkpoint passed over: %s", error)
    if problems and newer_than < 0:
        raise CheckpointError(
            f"{storage.url}: none of {len(problems)} checkpoints is whole; remove them, or choose another "
            "run.checkpoint_url:\n" + "\n".join(f"  {problem}" for problem in problems)
        )
    return None


def finished_in(storage: Storage) -> list[str]:
    """List the folder names of a store's checkpoints that have a manifest, newest first.

    Raises:
        DataError: The store cannot be listed.
    """
    return [name for _, name, is_finished in _steps(storage) if is_finished]


def verify_in(storage: Storage, name: str, *, by_size: bool = False) -> _Files:
    """Read every file of a checkpoint in a store and compare it with the manifest.

    Args:
        storage: Holds a run's checkpoints below `checkpoints/`.
        name: The checkpoint's folder name.
        by_size: Compare the sizes only, and read nothing but the manifest.

    Returns:
        {file name: {"bytes": int, "sha256": str}}.

    Raises:
        CheckpointError: Naming the file, what was expected and what was found.
    """
    with store_errors(Path(name)):
        _, files = _listed(storage, name)
        for file, entry in files.items() if not by_size else ():
            path = f"{CHECKPOINTS_FOLDER}/{name}/{file}"
            hasher = hashlib.sha256()
            for start in range(0, entry["bytes"], _BLOCK_BYTES):
                hasher.update(storage.read(path, start, min(start + _BLOCK_BYTES, entry["bytes"])))
            check_digest(f"{storage.url}/{path}", entry, entry["bytes"], hasher.hexdigest())
    return files


def step_of(name: str) -> int:
    """Read the step from a checkpoint's folder name."""
    match = STEP_FOLDER.fullmatch(name)
    assert match is not None
    return int(match.group(1))


def _steps(storage: Storage) -> list[tuple[int, str, bool]]:
    """List a store's checkpoints, (step, folder name, whether it has a manifest), newest first."""
    found: dict[str, bool] = {}
    for path in storage.names(f"{CHECKPOINTS_FOLDER}/"):
        _, name, *rest = path.split("/")
        if STEP_FOLDER.fullmatch(name) and rest:
            found[name] = found.get(name, False) or rest == [MANIFEST_NAME]
    return sorted(((step_of(name), name, is_finished) for name, is_finished in found.items()), reverse=True)


def _is_pushed(storage: Storage, place: str, manifest: bytes, files: _Files) -> bool:
    """Tell whether a checkpoint is there already; a broken one of its step is made an unfinished one."""
    name = f"{place}/{MANIFEST_NAME}"
    if not storage.exists(name):
        return False
    there = storage.read(name)
    if there == manifest and _has_sizes(storage, place, files):
        return True
    if there != manifest and _is_whole(storage, place, there):
        raise _of_another_run(storage, place)
    _logger.warning("%s/%s: replaced: it was not whole", storage.url, place)
    storage.delete(name)
    return False


def _of_another_run(storage: Storage, place: str) -> CheckpointError:
    return CheckpointError(
        f"{storage.url}/{place}: holds another checkpoint of this step; it belongs to another run: choose another "
        "run.checkpoint_url, or remove what is there"
    )


def _has_sizes(storage: Storage, place: str, files: _Files) -> bool:
    return all(
        storage.exists(f"{place}/{name}") and storage.size(f"{place}/{name}") == entry["bytes"]
        for name, entry in files.items()
    )


def _is_whole(storage: Storage, place: str, manifest: bytes) -> bool:
    """Tell whether a manifest can be read and the files that it names have its sizes."""
    try:
        return _has_sizes(storage, place, parse_manifest(f"{place}/{MANIFEST_NAME}", manifest))
    except CheckpointError:
        return False


def _send(path: Path, storage: Storage, name: str, entry: dict[str, Any]) -> None:
    """Copy one file, and read back its size."""
    with storage.writer(name) as target, path.open("rb") as source:
        shutil.copyfileobj(source, target, _BLOCK_BYTES)
    found = storage.size(name)
    if found != entry["bytes"]:
        raise CheckpointError(f"{storage.url}/{name}: {found} bytes arrived of {entry['bytes']}; push it again")


def _prune(storage: Storage, new: int, *, keep_last: int, keep_every: int | None) -> None:
    """Remove older checkpoints, as `steps_to_remove` says, and remains of older ones that were never finished."""
    steps = _steps(storage)
    names = {step: name for step, name, is_finished in steps if is_finished}

    def is_whole(step: int) -> bool:
        place = f"{CHECKPOINTS_FOLDER}/{names[step]}"
        return _is_whole(storage, place, storage.read(f"{place}/{MANIFEST_NAME}"))

    going = steps_to_remove(names, is_whole, new=new, keep_last=keep_last, keep_every=keep_every)
    remains = [name for step, name, is_finished in steps if not is_finished and step < new]
    for name in [*(names[step] for step in going), *remains]:
        paths = storage.names(f"{CHECKPOINTS_FOLDER}/{name}/")
        # The manifest first: what is left of a removal that was cut off is no checkpoint any more.
        for path in sorted(paths, key=lambda path: not path.endswith(f"/{MANIFEST_NAME}")):
            storage.delete(path)


def _listed(storage: Storage, name: str) -> tuple[bytes, _Files]:
    """Read a checkpoint's manifest, and compare names and sizes with what is there."""
    place = f"{CHECKPOINTS_FOLDER}/{name}"
    manifest = storage.read(f"{place}/{MANIFEST_NAME}")
    files = parse_manifest(f"{storage.url}/{place}/{MANIFEST_NAME}", manifest)
    there = set(storage.names(f"{place}/"))
    for file, entry in files.items():
        if Path(file).name != file or file in {"", ".", "..", MANIFEST_NAME}:
            raise CheckpointError(f"{storage.url}/{place}/{MANIFEST_NAME}: lists {file!r}; expected plain file names")
        found = storage.size(f"{place}/{file}") if f"{place}/{file}" in there else "no"
        if found != entry["bytes"]:
            raise CheckpointError(f"{storage.url}/{place}/{file}: {found} bytes, the manifest says {entry['bytes']}")
    return manifest, files


def pull(storage: Storage, name: str, checkpoints: Path) -> Path:
    """Fetch one checkpoint into a temporary folder, verify it, and give it its name.

    Args:
        storage: Holds a run's checkpoints below `checkpoints/`.
        name: The checkpoint's folder name.
        checkpoints: The folder that it comes into; what has its name there is replaced.

    Raises:
        CheckpointError: It is not whole, or the disk fails.
        DataError: The store fails.
    """
    place, final = f"{CHECKPOINTS_FOLDER}/{name}", checkpoints / name
    manifest, files = _listed(storage, name)
    temporary = checkpoints / f"{_PULLING}{name}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        for file, entry in files.items():
            _fetch(storage, f"{place}/{file}", temporary / file, entry)
        write_whole(temporary / MANIFEST_NAME, manifest)
        verify_folder(temporary)
        # What has this name now did not verify, or it would not have been asked for.
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        make_durable(checkpoints)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _logger.info("Checkpoint fetched: %s from %s", final, storage.url)
    return final


def _fetch(storage: Storage, name: str, path: Path, entry: dict[str, Any]) -> None:
    """Copy one file from the store; what was damaged on the way is fetched again."""
    for _ in range(_FETCHES):
        hasher = hashlib.sha256()
        with path.open("wb") as target:
            for start in range(0, entry["bytes"], _BLOCK_BYTES):
                block = storage.read(name, start, min(start + _BLOCK_BYTES, entry["bytes"]))
                hasher.update(block)
                target.write(block)
        make_durable(path)
        if hasher.hexdigest() == entry["sha256"]:
            return
    raise CheckpointError(
        f"{storage.url}/{name}: damaged: SHA-256 {hasher.hexdigest()}, the manifest says {entry['sha256']}"
    )


@contextmanager
def store_errors(folder: Path) -> Iterator[None]:
    """Turn the errors of store and disk into a checkpoint's."""
    try:
        yield
    except DataError as error:
        raise CheckpointError(str(error)) from error
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or folder}: {error.strerror or error}; checkpoints elsewhere are untouched"
        ) from error
