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


def start_pack(radar: Path, out: Path, **limits: Any) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "rainspark.data.pack", "knmi", str(radar), "--out", str(out)]
    options = ["--crop", str(CROP), "--window", "4", "--frames", "9"]
    return subprocess.Popen([*command, *options], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, **limits)


def kill_when(process: "subprocess.Popen[bytes]", holds: Callable[[], bool], number: int) -> None:
    """Send a signal as soon as something holds."""
    deadline = time.monotonic() + 60
    while not holds() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.0005)
    process.send_signal(number)
    process.communicate()


@pytest.mark.parametrize("num_finished", [0, 1, 4])
def test_a_killed_pack_goes_on_to_the_same_bytes(radar: Path, tmp_path: Path, num_finished: int) -> None:
    pack([radar], tmp_path / "whole", OPTIONS)
    out = tmp_path / "out"
    wanted = out / ".packing" / (f"shard-{num_finished - 1:05d}.json" if num_finished else "job.json")
    process = start_pack(radar, out)
    kill_when(process, wanted.exists, signal.SIGKILL)
    assert wanted.exists()
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*.tar")}
    # A killed writer's half file, as a kill at another moment would leave it.
    (out / ".shard-00007.tar.1-0.partial").write_bytes(b"half")
    pack([radar], out, OPTIONS)
    assert digests(out) == digests(tmp_path / "whole")
    assert not (out / ".packing").exists()
    if process.returncode == -signal.SIGKILL and num_finished:
        name = f"shard-{num_finished - 1:05d}.tar"
        assert (out / name).stat().st_mtime_ns == finished[name]


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


def not_a_list(record: dict[str, Any]) -> None:
    record["record"]["totals"] = []


def other_rain(record: dict[str, Any]) -> None:
    next(iter(record["record"]["totals"].values()))["wet"] += 1


def infinite_share(record: dict[str, Any]) -> None:
    record["record"]["sequences"][0]["rain_fraction"][0] = float("inf")


def edited(edit: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    def changed(data: bytes) -> bytes:
        values = json.loads(data)
        edit(values)
        return json.dumps(values).encode()

    return changed


DAMAGED_RECORDS: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[:100],
    "empty": lambda data: data[:0],
    "binary": lambda data: b"\xff" * len(data),
    "deep": lambda data: b"[" * (100_000 + len(data)),
    "list": lambda data: b"[" + b" " * len(data) + b"]",
    **{edit.__name__: edited(edit) for edit in (not_a_list, other_rain, infinite_share)},
}


@pytest.mark.parametrize("damage", ["flip", "cut", "missing"])
def test_a_finished_shard_that_was_damaged_is_packed_again(
    radar: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    interrupted(radar, out)
    shard = out / "shard-00002.tar"
    payload = shard.read_bytes()
    if damage == "flip":
        shard.write_bytes(payload[:600] + bytes([payload[600] ^ 1]) + payload[601:])
    elif damage == "cut":
        shard.write_bytes(payload[:-512])
    else:
        shard.unlink()
    kept = (out / "shard-00003.tar").stat().st_mtime_ns
    pack([radar], out, OPTIONS)
    assert shard.read_bytes() == payload
    assert (out / "shard-00003.tar").stat().st_mtime_ns == kept
    word = "is gone" if damage == "missing" else "was changed"
    assert f"shard-00002.tar {word}: packing it again" in capsys.readouterr().err


@pytest.mark.parametrize("damage", DAMAGED_RECORDS)
def test_a_damaged_record_packs_its_shard_again(
    radar: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    interrupted(radar, out)
    kept = (out / "shard-00003.tar").stat().st_mtime_ns
    record = out / ".packing" / "shard-00001.json"
    record.write_bytes(DAMAGED_RECORDS[damage](record.read_bytes()))
    pack([radar], out, OPTIONS)
    errors = capsys.readouterr().err
    assert "shard-00001.json is damaged: packing shard-00001.tar again" in errors
    assert errors.count("again") == 1
    assert (out / "shard-00003.tar").stat().st_mtime_ns == kept
    shards = {name: digest for name, digest in digests(out).items() if name.endswith(".tar")}
    assert shards == {name: digests(tmp_path / "reference")[name] for name in shards}


def test_an_intact_state_gives_the_same_archive(radar: Path, tmp_path: Path) -> None:
    interrupted(radar, tmp_path / "out")
    pack([radar], tmp_path / "out", OPTIONS)
    assert digests(tmp_path / "out") == digests(tmp_path / "reference")


def test_an_unfinished_pack_of_other_options_is_kept_unless_told(
    radar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    interrupted(radar, out)
    before = digests(out)
    options = ["--crop", str(CROP), "--window", "5", "--frames", "20"]
    command = ["knmi", str(radar), "--out", str(out), *options]
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
    disk, out = tmp_path / "disk", tmp_path / "disk" / "out"
    disk.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=32k", "none", str(disk)], check=False, capture_output=True
        ).returncode
    )
    limit = {} if mounted else {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))}
    try:
        process = start_pack(radar, out, **limit)
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


def test_ctrl_c_stops_with_a_word_and_can_go_on(tmp_path: Path) -> None:
    radar, out, records = tmp_path / "radar", tmp_path / "out", tmp_path / "out" / ".packing"
    # Enough work that much of it is left when the first shard is seen finished.
    write_series(radar, range(36), size=(600, 600))
    command = [
        sys.executable,
        "-m",
        "rainspark.data.pack",
        "knmi",
        str(radar),
        "--out",
        str(out),
        "--window=1",
        "--frames=3",
    ]

    def slow_and_open_to_signals() -> None:
        os.nice(19)
        # What runs in the background of a script ignores Ctrl-C, and so do its children.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=slow_and_open_to_signals
    )
    deadline = time.monotonic() + 60
    while not (records / "shard-00000.json").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    printed, message = (stream.decode() for stream in process.communicate(timeout=60))
    assert "interrupted; the same command goes on where it stopped" in message
    assert "Traceback" not in message
    assert (process.returncode, printed) == (130, "")
    assert not list(out.rglob("*.partial"))
    assert not (out / "index.json").exists()
    names = [f"{path.stem}.tar" for path in records.glob("shard-*.json")]
    finished = {name: (out / name).stat().st_mtime_ns for name in names}
    assert "shard-00000.tar" in finished
    pack([radar], out, PackOptions(window=1, max_frames=3))
    assert {name: (out / name).stat().st_mtime_ns for name in finished} == finished
    assert not records.exists()
