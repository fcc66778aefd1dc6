"""Checkpoints beside the run's folder: in an object store or another folder, so that a lost disk costs no run.

    URL/checkpoints/step-00000100/      the files of trainer/checkpoint.py; MANIFEST.json last, and only if absent

A step without a manifest was never finished. Older steps are removed only after a newer one is there in full.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from data.frames import DataError
from data.storage import Storage, open_storage
from models.manifest import (
    MANIFEST_NAME,
    STEP_FOLDER,
    CheckpointError,
    latest_verified,
    parse_manifest,
    verify_folder,
)
from trainer.checkpoint import CHECKPOINTS_FOLDER, LEAST_KEPT

_BLOCK_BYTES: Final = 64 << 20
_FETCHES: Final = 3
_PULLING: Final = ".saving-pulled-"
"""Begins like the temporary folders of saves, which remove each other's remains."""
_Files = dict[str, dict[str, Any]]
_logger = logging.getLogger(__name__)


class CheckpointStore:
    """A run's second place for its checkpoints; used by the main rank only.

    Attributes:
        newest_copy: Where the newest checkpoint lies that this process has copied, None before the first one.

    Args:
        url: A folder or a store, see `open_storage`.

    Raises:
        CheckpointError: The address or the credentials are wrong.
    """

    def __init__(self, url: str) -> None:
        with _store_errors(Path(url)):
            self._storage = open_storage(url, to_write=True)
        self._has_pushed = False
        self.newest_copy: str | None = None

    def newest(self, folder: Path) -> Path | None:
        """Find a run's newest whole checkpoint, in its folder or in the store, from where it is fetched.

        Raises:
            CheckpointError: There are checkpoints and none is whole, the store fails, or is the run's own folder.
        """
        place = self._storage.folder
        if place is not None and place.resolve() == folder.resolve():
            raise CheckpointError(
                f"run.checkpoint_url is run.dir, {folder}, itself: no second place; leave it out or choose another"
            )
        try:
            local, failure = latest_verified(folder / CHECKPOINTS_FOLDER), None
        except CheckpointError as error:
            local, failure = None, error
        with _store_errors(folder):
            # Taken by an earlier process of this run: what fails from now on is not the settings.
            self._has_pushed = any(is_finished for _, _, is_finished in _steps(self._storage))
        pulled = pull_latest(self._storage, folder, newer_than=-1 if local is None else _step_of(local.name))
        if pulled is None and failure is not None:
            raise failure
        return pulled or local

    def push(self, folder: Path, *, keep_last: int) -> None:
        """Copy a checkpoint to the store.

        A store that has taken one and fails later is a reason to warn, not to stop: the run's folder holds the
        checkpoint, and the next one tries again.

        Raises:
            CheckpointError: The store never took one: the settings are wrong.
        """
        try:
            push(folder, self._storage, keep_last=keep_last)
        except CheckpointError as error:
            if not self._has_pushed:
                raise
            _logger.warning("%s: not copied to %s: %s", folder, self._storage.url, error)
        else:
            self._has_pushed = True
            self.newest_copy = f"{self._storage.url}/{CHECKPOINTS_FOLDER}/{folder.name}"
            _logger.info("%s: copied to %s", folder, self.newest_copy)


