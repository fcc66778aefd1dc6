"""Look at checkpoints: `rainspark checkpoint list|verify|show PLACE`.

PLACE is a run's folder, its `checkpoints` folder or one checkpoint's; or an address (s3://, gs://, az://, file://) of a
store that a run copies its checkpoints to, or of one checkpoint there: what `run.checkpoint_url` names. `list` tells
what is whole, `verify` why not; both read every byte, but `list` in a store, which compares sizes only and says so.
`show` tells what the newest whole one holds.

Exit codes: 0 all that was asked for is whole; 4 it is not, or there is none, or the place cannot be read.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ...data.command import CommandParser
from ...data.credentials import redact
from ...data.errors import DataError
from ...data.frames import printable
from ...data.store.storage import URL_SCHEME, Storage, open_storage
from ...models.weights.manifest import MANIFEST_NAME, STEP_FOLDER, CheckpointError, step_folders, verify_folder
from .transfer import finished_in, pull, pull_latest, verify_in

if TYPE_CHECKING:
    from .folder import Loaded

NOT_WHOLE: Final = 4
_DEADLINE_S: Final = 60.0
"""A command is waited for by a person: a dead store is told sooner than to a run."""


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One checkpoint of the table."""

    name: str
    written: str
    num_bytes: int
    problem: str | None
    verdict: str = "yes"


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of `rainspark checkpoint`."""
    parser = CommandParser(prog="rainspark checkpoint", description="List, verify or show checkpoints.")
    parser.add_argument("command", choices=("list", "verify", "show"), metavar="list|verify|show")
    parser.add_argument("place", metavar="PLACE", help="a run, a checkpoint, or an address (s3://...) of either")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 when all that was asked for is whole, 4 otherwise."""
    arguments = make_parser().parse_args(argv)
    place: str = arguments.place
    try:
        if URL_SCHEME.match(place):
            return _look_in_store(arguments.command, place)
        return _look_in_folder(arguments.command, Path(place))
    except (CheckpointError, DataError, OSError) as error:
        sys.stderr.write(printable(redact(f"{error}\n")))
        return NOT_WHOLE


def _look_in_folder(command: str, path: Path) -> int:
    # Here, not above: the help answers without torch.
    from .folder import checkpoints_of, load

    single = (path / MANIFEST_NAME).exists() or STEP_FOLDER.fullmatch(path.name) is not None
    folders = [path] if single else [folder for _, folder in step_folders(checkpoints_of(path))]
    if not folders:
        raise CheckpointError(f"{path}: no checkpoint there; expected a run's folder or a checkpoint's")
    if command == "show":
        loaded = load(path)
        return _show(loaded, str(loaded.path))
    return _tabulate([_row_of(folder) for folder in folders], reasons=command == "verify")


def _row_of(folder: Path) -> _Row:
    manifest, written, num_bytes = folder / MANIFEST_NAME, "-", 0
    if manifest.is_file():
        written = datetime.fromtimestamp(manifest.stat().st_mtime, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if folder.is_dir():
        num_bytes = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    problem = None
    try:
        verify_folder(folder)
    except CheckpointError as error:
        problem = str(error)
    return _Row(name=folder.name, written=written, num_bytes=num_bytes, problem=problem)


def _look_in_store(command: str, url: str) -> int:
    from .folder import load

    root, step = _split(url)
    storage = open_storage(root, deadline_s=_DEADLINE_S)
    try:
        finished = finished_in(storage)
        names = [name for name in finished if step in (None, name)]
        if not names:
            raise CheckpointError(
                f"{url}: no checkpoint there; expected an address that a run's run.checkpoint_url named, or "
                "checkpoints/step-XXXXXXXX below it"
            )
        if command != "show":
            verifies = command == "verify"
            return _tabulate([_row_in(storage, name, by_size=not verifies) for name in names], reasons=verifies)
        with tempfile.TemporaryDirectory(prefix="rainspark-") as folder:
            if step is None:
                pulled = pull_latest(storage, Path(folder))
                assert pulled is not None, "it holds finished ones, and none being whole is an error"
            else:
                pulled = pull(storage, step, Path(folder))
            return _show(load(pulled), f"{storage.url}/checkpoints/{pulled.name}")
    finally:
        storage.close()


def _split(url: str) -> tuple[str, str | None]:
    """Part an address into the store's and the folder name of one checkpoint, None for all of them."""
    root, step = url.rstrip("/"), None
    head, _, last = root.rpartition("/")
    if STEP_FOLDER.fullmatch(last):
        root, step = head, last
    return root.removesuffix("/checkpoints"), step


def _row_in(storage: Storage, name: str, *, by_size: bool) -> _Row:
    num_bytes, problem = 0, None
    try:
        files = verify_in(storage, name, by_size=by_size)
        num_bytes = sum(entry["bytes"] for entry in files.values())
    except CheckpointError as error:
        problem = str(error)
    verdict = "sizes" if by_size else "yes"
    return _Row(name=name, written="-", num_bytes=num_bytes, problem=problem, verdict=verdict)


def _tabulate(rows: Sequence[_Row], *, reasons: bool) -> int:
    sys.stdout.write(f"{'checkpoint':<16} {'written (UTC)':<20} {'bytes':>14}  verified\n")
    for row in rows:
        verdict = row.verdict if row.problem is None else "NO"
        sys.stdout.write(f"{row.name:<16} {row.written:<20} {row.num_bytes:>14,}  {verdict}\n")
    problems = [row.problem for row in rows if row.problem is not None]
    for problem in problems if reasons else ():
        sys.stderr.write(printable(redact(f"{problem}\n")))
    return NOT_WHOLE if problems else 0


def _show(loaded: "Loaded", place: str) -> int:
    lines = [place]
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
