"""Finding files: nothing that lies there is lost without a word, whatever links and permissions there are."""

import os
from pathlib import Path

import pytest

from rainspark.data.errors import DataError
from rainspark.data.pack.__main__ import main
from tests.data.knmi_frames import scan
from tests.data.radar_files import closed_folder, without_rights, write_series


@pytest.mark.parametrize("mode", [0o000, 0o444, 0o311])
def test_a_closed_folder_is_named(mode: int) -> None:
    with closed_folder(mode) as (folder, closed):
        write_series(folder, [0])
        with without_rights(), pytest.raises(DataError, match=f"{closed}.*: could not be read: Permission denied"):
            scan([folder])
        with without_rights(), pytest.raises(DataError, match=f"{closed}.*: could not be read: Permission denied"):
            scan([closed])


def test_links_into_a_closed_folder_are_named() -> None:
    with closed_folder(0o000) as (folder, closed):
        write_series(folder / "radar", [0])
        link = folder / "radar" / "2010"
        link.symlink_to(closed / "2010")
        with without_rights(), pytest.raises(DataError, match=f"{link}: could not be read: Permission denied"):
            scan([folder / "radar"])


def test_a_file_in_a_closed_folder_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with closed_folder(0o000) as (folder, closed), without_rights():
        assert main(["knmi", str(closed / "f.h5"), "--out", str(folder / "out")]) == 4
        assert main(["inspect", str(closed / "arch")]) == 4
    errors = capsys.readouterr().err
    assert f"error: {closed / 'f.h5'}: could not be read: Permission denied" in errors
    assert f"error: {closed / 'arch' / 'index.json'}: could not read: Permission denied" in errors


def test_linked_folders_are_searched_and_loops_end(tmp_path: Path) -> None:
    outside = write_series(tmp_path / "archive" / "2020", [5, 6])
    inside = write_series(tmp_path / "radar", [1])
    (tmp_path / "radar" / "2020").symlink_to(tmp_path / "archive" / "2020")
    (tmp_path / "radar" / "twice").symlink_to(tmp_path / "archive")
    (tmp_path / "archive" / "2020" / "up").symlink_to(tmp_path)
    refs = scan([tmp_path / "radar"])
    assert [ref.path.resolve() for ref in refs] == [*inside, *outside]


def test_broken_links_are_named(tmp_path: Path) -> None:
    write_series(tmp_path / "radar", [0])
    link = tmp_path / "radar" / "2021"
    link.symlink_to(tmp_path / "not-mounted")
    with pytest.raises(DataError, match=f"{link} leads nowhere"):
        scan([tmp_path / "radar"])
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(DataError, match=f"{link}: could not be read: Too many levels of symbolic links"):
        scan([tmp_path / "radar"])


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "RAD_NL25_RAP_5min_201008260005.h5")
    with pytest.raises(DataError, match="is neither a file nor a folder"):
        scan([tmp_path])
