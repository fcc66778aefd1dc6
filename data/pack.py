"""Pack radar files into shards: `python -m data.pack knmi FILES --out SHARDS`, `python -m data.pack inspect SHARDS`."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import blosc2
from tqdm import tqdm

from data.contact_sheet import draw_contact_sheet
from data.frames import DataError, parse_crop
from data.pack_state import close_state, dump_record, held_alone, kept_shard, open_state, record_name, shard_name
from data.shard_writer import PackedFrame, PlannedSequence, WrittenShard, pack_frame, write_shard
from data.shards import (
    INDEX_NAME,
    MAX_CADENCE_S,
    SCHEMA_VERSION,
    Index,
    check_shard_sizes,
    describe_archive,
    dump_index,
    load_index,
    signed,
)
from data.sources import knmi
from data.storage import Storage, open_storage
from data.summary import RainTotals, summarise
from data.survey import MEGABYTE, Job, PackOptions, digest_of, survey
from data.units import MISSING_COUNT

EXIT_BAD_DATA: Final = 4
EXIT_INTERRUPTED: Final = 130


def pack(paths: Sequence[Path], out: str | Path, options: PackOptions, *, restart: bool = False) -> Index:
    """Pack KNMI files; a finished archive of the same input and options is left as it is.

    Shards are written one by one under temporary names, and index.json last of all: without it there is no archive. A
    killed pack goes on where it stopped, and ends with the same bytes.

    Args:
        paths: Files and folders.
        out: Folder to make.
        options: How to pack.
        restart: Drop the finished shards of an unfinished pack of other files or options; a finished archive stays.

    Raises:
        DataError: About the input, with nothing written; about OUT (another archive, an unfinished one, foreign files,
            another pack at work, no space); about pixels that cannot be decoded or a file that changed meanwhile: then
            OUT holds no index.
    """
    job = survey(paths, options)
    storage = open_storage(out)
    with held_alone(Path(storage.url)):
        if storage.exists(INDEX_NAME):
            index = _finished(storage, job)
        else:
            open_state(storage, job.digest, restart=restart)
            index = write_archive(storage, job)
        close_state(storage)
    return index


def write_archive(storage: Storage, job: Job) -> Index:
    """Write the shards that are not there yet, then the index; raises DataError as `pack` does."""
    written: list[WrittenShard] = []
    # Blosc2 then lets other threads work while it compresses; h5py reads one file at a time whatever we do.
    blosc2.set_releasegil(True)
    description = describe_archive(_draft(job))
    stored = sum(planned.num_frames for planned in job.sequences)
    executor = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="pack")
    try:
        with tqdm(total=stored, desc="packing", unit=" frames", mininterval=0.5) as bar:
            for number in range(job.num_shards):
                planned = job.sequences[number :: job.num_shards]
                shard = kept_shard(storage, number, planned)
                if shard is None:
                    shard = write_shard(
                        storage, shard_name(number), number, planned, job.times_s, description,
                        lambda sequence: _packed_frames(executor, job, sequence, bar),
                    )  # fmt: skip
                    storage.write(record_name(number), dump_record(shard))
                else:
                    bar.update(sum(sequence.num_frames for sequence in planned))
                written.append(shard)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
    index = _index(job, written)
    storage.write(INDEX_NAME, dump_index(index))
    return index


def _packed_frames(
    executor: ThreadPoolExecutor, job: Job, planned: PlannedSequence, bar: "tqdm[Any]"
) -> Iterator[PackedFrame]:
    """Read and compress a sequence's frames, in order."""
    frames = range(planned.first, planned.first + planned.num_frames)
    futures: list[Future[PackedFrame]] = [executor.submit(_packed_frame, job, number) for number in frames]
    for future in futures:
        yield future.result()
        bar.update()


def _packed_frame(job: Job, number: int) -> PackedFrame:
    """Read and compress one frame, and make sure that its file is still the one that the survey saw."""
    path = job.refs[number].path
    frame = knmi.read(path, job.crop)
    # Digested after it was read: whoever wrote to it before that is found out.
    if digest_of(path)[1] != job.sha256s[number]:
        raise DataError(
            f"{path} changed while it was packed; expected files that stay as they are: start again when nothing "
            "writes to them (with --restart if shards were finished before)"
        )
    return pack_frame(frame.counts, frame.scale_mmh)


