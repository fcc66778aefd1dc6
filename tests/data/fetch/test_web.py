"""Addresses that a server sends, or a user types, and that are none."""

import pytest

from rainspark.data.errors import DataError
from rainspark.data.fetch.web import StoppedError, Web, check_address


def web(url: str) -> Web:
    return Web(key="CANARYKEY", key_url=url, patience_s=1, say=lambda _: None)


@pytest.mark.parametrize("address", ["https://[x/CANARY", "https://[::1/?sig=CANARY", "https://h:CANARY/"])
def test_an_address_that_is_none_is_told_without_its_words(address: str) -> None:
    asker = web("https://127.0.0.1:1/api")
    for ask in (lambda: web(address), lambda: check_address(address, True), lambda: asker.json(address, {})):
        with pytest.raises(
            DataError, match=r"an address (that is none|with a port that is no number); expected"
        ) as told:
            ask()
        assert "CANARY" not in str(told.value)


def test_a_long_pause_is_told() -> None:
    lines: list[str] = []
    asker = Web(key="CANARYKEY", key_url="https://127.0.0.1:1/api", patience_s=1, say=lines.append)
    asker.stop()
    for num_faults in (1, 5):
        with pytest.raises(StoppedError):
            asker.pause(num_faults, "https://127.0.0.1:1/api?sig=CANARY", "no connection")
    assert len(lines) == 1
    assert lines[0].startswith("https://127.0.0.1:1/api: no connection, 5 times; trying again in ")
