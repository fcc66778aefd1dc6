"""What packing tells its user: the sub-command that fits, the option that helps, and what the summary's numbers are."""

import re
from pathlib import Path

import numpy as np
import pytest

from rainspark.data.count import main as count
from rainspark.data.errors import DataError
from rainspark.data.pack.__main__ import main
from rainspark.data.pack.archive import pack
from rainspark.data.pack.survey import PackOptions
from rainspark.data.sources.odim import OdimSource
from rainspark.data.sources.smaat import SmaatSource
from tests.data.radar_files import (
    FIRST_S,
    odim_name,
    random_counts,
    write_collected,
    write_odim_file,
    write_series,
)


def write_kind(folder: Path, kind: str) -> Path:
    """Write one file that a sub-command reads."""
    folder.mkdir()
    if kind == "knmi":
        return write_series(folder, [0])[0]
    path = folder / (odim_name(FIRST_S) if kind == "odim" else "collected.h5")
    if kind == "odim":
        write_odim_file(path, np.zeros((8, 8)), FIRST_S)
    else:
        group = (np.stack([random_counts(1, 8, 8)]), np.array([FIRST_S]))
        write_collected(path, {"train": group, "test": group})
    return path


@pytest.mark.parametrize("asked", ["knmi", "odim", "smaat"])
@pytest.mark.parametrize("held", ["knmi", "odim", "smaat"])
def test_a_file_of_another_kind_names_its_sub_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: str, held: str
) -> None:
    path = write_kind(tmp_path / "in", held)
    main([asked, str(path), "--out", str(tmp_path / "out")])
    errors = capsys.readouterr().err
    expected = f"{path}: it is .*pack it with the sub-command {held} instead of {asked}"
    assert bool(re.search(expected, errors)) == (asked != held)
    assert asked == held or "--max-bad" not in errors


@pytest.mark.parametrize("sub_command", ["knmi", "odim"])
def test_a_folder_of_other_files_is_described_by_one_of_a_known_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sub_command: str
) -> None:
    (tmp_path / "a_note.txt").write_text("read me")
    (tmp_path / "b.gif").write_bytes(b"GIF89a" + bytes(20))
    assert main([sub_command, str(tmp_path), "--out", str(tmp_path / "out")]) == 4
    expected = f"2 files with other endings, such as {tmp_path / 'b.gif'}, a GIF picture: pack MeteoSwiss' with"
    assert expected in capsys.readouterr().err


def test_a_missing_option_is_not_taken_for_damage(tmp_path: Path) -> None:
    write_odim_file(tmp_path / odim_name(FIRST_S), np.zeros((8, 8)), FIRST_S)
    with pytest.raises(DataError, match="choose another --quantity") as caught:
        pack([tmp_path], tmp_path / "out", PackOptions(), source=OdimSource(quantity="ACRR"))
    assert "--max-bad" not in str(caught.value)


@pytest.mark.parametrize("num_files", [1, 3])
@pytest.mark.parametrize("more", [[], ["--max-bad", "1"]])
def test_leaving_files_out_is_no_advice_where_none_can_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], num_files: int, more: list[str]
) -> None:
    for file in write_series(tmp_path / "radar", range(num_files)):
        file.write_bytes(b"no radar")
    assert main(["knmi", str(tmp_path / "radar"), "--out", str(tmp_path / "out"), "--window", "1", *more]) == 4
    errors = capsys.readouterr().err
    assert "allow more" not in errors
    assert "--max-bad N" not in errors


def test_leaving_files_out_is_advice_where_others_can_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write_series(tmp_path / "radar", range(4))
    for file in files[:3]:
        file.write_bytes(b"no radar")
    assert main(["knmi", str(tmp_path / "radar"), "--out", str(tmp_path / "out"), "--window", "1"]) == 4
    assert "--max-bad N leaves out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("numbers", "window", "code", "words"),
    [
        ([0, 1, 2], "4", 4, "error: the archive holds no window of 4 frames: the longest run of frames .* has 3;"),
        (
            [0, 1, 3, 4, 6],
            "3",
            4,
            "error: the archive holds no window of 3 frames: the longest run .* has 2;",
        ),
        ([0, 1, 2], None, 0, "warning: the archive holds no window of 24 frames: the longest run of frames .* has 3;"),
        ([0, 1, 2], "3", 0, None),
    ],
)
def test_an_archive_without_a_window_is_no_success(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    numbers: list[int],
    window: str | None,
    code: int,
    words: str | None,
) -> None:
    write_series(tmp_path / "radar", numbers, size=(32, 32))
    command = ["knmi", str(tmp_path / "radar"), "--out", str(tmp_path / "out")]
    command += [] if window is None else ["--window", window]
    # The second call finds the archive complete, and it has no more windows then.
    for _ in range(2):
        assert main(command) == code
        errors = capsys.readouterr().err
        assert (words is None) == ("no window" not in errors)
        assert words is None or re.search(words, errors)
    # What was packed stays: shorter windows are read.
    assert count([str(tmp_path / "out"), "--window", "2"]) == 0
    assert re.search(r" [1-9]\d* windows", capsys.readouterr().out)


def test_a_damaged_ready_window_cannot_be_left_out(tmp_path: Path) -> None:
    windows = np.full((1, 2, 8, 8), 7, np.uint16)
    write_collected(tmp_path / "all.h5", {"train": (windows, np.array([[FIRST_S, FIRST_S + 600]]))})
    with pytest.raises(DataError, match="--skip-gaps") as caught:
        pack([tmp_path], tmp_path / "out", PackOptions(window=None), source=SmaatSource(group="train"))
    assert "--max-bad" not in str(caught.value)


@pytest.mark.parametrize(
    ("size", "options", "note"),
    [
        ((65, 96), [], "whole frames of 65 x 96 pixels; .* multiples of 32: --crop 0:64,0:96 is"),
        ((70, 70), ["--crop", "3:69,1:64"], "whole frames of 66 x 63 pixels; .*: --crop 3:67,1:33 is"),
        ((20, 64), [], "whole frames of 20 x 64 pixels; .*: a larger --crop is needed"),
        ((64, 96), [], None),
        ((65, 96), ["--tile", "32"], None),
    ],
)
def test_frames_that_cannot_be_trained_on_are_told_before_packing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], size: tuple[int, int], options: list[str], note: str | None
) -> None:
    write_series(tmp_path / "radar", range(3), size=size)
    command = ["knmi", str(tmp_path / "radar"), "--out", str(tmp_path / "out"), "--window", "2", *options]
    assert main(command) == 0
    errors = capsys.readouterr().err
    before = errors[: errors.index("packing:")]
    assert ("can be trained on" in before) == (note is not None)
    assert note is None or re.search(note, before)


def test_the_summary_says_what_its_shares_are_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_series(tmp_path / "radar", range(5, 8))
    command = ["knmi", str(tmp_path / "radar"), "--out", str(tmp_path / "out"), "--window", "2"]
    assert main(command) == 0
    written = capsys.readouterr().out
    assert "of valid pixels wet (above 0, so 0.12 mm/h or more), mean " in written
    assert "share of valid pixels by mm/h: below 0.1: " in written
    assert "sequences     1 of at most 144 frames in 1 shard\n" in written
    assert written.endswith(f"packed        {tmp_path / 'out'}\n")
    assert main(command) == 0
    assert capsys.readouterr().out.endswith(f"was complete already: {tmp_path / 'out'}\n")
