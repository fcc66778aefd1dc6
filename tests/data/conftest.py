"""Fixtures for the tests of this room."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.radar_files import NUMBERS, write_series


@pytest.fixture(autouse=True)
def no_threads_left() -> Iterator[None]:
    """Check after every test that no thread of ours runs on."""
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("rainspark")] == []


@pytest.fixture(scope="module")
def radar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a series with two gaps."""
    folder = tmp_path_factory.mktemp("radar")
    write_series(folder, NUMBERS)
    return folder
