"""Checks of the machine: packages, backend, a real collective, clock, limits, threads."""

import importlib.metadata
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

from .disk import guarded_writing, nearest
from .findings import MIB, SETTINGS, Finding, Job, fail, guarded, number, ok, warn

IMPORT_S: Final = 180
COLLECTIVE_S: Final = 120
MAX_SKEW_S: Final = 2.0
OPEN_FILES: Final = 1024
SHARED_MIB_A_RANK: Final = 64
"""What NCCL and gloo's helpers may take of /dev/shm for a rank; containers often have 64 MiB in all."""
BUILD_LOCK: Final = "lock"
"""torch's name for the file that keeps two processes from building one extension (torch.utils.file_baton)."""
_IMPORTED: Final = ("torch", "accelerate", "timm")
_REPOSITORY: Final = Path(__file__).resolve().parents[2]


def check_versions(distribution: str = "rainspark") -> list[Finding]:
    """Compare the installed packages with the ranges of setup.py."""
    from packaging.requirements import Requirement

    def look() -> list[Finding]:
        wrong, seen = [], []
        for line in importlib.metadata.requires(distribution) or ():
            requirement = Requirement(line)
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                continue
            try:
                version = importlib.metadata.version(requirement.name)
            except importlib.metadata.PackageNotFoundError:
                text = f"{requirement.name} is not installed"
                wrong.append(fail("versions", text, SETTINGS, expected=str(requirement), advice="run `make`"))
                continue
            if not requirement.specifier.contains(version, prereleases=True):
                wrong.append(
                    fail(
                        "versions",
                        f"{requirement.name} {version}",
                        SETTINGS,
                        expected=str(requirement),
                        advice=f"pip install '{requirement}'",
                    )
                )
            seen.append(requirement.name)
        return wrong or [ok("versions", f"{len(seen)} packages are in the ranges of setup.py")]

    return guarded("versions", SETTINGS, look)


def check_imports(job: Job) -> list[Finding]:
    """Import the heavy packages in a process of their own: one that crashes or hangs ends no check."""
    names = [*_IMPORTED, *(["deepspeed"] if job.config.engine.zero_stage is not None else [])]
    environment = dict(os.environ)
    if job.config.engine.device == "cpu":
        environment.setdefault("DS_ACCELERATOR", "cpu")
    found = []
    for name in names:
        code = f"import {name}; print({name}.__version__)"
        try:
            ended = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, timeout=IMPORT_S, env=environment
            )
        except subprocess.TimeoutExpired:
            found.append(
                fail(
                    "imports",
                    f"{name}: not there after {IMPORT_S} s",
                    SETTINGS,
                    advice="look at the file system that the environment lies on",
                )
            )
            continue
        if ended.returncode:
            last = (ended.stderr.strip().splitlines() or ["no word"])[-1]
            found.append(fail("imports", f"{name}: {last}", SETTINGS, advice="install it again"))
        else:
            found.append(ok("imports", f"{name} {ended.stdout.strip().splitlines()[-1]}"))
    return found


def extensions_folder() -> Path:
    """Find where torch builds extensions, such as DeepSpeed's helpers (torch.utils.cpp_extension)."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path(cache, "torch_extensions"))


def check_build_locks(root: Path) -> list[Finding]:
    """Look for locks that a killed build left: whoever comes next waits for them for ever."""

    def look() -> list[Finding]:
        locks = sorted(path for path in root.rglob(BUILD_LOCK) if path.is_file()) if root.is_dir() else []
        if not locks:
            return [ok("extensions", f"{root}: no build is under way")]
        held = _open_files()
        found = []
        for path in locks:
            if str(path) in held:
                found.append(ok("extensions", f"{path}: a process of this machine is building"))
                continue
            text = (
                f"{path}: a lock {time.time() - path.stat().st_mtime:.0f} s old that no process of this machine holds"
            )
            advice = "remove that file, unless another node is building there now"
            found.append(fail("extensions", text, SETTINGS, expected="none", advice=advice))
        return found

    return guarded("extensions", SETTINGS, look)


def _open_files() -> set[str]:
    """List the files that processes of this user hold open (proc(5))."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            found.add(str(link.readlink()))
        except OSError:
            continue
    return found


def check_backend(job: Job) -> list[Finding]:
    """Look whether the device and its collectives are there."""

    def look() -> list[Finding]:
        import torch
        import torch.distributed as dist

        device = job.config.engine.device
        if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
            if not dist.is_gloo_available():
                return [fail("backend", "this torch has no gloo", SETTINGS, expected="gloo for ranks on CPUs")]
            text = "gloo, on the CPU" + ("" if device == "cpu" else ": there is no GPU here")
            return [ok("backend", text)]
        if not torch.cuda.is_available():
            return [
                warn(
                    "backend",
                    "engine.device is cuda, and there is no GPU here",
                    expected="one a rank",
                    advice="run this on a node of the job to be sure",
                )
            ]
        if not dist.is_nccl_available():
            return [fail("backend", "this torch has no NCCL", SETTINGS, expected="NCCL for ranks on GPUs")]
        count = torch.cuda.device_count()
        if count < job.ranks_per_node:
            expected = f"{job.ranks_per_node}, one a rank"
            return [
                fail(
                    "backend",
                    f"{number(count, 'GPU')} here",
                    SETTINGS,
                    expected=expected,
                    advice="start fewer ranks a node",
                )
            ]
        return [ok("backend", f"NCCL, {number(count, 'GPU')}: {torch.cuda.get_device_name(0)}")]

    return guarded("backend", SETTINGS, look)


