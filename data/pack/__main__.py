"""Pack radar data into shards, `rainspark pack knmi FILES --out SHARDS`, or show them, `rainspark inspect SHARDS`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ..command import GOES_ON, run_command
from ..shards.contact_sheet import draw_contact_sheet
from ..shards.index import Index, check_shard_sizes, load_index
from ..shards.summary import summarise
from ..store.storage import open_storage
from . import options
from .archive import pack_or_keep
from .options import parse_command

NO_CHANGE_MMH: Final = 5e-5
"""Changes below this are those of floats that stand for the same number."""


def _describe(index: Index) -> str:
    """Write the summary, and what requantising changed."""
    lines = [summarise(index)]
    for source, values in sorted(index.statistics.items()):
        rounding = values.get("rounding") if isinstance(values, dict) else None
        if isinstance(rounding, dict):
            error_mmh, clamped = rounding.get("max_error_mmh", 0), rounding.get("clamped", 0)
            changes = [f"at most {error_mmh:.4f} mm/h off" if error_mmh >= NO_CHANGE_MMH else "no rate changed"]
            if clamped:
                changes.append(f"{clamped} {'pixel' if clamped == 1 else 'pixels'} above 655.34 mm/h set to it")
            lines.append(f"rounding      {source}: to counts of 0.01 mm/h, {'; '.join(changes)}\n")
    return "".join(lines)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of `rainspark pack`."""
    return options.make_parser(__doc__ or "", archive=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 4 bad data, 130 interrupted (argparse: 2, usage)."""

    def work() -> int:
        command = parse_command(sys.argv[1:] if argv is None else argv, __doc__ or "")
        if command.inspect:
            storage = open_storage(command.out)
            index = load_index(storage)
            check_shard_sizes(storage, index)
            sys.stdout.write(_describe(index))
            place = storage.url if storage.folder is not None else storage.url.rstrip("/").rpartition("/")[2]
            picture = Path(command.picture or f"{place}.png").absolute()
            open_storage(picture.parent).write(picture.name, draw_contact_sheet(storage, index))
            sys.stdout.write(f"contact sheet {picture}\n")
        else:
            first, *more = command.inputs
            index, complete = pack_or_keep(
                first.paths, command.out, command.options, first.source, more, restart=command.restart
            )
            outcome = "was complete already: " if complete else "packed        "
            sys.stdout.write(f"{_describe(index)}{outcome}{open_storage(command.out).url}\n")
        return 0

    return run_command(work, interrupted=GOES_ON)


if __name__ == "__main__":
    sys.exit(main())
