"""Check the second place of a run's checkpoints."""

import os
import time
from collections.abc import Iterator

from ...data.errors import DataError
from ...data.exit_codes import ExitCode
from .findings import Finding, Job, checked, fail, ok


@checked("checkpoint_url", ExitCode.CHECKPOINT)
def check_second_place(job: Job) -> Iterator[Finding]:
    """Write, read and delete a small file in the checkpoints' second place, and list what lies there."""
    from ...data.store.storage import open_storage
    from ...trainer.checkpoint.transfer import finished_in

    run = job.config.run
    if run.checkpoint_url is None:
        return

    storage = open_storage(run.checkpoint_url, deadline_s=run.push_deadline_s, to_write=True)
    try:
        # A name of this try's own: two doctors may ask at the same time.
        name = f"doctor-{os.getpid()}-{time.time_ns()}"
        content = os.urandom(64)
        began = time.monotonic()
        storage.write(name, content)
        try:
            if storage.read(name) != content:
                raise DataError(f"{storage.url}/{name}: other bytes than were written came back")
        finally:
            storage.delete(name)
        seconds = time.monotonic() - began

        limit = f"run.push_deadline_s {run.push_deadline_s:g}"
        if seconds <= run.push_deadline_s:
            text = f"{storage.url}: written, read and deleted in {seconds:.2f} s, of {limit}"
            yield ok("checkpoint_url", text)
        else:
            text = f"{storage.url}: {seconds:.1f} s for a few bytes"
            advice = "raise it, or choose a nearer place"
            yield fail("checkpoint_url", text, ExitCode.CHECKPOINT, expected=f"a copy within {limit}", advice=advice)

        steps = finished_in(storage)
        if steps:
            yield ok("checkpoint_url", f"{len(steps)} finished checkpoints there, {max(steps)} the newest")
    finally:
        storage.close()