def check_collective(host: str | None = None) -> list[Finding]:
    """Start two processes that meet under this machine's name and sum something, as the ranks of a job do.

    Args:
        host: Name or address to meet under; None for this machine's name.
    """
    host = host or os.uname().nodename
    started: list[subprocess.Popen[str]] = []
    paths = [str(_REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}

    def start(rank: int, port: str, errors: Path) -> subprocess.Popen[str]:
        with errors.open("w") as stream:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "rainspark.launch.doctor.collective", str(rank), host, port],
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                env=environment,
            )
        started.append(process)
        return process

    def look() -> list[Finding]:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            errors = [Path(folder, str(rank)) for rank in range(2)]
            first = start(0, "0", errors[0])
            assert first.stdout is not None
            limit = threading.Timer(COLLECTIVE_S, first.kill)
            limit.start()
            port = first.stdout.readline().strip()
            limit.cancel()
            codes = [first.wait(COLLECTIVE_S)] if not port else []
            if port:
                second = start(1, port, errors[1])
                codes = [process.wait(COLLECTIVE_S) for process in (second, first)]
            if not any(codes):
                return [ok("collective", f"two processes met at {host} and summed, {time.monotonic() - began:.0f} s")]
            said = [line for path in errors if path.exists() for line in path.read_text().splitlines() if line.strip()]
            return [
                fail(
                    "collective",
                    f"two processes could not meet at {host}: {(said or ['no word'])[-1]}",
                    SETTINGS,
                    expected="a name that leads to this machine",
                    advice="mend its entry in DNS or /etc/hosts, or set GLOO_SOCKET_IFNAME",
                )
            ]

    try:
        return guarded("collective", SETTINGS, look)
    finally:
        for process in started:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def check_clock(folder: Path) -> list[Finding]:
    """Compare this machine's clock with that of the file system which the run writes to."""

    def look() -> list[Finding]:
        with tempfile.NamedTemporaryFile(prefix=".doctor-", dir=nearest(folder)) as file:
            before = time.time()
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
            after = time.time()
            skew_s = skew_of(Path(file.name).stat().st_mtime, before, after)
        if skew_s > MAX_SKEW_S:
            text = f"{skew_s:.1f} s away from the file system of {nearest(folder)}"
            advice = "have the machines' time synchronised"
            return [warn("clock", text, expected=f"{MAX_SKEW_S:g} s at most", advice=advice)]
        return [ok("clock", f"within {MAX_SKEW_S:g} s of the file system's")]

    return guarded_writing("clock", SETTINGS, look)


def skew_of(stamp: float, before: float, after: float) -> float:
    """Give the seconds by which a time stamp lies outside the moments between which it was made."""
    # File systems cut to the kernel's tick, or to whole seconds.
    return max(0.0, before - stamp - 1.0, stamp - after)


def check_limits(job: Job, shared: Path = Path("/dev/shm")) -> list[Finding]:
    """Look at open files, shared memory and threads."""
    found = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES:
        found.append(
            warn(
                "open files",
                f"{soft} at once (hard limit {hard})",
                expected=f"{OPEN_FILES} or more",
                advice=f"ulimit -n {OPEN_FILES}",
            )
        )
    else:
        found.append(ok("open files", f"{soft} at once"))
    if job.world_size > 1 and shared.is_dir():
        disk = os.statvfs(shared)
        size, needed = disk.f_blocks * disk.f_frsize / MIB, SHARED_MIB_A_RANK * job.ranks_per_node
        if size < needed:
            found.append(
                warn(
                    "shared memory",
                    f"{shared}: {size:.0f} MiB",
                    expected=f"{needed} MiB or more",
                    advice="give the container more (--shm-size, --ipc=host)",
                )
            )
        else:
            found.append(ok("shared memory", f"{shared}: {size:.0f} MiB"))
    cores, threads = len(os.sched_getaffinity(0)), job.config.data.threads * job.ranks_per_node
    if threads + job.ranks_per_node > max(cores, job.ranks_per_node + 1):
        text = f"{number(job.ranks_per_node, 'rank')} with data.threads {job.config.data.threads} on "
        text += f"{number(cores, 'core')} of this machine"
        advice = "lower data.threads, or ask for more cores a rank"
        found.append(warn("threads", text, expected="a core for every rank and data thread", advice=advice))
    else:
        counts = ((job.ranks_per_node, "rank"), (threads, "data thread"), (cores, "core"))
        found.append(ok("threads", ", ".join(number(count, noun) for count, noun in counts)))
    return found
