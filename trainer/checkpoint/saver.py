"""A run's checkpoints from its own side: which one to go on from, what a save does, and what follows when one fails."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from ...models.weights.manifest import CHECKPOINTS_FOLDER, CheckpointError, latest_verified
from ..engine.engine import Engine, EngineState
from ..settings.run import RunConfig
from .folder import Loaded, TrainState, load, save
from .second_place import CheckpointStore
from .share import share

LOG = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class OnMain(Protocol):
    """Does something on the main rank and gives its result to all; what fails there fails on all of them."""

    def __call__(self, work: Callable[[], _Result]) -> _Result:
        """Do it."""


@dataclass(frozen=True, kw_only=True)
class _Written:
    """What a save came to on the main rank."""

    path: Path | None = None
    failure: str = ""
    write_s: float = 0.0
    push_s: float = 0.0
    num_bytes: int = 0


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
        on_main: Does something on the main rank.
        rename: Is told what the main rank goes on to.
    """

    def __init__(
        self, run: RunConfig, on_main: OnMain, rename: Callable[[str], None] = lambda _operation: None
    ) -> None:
        self.last_saved = 0
        self._run, self._on_main, self._rename = run, on_main, rename
        self._store: CheckpointStore | None = None
        self._failed: tuple[int, str] | None = None

    @property
    def newest_copy(self) -> str | None:
        """Where the newest copy lies that this process has made, None without one; known on the main rank."""
        return None if self._store is None else self._store.newest_copy

    def resume(self, engine: Engine) -> Loaded | None:
        """Read the newest whole checkpoint on the main rank and give it to all ranks; None for a fresh start.

        Raises:
            CheckpointError: There are checkpoints and none is whole, or the second place fails; on all ranks.
        """

        # Kept aside: what `on_main` gives to all is pickled, and these are the tensors.
        found: Loaded | None = None

        def read() -> None:
            nonlocal found
            newest = self._newest()
            found = None if newest is None else load(newest)

        self._on_main(read)
        loaded = share(engine, found)
        if loaded is not None:
            self.last_saved = loaded.state.step
        return loaded

    def _newest(self) -> Path | None:
        """Find what to go on from; the main rank, which keeps the second place of the checkpoints open."""
        folder = Path(self._run.dir)
        if self._run.checkpoint_url is None:
            return latest_verified(folder / CHECKPOINTS_FOLDER)
        self._store = CheckpointStore(self._run.checkpoint_url, push_deadline_s=self._run.push_deadline_s)
        return self._store.newest(folder)

    def save(self, state: TrainState, exported: EngineState) -> dict[str, float]:
        """Write a checkpoint, and copy it to the second place where there is one; every rank calls it.

        Returns:
            Times and size for the metrics; empty where it failed, which is told in a warning.

        Raises:
            CheckpointError: The save before this one failed too, or the second place never took anything.
        """
        run = self._run

        def write() -> _Written:
            start_s = time.perf_counter()
            try:
                path = save(
                    Path(run.dir),
                    state,
                    exported.model,
                    exported.optimizer,
                    keep_last=run.keep_last,
                    keep_every=run.keep_every,
                    average=exported.average,
                )
                num_bytes = sum(file.stat().st_size for file in path.iterdir())
            except (CheckpointError, OSError) as error:
                return _Written(failure=str(error))
            written_s = time.perf_counter()
            if self._store is not None:
                self._rename("copy checkpoint")
                self._store.push(path, keep_last=run.keep_last, keep_every=run.keep_every)
            push_s = time.perf_counter() - written_s
            return _Written(path=path, write_s=written_s - start_s, push_s=push_s, num_bytes=num_bytes)

        written = self._on_main(write)
        if written.path is None:
            self._note_failure(state.step, written.failure)
            return {}
        self.last_saved, self._failed = state.step, None
        LOG.info("step %d: saved %s", state.step, written.path)
        figures = {"save/write_s": written.write_s, "save/bytes": float(written.num_bytes)}
        return figures | ({} if run.checkpoint_url is None else {"save/push_s": written.push_s})

    def _note_failure(self, step: int, failure: str) -> None:
        if self._failed is not None:
            raise CheckpointError(
                f"two saves in a row failed, after step {self._failed[0]} ({self._failed[1]}) and after step {step} "
                f"({failure}); {self._advice()}"
            )
        self._failed = step, failure
        LOG.warning(
            "step %d: NOT SAVED: %s; the run goes on, the newest checkpoint is of step %d; if the next save fails too, "
            "the run stops",
            step, failure, self.last_saved,
        )  # fmt: skip

    def check_last(self) -> None:
        """Tell that the run ends without its last checkpoint.

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
