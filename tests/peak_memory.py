"""The most memory that something takes: a process's by the kernel's mark, which is set back first, or a GPU's."""

from collections.abc import Callable
from pathlib import Path

import torch


def peak_bytes() -> int:
    """Give the most memory that was resident since `forget_peak`."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def forget_peak() -> int:
    """Begin to measure memory anew (proc(5), clear_refs); gives what is resident now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return peak_bytes()


def added_bytes(work: Callable[[], object], device: str) -> int:
    """Measure how much memory some work takes at its peak, over what was held before."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated()
    # Imports once held more than the work does.
    before = forget_peak()
    work()
    return peak_bytes() - before
