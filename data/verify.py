"""Re-read an archive and report all that is wrong with it: `rainspark verify SHARDS [--json]`."""

import argparse
import hashlib
import json
import os
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import blosc2
import numpy as np
from tqdm import tqdm

from .command import CommandParser, run_command
from .errors import DataError
from .exit_codes import ExitCode
from .frames import iso_time
from .json_checks import shown
from .sequences import rain_fraction
from .shards.decode import decode_frame, wrong_in_json
from .shards.index import INDEX_NAME, Index, SequenceEntry, load_index, verify_sequence_bytes
from .shards.summary import RainTotals, rounding_of, sum_totals, totals_to_json
from .shards.timeline import by_origin, ready_origins, with_rain_after
from .store.storage import Storage, open_storage
from .units import MISSING_COUNT
from .whole_file import PARTIAL_SUFFIX

READ_BYTES: Final = 2**23
END_BYTES: Final = 2 * tarfile.BLOCKSIZE
"""A tar ends with two blocks of zeros (POSIX.1-2017, pax, ustar interchange format)."""


Wrong = Callable[..., None]
"""Notes what is wrong, and with which key (none for the whole shard)."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong: in which shard ("" for the index), with which key ("" for the whole shard), and what."""

    shard: str
    key: str
    what: str

    def __str__(self) -> str:
        """Write it as a line."""
        places = [f"shard {self.shard}"] if self.shard else [INDEX_NAME]
        return ", ".join([*places, *([f"key {self.key}"] if self.key else [])]) + f": {self.what}"


