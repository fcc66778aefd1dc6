"""Run one start of all ranks: one srun, its output passed on, stop signals forwarded, the first bad exit kept."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import IO, Final

# A signal that srun forwards to its tasks and does not take for itself: TERM would have it kill them.
STOP: Final = signal.SIGUSR2
_AGAIN_S: Final = 10.0
_POLL_S: Final = 0.5
_EXITED: Final = re.compile(rb"srun: error: (\S+): tasks? ([\d,-]+): (Exited with exit code (\d+)|[A-Z][^\n]*)")
_SIGNALS: Final = {signal.strsignal(number): int(number) for number in signal.valid_signals()} | {
    "Out Of Memory": int(signal.SIGKILL)
}
_LONGEST_LINE: Final = 4096


class FirstExit:
    """Reads what srun says, in order, for the first task that ended badly; the ones after it were mostly killed for it.

    srun's own exit code is the highest of all tasks: 137 of those that it killed, whatever the first one said.
    """

    def __init__(self) -> None:
        self.code: int | None = None
        self.detail = ""
        self._line = b""

    def feed(self, block: bytes) -> None:
        """Take the next bytes of srun's standard error."""
        *lines, rest = (self._line + block).split(b"\n")
        self._line = rest[-_LONGEST_LINE:]
        for line in lines:
            match = _EXITED.match(line)
            if match is None or self.code is not None:
                continue
            remark = match.group(3).decode(errors="replace")
            code = int(match.group(4)) if match.group(4) else _code_of_signal(remark)
            if code:
                self.code = code
                self.detail = f"{match.group(1).decode()}, rank {match.group(2).decode()}: {remark}"


def _code_of_signal(remark: str) -> int | None:
    """Translate `Killed`, `Out Of Memory` or `Segmentation fault (core dumped)`; None for other remarks of srun."""
    name = remark.removesuffix(" (core dumped)").strip()
    return 128 + _SIGNALS[name] if name in _SIGNALS else None


class StopRequests:
    """Remembers which stop signals have reached the batch step: before the time limit, on requeueing, from a user."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def install(self) -> None:
        """Listen; whoever listened before does so no more."""
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number: int, _frame: object) -> None:
        self.names.append(signal.Signals(number).name)


def run_step(
    command: Sequence[str],
    environment: Mapping[str, str],
    stops: StopRequests,
    on_stop: Callable[[str], None],
    stopping: Callable[[], None] = lambda: None,
) -> tuple[int, str]:
    """Run srun to its end.

    Args:
        command: srun and its words.
        environment: Its environment.
        stops: Where stop signals are noted; they are forwarded to the ranks, again and again, as those that are still
            starting may not have heard the first one.
        on_stop: Is told the first signal, once, after it was forwarded.
        stopping: Is called again and again from then to the end.

    Returns:
        The exit code that the ranks ended with, 0 or the first bad one, and who ended with it.
    """
    first = FirstExit()
    next_forward = 0.0
    with subprocess.Popen(list(command), env=dict(environment), stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        pump = threading.Thread(target=_pass_on, args=(process.stderr, first), daemon=True)
        pump.start()

        while process.poll() is None:
            if stops.names:
                # Forwarded first: what is told of it may ask Slurm, which takes seconds of the warning.
                is_first = not next_forward
                if time.monotonic() >= next_forward:
                    next_forward = time.monotonic() + _AGAIN_S
                    process.send_signal(STOP)
                if is_first:
                    on_stop(stops.names[0])
                stopping()
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=_POLL_S)

        pump.join(timeout=_AGAIN_S)

    # srun that a signal has ended counts as a shell would count it.
    code = process.returncode if process.returncode >= 0 else 128 - process.returncode
    if code == 0:
        return 0, "all ranks ended"
    if first.code is None:
        return code, f"srun ended with exit code {code} before a rank said why"
    return first.code, first.detail


def _pass_on(source: IO[bytes], first: FirstExit) -> None:
    descriptor = source.fileno()
    sys.stderr.flush()
    while block := os.read(descriptor, 1 << 16):
        first.feed(block)
        with suppress(OSError):
            os.write(2, block)
