"""The machine: packages out of their ranges, devices, names that lead nowhere, clocks."""

import importlib.metadata
from pathlib import Path

import pytest

from rainspark.data.exit_codes import ExitCode
from rainspark.launch.doctor.machine import (
    check_backend,
    check_clock,
    check_collective,
    check_versions,
    skew_of,
)
from tests.launch.doctor.cases import failure, job_of, levels


def test_installed_packages_are_in_their_ranges() -> None:
    assert levels(check_versions()) == ["ok"]


def test_packages_that_are_absent_or_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "asks-1.0.dist-info"
    folder.mkdir()
    asked = ("numpy>=99", "there-is-no-such-thing>=1", "pyyaml>=1", "nor-this; extra == 'more'")
    lines = ["Metadata-Version: 2.1", "Name: asks", "Version: 1.0", *(f"Requires-Dist: {line}" for line in asked)]
    (folder / "METADATA").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = check_versions("asks")
    numpy = f"numpy {importlib.metadata.version('numpy')}"
    assert [finding.found for finding in found] == [numpy, "there-is-no-such-thing is not installed"]
    assert {finding.code for finding in found} == {ExitCode.CONFIG}
    assert found[0].expected == "numpy>=99"


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
