"""The machine: packages out of their ranges, left locks, names that lead nowhere, clocks, limits."""

import importlib.metadata
import os
import resource
from pathlib import Path

import pytest

from rainspark.launch.doctor.findings import SETTINGS
from rainspark.launch.doctor.machine import (
    check_backend,
    check_build_locks,
    check_clock,
    check_collective,
    check_imports,
    check_limits,
    check_versions,
    extensions_folder,
    skew_of,
)
from tests.launch.doctor.cases import failure, job_of, levels, small_disk


def test_installed_packages_are_in_their_ranges() -> None:
    assert levels(check_versions()) == ["ok"]


def test_packages_that_are_absent_or_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "asks-1.0.dist-info"
    folder.mkdir()
    lines = ["Metadata-Version: 2.1", "Name: asks", "Version: 1.0", "Requires-Dist: numpy>=99",
             "Requires-Dist: there-is-no-such-thing>=1", "Requires-Dist: pyyaml>=1",
             "Requires-Dist: nor-this; extra == 'more'"]  # fmt: skip
    (folder / "METADATA").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = check_versions("asks")
    assert [str(finding.found) for finding in found] == [
        f"numpy {importlib.metadata.version('numpy')}", "there-is-no-such-thing is not installed",
    ]  # fmt: skip
    assert {finding.code for finding in found} == {SETTINGS}
    assert found[0].expected == "numpy>=99"


def test_a_package_that_breaks_when_it_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "timm.py").write_text("raise RuntimeError('wheel of another CUDA')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("rainspark.launch.doctor.machine._IMPORTED", ("timm",))
    assert failure(check_imports(job_of(tmp_path, tmp_path))).found == "timm: RuntimeError: wheel of another CUDA"


def test_a_lock_that_a_killed_build_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert levels(check_build_locks(tmp_path / "none")) == ["ok"]
    place = tmp_path / "py311" / "helper"
    place.mkdir(parents=True)
    lock = place / "lock"
    with lock.open("w"):
        assert levels(check_build_locks(tmp_path)) == ["ok"]
    found = failure(check_build_locks(tmp_path))
    assert str(lock) in found.found
    assert "remove that file" in found.advice
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert extensions_folder() == tmp_path


def test_the_device_and_its_collectives(tmp_path: Path) -> None:
    import torch

    assert levels(check_backend(job_of(tmp_path, tmp_path))) == ["ok"]
    found = check_backend(job_of(tmp_path, tmp_path, engine__device="cuda"))
    assert levels(found) == (["ok"] if torch.cuda.is_available() else ["warn"])


def test_two_processes_meet() -> None:
    assert levels(check_collective()) == ["ok"]


def test_a_name_that_leads_nowhere() -> None:
    found = failure(check_collective("no-such-host.invalid"))
    assert "no-such-host.invalid" in found.found
    assert "GLOO_SOCKET_IFNAME" in found.advice


def test_the_clock_of_the_file_system(tmp_path: Path) -> None:
    assert levels(check_clock(tmp_path / "run")) == ["ok"]
    assert list(tmp_path.iterdir()) == []
    assert skew_of(100.0, 100.5, 101.0) == 0
    assert skew_of(90.0, 100.0, 101.0) == 9
    assert skew_of(160.0, 100.0, 101.0) == 59


def test_limits_of_the_machine(tmp_path: Path) -> None:
    job = job_of(tmp_path, tmp_path, world_size=2, data__threads=4 * (os.cpu_count() or 1))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        found = check_limits(job, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert {finding.what: finding.level for finding in found} == {
        "open files": "warn", "shared memory": "ok", "threads": "warn",
    }  # fmt: skip
    with small_disk(tmp_path / "shm", "size=64m") as small:
        assert "warn" in levels([finding for finding in check_limits(job, small) if finding.what == "shared memory"])
