"""A process of its own that reads hostile files with every reader, and tells what happened meanwhile.

`python -m tests.data.hostile_reader PLAN.json REPORT.json`: the plan lists samples, the report what each one did: how
it ended, its messages, and what Python's audit hooks (PEP 578) saw that no reader may do.
"""

import contextlib
import faulthandler
import io
import json
import os
import resource
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rainspark.data import reshard, verify
from rainspark.data.errors import ConfigError, DataError
from rainspark.data.pack import __main__ as pack
from rainspark.data.shards.index import load_index
from rainspark.data.store.storage import open_storage
from rainspark.data.stream.options import ReadOptions
from rainspark.data.stream.stream import evaluation_batches
from rainspark.data.windows.selection import Selection, select_windows
from rainspark.models.weights import __main__ as weights
from rainspark.models.weights.manifest import CheckpointError
from rainspark.trainer.checkpoint.folder import load
from rainspark.trainer.settings.experiment import PretrainConfig
from rainspark.trainer.settings.parse import parse_config
from tests.peak_memory import forget_peak, peak_bytes

REPOSITORY = Path(__file__).resolve().parents[2]
SECONDS_A_SAMPLE = 40
MORE_MEMORY_BYTES = 3 * 2**30
"""Room that the whole process gets once everything is imported: what asks for more gets a MemoryError."""

OF_OS = ("system", "exec", "fork", "forkpty", "posix_spawn", "spawn", "startfile", "symlink", "link", "chmod", "chown")
OF_OTHERS = ("subprocess.Popen", "pty.spawn", "socket.connect", "socket.bind", "socket.getaddrinfo", "ctypes.dlopen")
FORBIDDEN = frozenset(
    {*(f"os.{name}" for name in OF_OS), *OF_OTHERS, "pickle.find_class", "code.__new__", "urllib.Request"}
)


class Watch:
    """Sees what happens while a sample is read."""

    def __init__(self) -> None:
        own = {sys.prefix, sys.base_prefix, sysconfig.get_paths()["stdlib"], str(REPOSITORY)}
        self._code = tuple(str(Path(path).resolve()) + os.sep for path in own)
        self.events: list[str] = []
        self.root: str | None = None

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Note what no reader may do."""
        if self.root is None:
            return
        if event == "os.link" and all(os.path.realpath(path).startswith(self.root) for path in arguments[:2]):
            return
        if event in FORBIDDEN:
            self.events.append(f"{event} {arguments!r:.200}")
        elif event == "exec" and not self._is_own(getattr(arguments[0], "co_filename", "")):
            self.events.append(f"exec of code from {getattr(arguments[0], 'co_filename', '?')}")
        elif event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            self._opened(os.path.realpath(os.fsdecode(arguments[0])), arguments[2])

    def _is_own(self, path: str) -> bool:
        return os.path.realpath(path).startswith(self._code) if path else False

    def _opened(self, path: str, flags: Any) -> None:
        assert self.root is not None
        if (path + os.sep).startswith(self.root):
            return
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        known = path.startswith(("/dev/null", "/dev/urandom", "/proc/", "/sys/", "/usr/share/", "/usr/lib/", "/etc/"))
        if writes or not (known or path.startswith(self._code)):
            self.events.append(f"open {path} {'to write' if writes else 'to read'}")


def read_pack(kind: str) -> Callable[[Path], None]:
    """Make a reader of source files."""

    def read(path: Path) -> None:
        run(pack.main, [kind, str(path), "--out", str(path.parent / "out"), "--window", "2", "--frames", "4"])

    return read


def run(main: Callable[[list[str]], int], arguments: list[str]) -> None:
    """Run a command; its own refusal is a DataError here."""
    code = main(arguments)
    if code:
        raise DataError(f"exit code {code}")


def read_archive(path: Path) -> None:
    """Read packed shards in every way there is; raises DataError if all that read every frame refused it."""
    refused = 0
    sheet = ["inspect", str(path), "--out", str(path.parent / "sheet.png")]
    readers: tuple[Callable[[], None], ...] = (
        lambda: run(verify.main, [str(path)]),
        lambda: run(reshard.main, [str(path), "--out", str(path.parent / "out")]),
        lambda: stream(path),
    )
    for read in readers:
        try:
            read()
        except DataError as error:
            sys.stderr.write(f"{error}\n")
            refused += 1
    # A summary and a few frames: it may not meet the one that is wrong.
    with contextlib.suppress(DataError):
        run(pack.main, sheet)
    sys.stderr.write(f"{refused} of {len(readers)} readers refused it\n")
    if refused == len(readers):
        raise DataError("every reader refused it")


def stream(path: Path) -> None:
    """Read every window of an archive."""
    storage = open_storage(path)
    index = load_index(storage)
    table = select_windows(index, Selection(window=1))
    options = ReadOptions(threads=1, decoded_mb=600)
    for _ in evaluation_batches(storage, index, table, micro_batch=2, options=options):
        pass


def read_config(path: Path) -> None:
    """Read a file of settings."""
    parse_config(["--config", str(path)], PretrainConfig, prog="hostile")


def read_override(path: Path) -> None:
    """Read settings of a command line."""
    parse_config(json.loads(path.read_text(encoding="utf-8")), PretrainConfig, prog="hostile")


def read_weights(path: Path) -> None:
    """Read published weights."""
    run(weights.main, ["import", str(path)])


READERS: dict[str, Callable[[Path], object]] = {
    "knmi": read_pack("knmi"),
    "odim": read_pack("odim"),
    "smaat": read_pack("smaat"),
    "archive": read_archive,
    "config": read_config,
    "override": read_override,
    "weights": read_weights,
    "checkpoint": load,
}
REFUSALS = (DataError, ConfigError, CheckpointError)


def judge(sample: dict[str, str], watch: Watch) -> dict[str, Any]:
    """Read one sample."""
    path = Path(sample["path"])
    # Shown where a sample ends the process.
    sys.stderr.write(f"{sample['name']}\n")
    said = io.StringIO()
    before, threads = forget_peak(), threading.active_count()
    ended = "read"
    faulthandler.dump_traceback_later(SECONDS_A_SAMPLE, exit=True, file=2)
    watch.events, watch.root = [], sample["root"]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            READERS[sample["reader"]](path)
    except REFUSALS as error:
        ended = "refused"
        said.write(f"{error}\n")
    except BaseException:
        ended = "crashed"
        said.write(traceback.format_exc())
    finally:
        watch.root = None
        faulthandler.cancel_dump_traceback_later()
    return {
        "name": sample["name"],
        "ended": ended,
        "said": said.getvalue()[-6000:],
        "events": watch.events,
        "more_bytes": peak_bytes() - before,
        "more_threads": threading.active_count() - threads,
    }


def main(plan: str, report: str) -> None:
    """Read what is good once, so that nothing is left to be imported, then all samples."""
    torch.set_num_threads(1)
    samples = json.loads(Path(plan).read_text(encoding="utf-8"))
    watch = Watch()
    sys.addaudithook(watch)
    results = [judge(sample, watch) for sample in samples if sample["kind"] == "good"]
    size = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MORE_MEMORY_BYTES, size + MORE_MEMORY_BYTES))
    results += [judge(sample, watch) for sample in samples if sample["kind"] != "good"]
    Path(report).write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
