"""The copy of a checkpoint to a second place has a time limit, and is a process that outlives nothing."""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from select import select
from typing import Any

import pytest

from rainspark.data.store.storage import open_storage
from rainspark.models.weights.manifest import CheckpointError
from rainspark.trainer.checkpoint.__main__ import main
from rainspark.trainer.checkpoint.push import push_within
from rainspark.trainer.checkpoint.second_place import CheckpointStore
from rainspark.trainer.checkpoint.transfer import finished_in, pull_latest
from tests.integration.faults import save_small
from tests.s3_server import S3, s3, s3_server  # noqa: F401
from tests.slurm import wait_until

SILENT = "s3://bucket/run"


@pytest.fixture
def silent_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Make SILENT the address of a store that is connected to and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AK")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SK")
        yield server


@pytest.mark.usefixtures("silent_store")
def test_a_store_that_never_answers_costs_the_deadline_and_is_named(tmp_path: Path) -> None:
    path = save_small(tmp_path, 1)
    store = CheckpointStore(SILENT, push_deadline_s=4)
    start_s = time.monotonic()
    with pytest.raises(
        CheckpointError, match=r"not copied to s3://bucket/run: cut off after 4 s \(run\.push_deadline_s"
    ):
        store.push(path, keep_last=2)
    assert time.monotonic() - start_s < 60, "the storage's own deadline is 300 s"
    assert store.newest_copy is None


def test_a_copy_that_is_cut_off_is_a_warning_later_and_the_next_save_tries_again(
    tmp_path: Path,
    s3: S3,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = f"{s3.url}/run"
    store = CheckpointStore(url, push_deadline_s=30)
    store.push(save_small(tmp_path, 1), keep_last=2)
    slow = CheckpointStore(url, push_deadline_s=6)
    assert slow.newest(tmp_path) == tmp_path / "checkpoints" / "step-00000001"
    # The manifest is refused again and again, until the time is over: everything else has arrived.
    s3.inject([{"match": "PUT .*MANIFEST", "times": -1, "do": "503"}])
    with caplog.at_level(logging.INFO):
        slow.push(save_small(tmp_path, 2), keep_last=2)
    assert "step-00000002: not copied to" in caplog.text
    assert "cut off after 6 s" in caplog.text
    assert finished_in(open_storage(url)) == ["step-00000001"]
    s3.inject([])
    pulled = pull_latest(open_storage(url), tmp_path / "elsewhere")
    assert pulled is not None
    assert pulled.name == "step-00000001", "unfinished remains are no checkpoint"
    store.push(save_small(tmp_path, 3), keep_last=2)
    assert finished_in(open_storage(url)) == ["step-00000003", "step-00000001"]
    assert not open_storage(url).names("checkpoints/step-00000002/"), "and they are removed"


def test_the_copying_process_outlives_a_signal_but_not_its_parent(tmp_path: Path, silent_store: socket.socket) -> None:
    """A job's SIGTERM goes to all its processes: the run saves then, and this is part of it."""
    path = save_small(tmp_path, 1)
    code = (
        "from pathlib import Path; from rainspark.trainer.checkpoint.push import push_within; "
        f"push_within(300, url={SILENT!r}, folder=Path({str(path)!r}), keep_last=2, keep_every=None)"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        try:
            # Connected to the store, the process is past its start.
            wait_until(lambda: bool(select([silent_store], [], [], 0)[0]), "the store is asked")
            child = int(children.read_text())
            os.kill(child, signal.SIGTERM)
            time.sleep(1)
            assert is_alive(child)
        finally:
            parent.kill()
        # Sooner than by a pipe that nobody reads, which it would notice when it has something to report.
        wait_until(lambda: not is_alive(child), "it ends with its parent", timeout_s=15)


def test_a_copy_that_breaks_down_is_reported_and_not_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = save_small(tmp_path, 1)
    order: dict[str, Any] = {"url": str(tmp_path / "store"), "folder": path, "keep_last": "two", "keep_every": None}
    assert push_within(60, **order).failures[-1].startswith("TypeError: ")
    monkeypatch.setattr(sys, "executable", "/nothing/python")
    pushed = push_within(60, **order)
    assert pushed.sent == []
    assert "no process could be started to copy it: " in pushed.failures[0]
    assert "Traceback" not in capfd.readouterr().err


def test_a_signal_at_the_very_start_does_not_end_the_copying_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sent before its first line of Python runs."""
    start = subprocess.Popen

    def started(*args: Any, **settings: Any) -> subprocess.Popen[bytes]:
        process: subprocess.Popen[bytes] = start(*args, **settings)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP):
            process.send_signal(number)
        return process

    monkeypatch.setattr(subprocess, "Popen", started)
    path = save_small(tmp_path, 1)
    pushed = push_within(60, url=str(tmp_path / "store"), folder=path, keep_last=2, keep_every=None)
    assert pushed.failures == []
    assert pushed.sent[-1] == "checkpoints/step-00000001/MANIFEST.json"


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("kind", ["folder", "store"])
def test_the_command_looks_into_a_folder_and_a_store_by_address(
    tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """Two checkpoints, then a damaged one."""
    url = f"file://{tmp_path}/store" if kind == "folder" else f"{request.getfixturevalue('s3').url}/run"
    assert main(["list", url]) == 4
    assert "an address that a run's run.checkpoint_url named" in capsys.readouterr().err
    store = CheckpointStore(url)
    for step in (1, 2):
        store.push(save_small(tmp_path, step), keep_last=2)
    assert main(["list", url]) == main(["verify", url]) == main(["verify", f"{url}/checkpoints/step-00000001/"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("step-")]
    assert [row[0] for row in rows] == [f"step-{step:08d}" for step in (2, 1, 2, 1, 1)]
    assert [row[-1] for row in rows] == ["sizes", "sizes", "yes", "yes", "yes"]
    assert main(["show", url]) == main(["show", f"{url}/checkpoints"]) == 0
    shown = capsys.readouterr().out
    assert "checkpoints/step-00000002" in shown
    assert "model: 3 tensors, 900 values (float32)" in shown

    name = "checkpoints/step-00000002/model.safetensors"
    storage = open_storage(url)
    whole = storage.read(name)
    storage.write(name, bytes([whole[0] ^ 1]) + whole[1:])
    assert main(["list", url]) == 0
    assert main(["verify", url]) == main(["show", f"{url}/checkpoints/step-00000002"]) == 4
    written = capsys.readouterr()
    assert f"{name}: damaged" in written.err
    assert "step-00000002" in next(line for line in written.out.splitlines() if line.endswith("NO"))
    assert main(["show", url]) == 0
    assert "checkpoints/step-00000001" in capsys.readouterr().out
    storage.write(name, whole[:-1])
    assert main(["list", url]) == 4


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("ftp://host/x", "ftp:// is not known"),
        ("https://host/x", "cannot be listed"),
        ("s3://bucket/x", "AWS_ACCESS_KEY_ID"),
        ("nothing/here", "no checkpoint there"),
    ],
)
def test_the_command_ends_cleanly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str, message: str
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    assert main(["verify", place]) == 4
    assert message in capsys.readouterr().err
