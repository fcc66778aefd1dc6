"""The command line of `rainspark pack`: which sources, which parts of their grids, and how they are packed."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from ..command import CommandParser, first_time, last_time
from ..errors import ConfigError, DataError
from ..frames import Crop, parse_crop
from ..sequences import TimeSpan
from ..shards.index import MAX_CADENCE_S
from ..sources.choice import add_kinds, source_of
from .places import place_of
from .survey import MEGABYTE, WINDOW, PackInput, PackOptions

BETWEEN_SOURCES: Final = "+"
FILES: Final = (
    "files, folders and archives, also with wildcards in quotation marks; or s3://BUCKET/PREFIX (gs://, az://) or a "
    "pattern of keys such as s3://BUCKET/%%Y/%%m/%%d/*RATE*.h5 with --from and --to"
)
FIRST_S: Final = -(2**33)
LAST_S: Final = 2**33
"""Times before and after all radars, epoch seconds: 1697 and 2242."""
EPILOG: Final = (
    "Several sources go into one archive with + between them, all at one cadence and in frames of one size: "
    "knmi FILES --out SHARDS --crop 284:572,225:513 + odim FILES --tile 288. Options of the archive stand before the +."
)


@dataclass(frozen=True, kw_only=True)
class Command:
    """What was asked for: an archive to inspect, or sources to pack into one."""

    out: str
    inspect: bool = False
    picture: str | None = None
    inputs: tuple[PackInput, ...] = ()
    options: PackOptions = field(default_factory=PackOptions)
    restart: bool = False


def parse_command(argv: Sequence[str], description: str) -> Command:
    """Parse the command line.

    Raises:
        DataError: Values that no archive can have. Usage errors end the program as argparse does.
    """
    first, *others = _split(argv)
    arguments = make_parser(description, archive=True).parse_args(first)
    if arguments.command == "inspect":
        if others:
            raise DataError("inspect takes one archive; expected no + after it")
        return Command(out=arguments.shards, inspect=True, picture=arguments.out)

    # Behind a + stand the files and the area of one more source, and no options of the archive.
    # They are parsed after the first, whose cadence they share.
    parser = make_parser(description, archive=False)
    options = _options(arguments)
    inputs = [_input(source, options) for source in (arguments, *map(parser.parse_args, others))]
    return Command(out=arguments.out, inputs=tuple(inputs), options=options, restart=arguments.restart)


def _split(argv: Sequence[str]) -> list[list[str]]:
    """Split the command line at every +."""
    words_of: list[list[str]] = [[]]
    for word in argv:
        if word == BETWEEN_SOURCES:
            words_of.append([])
        else:
            words_of[-1].append(word)
    return words_of


def _options(arguments: argparse.Namespace) -> PackOptions:
    """Check the options of the archive."""
    window = WINDOW if arguments.window is None else arguments.window
    # Judged before it is rounded: infinity and what is no number have no whole number of seconds.
    cadence_fits = 1 <= arguments.cadence_min * 60 <= MAX_CADENCE_S
    if not cadence_fits or arguments.shard_mb < 1 or not 1 <= window <= arguments.frames or arguments.max_bad < 0:
        raise DataError(
            f"--cadence-min {arguments.cadence_min:g}, --shard-mb {arguments.shard_mb}, --window {window}, "
            f"--frames {arguments.frames}, --max-bad {arguments.max_bad}: expected a cadence of 1 s to 1 day, a size "
            "above 0, a window of 1 frame up to --frames and no negative number"
        )

    crop, tile, stride = _area(arguments)
    return PackOptions(
        crop=crop,
        tile=tile,
        stride=stride,
        window=arguments.window,
        max_frames=arguments.frames,
        cadence_s=round(arguments.cadence_min * 60),
        shard_bytes=arguments.shard_mb * MEGABYTE,
        max_bad=arguments.max_bad,
        allow_period=arguments.allow_period,
        span=_span(arguments),
    )


def _span(arguments: argparse.Namespace) -> TimeSpan | None:
    """Check the times that are packed; open to one side where one of them is not given."""
    start_s: int | None = arguments.start_s
    stop_s: int | None = arguments.stop_s
    if start_s is None and stop_s is None:
        return None
    span = TimeSpan(start_s=FIRST_S if start_s is None else start_s, stop_s=LAST_S if stop_s is None else stop_s)
    if span.start_s >= span.stop_s:
        raise ConfigError(f"--from and --to name no time: {span}; expected --from before --to")
    return span


def _area(arguments: argparse.Namespace) -> tuple[Crop | None, int | None, int | None]:
    """Check which part of its grid is packed of a source: crop, tile and stride."""
    tile: int | None = arguments.tile
    stride: int | None = arguments.stride
    if (tile is not None and tile < 1) or (stride is not None and (tile is None or stride < 1)):
        raise DataError(f"--tile {tile}, --stride {stride}: expected pixels above 0, and a stride only with a tile")
    return None if arguments.crop is None else parse_crop(arguments.crop), tile, stride


def _input(arguments: argparse.Namespace, options: PackOptions) -> PackInput:
    crop, tile, stride = _area(arguments)
    return PackInput(
        source=source_of(arguments, options.cadence_s),
        paths=tuple(place_of(text, options.span) for text in arguments.files),
        crop=crop,
        tile=tile,
        stride=stride,
    )


def make_parser(description: str, *, archive: bool) -> argparse.ArgumentParser:
    """Make the parser of the first source, with the options of the archive, or of those after a +."""
    parser = CommandParser(prog="rainspark pack", description=description, epilog=EPILOG)
    commands = parser.add_subparsers(dest="command", required=True)

    for source in add_kinds(commands):
        source.add_argument("files", nargs="+", metavar="FILES_FOLDERS_OR_BUCKET", help=FILES)
        source.add_argument("--crop", metavar="R0:R1,C0:C1", help="rows and columns to keep (all)")
        source.add_argument("--tile", type=int, metavar="PIXELS", help="cut into whole square tiles of this side")
        source.add_argument("--stride", type=int, metavar="PIXELS", help="from tile to tile (the tile's side)")
        if archive:
            _add_archive_options(source)

    if archive:
        inspect = commands.add_parser("inspect", help="print the summary and draw a contact sheet")
        inspect.add_argument("shards", metavar="SHARDS")
        inspect.add_argument("--out", metavar="SHEET.png", help="where to draw (SHARDS.png, beside the folder)")
    return parser


def _add_archive_options(source: argparse.ArgumentParser) -> None:
    source.add_argument("--out", required=True, metavar="SHARDS", help="folder to make, or s3://bucket/prefix")
    source.add_argument("--window", type=int, help=f"longest window to be read, frames ({WINDOW}: 12 in, 12 out)")
    source.add_argument("--frames", type=int, default=144, help="frames of a sequence at most (144)")
    source.add_argument("--cadence-min", type=float, default=5, help="minutes from frame to frame (5)")
    source.add_argument("--shard-mb", type=int, default=256, help="size of a shard, about (256)")
    bad_help = "damaged files to leave out, listed, before giving up (0)"
    source.add_argument("--max-bad", type=int, default=0, help=bad_help)
    period_help = "pack values that are sums or means over another span than the cadence"
    source.add_argument("--allow-period", action="store_true", help=period_help)
    from_help = "first day or time of the frames to pack, UTC"
    source.add_argument("--from", dest="start_s", type=first_time, metavar="DAY", help=from_help)
    to_help = "last day or time, UTC, included"
    source.add_argument("--to", dest="stop_s", type=last_time, metavar="DAY", help=to_help)
    restart_help = "drop the shards of an unfinished pack of other files or options"
    source.add_argument("--restart", action="store_true", help=restart_help)
