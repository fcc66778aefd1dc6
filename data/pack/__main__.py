"""Pack radar data into shards, `rainspark pack knmi FILES --out SHARDS`, or show them, `rainspark inspect SHARDS`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..command import GOES_ON, expand_home, run_command
from ..shards.contact_sheet import draw_contact_sheet
from ..shards.index import INDEX_NAME, check_shard_sizes, load_index
from ..shards.summary import summarise
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
        return 0

    return run_command(work, interrupted=GOES_ON)


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
