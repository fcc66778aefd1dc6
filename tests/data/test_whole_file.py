import os
from pathlib import Path

import pytest

from rainspark.data.whole_file import write_whole, writing_whole


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_is_replaced_whole(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "a"
    write_whole(path, b"old", durable=durable)
    with writing_whole(path, durable=durable) as file:
        file.write(b"ne")
        file.flush()
        assert path.read_bytes() == b"old"
        file.write(b"w")
    assert path.read_bytes() == b"new"
    assert _names(tmp_path) == ["a"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


@pytest.mark.parametrize("error", [OSError("disk"), KeyboardInterrupt()])
def test_an_error_leaves_what_was_there(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "a").write_bytes(b"old")
    for name in ("a", "b"):
        with pytest.raises(type(error)):
            _write_half(tmp_path / name, error)
    assert _names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def _write_half(path: Path, error: BaseException) -> None:
    with writing_whole(path) as file:
        file.write(b"half")
        raise error


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