@dataclass(kw_only=True)
class Report:
    """What was read, what is wrong with it, and what lies beside it that no index lists."""

    shards: int = 0
    sequences: int = 0
    frames: int = 0
    num_bytes: int = 0
    fingerprint: str = ""
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Give the report as plain JSON values."""
        return {**vars(self), "problems": [vars(problem) for problem in self.problems]}


@dataclass(kw_only=True)
class _ShardReport:
    problems: list[Problem] = field(default_factory=list)
    frames: int = 0
    num_bytes: int = 0
    totals: dict[str, RainTotals] = field(default_factory=dict)


def verify(url: str, *, threads: int | None = None) -> Report:
    """Read everything that an archive holds and compare all of it.

    Every shard is read once, sequence by sequence, and every frame is decoded; memory holds one sequence a thread.

    Args:
        url: Folder or address of the archive.
        threads: Shards at once; None for as many as there are cores, four at most.

    Raises:
        DataError: The storage cannot be opened. Whatever is wrong with the archive is in the report.
    """
    report = Report()
    storage = open_storage(url)
    try:
        try:
            index = load_index(storage)
        except DataError as error:
            report.problems.append(Problem(shard="", key="", what=str(error)))
            return report
        report.fingerprint = index.fingerprint
        report.shards, report.sequences = len(index.shards), len(index.sequences)
        report.warnings = _stale(storage, index)
        # Blosc2 then lets other threads work while it decompresses.
        blosc2.set_releasegil(True)
        totals = []
        with (
            tqdm(total=sum(entry.num_frames for entry in index.sequences), desc="verifying", unit=" frames",
                 mininterval=0.5) as bar,
            ThreadPoolExecutor(threads or min(4, os.cpu_count() or 1), "rainspark-verify") as executor,
        ):  # fmt: skip
            by_shard: list[list[SequenceEntry]] = [[] for _ in index.shards]
            for entry in index.sequences:
                by_shard[entry.shard].append(entry)
            check = lambda number: _verify_shard(storage, index, number, by_shard[number], bar)  # noqa: E731
            for found in executor.map(check, range(len(index.shards))):
                report.problems += found.problems
                report.frames += found.frames
                report.num_bytes += found.num_bytes
                totals.append(found.totals)
        report.problems += _wrong_frames(index)
        # Sums of frames that could not be read are no sums of the archive.
        if not report.problems:
            report.problems += _wrong_sums(index, sum_totals(totals))
        return report
    finally:
        storage.close()


def _stale(storage: Storage, index: Index) -> list[str]:
    """List what lies beside the archive and is no part of it."""
    listed = {INDEX_NAME, *(shard.name for shard in index.shards)}
    try:
        names = storage.names()
    except DataError:
        return ["the address cannot be listed: files that the index does not know would not be seen"]
    found = [f"{shown(name)} lies beside the archive, and its index does not list it" for name in names
             if name not in listed]  # fmt: skip
    if storage.folder is not None:
        partial = sorted(path.name for path in storage.folder.rglob(f"*{PARTIAL_SUFFIX}"))
        found += [f"{shown(name)} is what a stopped writer left" for name in partial]
    return found


def _wrong_frames(index: Index) -> list[Problem]:
    """Compare what the index says of frames that stand in several sequences: one owns each, and all hold the same."""
    problems = [
        Problem(shard="", key=entry.key, what=f"begins at {iso_time(entry.start_s)}, before the one listed above it")
        for before, entry in pairwise(index.sequences)
        if entry.start_s < before.start_s
    ]
    ready = ready_origins(index)
    for origin, places in by_origin(index.sequences).items():
        own = [index.sequences[place] for place in places if origin not in ready]
        frames = np.array(
            [
                (entry.start_s + number * index.cadence_s, at, number, number < entry.num_starts, share, missing)
                for at, entry in enumerate(own)
                for number, (share, missing) in enumerate(zip(entry.rain_fraction, entry.missing, strict=True))
            ],
            [("time_s", "i8"), ("at", "i4"), ("number", "i4"), ("owned", "?"), ("share", "f8"), ("missing", "i8")],
        )
        frames = frames[np.argsort(frames["time_s"], kind="stable")]
        owned = frames[frames["owned"]]
        for some, name, what in (
            (owned, "time_s", "a window begins there in key {0} too; expected every window once"),
            (frames, "share", "key {0} holds other pixels of that time"),
            (frames, "missing", "key {0} holds other pixels of that time"),
        ):
            again = some["time_s"][1:] == some["time_s"][:-1]
            wrong = again & ((some[name][1:] == some[name][:-1]) == (name == "time_s"))
            # Whatever is wrong with a sequence's times goes on to its end.
            _, first = np.unique(some["at"][1:][wrong], return_index=True)
            for before, frame in zip(some[:-1][wrong][first], some[1:][wrong][first], strict=True):
                where = f"frame {frame['number']}, {iso_time(int(frame['time_s']))}: "
                problems.append(
                    Problem(shard="", key=own[frame["at"]].key, what=where + what.format(own[before["at"]].key))
                )
    return problems


def _wrong_sums(index: Index, totals: dict[str, RainTotals]) -> list[Problem]:
    """Compare what the index says of all frames together."""
    problems = []
    recomputed = totals_to_json(totals)
    for source in sorted(recomputed.keys() | index.statistics.keys()):
        said, expected = index.statistics.get(source), recomputed.get(source, {})
        found = said if isinstance(said, dict) else {}
        # What requantising changed is known from the source files alone.
        for name in sorted((expected.keys() | found.keys()) - {"rounding"}):
            if found.get(name) != expected.get(name):
                what = f"{name} of {shown(source)} is {shown(found.get(name))}; the frames give {expected.get(name)}"
                problems.append(Problem(shard="", key="", what=f"statistics: {what}"))
    for source in index.sources:
        if isinstance(index.statistics.get(source), dict):
            try:
                rounding_of(index, source)
            except DataError as error:
                problems.append(Problem(shard="", key="", what=str(error)))
    ready = ready_origins(index)
    right = with_rain_after(index.sequences, cadence_s=index.cadence_s, num_pixels=index.rows * index.cols)
    for entry, other in zip(index.sequences, right, strict=True):
        if entry.origin not in ready and entry.rain_after != other.rain_after:
            what = f"rain_after is {entry.rain_after}; the frames give {other.rain_after}"
            problems.append(Problem(shard="", key=entry.key, what=what))
    return problems


def _verify_shard(
    storage: Storage, index: Index, number: int, entries: list[SequenceEntry], bar: "tqdm[Any]"
) -> _ShardReport:
    """Read one shard from its first byte to its last."""
    shard, report = index.shards[number], _ShardReport()

    def wrong(what: str, key: str = "") -> None:
        report.problems.append(Problem(shard=shard.name, key=key, what=what))

    try:
        num_bytes = storage.size(shard.name)
    except DataError as error:
        wrong(f"cannot be read: {error}")
        bar.update(sum(entry.num_frames for entry in entries))
        return report
    if num_bytes != shard.num_bytes:
        wrong(f"has {num_bytes} bytes, expected {shard.num_bytes}")
    digest, position, whole = hashlib.sha256(), 0, True
    for entry in sorted(entries, key=lambda entry: entry.offset):
        if entry.offset != position:
            wrong(f"its bytes begin at {entry.offset}, the sequence before it ends at {position}", entry.key)
            whole = _digest(storage, shard.name, position, min(entry.offset, num_bytes), digest, wrong) and whole
        data = _read_sequence(storage, index, entry, wrong)
        if data is None:
            whole = False
        else:
            # What two sequences claim is digested once.
            digest.update(data[max(position - entry.offset, 0) :])
            _verify_sequence(index, entry, data, report, wrong)
        position = max(position, entry.offset + entry.num_bytes)
        bar.update(entry.num_frames)
    whole = _verify_end(storage, shard.name, position, num_bytes, digest, wrong) and whole
    if whole and digest.hexdigest() != shard.sha256:
        wrong(f"SHA-256 is {digest.hexdigest()}, expected {shard.sha256}")
    report.num_bytes = num_bytes
    return report


def _read_sequence(storage: Storage, index: Index, entry: SequenceEntry, wrong: Wrong) -> bytes | None:
    """Read a sequence's bytes, damaged ones too: for the digest of the shard and the members' headers."""
    shard, stop = index.shards[entry.shard].name, entry.offset + entry.num_bytes
    try:
        return storage.read_checked(shard, entry.offset, stop, lambda data: verify_sequence_bytes(index, entry, data))
    except DataError as error:
        try:
            data = storage.read(shard, entry.offset, stop)
        except DataError:
            wrong(f"cannot be read: {error}", entry.key)
            return None
    return data


def _verify_end(storage: Storage, name: str, position: int, num_bytes: int, digest: Any, wrong: Wrong) -> bool:
    """Demand that a tar's last member is followed by two blocks of zeros and nothing else."""
    tail = max(num_bytes - position, 0)
    if tail != END_BYTES:
        wrong(f"{tail} bytes follow the last sequence, expected {END_BYTES} zeros")
        return _digest(storage, name, min(position, num_bytes), num_bytes, digest, wrong)
    try:
        data = storage.read(name, position, num_bytes)
    except DataError as error:
        wrong(f"cannot be read: {error}")
        return False
    digest.update(data)
    if data.strip(b"\0"):
        wrong(f"its last {END_BYTES} bytes are not all zeros")
    return True


