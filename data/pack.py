"""Pack radar files into shards: `python -m data.pack knmi FILES --out SHARDS`, `python -m data.pack inspect SHARDS`."""

import argparse
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import blosc2
from tqdm import tqdm

from data.contact_sheet import draw_contact_sheet
from data.frames import DataError, parse_crop
from data.shard_writer import PackedFrame, PlannedSequence, WrittenShard, pack_frame, write_shard
from data.shards import (
    INDEX_NAME,
    SCHEMA_VERSION,
    Index,
    check_shard_sizes,
    dump_index,
    load_index,
    parse_sequence_entry,
    parse_shard_entry,
    signed,
)
from data.sources import knmi
from data.storage import Storage, open_storage
from data.summary import RainTotals, summarise
from data.survey import MEGABYTE, Job, PackOptions, survey
from data.units import MISSING_COUNT

STATE_FOLDER: Final = ".packing/"
JOB_NAME: Final = STATE_FOLDER + "job.json"
READ_BYTES: Final = 2**23
EXIT_BAD_DATA: Final = 4
EXIT_INTERRUPTED: Final = 130


def pack(paths: Sequence[Path], out: str | Path, options: PackOptions) -> Index:
    """Pack KNMI files; a finished archive of the same input and options is left as it is.

    Shards are written one by one under temporary names, and index.json last of all: without it there is no archive. A
    killed pack goes on where it stopped, and ends with the same bytes.

    Raises:
        DataError: About the input, with nothing written; about OUT (another archive, foreign files, another pack at
            work, no space); about pixels that cannot be decoded: then OUT holds no index.
    """
    job = survey(paths, options)
    storage = open_storage(out)
    with _alone(Path(storage.url)):
        if storage.exists(INDEX_NAME):
            index = _finished(storage, job)
        else:
            _open_state(storage, job)
            index = _write_archive(storage, job)
        for name in storage.names(STATE_FOLDER):
            storage.delete(name)
        with suppress(OSError):
            (Path(storage.url) / STATE_FOLDER).rmdir()
    return index


def _write_archive(storage: Storage, job: Job) -> Index:
    """Write the shards that are not there yet, then the index."""
    written: list[WrittenShard] = []
    # Blosc2 then lets other threads work while it compresses; h5py reads one file at a time whatever we do.
    blosc2.set_releasegil(True)
    stored = sum(planned.num_frames for planned in job.sequences)
    executor = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="pack")
    try:
        with tqdm(total=stored, desc="packing", unit=" frames", mininterval=0.5) as bar:
            for number in range(job.num_shards):
                planned = job.sequences[number :: job.num_shards]
                shard = _kept_shard(storage, number, planned)
                if shard is None:
                    shard = write_shard(
                        storage, _shard_name(number), number, planned, job.times_s, _description(job),
                        lambda sequence: _packed_frames(executor, job, sequence, bar),
                    )  # fmt: skip
                    storage.write(_record_name(number), _dump_record(shard))
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

    def packed(ref: knmi.FileRef) -> PackedFrame:
        frame = knmi.read(ref.path, job.crop)
        if (frame.scale_mmh, frame.grid) != (job.header.scale_mmh, job.header.grid.cropped(job.crop)):
            raise DataError(f"{ref.path} changed while it was packed; start again")
        return pack_frame(frame.counts, frame.scale_mmh)

    refs = job.refs[planned.first : planned.first + planned.num_frames]
    futures: list[Future[PackedFrame]] = [executor.submit(packed, ref) for ref in refs]
    for future in futures:
        yield future.result()
        bar.update()


def _index(job: Job, written: Sequence[WrittenShard]) -> Index:
    totals = RainTotals.none()
    for shard in written:
        totals = totals.plus(shard.totals)
    sequences = sorted((entry for shard in written for entry in shard.sequences), key=lambda entry: entry.start_s)
    index = Index(
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
        shards=tuple(shard.shard for shard in written),
        sequences=tuple(sequences),
        statistics=totals.to_json(),
        packed_from=job.digest,
    )
    return signed(index)


def _description(job: Job) -> dict[str, Any]:
    return {
        "cadence_s": job.options.cadence_s,
        "rows": job.crop.rows,
        "cols": job.crop.cols,
        "crop": job.crop.to_json(),
        "grid": job.header.grid.to_json(),
        "scale_mmh": job.header.scale_mmh,
        "missing_count": MISSING_COUNT,
        "window": job.options.window,
        "source": job.header.source,
        "licence": job.header.licence,
    }


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}.tar"


