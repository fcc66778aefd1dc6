"""A run's checkpoints from its own side: which one to go on from, what a save does, and what follows when one fails."""

import logging
import time
from pathlib import Path
from typing import Any

from ...models.weights.manifest import CHECKPOINTS_FOLDER, CheckpointError, latest_verified
from ..engine.engine import Engine, EngineState
from ..processes.agreement import on_main
from ..settings.run import RunConfig
from .folder import Loaded, load, save
from .second_place import CheckpointStore
from .share import share
from .state import TrainState

LOG = logging.getLogger(__name__)


class Saver:
    """Finds, reads, writes and copies a run's checkpoints. Every rank has one; files are touched by the main rank only.

    A save that fails (a full disk, an error of the disk) is a warning: the steps since the last one are worth more than
    the certainty of the next. The second one in a row ends the run, and so does a failed last one, see `check_last`; a
    run that was told to stop tries its save once more before. What else cannot be written, such as a best checkpoint,
    ends the run at once.

    Attributes:
        last_saved: The newest step that a whole checkpoint holds, 0 before the first one.

    Args:
        run: Where the checkpoints lie and how many stay.
        engine: The ranks of the run.
    """

    def __init__(self, run: RunConfig, engine: Engine) -> None:
        self.last_saved = 0
        self._run = run
        self._engine = engine
        self._store: CheckpointStore | None = None
        self._failed: tuple[int, str] | None = None

    @property
    def newest_copy(self) -> str | None:
        """Name the newest copy that this process has made, None without one; known on the main rank."""
        return None if self._store is None else self._store.newest_copy

    def resume(self) -> Loaded | None:
        """Read the newest whole checkpoint on the main rank and give it to all ranks; None for a fresh start.

        Raises:
            CheckpointError: There are checkpoints and none is whole, or the second place fails; on all ranks.
        """
        # Kept aside: what `on_main` gives to all is pickled, and these are the tensors.
        loaded: Loaded | None = None

        def read() -> None:
            nonlocal loaded
            folder = Path(self._run.dir)
            if self._run.checkpoint_url is None:
                newest = latest_verified(folder / CHECKPOINTS_FOLDER)
            else:
                self._store = CheckpointStore(self._run.checkpoint_url, push_deadline_s=self._run.push_deadline_s)
                newest = self._store.newest(folder)
            loaded = None if newest is None else load(newest)

        on_main(self._engine, read)
        shared = share(self._engine, loaded)
        if shared is not None:
            self.last_saved = shared.state.step
        return shared

    def save(self, state: TrainState, exported: EngineState) -> dict[str, float]:
        """Write a checkpoint, and copy it to the second place where there is one; every rank calls it.

        Returns:
            Times and size for the metrics; empty where it failed, with a warning.

        Raises:
            CheckpointError: The save before this one failed too, or the second place never took anything.
        """
        run = self._run

        def write() -> tuple[Path, dict[str, float]] | str:
            """Give the checkpoint and the figures, or why it could not be written."""
            start_s = time.perf_counter()
            kept: dict[str, Any] = {"keep_last": run.keep_last, "keep_every": run.keep_every}
            try:
                path = save(Path(run.dir), state, exported.model, exported.optimizer, average=exported.average, **kept)
                num_bytes = sum(file.stat().st_size for file in path.iterdir())
            except (CheckpointError, OSError) as error:
                return str(error)

            # The copy comes after the save is whole: what it costs is a figure of its own.
            written_s = time.perf_counter()
            figures = {"save/write_s": written_s - start_s, "save/bytes": float(num_bytes)}
            if self._store is not None:
                self._engine.heartbeat.rename("copy checkpoint")
                self._store.push(path, **kept)
                figures["save/push_s"] = time.perf_counter() - written_s
            return path, figures

        # A failed write comes back as its reason, for all ranks count failures alike.
        outcome = on_main(self._engine, write)
        if isinstance(outcome, str):
            self._note_failure(state.step, outcome)
            return {}
        path, figures = outcome
        self.last_saved = state.step
        self._failed = None
        LOG.info("step %d: saved %s", state.step, path)
        return figures

    def _note_failure(self, step: int, failure: str) -> None:
        if self._failed is not None:
            raise CheckpointError(
                f"two saves in a row failed, after step {self._failed[0]} ({self._failed[1]}) and after step {step} "
                f"({failure}); {self._advice()}"
            )
        self._failed = step, failure
        LOG.warning(
            f"step {step}: NOT SAVED: {failure}; the run goes on, the newest checkpoint is of step {self.last_saved}; "
            "if the next save fails too, the run stops"
        )

    def check_last(self) -> None:
        """Refuse to end a run without its last checkpoint.

        Raises:
            CheckpointError: The newest save failed; on all ranks.
        """
        if self._failed is not None:
            step, failure = self._failed
            raise CheckpointError(f"the last save, after step {step}, failed: {failure}; {self._advice()}")

    def _advice(self) -> str:
        return (
            f"the newest checkpoint is of step {self.last_saved}: mend the disk of run.dir {self._run.dir} (space, "
            "quota, permissions), and the same command goes on from there"
        )
