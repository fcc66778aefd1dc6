"""Check the arithmetic of batches, lanes and ranks."""

from collections.abc import Iterator

from ...data.exit_codes import ExitCode
from .findings import Finding, Job, checked, fail, number, ok, warn


@checked("batch", ExitCode.CONFIG)
def check_batches(job: Job) -> Iterator[Finding]:
    """Work out what each rank gets of a batch, and which numbers of ranks work."""
    from ...data.windows.mixing import default_lanes

    data = job.config.data
    ranks = job.world_size
    lanes = data.lanes or default_lanes(data.micro)
    sizes = [size for size in range(1, data.micro + 1) if data.micro % size == 0]
    listed = ", ".join(map(str, sizes))

    # Every lane and every rank has to get equally many windows of a micro-batch.
    if data.micro % lanes:
        text = f"data.lanes {lanes} do not divide data.micro_batch {data.micro}"
        yield fail("batch", text, ExitCode.CONFIG, expected=f"one of {listed}", advice="change data.lanes")
        return
    if data.micro % ranks:
        near = min(sizes, key=lambda size: (abs(size - ranks), size))
        text = f"data.micro_batch {data.micro} cannot be divided among {number(ranks, 'rank')}"
        advice = f"start {number(near, 'rank')}, or set data.micro_batch to a multiple of {ranks}"
        yield fail("batch", text, ExitCode.CONFIG, expected=f"a divisor of it ({listed})", advice=advice)
        return

    steps = number(data.global_batch // data.micro, "micro-step")
    windows = number(data.micro // ranks, "window")
    where = "on one rank" if ranks == 1 else f"on each of {ranks} ranks"
    text = f"{number(data.global_batch, 'window')} a step = {steps} x {data.micro}; {windows} a forward {where}"
    yield ok("batch", f"{text}; numbers of ranks that work: {listed}")

    # A lane reads its sequences in one piece: ranks that share it read each of them twice.
    if lanes % ranks == 0:
        text = f"{number(lanes, 'lane')}, {lanes // ranks} a rank: every sequence is read by one rank only"
        yield ok("lanes", text)
    else:
        dividing = ", ".join(str(size) for size in sizes if lanes % size == 0)
        text = f"{number(lanes, 'lane')} on {ranks} ranks: ranks share lanes, and read the same sequences"
        advice = f"set data.lanes to a multiple of {ranks} that divides {data.micro}"
        yield warn("lanes", text, expected=f"ranks that divide the lanes ({dividing})", advice=advice)
