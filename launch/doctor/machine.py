"""Check the machine: packages, backend, a real collective, clock."""

import importlib.metadata
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from ...data.exit_codes import ExitCode
from .disk import nearest
from .findings import Finding, Job, checked, fail, number, ok, warn

COLLECTIVE_S: Final = 120
MAX_SKEW_S: Final = 2.0


@checked("versions", ExitCode.CONFIG)
def check_versions(distribution: str = "rainspark") -> Iterator[Finding]:
    """Compare the installed packages with the ranges of setup.py."""
    from packaging.requirements import Requirement

    all_fit, count = True, 0
    for line in importlib.metadata.requires(distribution) or ():
        requirement = Requirement(line)
        # Extras, which nobody may have asked for, do not count.
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue

        count += 1
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = "is not installed"
        if version == "is not installed" or not requirement.specifier.contains(version, prereleases=True):
            all_fit = False
            advice = f"pip install '{requirement}'"
            text = f"{requirement.name} {version}"
            yield fail("versions", text, ExitCode.CONFIG, expected=str(requirement), advice=advice)
    if all_fit:
        yield ok("versions", f"{count} packages are in the ranges of setup.py")


@checked("backend", ExitCode.CONFIG)
def check_backend(job: Job) -> Iterator[Finding]:
    """Check that the device and its collectives are there."""
    import torch
    import torch.distributed as dist

    device = job.config.engine.device
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        if not dist.is_gloo_available():
            yield fail("backend", "this torch has no gloo", ExitCode.CONFIG, expected="gloo for ranks on CPUs")
        else:
            yield ok("backend", "gloo, on the CPU" + ("" if device == "cpu" else ": there is no GPU here"))
        return

    if not torch.cuda.is_available():
        text = "engine.device is cuda, and there is no GPU here"
        yield warn("backend", text, expected="one a rank", advice="run this on a node of the job to be sure")
        return
    count = torch.cuda.device_count()
    if not dist.is_nccl_available():
        yield fail("backend", "this torch has no NCCL", ExitCode.CONFIG, expected="NCCL for ranks on GPUs")
    elif count < job.ranks_per_node:
        expected = f"{job.ranks_per_node}, one a rank"
        text = f"{number(count, 'GPU')} here"
        yield fail("backend", text, ExitCode.CONFIG, expected=expected, advice="start fewer ranks a node")
    else:
        yield ok("backend", f"NCCL, {number(count, 'GPU')}: {torch.cuda.get_device_name(0)}")


@checked("collective", ExitCode.CONFIG)
def check_collective(host: str | None = None) -> Iterator[Finding]:
    """Start two processes that meet under this machine's name and sum something, as the ranks of a job do.

    Args:
        host: Name or address to meet under; None for this machine's name.
    """
    host = host or os.uname().nodename
    began = time.monotonic()
    with ExitStack() as cleanup:
        errors = Path(cleanup.enter_context(tempfile.TemporaryDirectory()), "errors")
        stream = cleanup.enter_context(errors.open("w"))

        def start(rank: int, port: str) -> subprocess.Popen[str]:
            command = [sys.executable, "-P", "-m", "rainspark.launch.doctor.collective", str(rank), host, port]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stream, text=True, env=environment)
            cleanup.enter_context(process)
            cleanup.callback(process.kill)
            return process

        # Rank 0 prints the port that it got; one that hangs before is ended.
        first = start(0, "0")
        assert first.stdout is not None
        limit = threading.Timer(COLLECTIVE_S, first.kill)
        limit.start()
        port = first.stdout.readline().strip()
        limit.cancel()
        ranks = [start(1, port), first] if port else [first]
        codes = [process.wait(COLLECTIVE_S) for process in ranks]

        if not any(codes):
            seconds = time.monotonic() - began
            yield ok("collective", f"two processes met at {host} and summed, {seconds:.0f} s")
            return
        # The last line of a traceback is its cause.
        lines = [line for line in errors.read_text().splitlines() if line.strip()] or ["no word"]
        text = f"two processes could not meet at {host}: {lines[-1]}"
        advice = "mend its entry in DNS or /etc/hosts, or set GLOO_SOCKET_IFNAME"
        expected = "a name that leads to this machine"
        yield fail("collective", text, ExitCode.CONFIG, expected=expected, advice=advice)


@checked("clock", ExitCode.CONFIG, writes=True)
def check_clock(folder: Path) -> Iterator[Finding]:
    """Compare this machine's clock with that of the file system which the run writes to."""
    with tempfile.NamedTemporaryFile(prefix=".doctor-", dir=nearest(folder)) as file:
        before = time.time()
        file.write(b"x")
        file.flush()
        os.fsync(file.fileno())
        after = time.time()
        skew_s = skew_of(Path(file.name).stat().st_mtime, before, after)

    if skew_s <= MAX_SKEW_S:
        yield ok("clock", f"within {MAX_SKEW_S:g} s of the file system's")
    else:
        text = f"{skew_s:.1f} s away from the file system of {nearest(folder)}"
        advice = "have the machines' time synchronised"
        yield warn("clock", text, expected=f"{MAX_SKEW_S:g} s at most", advice=advice)


def skew_of(stamp: float, before: float, after: float) -> float:
    """Give the seconds by which a time stamp lies outside the moments between which it was made."""
    # File systems cut to the kernel's tick, or to whole seconds.
    return max(0.0, before - stamp - 1.0, stamp - after)
