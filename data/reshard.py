"""Pack shards anew, without the source files: `rainspark reshard SHARDS... --out NEW [--shard-mb N]`."""

import argparse
import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Final

from tqdm import tqdm

from .command import GOES_ON, CommandParser, run_command
from .errors import DataError
from .json_checks import shown
from .pack.recut import OpenArchive, ReshardJob, ReshardOptions, Segment, plan_reshard
from .pack.resume import close_state, dump_record, held, kept_shard, open_state, record_name, shard_name
from .pack.survey import MEGABYTE
from .shards.chunk import TYPE_BYTES, check_chunk
from .shards.decode import check_sequence
from .shards.index import INDEX_NAME, Index, check_shard_sizes, describe_archive, dump_index, load_index, signed
from .shards.summary import RainTotals, summarise
from .shards.timeline import with_rain_after
from .shards.writer import PackedFrame, WrittenShard, write_shard
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
        job = plan_reshard(opened, options)
        stack.enter_context(held(target))
        if target.exists(INDEX_NAME):
            index = load_index(target)
            if index.packed_from != job.draft.packed_from:
                raise DataError(
                    f"{target.url} holds an archive of other frames or options; choose another --out, or remove that "
                    "one first"
                )
            check_shard_sizes(target, index)
            sys.stderr.write(f"{target.url}: already made from these archives with these options\n")
        else:
            open_state(target, job.draft.packed_from, restart=restart)
            index = _write(target, job)
        close_state(target)
        return index


def _check_outside(target: Storage, read: Sequence[Storage]) -> None:
    """Refuse to write into a folder below an archive that is read: its own files and the new ones would be one heap."""
    for storage in read:
        if storage.folder is None or target.folder is None:
            inside = f"{target.url}/".startswith(f"{storage.url}/") and target.url != storage.url
        else:
            inside = storage.folder.resolve() in target.folder.resolve().parents
        if inside:
            raise DataError(f"{target.url} lies inside {storage.url}, which is read; choose another --out")


@dataclass(eq=False)
class _Reader:
    """Reads and verifies sequences, and keeps the last few."""

    archives: Sequence[OpenArchive]
    _held: "OrderedDict[tuple[int, int], memoryview]" = field(default_factory=OrderedDict)
    _num_bytes: int = 0

    def frames(self, segments: Sequence[Segment], bar: "tqdm[Any]") -> Iterator[PackedFrame]:
        """Give the stored frames of some segments, as they are."""
        for segment in segments:
            index = self.archives[segment.archive].index
            entry = index.sequences[segment.sequence]
            data, ends = self._sequence(segment.archive, segment.sequence), (0, *entry.frame_ends)
            for frame in range(segment.first, segment.first + segment.num_frames):
                buffer = data[ends[frame] : ends[frame + 1]]
                try:
                    check_chunk(buffer, index.rows * index.cols * TYPE_BYTES)
                except DataError as error:
                    shard = index.shards[entry.shard].name
                    raise DataError(f"shard {shard}, key {entry.key}, frame {frame}: {error}; pack it again") from error
                yield PackedFrame(
                    buffer=bytes(buffer),
                    rain_fraction=entry.rain_fraction[frame],
                    missing=entry.missing[frame],
                    totals=RainTotals.none(),
                )
                bar.update()

    def _sequence(self, archive: int, sequence: int) -> memoryview:
        """Read the KEY.frames data of a sequence whose bytes are what its index says; raises DataError if not."""
        place = (archive, sequence)
        if place in self._held:
            self._held.move_to_end(place)
            return self._held[place]
        opened = self.archives[archive]
        index, entry = opened.index, opened.index.sequences[sequence]
        data = opened.storage.read_checked(
            index.shards[entry.shard].name, entry.offset, entry.offset + entry.num_bytes,
            lambda found: check_sequence(index, entry, found),
        )  # fmt: skip
        begin = entry.frames_offset - entry.offset
        self._held[place] = memoryview(data)[begin : begin + entry.frames_bytes]
        self._num_bytes += entry.frames_bytes
        while self._num_bytes > CACHE_BYTES and len(self._held) > 1:
            self._num_bytes -= len(self._held.popitem(last=False)[1])
        return self._held[place]


def _write(target: Storage, job: ReshardJob) -> Index:
    """Write the shards that are not there yet, then the index."""
    descriptions = [describe_archive(job.draft, origin) for origin in job.draft.origins]
    written: list[WrittenShard] = []
    reader = _Reader(job.archives)
    total = sum(planned.num_frames for planned in job.sequences)
    with tqdm(total=total, desc="copying", unit=" frames", mininterval=0.5) as bar:
        for number in range(job.num_shards):
            planned = job.sequences[number :: job.num_shards]
            shard = kept_shard(target, number, planned)
            if shard is None:
                shard = write_shard(
                    target, shard_name(number), number, planned, descriptions,
                    lambda sequence: reader.frames(job.segments[sequence.key], bar),
                )  # fmt: skip
                target.write(record_name(number), dump_record(shard))
            else:
                bar.update(sum(sequence.num_frames for sequence in planned))
            written.append(shard)
    entries = sorted(
        (entry for shard in written for entry in shard.sequences), key=lambda entry: (entry.start_s, entry.origin)
    )
    draft = job.draft
    filled = with_rain_after(entries, cadence_s=draft.cadence_s, num_pixels=draft.rows * draft.cols)
    # What comes after a ready window is not the archive's to know.
    sequences = tuple(
        before if before.key in job.ready else after for before, after in zip(entries, filled, strict=True)
    )
    index = signed(replace(draft, shards=tuple(shard.shard for shard in written), sequences=sequences))
    target.write(INDEX_NAME, dump_index(index))
    return index


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
    """Run the command line; returns the exit code: 0 done, 4 bad data, 130 interrupted (argparse: 2, usage)."""
    arguments = make_parser().parse_args(argv)

    def work() -> int:
        for name, value in (
            ("shard-mb", arguments.shard_mb),
            ("frames", arguments.frames),
            ("window", arguments.window),
        ):
            if value is not None and value < 1:
                raise DataError(f"--{name} {value}: expected at least 1")
        options = ReshardOptions(
            window=arguments.window, max_frames=arguments.frames, shard_bytes=arguments.shard_mb * MEGABYTE
        )
        index = reshard(arguments.shards, arguments.out, options, restart=arguments.restart)
        sys.stdout.write(f"{summarise(index)}packed        {shown(arguments.out)}\n")
        return 0

    return run_command(work, interrupted=GOES_ON)


if __name__ == "__main__":
    sys.exit(main())
