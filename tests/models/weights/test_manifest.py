"""A folder either is what its manifest says, or it is refused by name."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest

from rainspark.models.weights.manifest import (
    MANIFEST_NAME,
    CheckpointError,
    latest_verified,
    read_manifest,
    step_folders,
    verify_folder,
    write_manifest,
)


def _folder(path: Path, content: bytes = b"weights") -> Path:
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(content)
    (path / "state.json").write_bytes(b"{}")
    write_manifest(path)
    return path


def test_a_whole_folder_verifies_and_reports_its_files(tmp_path: Path) -> None:
    files = verify_folder(_folder(tmp_path / "step-00000001"))
    # The SHA-256 of the two characters {} is well known.
    assert files["state.json"] == {
        "bytes": 2,
        "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
    }
    assert set(files) == {"model.safetensors", "state.json"}


def test_every_bit_of_the_manifest_and_of_the_files_counts(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "step-00000001")
    for path in folder.iterdir():
        whole = path.read_bytes()
        for bit in range(8 * len(whole)):
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError):
                verify_folder(folder)
        path.write_bytes(whole)
    verify_folder(folder)


def test_a_missing_an_extra_and_a_shortened_file_are_named(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "step-00000001")
    (folder / "stray.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=re.escape("does not list: stray.bin")):
        verify_folder(folder)
    (folder / "stray.bin").unlink()
    (folder / "model.safetensors").write_bytes(b"weight")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: 6 bytes, MANIFEST\.json says 7"):
        read_manifest(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"files missing: model\.safetensors"):
        verify_folder(folder)


def test_links_and_folders_inside_are_refused(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "step-00000001")
    (folder / "inner").mkdir()
    with pytest.raises(CheckpointError, match="inner: not a plain file"):
        verify_folder(folder)
    (folder / "inner").rmdir()
    (folder / "state.json").rename(tmp_path / "state.json")
    (folder / "state.json").symlink_to(tmp_path / "state.json")
    with pytest.raises(CheckpointError, match=r"state\.json: not a plain file"):
        verify_folder(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "expected the keys schema_version and files"),
        (b'{"schema_version": 2, "files": {}}', "schema_version 2, this version reads 1"),
        (b'{"schema_version": 1, "files": {}}', "expected a list of files"),
        (
            b'{"schema_version": 1, "files": {"a": {"bytes": true, "sha256": ""}}}',
            r"files\.a: expected bytes and sha256",
        ),
        (
            b'{"schema_version": 1, "files": {"state.json": {"bytes": 2, "sha256": "%s"}}}' % (b"0" * 64),
            "not as it was written",
        ),
    ],
)
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    folder = _folder(tmp_path / "step-00000001")
    (folder / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        verify_folder(folder)


def test_no_folder_and_no_manifest_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such folder"):
        verify_folder(tmp_path / "step-00000001")
    folder = _folder(tmp_path / "step-00000001")
    (folder / MANIFEST_NAME).unlink()
    with pytest.raises(CheckpointError, match="its writing never ended"):
        verify_folder(folder)


def test_the_newest_is_by_number_and_other_names_do_not_count(tmp_path: Path) -> None:
    assert step_folders(tmp_path / "none") == []
    assert latest_verified(tmp_path / "none") is None
    for name in ("step-00000002", "step-00000010", "step-100000000", ".saving-step-00000011", "step-3", "best"):
        _folder(tmp_path / name)
    (tmp_path / "step-00000099").write_bytes(b"a file, not a folder")
    assert [step for step, _ in step_folders(tmp_path)] == [100_000_000, 10, 2]
    assert latest_verified(tmp_path) == tmp_path / "step-100000000"


def test_broken_newer_ones_are_named_and_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in range(5):
        _folder(tmp_path / f"step-{step:08d}", content=np.random.default_rng(step).bytes(100))
    (tmp_path / "step-00000004" / MANIFEST_NAME).unlink()
    (tmp_path / "step-00000003" / "model.safetensors").write_bytes(b"x" * 100)
    with caplog.at_level(logging.WARNING):
        assert latest_verified(tmp_path) == tmp_path / "step-00000002"
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert "step-00000004" in caplog.messages[0]
    assert "step-00000003/model.safetensors" in caplog.messages[1]


def test_only_broken_ones_is_an_error_not_a_new_start(tmp_path: Path) -> None:
    _folder(tmp_path / "step-00000001")
    (tmp_path / "step-00000001" / "state.json").write_bytes(b"[]")
    with pytest.raises(CheckpointError, match=r"none of 1 checkpoints is whole[\s\S]*state\.json"):
        latest_verified(tmp_path)
