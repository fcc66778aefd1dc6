"""Checks of the checkpoints that are there, in the run's folder and in its second place: whole, and of this run?"""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .findings import CHECKPOINT, Finding, Job, fail, guarded, ok, warn

if TYPE_CHECKING:
    from ...trainer.training.windows import Windows


def check_checkpoints(job: Job, windows: "Windows") -> list[Finding]:
    """Verify the newest checkpoint of the run's folder, and say whether a run would go on from it."""
    from ...models.weights.manifest import CheckpointError, latest_verified, step_folders, verify_folder
    from ...trainer.checkpoint.folder import CHECKPOINTS_FOLDER

    folder = Path(job.config.run.dir) / CHECKPOINTS_FOLDER

    def look() -> list[Finding]:
        there = step_folders(folder)
        if not there:
            return [ok("checkpoints", f"{folder}: none yet, the run would start anew")]
        found = []
        try:
            verify_folder(there[0][1])
        except CheckpointError as error:
            found.append(
                warn(
                    "checkpoints",
                    f"the newest of {len(there)} is not whole: {error}",
                    advice="the run goes on from an older one",
                )
            )
        newest = latest_verified(folder)
        assert newest is not None
        return [*found, *_resume(job, windows, newest)]

    return guarded("checkpoints", CHECKPOINT, look)


def _resume(job: Job, windows: "Windows", newest: Path) -> list[Finding]:
    """Compare a checkpoint with the settings as a resume does."""
    from ...trainer.checkpoint.folder import STATE_FILE
    from ...trainer.checkpoint.state import check_resume, parse_state
    from ...trainer.settings.parse import as_dict
    from ...trainer.training.windows import open_stream

    config = job.config
    state = parse_state(newest / STATE_FILE, (newest / STATE_FILE).read_bytes())
    # The plan's fingerprint knows no rank; a world size that does not fit is another finding.
    stream = open_stream(windows, config.data, seed=config.seed, rank=0, world_size=1, pin=False)
    changes = check_resume(state, as_dict(config), stream.fingerprint(), allow_plan_change=config.run.allow_plan_change)
    found = [ok("resume", f"would go on from {newest.name}: {state.step} of {config.run.steps} steps are done")]
    if state.step >= config.run.steps:
        found = [warn("resume", f"{newest.name}: all {config.run.steps} steps are done", advice="raise run.steps")]
    return [*found, *(ok("resume", f"changed and accepted: {change}") for change in changes)]


def check_second_place(job: Job) -> list[Finding]:
    """Write, read and delete a small file in the checkpoints' second place, and look what lies there."""
    from ...data.errors import DataError
    from ...data.store.storage import open_storage
    from ...trainer.checkpoint.transfer import finished_in

    run = job.config.run
    if run.checkpoint_url is None:
        return []
    url = run.checkpoint_url

    def look() -> list[Finding]:
        storage = open_storage(url, deadline_s=run.push_deadline_s, to_write=True)
        name, content = f"doctor-{os.getpid()}-{time.time_ns()}", os.urandom(64)
        began = time.monotonic()
        try:
            storage.write(name, content)
            try:
                if storage.read(name) != content:
                    raise DataError(f"{storage.url}/{name}: other bytes than were written came back")
            finally:
                storage.delete(name)
            seconds = time.monotonic() - began
            found = [
                ok(
                    "checkpoint_url",
                    f"{storage.url}: written, read and deleted in {seconds:.2f} s, of "
                    f"run.push_deadline_s {run.push_deadline_s:g}",
                )
            ]
            if seconds > run.push_deadline_s:
                found = [
                    fail(
                        "checkpoint_url",
                        f"{storage.url}: {seconds:.1f} s for a few bytes",
                        CHECKPOINT,
                        expected=f"a copy within run.push_deadline_s {run.push_deadline_s:g}",
                        advice="raise it, or choose a nearer place",
                    )
                ]
            steps = finished_in(storage)
            if steps:
                found.append(ok("checkpoint_url", f"{len(steps)} finished checkpoints there, {max(steps)} the newest"))
            return found
        finally:
            storage.close()

    return guarded("checkpoint_url", CHECKPOINT, look)
