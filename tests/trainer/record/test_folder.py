"""The folder of a run: what cannot be made or written is named, in words."""

import errno
from pathlib import Path

import pytest

from rainspark.data.errors import ConfigError
from rainspark.models.weights.manifest import CheckpointError
from rainspark.trainer.record.folder import check_name, hold, writing


@pytest.mark.parametrize("folder", [Path("/proc/run"), Path("/dev/null/run")])
def test_a_folder_that_cannot_be_made_is_named(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"run\.dir {folder} cannot be written: .*; choose another") as error:
        hold(folder)
    assert "Errno" not in str(error.value)


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_a_file_of_it_that_cannot_be_written_is_named_too(tmp_path: Path, number: int) -> None:
    failure = OSError(number, "the system's words", str(tmp_path / "config.yaml"))
    with (
        pytest.raises(
            CheckpointError, match=rf"run\.dir {tmp_path} .*: the system's words \({tmp_path}/config.yaml\);"
        ),
        writing(tmp_path),
    ):
        raise failure


def test_one_run_holds_its_folder(tmp_path: Path) -> None:
    check_name(tmp_path / "run")
    with hold(tmp_path / "run"), pytest.raises(CheckpointError, match="another run is at work there"):
        hold(tmp_path / "run")
    hold(tmp_path / "run").close()
    check_name(tmp_path / "run")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match=r"file is a file; it is the folder of the run"):
        check_name(tmp_path / "file")
