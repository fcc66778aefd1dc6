"""Look at checkpoints: `rainspark checkpoint list|verify|show PLACE`.

PLACE is a run's folder, its `checkpoints` folder or one checkpoint's; or an address (s3://, gs://, az://, file://) of a
store that a run copies its checkpoints to, or of one checkpoint there: what `run.checkpoint_url` names. `list` shows
which are whole, `verify` also why others are not. Both read every byte, except `list` in a store, which compares sizes
only and says so. `show` shows what the newest whole one holds.

Exit codes: 0 all that was asked for is whole; 4 it is not, or there is none, or the place cannot be read.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Final

from ...data.command import CommandParser, expand_home, run_command
from ...data.credentials import redact
from ...data.errors import DataError
from ...data.frames import printable
from ...data.store.storage import URL_SCHEME, Storage, open_storage
from ...models.weights.manifest import (
    MANIFEST_NAME,
    CheckpointError,
    checkpoints_of,
    step_folders,
    step_of,
    verify_folder,
)
from .transfer import finished_in, pull, pull_latest, verify_in

NOT_WHOLE: Final = 4
_DEADLINE_S: Final = 60.0
"""A command is waited for by a person: a dead store is reported sooner than to a run."""


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of `rainspark checkpoint`."""
    parser = CommandParser(prog="rainspark checkpoint", description="List, verify or show checkpoints.")
    parser.add_argument("command", choices=("list", "verify", "show"), metavar="list|verify|show")
    parser.add_argument("place", metavar="PLACE", help="a run, a checkpoint, or an address (s3://...) of either")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 when all that was asked for is whole, 3 wrong options, 4 otherwise."""
    return run_command(lambda: _look(make_parser().parse_args(argv)))


def _look(arguments: argparse.Namespace) -> int:
    try:
        if URL_SCHEME.match(arguments.place):
            return _look_in_store(arguments.command, arguments.place)
        return _look_in_folder(arguments.command, Path(expand_home(arguments.place)))
    except (CheckpointError, DataError, OSError) as error:
        sys.stderr.write(printable(redact(f"{error}\n")))
        return NOT_WHOLE


def _look_in_folder(command: str, path: Path) -> int:
    if command == "show":
        return _show(path)
    # One checkpoint, also under another name, or all of a run.
    is_single = (path / MANIFEST_NAME).exists() or step_of(path.name) is not None
    folders = [path] if is_single else [folder for _, folder in step_folders(checkpoints_of(path))]
    rows = [(folder.name, partial(_size_of, folder)) for folder in folders]
    return _tabulate(str(path), rows, reasons=command == "verify")


def _size_of(folder: Path) -> int:
    """Verify a checkpoint's folder, and give its size in bytes."""
    verify_folder(folder)
    return sum(file.stat().st_size for file in folder.iterdir())


def _look_in_store(command: str, url: str) -> int:
    # The last part of an address may name one checkpoint.
    root, _, last = url.rstrip("/").rpartition("/")
    step = last if step_of(last) is not None else None
    root = (url.rstrip("/") if step is None else root).removesuffix("/checkpoints")

    with closing(open_storage(root, deadline_s=_DEADLINE_S)) as storage:
        names = [name for name in finished_in(storage) if step in (None, name)]
        if command != "show" or not names:
            rows = [(name, partial(_size_in, storage, name, by_size=command == "list")) for name in names]
            return _tabulate(url, rows, reasons=command == "verify", whole="sizes" if command == "list" else "yes")
        with tempfile.TemporaryDirectory(prefix="rainspark-") as folder:
            path = pull_latest(storage, Path(folder)) if step is None else pull(storage, step, Path(folder))
            assert path is not None, "it holds finished ones, and none being whole is an error"
            return _show(path, f"{storage.url}/checkpoints/{path.name}")


def _size_in(storage: Storage, name: str, *, by_size: bool) -> int:
    """Verify a checkpoint in a store, and give the size of its files in bytes."""
    return sum(entry["bytes"] for entry in verify_in(storage, name, by_size=by_size).values())


def _tabulate(place: str, rows: Sequence[tuple[str, Callable[[], int]]], *, reasons: bool, whole: str = "yes") -> int:
    """Check checkpoints and print a line for each.

    Args:
        place: Where they lie.
        rows: (name, what verifies it and gives its size)
        reasons: Also print why one is not whole.
        whole: The word for one that is.
    """
    if not rows:
        raise CheckpointError(
            f"{place}: no checkpoint there; expected a run's folder, a checkpoint's, or an address that a run's "
            "run.checkpoint_url named"
        )
    # A row a checkpoint, as it is checked: large ones take their time.
    problems = []
    sys.stdout.write(f"{'checkpoint':<16} {'bytes':>14}  verified\n")
    for name, check in rows:
        verdict = whole
        try:
            size = f"{check():,}"
        except CheckpointError as error:
            problems.append(str(error))
            size = "-"
            verdict = "NO"
        sys.stdout.write(f"{name:<16} {size:>14}  {verdict}\n")

    for problem in problems if reasons else ():
        sys.stderr.write(printable(redact(f"{problem}\n")))
    return NOT_WHOLE if problems else 0


def _show(path: Path, place: str | None = None) -> int:
    """Print what a checkpoint holds, as lying at `place` where that is another one than its folder."""
    # Here, not above: the help answers without torch.
    from .folder import load

    loaded = load(path)
    lines = [place or str(loaded.path)]
    for name, tensors in (("model", loaded.model), ("optimizer", loaded.optimizer), ("average", loaded.average)):
        num_values = sum(tensor.numel() for tensor in tensors.values())
        kinds = ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}))
        lines.append(f"{name}: {len(tensors)} tensors, {num_values:,} values ({kinds or 'none'})")

    state = dataclasses.asdict(loaded.state)
    counts = sorted(set(state.pop("optimizer_steps").values()))
    lines += [f"optimizer steps: {', '.join(f'{count:g}' for count in counts) or 'none'}", json.dumps(state, indent=2)]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