def _draft(job: Job) -> Index:
    """Say what is known of the archive before any frame is packed."""
    return Index(
        schema_version=SCHEMA_VERSION,
        source=job.header.source,
        licence=job.header.licence,
        cadence_s=job.options.cadence_s,
        rows=job.crop.rows,
        cols=job.crop.cols,
        scale_mmh=job.header.scale_mmh,
        missing_count=MISSING_COUNT,
        window=job.options.window,
        max_frames=job.options.max_frames,
        crop=job.crop,
        grid=job.header.grid,
        shards=(),
        sequences=(),
        statistics={},
        packed_from=job.digest,
    )


def _index(job: Job, written: Sequence[WrittenShard]) -> Index:
    totals = RainTotals.none()
    for shard in written:
        totals = totals.plus(shard.totals)
    sequences = sorted((entry for shard in written for entry in shard.sequences), key=lambda entry: entry.start_s)
    shards = tuple(shard.shard for shard in written)
    return signed(replace(_draft(job), shards=shards, sequences=tuple(sequences), statistics=totals.to_json()))


def _finished(storage: Storage, job: Job) -> Index:
    """Accept the archive that is there if it is this job's."""
    index = load_index(storage)
    if index.packed_from != job.digest:
        raise DataError(
            f"{storage.url} holds an archive packed from other files or with other options (frames of {index.source}, "
            f"crop {index.crop}, window {index.window}); choose another --out, or remove that folder first"
        )
    check_shard_sizes(storage, index)
    sys.stderr.write(f"{storage.url}: already packed from these files with these options\n")
    return index


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 4 bad data, 130 interrupted (argparse: 2, usage)."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "inspect":
            storage = open_storage(arguments.shards)
            index = load_index(storage)
            check_shard_sizes(storage, index)
            sys.stdout.write(summarise(index))
            picture = Path(arguments.out or f"{storage.url}.png").absolute()
            open_storage(picture.parent).write(picture.name, draw_contact_sheet(storage, index))
            sys.stdout.write(f"contact sheet {picture}\n")
        else:
            index = pack(arguments.files, arguments.out, _options(arguments), restart=arguments.restart)
            sys.stdout.write(f"{summarise(index)}packed        {arguments.out}\n")
    except DataError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_BAD_DATA
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on where it stopped\n")
        return EXIT_INTERRUPTED
    return 0


def _options(arguments: argparse.Namespace) -> PackOptions:
    # Judged before it is rounded: infinity and what is no number have no whole number of seconds.
    cadence_fits = 1 <= arguments.cadence_min * 60 <= MAX_CADENCE_S
    if not cadence_fits or arguments.shard_mb < 1 or not 1 <= arguments.window <= arguments.frames:
        raise DataError(
            f"--cadence-min {arguments.cadence_min:g}, --shard-mb {arguments.shard_mb}, --window {arguments.window}, "
            f"--frames {arguments.frames}: expected a cadence of 1 s to 1 day, a size above 0 and a window of 1 frame "
            "up to --frames"
        )
    return PackOptions(
        crop=None if arguments.crop is None else parse_crop(arguments.crop),
        window=arguments.window,
        max_frames=arguments.frames,
        cadence_s=round(arguments.cadence_min * 60),
        shard_bytes=arguments.shard_mb * MEGABYTE,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m data.pack", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    source = commands.add_parser("knmi", help="pack KNMI HDF5 composites")
    source.add_argument("files", nargs="+", type=Path, metavar="FILES_OR_FOLDER")
    source.add_argument("--out", required=True, metavar="SHARDS", help="folder to make")
    source.add_argument("--crop", metavar="R0:R1,C0:C1", help="rows and columns to keep (all)")
    source.add_argument("--window", type=int, default=24, help="longest window to be read, frames (24: 12 in, 12 out)")
    source.add_argument("--frames", type=int, default=144, help="frames of a sequence at most (144)")
    source.add_argument("--cadence-min", type=float, default=5, help="minutes from frame to frame (5)")
    source.add_argument("--shard-mb", type=int, default=256, help="size of a shard, about (256)")
    source.add_argument(
        "--restart", action="store_true", help="drop the shards of an unfinished pack of other files or options"
    )
    inspect = commands.add_parser("inspect", help="print the summary and draw a contact sheet")
    inspect.add_argument("shards", metavar="SHARDS")
    inspect.add_argument("--out", metavar="SHEET.png", help="where to draw (SHARDS.png, beside the folder)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
