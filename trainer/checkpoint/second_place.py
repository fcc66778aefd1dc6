"""Checkpoints beside the run's folder: in an object store or another folder, so that a lost disk costs no run."""

import logging
from pathlib import Path

from ...data.store.storage import open_storage
from ...models.weights.manifest import CHECKPOINTS_FOLDER, MANIFEST_NAME, CheckpointError, latest_verified, step_of
from .push import push_within
from .transfer import finished_in, pull_latest
from .whole_folder import checkpoint_errors

_logger = logging.getLogger(__name__)


class CheckpointStore:
    """A run's second place for its checkpoints; used by the main rank only.

    Attributes:
        newest_copy: Where the newest checkpoint lies that this process has copied, None before the first one.

    Args:
        url: A folder or a store, see `open_storage`.
        push_deadline_s: Seconds that the copy of one checkpoint may take.

    Raises:
        CheckpointError: The address or the credentials are wrong.
    """

    def __init__(self, url: str, *, push_deadline_s: float = 60.0) -> None:
        with checkpoint_errors(Path(url), "opened"):
            self._storage = open_storage(url, to_write=True)
        self._url = url
        self._deadline_s = push_deadline_s
        self._has_taken = False
        self.newest_copy: str | None = None

    def newest(self, folder: Path) -> Path | None:
        """Find a run's newest whole checkpoint, in its folder or in the store, from where it is fetched.

        Raises:
            CheckpointError: There are checkpoints and none is whole, the store fails, or is the run's own folder.
        """
        root = self._storage.folder
        if root is not None and root.resolve() == folder.resolve():
            raise CheckpointError(
                f"run.checkpoint_url is run.dir, {folder}, itself: no second place; leave it out or choose another"
            )
        # Damage in the folder is an error only where the store has nothing either.
        try:
            local, failure = latest_verified(folder / CHECKPOINTS_FOLDER), None
        except CheckpointError as error:
            local, failure = None, error

        with checkpoint_errors(folder, "listed"):
            # Taken by an earlier process of this run: what fails from now on is not the settings.
            self._has_taken = bool(finished_in(self._storage))
        pulled = pull_latest(self._storage, folder, newer_than=step_of(local.name) if local else None)
        if pulled is None and failure is not None:
            raise failure
        return pulled or local

    def push(self, folder: Path, *, keep_last: int, keep_every: int | None = None) -> None:
        """Copy a checkpoint to the store, within the deadline.

        A store that has taken something and fails later, or is too slow, is a reason to warn, not to stop: the run's
        folder holds the checkpoint, and the next one tries again.

        Raises:
            CheckpointError: The store never took anything: the settings are wrong.
        """
        pushed = push_within(self._deadline_s, url=self._url, folder=folder, keep_last=keep_last, keep_every=keep_every)
        for warning in pushed.warnings:
            _logger.warning("%s", warning)
        self._has_taken = self._has_taken or bool(pushed.sent)
        name = f"{CHECKPOINTS_FOLDER}/{folder.name}"
        is_copied = f"{name}/{MANIFEST_NAME}" in pushed.sent
        if is_copied:
            self.newest_copy = f"{self._storage.url}/{name}"
            _logger.info("%s: copied to %s", folder, self.newest_copy)

        for failure in pushed.failures[-1:]:
            what = self._storage.url if is_copied else f"{folder}: not copied to {self._storage.url}"
            if not self._has_taken:
                raise CheckpointError(f"{what}: {failure}")
            _logger.warning("%s: %s", what, failure)
