"""Packs that stop half-way: killed, interrupted, out of space, or with another's unfinished work in their place."""

import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rainspark.data.errors import DataError
from rainspark.data.pack.__main__ import main
from rainspark.data.pack.archive import pack
from rainspark.data.pack.resume import dump_record
from rainspark.data.pack.survey import PackOptions, survey
from rainspark.data.shards.totals import RainTotals
from rainspark.data.shards.writer import WrittenShard
from tests.data.radar_files import CROP, OPTIONS, digests, write_series

COMMAND = ["--crop", str(CROP), "--window", "4", "--frames", "9"]


def start_pack(*arguments: str, **limits: Any) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "rainspark.data.pack", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, **limits)


def signal_when(process: "subprocess.Popen[bytes]", path: Path, number: int) -> tuple[str, str]:
    """Send a signal as soon as there is a file, and wait for the end; returns what was printed."""
    deadline = time.monotonic() + 60
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.0005)
    process.send_signal(number)
    printed, errors = process.communicate(timeout=60)
    return printed.decode(), errors.decode()


@pytest.mark.parametrize("num_finished", [0, 1, 4])
def test_a_killed_pack_goes_on_to_the_same_bytes(radar: Path, tmp_path: Path, num_finished: int) -> None:
    pack([radar], tmp_path / "whole", OPTIONS)
    out = tmp_path / "out"
    finished = f"shard-{num_finished - 1:05d}"
    wanted = out / ".packing" / (f"{finished}.json" if num_finished else "job.json")
    process = start_pack("knmi", str(radar), "--out", str(out), *COMMAND)
    signal_when(process, wanted, signal.SIGKILL)
    # On a busy machine it may have ended before it was seen to be so far.
    assert wanted.exists() or process.returncode == 0
    kept = (out / f"{finished}.tar").stat().st_mtime_ns if num_finished else None
    if process.returncode:
        # A killed writer's half file, as a kill at another moment would leave it.
        (out / ".shard-00007.tar.1-0.partial").write_bytes(b"half")

    pack([radar], out, OPTIONS)
    assert digests(out) == digests(tmp_path / "whole")
    assert not (out / ".packing").exists()
    assert kept is None or (out / f"{finished}.tar").stat().st_mtime_ns == kept


def interrupted(radar: Path, out: Path) -> None:
    """Leave a pack as if it had been killed after its last shard, before the index."""
    index = pack([radar], out, OPTIONS)
    reference = out.with_name("reference")
    shutil.copytree(out, reference)
    job = survey([radar], OPTIONS)
    (out / "index.json").unlink()
    (out / ".packing").mkdir()
    (out / ".packing" / "job.json").write_text(json.dumps({"job": job.plan.draft.packed_from}))
    # All of the rain stands in the first record: only the sum of the records is known from here.
    totals = index.statistics
    for number, shard in enumerate(index.shards):
        own = tuple(entry for entry in index.sequences if entry.shard == number)
        written = WrittenShard(
            shard=shard, sequences=own, totals=dict.fromkeys(totals, RainTotals()) if number else totals
        )
        (out / ".packing" / f"shard-{number:05d}.json").write_bytes(dump_record(written))


def edited(edit: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    """Make a change of a record that leaves its digest as it was."""

    def changed(data: bytes) -> bytes:
        values = json.loads(data)
        edit(values["record"])
        return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()

    return changed


DAMAGE: list[tuple[str, Callable[[bytes], bytes | None]]] = [
    ("shard-00002.tar was changed", lambda data: data[:600] + bytes([data[600] ^ 1]) + data[601:]),
    ("shard-00002.tar was changed", lambda data: data[:-512]),
    ("shard-00002.tar is gone", lambda data: None),  # noqa: ARG005
    ("shard-00002.json is damaged", lambda data: data[:100]),
    ("shard-00002.json is damaged", lambda data: data[:0]),
    ("shard-00002.json is damaged", lambda data: b"\xff" * len(data)),
    ("shard-00002.json is damaged", lambda data: b"[" * (100_000 + len(data))),
    ("shard-00002.json is damaged", lambda data: b"[" + b" " * len(data) + b"]"),
    ("shard-00002.json is damaged", edited(lambda record: record.update(totals=[]))),
    ("shard-00002.json is damaged", edited(lambda record: record["shard"].update(num_bytes=7))),
    ("shard-00002.json is damaged", edited(lambda record: record["sequences"][0].update(rain_after=float("inf")))),
]


@pytest.mark.parametrize(("problem", "change"), DAMAGE)
def test_what_was_damaged_is_packed_again(
    radar: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    problem: str,
    change: Callable[[bytes], bytes | None],
) -> None:
    out = tmp_path / "out"
    interrupted(radar, out)
    name = problem.partition(" ")[0]
    path = out / name if name.endswith(".tar") else out / ".packing" / name
    data = change(path.read_bytes())
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)
    kept = (out / "shard-00003.tar").stat().st_mtime_ns

    pack([radar], out, OPTIONS)
    errors = capsys.readouterr().err
    assert f"{problem}: packing " in errors
    assert errors.count("again") == 1
    assert (out / "shard-00003.tar").stat().st_mtime_ns == kept
    shards = {name: digest for name, digest in digests(out).items() if name.endswith(".tar")}
    assert shards == {name: digests(tmp_path / "reference")[name] for name in shards}


