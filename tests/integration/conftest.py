"""What whole runs share: archives of synthetic storms, and ranks that can be made to fail."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fault_server import FaultServer, fault_server
from tests.integration.runs import make_shards

DEFAULT_HOURS = 4


@pytest.fixture(scope="session")
def pack_storms(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return the shards of so many hours of storms, frames of so many pixels a side, each packed once."""
    packed: dict[tuple[float, int], Path] = {}

    def pack(hours: float = DEFAULT_HOURS, size: int = 64) -> Path:
        if (hours, size) not in packed:
            packed[hours, size] = make_shards(tmp_path_factory.mktemp("storms"), hours=hours, size=size)
        return packed[hours, size]

    return pack


@pytest.fixture(scope="module")
def shards(request: pytest.FixtureRequest, pack_storms: Callable[..., Path]) -> Path:
    """Give the shards of as many hours of storms as the module states as HOURS; nobody changes them."""
    return pack_storms(getattr(request.module, "HOURS", DEFAULT_HOURS))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultServer]:
    """Ranks that can be made to fail, for every module of a test process."""
    with fault_server(tmp_path_factory.mktemp("server"), "tests.integration.faults") as server:
        yield server
