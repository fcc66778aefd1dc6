"""Re-read an archive and report all that is wrong with it: `rainspark verify SHARDS`."""

import argparse
import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import pairwise, zip_longest
from typing import Any

import numpy as np
from tqdm import tqdm

from .command import CommandParser, run_command
from .errors import DataError
from .exit_codes import ExitCode
from .frames import iso_time
from .json_checks import shown
from .sequences import rain_fraction, wetness
from .shards.blosc import blosc2
from .shards.decode import decode_frame, frame_digest
from .shards.description import wrong_in_json
from .shards.index import INDEX_NAME, Index, SequenceEntry, ShardEntry, load_index, verify_sequence_bytes
from .shards.timeline import by_origin, ready_origins, with_rain_after
from .shards.totals import RainTotals, sum_totals
from .shards.writer import END_BYTES, tar_member
from .store.storage import Storage, open_storage
from .units import MISSING_COUNT


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong: in which shard ("" for the index), with which key ("" for the whole shard), and what."""

    shard: str = ""
    key: str = ""
    what: str

    def __str__(self) -> str:
        """Format it as a line."""
        where = f"shard {self.shard}" if self.shard else INDEX_NAME
        return f"{where}, key {self.key}: {self.what}" if self.key else f"{where}: {self.what}"


@dataclass(kw_only=True)
class Report:
    """What was read, and what is wrong with it."""

    shards: int = 0
    sequences: int = 0
    frames: int = 0
    num_bytes: int = 0
    problems: list[Problem] = field(default_factory=list)


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
        # An index that cannot be trusted is the one problem: nothing can be compared with it.
        index = load_index(storage)
        report.shards = len(index.shards)
        report.sequences = len(index.sequences)
        totals = _read_shards(storage, index, threads or min(4, os.cpu_count() or 1), report)
    except DataError as error:
        report.problems.append(Problem(what=str(error)))
        return report
    finally:
        storage.close()

    report.problems += _wrong_frames(index)
    # Sums of frames that could not be read are no sums of the archive.
    if not report.problems:
        report.problems += _wrong_sums(index, totals)
    return report


def _read_shards(storage: Storage, index: Index, threads: int, report: Report) -> dict[str, RainTotals]:
    """Read and check all shards, several at once; gives the rain of their frames, by source."""
    # Blosc2 then lets other threads work while it decompresses.
    blosc2.set_releasegil(True)
    by_shard: list[list[SequenceEntry]] = [[] for _ in index.shards]
    for entry in sorted(index.sequences, key=lambda entry: entry.offset):
        by_shard[entry.shard].append(entry)

    total = sum(entry.num_frames for entry in index.sequences)
    with tqdm(total=total, desc="verifying", unit=" frames", mininterval=0.5) as bar:
        checks = [
            _ShardCheck(storage=storage, index=index, shard=shard, entries=entries, bar=bar)
            for shard, entries in zip(index.shards, by_shard, strict=True)
        ]
        with ThreadPoolExecutor(threads, "rainspark-verify") as executor:
            for _ in executor.map(_ShardCheck.run, checks):
                pass

    # Shard by shard, so that the report does not depend on which thread was first.
    for check in checks:
        report.problems += check.problems
        report.frames += check.num_frames
        report.num_bytes += check.num_bytes
    return sum_totals(check.totals for check in checks)


def _wrong_frames(index: Index) -> Iterator[Problem]:
    """Compare what the index says of frames that stand in several sequences: one owns each, and all hold the same."""
    for before, entry in pairwise(index.sequences):
        if entry.start_s < before.start_s:
            what = f"begins at {iso_time(entry.start_s)}, before the one listed above it"
            yield Problem(key=entry.key, what=what)

    ready = ready_origins(index)
    for origin, positions in by_origin(index.sequences).items():
        if origin not in ready:
            yield from _wrong_frames_of_origin([index.sequences[i] for i in positions], index.cadence_s)


def _wrong_frames_of_origin(own: Sequence[SequenceEntry], cadence_s: int) -> Iterator[Problem]:
    """Compare each frame of an origin with the same one in the sequence before."""
    frames = np.array(
        [
            (entry.start_s + number * cadence_s, at, number, number < entry.num_starts, share, missing)
            for at, entry in enumerate(own)
            for number, (share, missing) in enumerate(zip(entry.rain_fraction, entry.missing, strict=True))
        ],
        [("time_s", "i8"), ("at", "i4"), ("number", "i4"), ("owned", "?"), ("share", "f8"), ("missing", "i8")],
    )
    frames = frames[np.argsort(frames["time_s"], kind="stable")]
    owned = frames[frames["owned"]]

    # Frames of one time now stand beside each other.
    twice = "a window begins there in key {0} too; expected every window once"
    differs = "key {0} holds other pixels of that time"
    for chosen, fields, what in ((owned, [], twice), (frames, ["share"], differs), (frames, ["missing"], differs)):
        before = chosen[:-1]
        after = chosen[1:]
        wrong = after["time_s"] == before["time_s"]
        for name in fields:
            wrong &= after[name] != before[name]
        # Whatever is wrong with a sequence's times goes on to its end.
        _, first = np.unique(after["at"][wrong], return_index=True)
        for other, frame in zip(before[wrong][first], after[wrong][first], strict=True):
            where = f"frame {frame['number']}, {iso_time(int(frame['time_s']))}: "
            yield Problem(key=own[frame["at"]].key, what=where + what.format(own[other["at"]].key))


def _wrong_sums(index: Index, totals: dict[str, RainTotals]) -> Iterator[Problem]:
    """Compare what the index says of all frames together."""
    for source in sorted(totals.keys() | index.statistics.keys()):
        stated = index.statistics.get(source, RainTotals())
        # What requantising changed is known from the source files alone.
        recomputed = replace(totals.get(source, RainTotals()), rounding=stated.rounding)
        for name, expected in vars(recomputed).items():
            value = getattr(stated, name)
            if value != expected:
                what = f"{name} of {shown(source)} is {shown(value)}; the frames give {expected}"
                yield Problem(what=f"statistics: {what}")

    # The rain after a ready window is not the archive's to know.
    ready = ready_origins(index)
    filled = with_rain_after(index.sequences, cadence_s=index.cadence_s, num_pixels=index.rows * index.cols)
    for entry, other in zip(index.sequences, filled, strict=True):
        if entry.origin not in ready and entry.rain_after != other.rain_after:
            yield Problem(key=entry.key, what=f"rain_after is {entry.rain_after}; the frames give {other.rain_after}")


@dataclass(kw_only=True, eq=False)
class _ShardCheck:
    """Reads one shard from its first byte to its last, and collects what is wrong with it.

    Attributes:
        storage: Where the archive lies.
        index: Its index.
        shard: The shard.
        entries: Its sequences, in the order of their offsets.
        bar: Told of every frame.
        problems: What is wrong.
        num_frames: Frames that were decoded.
        num_bytes: Bytes of the shard.
        totals: Rain of the frames, by source.
    """

    storage: Storage
    index: Index
    shard: ShardEntry
    entries: Sequence[SequenceEntry]
    bar: "tqdm[Any]"
    problems: list[Problem] = field(default_factory=list)
    num_frames: int = 0
    num_bytes: int = 0
    totals: dict[str, RainTotals] = field(default_factory=dict)

    def _wrong(self, what: str, key: str = "") -> None:
        self.problems.append(Problem(shard=self.shard.name, key=key, what=what))

    def run(self) -> None:
        """Read and check everything."""
        try:
            self.num_bytes = self.storage.size(self.shard.name)
        except DataError as error:
            self._wrong(f"cannot be read: {error}")
            self.bar.update(sum(entry.num_frames for entry in self.entries))
            return
        if self.num_bytes != self.shard.num_bytes:
            self._wrong(f"has {self.num_bytes} bytes, expected {self.shard.num_bytes}")

        # The shard's digest is that of the sequences' bytes and its end, where these follow each other.
        digest = hashlib.sha256()
        position = 0
        whole = True
        for entry in self.entries:
            if entry.offset != position:
                self._wrong(f"its bytes begin at {entry.offset}, the sequence before it ends at {position}", entry.key)
                whole = False
            data = self._read(entry)
            if data is None:
                whole = False
            else:
                digest.update(data)
                self._check_sequence(entry, data)
            position = max(position, entry.offset + entry.num_bytes)
            self.bar.update(entry.num_frames)

        end = self._read_end(position)
        if end is not None and whole:
            digest.update(end)
            if digest.hexdigest() != self.shard.sha256:
                self._wrong(f"SHA-256 is {digest.hexdigest()}, expected {self.shard.sha256}")

    def _read(self, entry: SequenceEntry) -> bytes | None:
        """Read a sequence's bytes, damaged ones too: for the digest of the shard and the members' headers."""
        name = self.shard.name
        stop = entry.offset + entry.num_bytes
        try:
            return self.storage.read_checked(
                name, entry.offset, stop, lambda data: verify_sequence_bytes(self.index, entry, data)
            )
        except DataError as error:
            try:
                return self.storage.read(name, entry.offset, stop)
            except DataError:
                self._wrong(f"cannot be read: {error}", entry.key)
                return None

    def _read_end(self, position: int) -> bytes | None:
        """Demand that a tar's last member is followed by two blocks of zeros and nothing else; gives these."""
        tail = max(self.num_bytes - position, 0)
        if tail != END_BYTES:
            self._wrong(f"{tail} bytes follow the last sequence, expected {END_BYTES} zeros")
            return None
        try:
            return self.storage.read_checked(self.shard.name, position, self.num_bytes, _check_zeros)
        except DataError as error:
            self._wrong(f"its end cannot be read: {error}")
            return None

    def _check_members(self, entry: SequenceEntry, data: bytes) -> None:
        """Put both members together anew as packing does: headers, padding and places have to be the same bytes."""
        sizes = []
        expected = b""
        for kind in ("json", "frames"):
            begin = getattr(entry, f"{kind}_offset") - entry.offset
            content = data[begin : begin + getattr(entry, f"{kind}_bytes")]
            sizes.append(f"{entry.key}.{kind} of {len(content)} bytes")
            expected += tar_member(entry.key, kind, content)
        if data != expected:
            at = next(at for at, (is_there, wanted) in enumerate(zip_longest(data, expected)) if is_there != wanted)
            self._wrong(
                f"its tar headers, padding or places differ from byte {at} on; expected plain files "
                f"{' and '.join(sizes)}, mode, owner and time unset",
                entry.key,
            )

    def _check_sequence(self, entry: SequenceEntry, data: bytes) -> None:
        """Compare all that a sequence holds: members, digest, KEY.json, frames."""
        index = self.index
        self._check_members(entry, data)
        digest = hashlib.sha256(data).hexdigest()
        if digest != entry.sha256:
            # What is not what was packed is not given to a decoder either.
            self._wrong(f"SHA-256 of its bytes is {digest}, expected {entry.sha256}; it was not decoded", entry.key)
            return
        for what in wrong_in_json(index, entry, data):
            self._wrong(what, entry.key)

        # Every frame: whether it can be decoded, and whether its pixels are those that the index describes.
        frames = entry.frames_of(data)
        counts_hw = np.empty((index.rows, index.cols), np.uint16)
        origin = index.origins[entry.origin]
        for number in range(entry.num_frames):
            try:
                decode_frame(index, entry, frames, number, counts_hw)
            except DataError as error:
                self._wrong(f"frame {number}: {error}", entry.key)
                continue
            self.num_frames += 1
            recomputed = {
                "rain_fraction": rain_fraction(counts_hw),
                "missing": int(np.count_nonzero(counts_hw == MISSING_COUNT)),
                **dict(zip(("wetness_1mmh", "wetness_5mmh"), wetness(counts_hw, origin.scale_mmh), strict=True)),
            }
            if entry.frame_digest(number) not in (None, frame_digest(entry, frames, number)):
                self._wrong(f"frame {number}: its digest is not that of its buffer", entry.key)
            for name, expected in recomputed.items():
                values = getattr(entry, name)
                value = expected if values is None else values[number]
                # Exponentials of two machines may differ in the last digit that is kept.
                if abs(value - expected) > (1.5e-6 if name.startswith("wetness") else 0):
                    self._wrong(f"frame {number}: {name} is {value}; the pixels give {expected}", entry.key)
            if number < entry.num_starts:
                rain = RainTotals.of_frame(counts_hw, origin.scale_mmh)
                self.totals = sum_totals([self.totals, {origin.source: rain}])


def _check_zeros(data: bytes) -> None:
    if data.strip(b"\0"):
        raise DataError(f"its last {len(data)} bytes are not all zeros")


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of `rainspark verify`."""
    parser = CommandParser(prog="rainspark verify", description=__doc__)
    parser.add_argument("shards", metavar="SHARDS", help="folder or address of a packed archive")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 sound, 4 problems, 3 wrong options, 130 interrupted."""

    def work() -> int:
        arguments = make_parser().parse_args(argv)
        report = verify(arguments.shards)
        sys.stdout.write("".join(f"problem  {problem}\n" for problem in report.problems))
        verdict = f"{len(report.problems)} problems" if report.problems else "sound"
        sys.stdout.write(
            f"{report.shards} shards, {report.sequences} sequences, {report.frames} frames decoded, "
            f"{report.num_bytes:,} bytes: {verdict}\n"
        )
        return ExitCode.DATA if report.problems else 0

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
