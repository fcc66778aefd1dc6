"""Pack shards anew, without the source files: `rainspark reshard SHARDS... --out NEW [--shard-mb N]`."""

import argparse
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Final

import numpy as np

from .command import GOES_ON, CommandParser, run_command
from .errors import DataError
from .json_checks import shown
from .pack.recut import ReshardJob, ReshardOptions, plan_reshard
from .pack.survey import MEGABYTE
from .pack.writing import write_or_keep
from .sequences import wetness
from .shards.decode import checked_frame, decode_frame, read_sequence
from .shards.index import Index, SequenceEntry, check_shard_sizes, load_index
from .shards.summary import summarise
from .shards.totals import RainTotals
from .shards.writer import PackedFrame, PlannedSequence
from .store.storage import Storage, open_storage

CACHE_BYTES: Final = 2**27


def reshard(urls: Sequence[str], out: str, options: ReshardOptions, *, restart: bool = False) -> Index:
    """Copy the frames of one or several archives into a new one, with other shards or sequences.

    Stored frames are copied as they are, after the sequence that holds them was verified. Gap-free runs are put
    together from what the sequences own and cut anew; the same input gives the same bytes, and a killed call goes on
    where it stopped.

    Args:
        urls: Folders or addresses of packed archives.
        out: Folder or address of the new one.
        options: What it shall be like.
        restart: Drop the finished shards of an unfinished call with other archives or options.

    Raises:
        DataError: About the archives (they do not fit together, a frame stands in two, a sequence is damaged) or OUT;
            OUT holds no index then.
    """
    # However this ends, what was opened is closed.
    with ExitStack() as stack:
        opened = []
        for url in urls:
            storage = open_storage(url)
            stack.callback(storage.close)
            index = load_index(storage)
            check_shard_sizes(storage, index)
            opened.append((storage, index))
        target = open_storage(out, to_write=True)
        stack.callback(target.close)
        _check_outside(target, [storage for storage, _ in opened])

        # All that can be refused from the indexes alone is refused before anything is written.
        job = plan_reshard(opened, options)
        return write_or_keep(target, job.plan, _StoredFrames(job), restart=restart)


def _check_outside(target: Storage, sources: Sequence[Storage]) -> None:
    """Refuse to write below an archive that is read: its own files and the new ones would be one heap."""
    for storage in sources:
        # Folders are compared where they really lie: a link may lead into an archive.
        if storage.folder is None or target.folder is None:
            inside = f"{target.url}/".startswith(f"{storage.url}/") and target.url != storage.url
        else:
            inside = storage.folder.resolve() in target.folder.resolve().parents
        if inside:
            raise DataError(f"{target.url} lies inside {storage.url}, which is read; choose another --out")


class _StoredFrames:
    """Frames as they are stored; sequences are verified when they are read, and the last few are kept."""

    def __init__(self, job: ReshardJob) -> None:
        self._job = job
        self._kept: OrderedDict[tuple[int, int], memoryview] = OrderedDict()

    def __call__(self, planned: PlannedSequence, advance: Callable[[int], object]) -> Iterator[PackedFrame]:
        """Give the frames of a sequence of the new archive, in order."""
        for segment in self._job.segments[planned.key]:
            index = self._job.archives[segment.archive].index
            entry = index.sequences[segment.sequence]
            data = self._sequence(segment.archive, segment.sequence)
            for frame in range(segment.first, segment.first + segment.num_frames):
                yield PackedFrame(
                    buffer=bytes(checked_frame(index, entry, data, frame)),
                    rain_fraction=entry.rain_fraction[frame],
                    missing=entry.missing[frame],
                    totals=RainTotals(),
                    wetness=_wetness(index, entry, data, frame),
                )
                advance(1)

    def _sequence(self, archive: int, sequence: int) -> memoryview:
        """Read the KEY.frames data of a sequence whose bytes are what its index says; raises DataError if not."""
        position = (archive, sequence)
        if position in self._kept:
            self._kept.move_to_end(position)
            return self._kept[position]

        opened = self._job.archives[archive]
        self._kept[position] = read_sequence(opened.storage, opened.index, opened.index.sequences[sequence])
        # The last one is always kept: it may be larger than the cache.
        while len(self._kept) > 1 and sum(map(len, self._kept.values())) > CACHE_BYTES:
            self._kept.popitem(last=False)
        return self._kept[position]


def _wetness(index: Index, entry: SequenceEntry, data: memoryview, frame: int) -> tuple[float, float]:
    """Take a frame's wetness from the index, or from its pixels where the index is of schema 2."""
    if entry.wetness_1mmh is not None and entry.wetness_5mmh is not None:
        return entry.wetness_1mmh[frame], entry.wetness_5mmh[frame]

    counts_hw = np.empty((index.rows, index.cols), np.uint16)
    decode_frame(index, entry, data, frame, counts_hw)
    return wetness(counts_hw, index.origins[entry.origin].scale_mmh)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of `rainspark reshard`."""
    parser = CommandParser(prog="rainspark reshard", description=__doc__)
    parser.add_argument("shards", nargs="+", metavar="SHARDS", help="folders or addresses of packed archives")
    parser.add_argument("--out", required=True, metavar="NEW", help="folder or address of the new archive")
    parser.add_argument("--shard-mb", type=int, default=256, help="size of a shard, about (256)")
    parser.add_argument("--frames", type=int, help="frames of a sequence at most (as before)")
    parser.add_argument("--window", type=int, help="longest window to be read, frames (as before)")
    parser.add_argument("--restart", action="store_true", help="drop the shards of an unfinished call that differs")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 4 bad data, 3 wrong options, 130 interrupted."""

    def work() -> int:
        arguments = make_parser().parse_args(argv)
        for option, value in {
            "shard-mb": arguments.shard_mb,
            "frames": arguments.frames,
            "window": arguments.window,
        }.items():
            if value is not None and value < 1:
                raise DataError(f"--{option} {value}: expected at least 1")
        options = ReshardOptions(
            window=arguments.window, max_frames=arguments.frames, shard_bytes=arguments.shard_mb * MEGABYTE
        )
        index = reshard(arguments.shards, arguments.out, options, restart=arguments.restart)
        sys.stdout.write(f"{summarise(index)}packed        {shown(arguments.out)}\n")
        return 0

    return run_command(work, interrupted=GOES_ON)


if __name__ == "__main__":
    sys.exit(main())