def _digest(storage: Storage, name: str, start: int, stop: int, digest: Any, wrong: Wrong) -> bool:
    """Digest bytes that belong to no sequence, in pieces."""
    try:
        for begin in range(start, stop, READ_BYTES):
            digest.update(storage.read(name, begin, min(stop, begin + READ_BYTES)))
    except DataError as error:
        wrong(f"cannot be read: {error}")
        return False
    return True


def _verify_sequence(index: Index, entry: SequenceEntry, data: bytes, report: _ShardReport, wrong: Wrong) -> None:
    """Compare all that a sequence holds: digest, members, KEY.json, frames."""
    for what in _wrong_members(entry, data):
        wrong(what, entry.key)
    found = hashlib.sha256(data).hexdigest()
    if found != entry.sha256:
        # What is not what was packed is not given to a decoder either.
        wrong(f"SHA-256 of its bytes is {found}, expected {entry.sha256}; its frames were not decoded", entry.key)
        return
    for what in wrong_in_json(index, entry, data):
        wrong(what, entry.key)
    origin = index.origins[entry.origin]
    begin = entry.frames_offset - entry.offset
    frames = memoryview(data)[begin : begin + entry.frames_bytes]
    counts_hw = np.empty((index.rows, index.cols), np.uint16)
    totals = RainTotals.none()
    for number in range(entry.num_frames):
        try:
            decode_frame(index, entry, frames, number, counts_hw)
        except DataError as error:
            wrong(f"frame {number}: {error}", entry.key)
            continue
        report.frames += 1
        recomputed = (rain_fraction(counts_hw), int(np.count_nonzero(counts_hw == MISSING_COUNT)))
        for name, right in zip(("rain_fraction", "missing"), recomputed, strict=True):
            said = getattr(entry, name)[number]
            if said != right:
                wrong(f"frame {number}: {name} is {said}; the pixels give {right}", entry.key)
        if number < entry.num_starts:
            totals = totals.plus(RainTotals.of_frame(counts_hw, origin.scale_mmh))
    report.totals = sum_totals([report.totals, {origin.source: totals}])


