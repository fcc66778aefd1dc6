"""What the tests of all settings share: an archive, and what comes of the settings that they change one at a time."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fault_server import FaultServer, fault_server
from tests.integration.runs import make_shards

Observe = Callable[[list[str]], Any]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few hours of storms; most modules have their own."""
    return make_shards(tmp_path_factory.mktemp("storms"), hours=4)


@pytest.fixture(scope="module")
def baselines(
    request: pytest.FixtureRequest, shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Observe], Any]:
    """What each way to observe a run shows of the module's unchanged one: `arguments` with `SHORT`, once for each."""
    known: dict[Observe, Any] = {}

    def baseline(observe: Observe) -> Any:
        if observe not in known:
            folder = tmp_path_factory.mktemp("baseline")
            known[observe] = observe(request.module.arguments(shards, folder, **request.module.SHORT))
        return known[observe]

    return baseline


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultServer]:
    """Ranks that can be made to fail, for every module of a test process."""
    with fault_server(tmp_path_factory.mktemp("server"), "tests.integration.fault_tasks") as server:
        yield server