def push(folder: Path, storage: Storage, *, keep_last: int) -> None:
    """Copy one checkpoint to a store, then remove the oldest ones there. One process calls this.

    A step that is already there with the same manifest is left as it is.

    Args:
        folder: A checkpoint's folder, RUN/checkpoints/step-XXXXXXXX.
        storage: Holds a run's checkpoints below `checkpoints/`.
        keep_last: Checkpoints that stay, 2 or more; the two newest whole ones always stay.

    Raises:
        CheckpointError: The folder is not whole, the store holds another checkpoint of that step, or it fails.
    """
    if not STEP_FOLDER.fullmatch(folder.name):
        raise CheckpointError(f"{folder}: not a checkpoint's folder; expected step-XXXXXXXX")
    files = verify_folder(folder)
    place = f"{CHECKPOINTS_FOLDER}/{folder.name}"
    manifest = (folder / MANIFEST_NAME).read_bytes()
    with _store_errors(folder):
        if not _is_pushed(storage, place, manifest, files):
            for name, entry in files.items():
                _send(folder / name, storage, f"{place}/{name}", entry)
            try:
                storage.write(f"{place}/{MANIFEST_NAME}", manifest, if_absent=True)
            except DataError as error:
                if storage.exists(f"{place}/{MANIFEST_NAME}"):
                    raise _of_another_run(storage, place) from error
                raise
        _prune(storage, max(keep_last, LEAST_KEPT))


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
    with _store_errors(checkpoints):
        for step, name, is_finished in _steps(storage):
            if step <= newer_than:
                break
            where = f"{storage.url}/{CHECKPOINTS_FOLDER}/{name}"
            if not is_finished:
                _logger.warning("Checkpoint passed over: %s: no %s: its writing never ended", where, MANIFEST_NAME)
                continue
            try:
                return _pull(storage, name, checkpoints)
            except CheckpointError as error:
                problems.append(str(error))
                _logger.warning("Checkpoint passed over: %s", error)
    if problems and newer_than < 0:
        raise CheckpointError(
            f"{storage.url}: none of {len(problems)} checkpoints is whole; remove them, or choose another "
            "run.checkpoint_url:\n" + "\n".join(f"  {problem}" for problem in problems)
        )
    return None


def _step_of(name: str) -> int:
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
    return sorted(((_step_of(name), name, is_finished) for name, is_finished in found.items()), reverse=True)


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


def _prune(storage: Storage, keep_last: int) -> None:
    """Remove what is older than the newest whole checkpoints, each one's manifest first."""
    num_whole = 0
    for _, name, is_finished in _steps(storage):
        place = f"{CHECKPOINTS_FOLDER}/{name}"
        if num_whole >= keep_last:
            paths = storage.names(f"{place}/")
            for path in sorted(paths, key=lambda path: not path.endswith(f"/{MANIFEST_NAME}")):
                storage.delete(path)
        elif is_finished and _is_whole(storage, place, storage.read(f"{place}/{MANIFEST_NAME}")):
            num_whole += 1


def _pull(storage: Storage, name: str, checkpoints: Path) -> Path:
    """Fetch one checkpoint into a temporary folder, verify it, and give it its name."""
    place, final = f"{CHECKPOINTS_FOLDER}/{name}", checkpoints / name
    manifest = storage.read(f"{place}/{MANIFEST_NAME}")
    files = parse_manifest(f"{storage.url}/{place}/{MANIFEST_NAME}", manifest)
    there = set(storage.names(f"{place}/"))
    for file, entry in files.items():
        if Path(file).name != file or file in {"", ".", "..", MANIFEST_NAME}:
            raise CheckpointError(f"{storage.url}/{place}/{MANIFEST_NAME}: lists {file!r}; expected plain file names")
        found = storage.size(f"{place}/{file}") if f"{place}/{file}" in there else "no"
        if found != entry["bytes"]:
            raise CheckpointError(f"{storage.url}/{place}/{file}: {found} bytes, the manifest says {entry['bytes']}")
    temporary = checkpoints / f"{_PULLING}{name}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        for file, entry in files.items():
            _fetch(storage, f"{place}/{file}", temporary / file, entry)
        with (temporary / MANIFEST_NAME).open("wb") as target:
            target.write(manifest)
            target.flush()
            os.fsync(target.fileno())
        verify_folder(temporary)
        # What has this name now did not verify, or it would not have been asked for.
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
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
            target.flush()
            os.fsync(target.fileno())
        if hasher.hexdigest() == entry["sha256"]:
            return
    raise CheckpointError(
        f"{storage.url}/{name}: damaged: SHA-256 {hasher.hexdigest()}, the manifest says {entry['sha256']}"
    )


@contextmanager
def _store_errors(folder: Path) -> Iterator[None]:
    """Turn the errors of store and disk into a checkpoint's."""
    try:
        yield
    except DataError as error:
        raise CheckpointError(str(error)) from error
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or folder}: {error.strerror or error}; checkpoints elsewhere are untouched"
        ) from error
