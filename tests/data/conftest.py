"""Fixtures for the tests of this room."""

import threading
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def no_threads_left() -> Iterator[None]:
    """Check after every test that no thread of ours runs on."""
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("rainspark")] == []
