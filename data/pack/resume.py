"""What an unfinished pack leaves in its folder, so that the same command goes on where it stopped."""

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from ..counts import Rounding
from ..errors import DataError
from ..shards.index import parse_sequence_entry, parse_shard_entry
from ..shards.summary import totals_from_json, totals_to_json
from ..shards.writer import PlannedSequence, WrittenShard
from ..store.storage import Storage

STATE_FOLDER: Final = ".packing/"
JOB_NAME: Final = STATE_FOLDER + "job.json"
READ_BYTES: Final = 2**23


@contextmanager
def held(storage: Storage) -> Iterator[None]:
    """Hold what is packed into against a second pack; a store cannot be held, and a word says so.

    Raises:
        DataError: As `held_alone`.
    """
    if storage.folder is not None:
        with held_alone(storage.folder):
            yield
    else:
        sys.stderr.write(f"{storage.url} cannot be locked: do not start a second pack into it before this one ends\n")
        yield


@contextmanager
def held_alone(folder: Path) -> Iterator[None]:
    """Make a folder and hold it against a second pack into it.

    Raises:
        DataError: It cannot be made, or another pack holds it.
    """
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


def open_state(storage: Storage, digest: str, *, restart: bool) -> None:
    """Take up what a stopped pack left.

    Args:
        storage: The folder that is packed into.
        digest: SHA-256 of the options and input bytes (`data.pack.survey.Job.digest`).
        restart: Drop what another pack left, finished shards and all.

    Raises:
        DataError: Another pack left finished shards and `restart` is not set, or there are files of other origin.
    """
    storage.delete_partial()
    names = storage.names()
    wanted = json.dumps({"job": digest}).encode("ascii")
    if JOB_NAME in names:
        if storage.read(JOB_NAME) == wanted:
            return
        num_finished = sum(name.startswith(STATE_FOLDER) and name != JOB_NAME for name in names)
        if num_finished and not restart:
            raise DataError(
                f"{storage.url} holds an unfinished pack of other files or options, {num_finished} shards of it "
                "finished; go on with the command and files it was started with, choose another --out, or give "
                "--restart to drop those shards and pack anew"
            )
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
    # Of two packs that begin at once in an empty store, one is refused here.
    storage.write(JOB_NAME, wanted, if_absent=True)


def close_state(storage: Storage) -> None:
    """Remove the state: the archive is finished."""
    for name in storage.names(STATE_FOLDER):
        storage.delete(name)
    if storage.folder is not None:
        with suppress(OSError):
            (storage.folder / STATE_FOLDER).rmdir()


def shard_name(number: int) -> str:
    """Name a shard."""
    return f"shard-{number:05d}.tar"


def record_name(number: int) -> str:
    """Name the record that says that a shard is finished."""
    return f"{STATE_FOLDER}shard-{number:05d}.json"


def dump_record(written: WrittenShard) -> bytes:
    """Write what is known of a finished shard, with the SHA-256 of just that."""
    values = {
        "shard": vars(written.shard),
        "sequences": [vars(entry) for entry in written.sequences],
        "totals": totals_to_json(written.totals),
        "rounding": {source: vars(rounding) for source, rounding in sorted(written.rounding.items())},
        "left_out": written.left_out,
    }
    return json.dumps({"record": values, "sha256": _digest_of(values)}, allow_nan=False).encode("ascii")


def kept_shard(storage: Storage, number: int, planned: Sequence[PlannedSequence]) -> WrittenShard | None:
    """Find the shard that an earlier pack finished, if record and shard are still what they were; a word if not."""
    if not storage.exists(record_name(number)):
        return None
    shard = _parse_record(storage.read(record_name(number)))
    keys = [sequence.key for sequence in planned if shard is not None and sequence.key not in shard.left_out]
    if shard is None or [entry.key for entry in shard.sequences] != keys:
        sys.stderr.write(f"{storage.url}/{record_name(number)} is damaged: packing {shard_name(number)} again\n")
        return None
    if not storage.exists(shard_name(number)):
        sys.stderr.write(f"{storage.url}/{shard_name(number)} is gone: packing it again\n")
        return None
    if (storage.size(shard_name(number)), _sha256_of(storage, shard_name(number))) != (
        shard.shard.num_bytes,
        shard.shard.sha256,
    ):
        sys.stderr.write(f"{storage.url}/{shard_name(number)} was changed: packing it again\n")
        return None
    return shard


def _parse_record(data: bytes) -> WrittenShard | None:
    """Read a record back; None for one that is not what `dump_record` wrote."""
    try:
        values = json.loads(data)
        record = values["record"]
        if values["sha256"] != _digest_of(record):
            return None
        return WrittenShard(
            shard=parse_shard_entry(record["shard"], "shard"),
            sequences=tuple(parse_sequence_entry(entry, "sequences") for entry in record["sequences"]),
            totals=totals_from_json(record["totals"]),
            rounding={source: Rounding(**values) for source, values in record["rounding"].items()},
            left_out=tuple(record["left_out"]),
        )
    # Whatever bytes may lie there; those of another version have a digest of their own.
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def _digest_of(record: Any) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True, allow_nan=False).encode("ascii")).hexdigest()


def _sha256_of(storage: Storage, name: str) -> str:
    size, digest = storage.size(name), hashlib.sha256()
    for start in range(0, size, READ_BYTES):
        digest.update(storage.read(name, start, min(size, start + READ_BYTES)))
    return digest.hexdigest()
