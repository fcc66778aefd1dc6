"""Pack radar data into shards, `rainspark pack knmi FILES --out SHARDS`, or show them, `rainspark inspect SHARDS`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..command import GOES_ON, expand_home, run_command
from ..exit_codes import ExitCode
from ..shards.contact_sheet import draw_contact_sheet
from ..shards.index import INDEX_NAME, Index, check_shard_sizes, load_index
from ..shards.summary import count_windows, summarise
from ..shards.timeline import longest_run
from ..store.storage import open_storage
from . import options
from .archive import pack
from .options import Command, parse_command


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of `rainspark pack`."""
    return options.make_parser(__doc__ or "", archive=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 4 bad data, 3 wrong options, 130 interrupted."""

    def work() -> int:
        command = parse_command(sys.argv[1:] if argv is None else argv, __doc__ or "")
        if command.inspect:
            _inspect(command)
            return 0

        storage = open_storage(command.out, to_write=True)
        # Asked before packing: afterwards there is an index in any case.
        outcome = "was complete already: " if storage.exists(INDEX_NAME) else "packed        "
        first, *more = command.inputs
        index = pack(first.paths, command.out, command.options, source=first.source, more=more, restart=command.restart)
        sys.stdout.write(f"{summarise(index)}{outcome}{storage.url}\n")
        return _check_windows(index, is_asked=command.options.window is not None)

    return run_command(work, interrupted=GOES_ON)


def _check_windows(index: Index, *, is_asked: bool) -> int:
    """Warn where no window of the archive's length can be read of it; an exit code, an error's where it was asked for.

    What was packed stays: shorter windows can be read.
    """
    if count_windows(index, index.window, 0.0):
        return ExitCode.DONE
    longest = longest_run(index, range(len(index.origins)))
    sys.stderr.write(
        f"{'error' if is_asked else 'warning'}: the archive holds no window of {index.window} frames: the longest run "
        f"of frames without a gap has {longest}; it serves windows of up to that: pack more frames that follow each "
        "other, or check --cadence-min\n"
    )
    return ExitCode.DATA if is_asked else ExitCode.DONE


def _inspect(command: Command) -> None:
    """Print the summary of an archive, and draw its contact sheet beside the folder or where the command says."""
    storage = open_storage(command.out)
    index = load_index(storage)
    check_shard_sizes(storage, index)
    sys.stdout.write(summarise(index))

    # Beside a folder; of a store, into the current folder.
    name = storage.url if storage.folder is not None else storage.url.rstrip("/").rpartition("/")[2]
    picture = Path(expand_home(command.picture or f"{name}.png")).absolute()
    open_storage(picture.parent).write(picture.name, draw_contact_sheet(storage, index))
    sys.stdout.write(f"contact sheet {picture}\n")


if __name__ == "__main__":
    sys.exit(main())