def _record_name(number: int) -> str:
    return f"{STATE_FOLDER}shard-{number:05d}.json"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder against a second pack into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise DataError(
            f"{folder}: could not be made a folder: {error.strerror or error}; choose another --out"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"{folder}: another pack is writing there; wait for it or choose another --out") from error
        except OSError:
            # Some network file systems lock no folders; then nothing but the user keeps two packs apart.
            sys.stderr.write(f"warning: {folder} cannot be locked; do not start a second pack into it\n")
        yield
    finally:
        os.close(descriptor)


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


def _open_state(storage: Storage, job: Job) -> None:
    """Take up what a killed pack left if it was this job's; drop it if it was another's."""
    storage.delete_partial()
    names = storage.names()
    wanted = json.dumps({"job": job.digest}).encode("ascii")
    if JOB_NAME in names:
        if storage.read(JOB_NAME) == wanted:
            return
        sys.stderr.write(f"{storage.url}: dropping an unfinished pack of other files or options\n")
        # The job's own file goes last: killed in between, the next pack still knows whose files these are.
        for name in sorted(names, key=lambda name: name == JOB_NAME):
            if name.startswith((STATE_FOLDER, "shard-")):
                storage.delete(name)
        names = storage.names()
    if names:
        raise DataError(
            f"{storage.url} holds files that are not from packing ({', '.join(names[:3])}); "
            "choose an empty or new folder"
        )
    storage.write(JOB_NAME, wanted)


def _kept_shard(storage: Storage, number: int, planned: Sequence[PlannedSequence]) -> WrittenShard | None:
    """Find the shard that an earlier pack finished, if its bytes are still what they were."""
    if not (storage.exists(_record_name(number)) and storage.exists(_shard_name(number))):
        return None
    try:
        shard = _parse_record(storage.read(_record_name(number)))
    except (ValueError, KeyError, TypeError):
        return None
    same_keys = [entry.key for entry in shard.sequences] == [sequence.key for sequence in planned]
    size = storage.size(_shard_name(number))
    if not same_keys or size != shard.shard.num_bytes:
        return None
    digest = hashlib.sha256()
    for start in range(0, size, READ_BYTES):
        digest.update(storage.read(_shard_name(number), start, min(size, start + READ_BYTES)))
    return shard if digest.hexdigest() == shard.shard.sha256 else None


def _dump_record(written: WrittenShard) -> bytes:
    values = {
        "shard": vars(written.shard),
        "sequences": [vars(entry) for entry in written.sequences],
        "totals": written.totals.to_json(),
    }
    return json.dumps(values, sort_keys=True, allow_nan=False).encode("ascii")


def _parse_record(data: bytes) -> WrittenShard:
    values = json.loads(data)
    return WrittenShard(
        shard=parse_shard_entry(values["shard"], "shard"),
        sequences=tuple(parse_sequence_entry(entry, "sequences") for entry in values["sequences"]),
        totals=RainTotals.from_json(values["totals"]),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 4 bad data, 130 interrupted (argparse: 2, usage)."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "inspect":
            storage = open_storage(arguments.shards)
            index = load_index(storage)
            check_shard_sizes(storage, index)
            sys.stdout.write(summarise(index))
            picture = Path(arguments.out or f"{Path(storage.url).name}.png").absolute()
            open_storage(picture.parent).write(picture.name, draw_contact_sheet(storage, index))
            sys.stdout.write(f"contact sheet {picture}\n")
        else:
            index = pack(arguments.files, arguments.out, _options(arguments))
            sys.stdout.write(f"{summarise(index)}packed        {arguments.out}\n")
    except DataError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_BAD_DATA
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on where it stopped\n")
        return EXIT_INTERRUPTED
    return 0


def _options(arguments: argparse.Namespace) -> PackOptions:
    cadence_s = round(arguments.cadence_min * 60)
    if cadence_s < 1 or arguments.shard_mb < 1 or not 1 <= arguments.window <= arguments.frames:
        raise DataError(
            f"--cadence-min {arguments.cadence_min:g}, --shard-mb {arguments.shard_mb}, --window {arguments.window}, "
            f"--frames {arguments.frames}: expected a cadence and a size above 0 and a window of 1 frame up to --frames"
        )
    return PackOptions(
        crop=None if arguments.crop is None else parse_crop(arguments.crop),
        window=arguments.window,
        max_frames=arguments.frames,
        cadence_s=cadence_s,
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
    inspect = commands.add_parser("inspect", help="print the summary and draw a contact sheet")
    inspect.add_argument("shards", metavar="SHARDS")
    inspect.add_argument(
        "--out", metavar="SHEET.png", help="where to draw (SHARDS' name + .png, in the current folder)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
