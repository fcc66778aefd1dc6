"""What an unfinished pack leaves in its folder, so that the same command goes on where it stopped."""

import hashlib
import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Final

from ..errors import DataError
from ..json_checks import JsonRecord, canonical, read_json
from ..shards.index import ShardEntry
from ..shards.writer import PlannedSequence, WrittenShard
from ..store.storage import Storage, copy_out, hold_folder

STATE_FOLDER: Final = ".packing/"
JOB_NAME: Final = STATE_FOLDER + "job.json"


@dataclass(frozen=True, kw_only=True)
class _Record(JsonRecord):
    """What is known of a finished shard, with the SHA-256 of just that."""

    record: WrittenShard
    sha256: str


def held(storage: Storage) -> AbstractContextManager[None]:
    """Hold what is packed into against a second pack; a store cannot be locked, and a note says so.

    Raises:
        DataError: The folder cannot be made, or another pack holds it.
    """
    if storage.folder is not None:
        return hold_folder(storage.folder, "another pack is writing there; wait for it or choose another --out")
    sys.stderr.write(f"{storage.url} cannot be locked: do not start a second pack into it before this one ends\n")
    return nullcontext()


def open_state(storage: Storage, digest: str, *, restart: bool) -> None:
    """Take up what a stopped pack left.

    Args:
        storage: The folder that is packed into.
        digest: SHA-256 of the options and input bytes (`Index.packed_from`).
        restart: Drop what another pack left, finished shards and all.

    Raises:
        DataError: Another pack left finished shards and `restart` is not set, or there are files of other origin.
    """
    storage.delete_partial()
    names = storage.names()
    job = json.dumps({"job": digest}).encode("ascii")

    # An unfinished pack lies there: the same one is gone on with, another one is dropped when asked for.
    if JOB_NAME in names:
        if storage.read(JOB_NAME) == job:
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
    storage.write(JOB_NAME, job, if_absent=True)


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
    """Write the record of a finished shard."""
    # With its own digest, a record that was edited is found out although it is still JSON.
    return canonical(_Record(record=written, sha256=hashlib.sha256(canonical(written)).hexdigest()))


def kept_shard(storage: Storage, number: int, planned: Sequence[PlannedSequence]) -> WrittenShard | None:
    """Find the shard that an earlier pack finished; a note says why it cannot be kept.

    Returns:
        The shard, or None unless it and its record are still what they were.
    """
    if not storage.exists(record_name(number)):
        return None

    name = shard_name(number)
    written = _parse_record(storage.read(record_name(number)))
    keys = [sequence.key for sequence in planned if written is not None and sequence.key not in written.left_out]
    if written is None or [entry.key for entry in written.sequences] != keys:
        problem = f"{record_name(number)} is damaged: packing {name} again"
    elif not storage.exists(name):
        problem = f"{name} is gone: packing it again"
    elif not _is_unchanged(storage, written.shard):
        problem = f"{name} was changed: packing it again"
    else:
        return written
    sys.stderr.write(f"{storage.url}/{problem}\n")
    return None


def _parse_record(data: bytes) -> WrittenShard | None:
    """Read a record back; None for one that is not what `dump_record` wrote."""
    try:
        written = read_json(_Record, data).record
    except DataError:
        return None
    # Written again it has to be the same text: nothing was added or left out.
    return written if dump_record(written) == data else None


def _is_unchanged(storage: Storage, shard: ShardEntry) -> bool:
    size = storage.size(shard.name)
    return size == shard.num_bytes and copy_out(storage, shard.name, size) == shard.sha256
