"""Run a function on several CPU ranks (gloo) of this machine, as real processes."""

import multiprocessing.forkserver
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes

from tests.programs import free_port

REPOSITORY = str(Path(__file__).resolve().parent.parent)


class RankError(RuntimeError):
    """One or more ranks raised; the message holds their tracebacks, the earliest (the cause) first."""


def run_ranks(
    function: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 120.0, init_group: bool = True
) -> list[Any]:
    """Call `function(rank, *args)` on `world_size` processes and return what each rank returned.

    They are forked from a process that has imported torch and the training rooms. Every one has one thread, the
    environment variables of a launcher (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, ...) and, with `init_group`, a gloo
    process group made through a file.

    Args:
        function: importable by name (defined at the top of a module), as another process finds it.
        world_size: number of processes.
        args: passed on; must survive pickling.
        timeout_s: after that the processes are killed.
        init_group: make the default process group; switch it off for code that makes its own.

    Returns:
        Results by rank; tensors and plain containers of plain values only.

    Raises:
        RankError: a rank raised; the message holds the tracebacks.
        TimeoutError: the ranks were not done in time (for example, one waits for a collective that the other left out).
    """
    if REPOSITORY not in sys.path:
        sys.path.insert(0, REPOSITORY)
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        _start_server()
        call = (function, world_size, folder, free_port(), timeout_s, init_group, dict(os.environ), args)
        context = start_processes(  # type: ignore[no-untyped-call]
            _rank_main, args=call, nprocs=world_size, join=False, start_method="forkserver"
        )
        assert context is not None
        deadline = time.monotonic() + timeout_s
        try:
            while not context.join(timeout=1.0):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{function.__qualname__}: {world_size} ranks were not done after {timeout_s} s")
        except (ProcessRaisedException, ProcessExitedException) as error:
            reports = sorted(Path(folder).glob("error-*.txt"), key=lambda path: path.stat().st_mtime_ns)
            raise RankError("\n".join(path.read_text() for path in reports) or str(error)) from None
        finally:
            for process in context.processes:
                if process.is_alive():
                    process.kill()
                process.join()
        return [torch.load(Path(folder) / f"result-{rank}.pt", weights_only=True) for rank in range(world_size)]


@cache
def _start_server() -> None:
    """Start the process that all ranks of this one are forked from; it ends when this one does."""
    multiprocessing.forkserver.set_forkserver_preload(["tests.forked"])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("OMP_NUM_THREADS", "1"), ("OPENBLAS_NUM_THREADS", "1"), ("NUMEXPR_MAX_THREADS", "1")):
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", REPOSITORY)
        multiprocessing.forkserver.ensure_running()


def _rank_main(
    rank: int,
    function: Callable[..., Any],
    world_size: int,
    folder: str,
    port: int,
    timeout_s: float,
    init_group: bool,
    environment: dict[str, str],
    args: tuple[Any, ...],
) -> None:
    """Set one process up as a rank, call the function, leave its result in a file."""
    # What it inherits is the environment of the moment at which the first ranks were started.
    os.environ.clear()
    os.environ.update(environment)
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        GLOO_SOCKET_IFNAME="lo",
        OMP_NUM_THREADS="1",
    )
    torch.set_num_threads(1)
    if init_group:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/rendezvous",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout_s),
        )
    try:
        torch.save(function(rank, *args), Path(folder) / f"result-{rank}.pt")
        if dist.is_initialized():
            dist.barrier()
    except BaseException:
        # Written at once: when this process ends, the others fail too, with nothing but "connection reset".
        (Path(folder) / f"error-{rank}.txt").write_text(f"rank {rank}:\n{traceback.format_exc()}")
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