def _wrong_members(entry: SequenceEntry, data: bytes) -> Iterator[str]:
    """Compare a sequence's tar headers and padding with those that packing writes; says what differs."""
    members = (
        (f"{entry.key}.json", entry.json_offset, entry.json_bytes),
        (f"{entry.key}.frames", entry.frames_offset, entry.frames_bytes),
    )
    position = entry.offset
    for name, offset, num_bytes in members:
        header = data[position - entry.offset :][: tarfile.BLOCKSIZE]
        if offset != position + tarfile.BLOCKSIZE:
            yield f"the data of {name} begin at {offset}, expected {position + tarfile.BLOCKSIZE}"
        info = tarfile.TarInfo(name)
        info.size = num_bytes
        if header != info.tobuf(format=tarfile.GNU_FORMAT):
            yield f"{_said_by(header)}; expected a plain file {name} of {num_bytes} bytes, mode, owner and time unset"
        position = offset + num_bytes
        padding = -num_bytes % tarfile.BLOCKSIZE
        if data[position - entry.offset :][:padding].strip(b"\0"):
            yield f"the padding behind {name} is not zeros"
        position += padding
    if position != entry.offset + entry.num_bytes:
        yield f"its members end at {position}, its bytes at {entry.offset + entry.num_bytes}"


def _said_by(header: bytes) -> str:
    """Say what a tar header holds."""
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "replace")
    except tarfile.HeaderError as error:
        return f"no tar header ({error})"
    kind = {
        b"0": "plain file",
        b"1": "hard link",
        b"2": "symbolic link",
        b"3": "device",
        b"4": "device",
        b"5": "folder",
    }
    return f"the tar header says {kind.get(info.type, f'type {info.type!r}')} {shown(info.name)!r} of {info.size} bytes"


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of `rainspark verify`."""
    parser = CommandParser(prog="rainspark verify", description=__doc__)
    parser.add_argument("shards", metavar="SHARDS", help="folder or address of a packed archive")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--threads", type=int, help="shards at once (as many as cores, four at most)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 sound, 4 problems, 130 interrupted (argparse: 2, usage)."""
    arguments = make_parser().parse_args(argv)

    def work() -> int:
        if arguments.threads is not None and arguments.threads < 1:
            raise DataError(f"--threads {arguments.threads}: expected at least 1")
        report = verify(arguments.shards, threads=arguments.threads)
        if arguments.json:
            sys.stdout.write(json.dumps(report.to_json(), sort_keys=True) + "\n")
        else:
            sys.stdout.write("".join(f"problem  {problem}\n" for problem in report.problems))
            sys.stdout.write("".join(f"warning  {warning}\n" for warning in report.warnings))
            sys.stdout.write(
                f"{report.shards} shards, {report.sequences} sequences, {report.frames} frames decoded, "
                f"{report.num_bytes:,} bytes: {f'{len(report.problems)} problems' if report.problems else 'sound'}\n"
            )
        return ExitCode.DATA if report.problems else ExitCode.DONE

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