def test_an_unfinished_pack_of_other_options_is_kept_unless_told(
    radar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    interrupted(radar, out)
    before = digests(out)
    command = ["knmi", str(radar), "--out", str(out), "--crop", str(CROP), "--window", "5", "--frames", "20"]
    assert main(command) == 4
    message = capsys.readouterr().err
    assert "unfinished pack of other files or options, 7 shards of it finished" in message
    assert "--restart to drop those shards" in message
    assert digests(out) == before
    assert main([*command, "--restart"]) == 0
    assert "dropping an unfinished pack of other files or options" in capsys.readouterr().err
    pack([radar], tmp_path / "fresh", PackOptions(crop=CROP, window=5, max_frames=20))
    assert digests(out) == digests(tmp_path / "fresh")


def test_restart_keeps_an_unfinished_pack_of_the_same_job_and_a_finished_archive(radar: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupted(radar, out)
    kept = (out / "shard-00003.tar").stat().st_mtime_ns
    pack([radar], out, OPTIONS, restart=True)
    assert (out / "shard-00003.tar").stat().st_mtime_ns == kept
    with pytest.raises(DataError, match="packed from other files or with other options"):
        pack([radar], out, replace(OPTIONS, window=3), restart=True)


def test_two_packs_into_one_folder_are_refused(radar: Path, tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another pack is writing there"):
            pack([radar], tmp_path, OPTIONS)
    finally:
        os.close(descriptor)


def test_a_full_disk_ends_with_an_error_and_no_index(radar: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    out = disk / "out"
    mount = ["mount", "-t", "tmpfs", "-o", "size=32k", "none", str(disk)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, check=False, capture_output=True).returncode == 0
    limit = {} if mounted else {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))}
    try:
        process = start_pack("knmi", str(radar), "--out", str(out), *COMMAND, **limit)
        message = process.communicate()[1].decode()
        assert process.returncode == 4
        assert f"{out}/" in message
        assert "could not write: " + ("No space left on device; free space" if mounted else "File too large") in message
        left = [path.name for path in out.rglob("*")]
        assert "index.json" not in left
        assert not any(name.endswith(".partial") for name in left)

        if mounted:
            subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
            pack([radar], out, OPTIONS)
            pack([radar], tmp_path / "whole", OPTIONS)
            assert digests(out) == digests(tmp_path / "whole")
    finally:
        if mounted:
            subprocess.run(["umount", str(disk)], check=True)


def slow_and_open_to_signals() -> None:
    os.nice(19)
    # What runs in the background of a script ignores Ctrl-C, and so do its children.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_stops_with_a_word_and_can_go_on(tmp_path: Path) -> None:
    # Enough work that much of it is left when the first shard is seen finished.
    write_series(tmp_path / "radar", range(36), size=(600, 600))
    out = tmp_path / "out"
    command = ["knmi", str(tmp_path / "radar"), "--out", str(out), "--window=1", "--frames=3"]
    process = start_pack(*command, preexec_fn=slow_and_open_to_signals)
    printed, message = signal_when(process, out / ".packing" / "shard-00000.json", signal.SIGINT)
    assert "interrupted; the same command goes on where it stopped" in message
    assert "Traceback" not in message
    assert (process.returncode, printed) == (130, "")
    assert not list(out.rglob("*.partial"))
    assert not (out / "index.json").exists()
