"""Hostile inputs to every reader: nothing runs, nothing outside is read, memory stays bounded, and each is refused."""

import ctypes
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.data.hostile_samples import Sample, make_samples

MOST_BYTES = 256 * 2**20
"""More resident memory that one input may cost; the bombs would take more."""
IN_ACCESS, IN_OPEN, IN_NONBLOCK = 0x1, 0x20, 0o4000  # inotify(7)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Read all samples in a process that is watched; the kernel watches what they point to."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "outside").mkdir()
    canary = folder / "canary"
    samples = make_samples(folder / "samples", folder / "outside", canary)
    roots = [str(folder / "samples" / sample.name) + os.sep for sample in samples]
    values = [
        vars(sample) | {"path": str(sample.path), "root": root} for sample, root in zip(samples, roots, strict=True)
    ]
    (folder / "plan.json").write_text(json.dumps(values), encoding="utf-8")
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(IN_NONBLOCK)
    assert libc.inotify_add_watch(watch, os.fsencode(folder / "outside"), IN_OPEN | IN_ACCESS) >= 0
    command = [
        sys.executable,
        "-m",
        "tests.data.hostile_reader",
        str(folder / "plan.json"),
        str(folder / "report.json"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    ended = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=900)
    assert ended.returncode == 0, ended.stderr[-3000:]
    try:
        touched = os.read(watch, 65536)
    except BlockingIOError:
        touched = b""
    finally:
        os.close(watch)
    results = {result["name"]: result for result in json.loads((folder / "report.json").read_text(encoding="utf-8"))}
    return {"samples": samples, "results": results, "touched": touched, "canary": canary}


def all_of(judged: dict[str, Any]) -> list[tuple[Sample, dict[str, Any]]]:
    """Give the hostile samples with what happened."""
    return [(sample, judged["results"][sample.name]) for sample in judged["samples"] if sample.kind != "good"]


def test_the_good_ones_are_read(judged: dict[str, Any]) -> None:
    for name in ("good knmi", "good odim", "good smaat", "good settings", "good shards"):
        assert judged["results"][name]["ended"] == "read", judged["results"][name]["said"]
    assert judged["results"]["good shards"]["said"].endswith("0 of 3 readers refused it\n")


def test_nothing_is_executed_and_nothing_is_opened_outside(judged: dict[str, Any]) -> None:
    assert {sample.name: result["events"] for sample, result in all_of(judged) if result["events"]} == {}
    assert not judged["canary"].exists()
    # The kernel saw no open or read of a file that a link, a name or an index pointed to.
    assert judged["touched"] == b""


def test_every_one_is_refused_in_words(judged: dict[str, Any]) -> None:
    wrong = {sample.name: result["said"][-700:] for sample, result in all_of(judged) if result["ended"] != sample.kind}
    assert wrong == {}


def test_no_message_steers_a_terminal(judged: dict[str, Any]) -> None:
    for sample, result in all_of(judged):
        said = "".join(line for line in result["said"].splitlines() if "it/s" not in line and "B/s" not in line)
        assert not set("\x1b\x07\x9b\u202e") & set(said), sample.name


def test_memory_is_bounded_and_threads_end(judged: dict[str, Any]) -> None:
    costs = {
        sample.name: result["more_bytes"] for sample, result in all_of(judged) if result["more_bytes"] > MOST_BYTES
    }
    assert costs == {}
    assert {sample.name for sample, result in all_of(judged) if result["more_threads"] > 0} == set()
