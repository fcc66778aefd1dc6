"""Addresses that a server sends, or a user types, and that are refused."""

import pytest

from rainspark.data.errors import DataError
from rainspark.data.fetch.web import Web


@pytest.mark.parametrize(
    "address",
    [
        "https://[x/?sig=CANARY",
        "https://me:CANARY@[::1/",
        "https://h:port/?sig=CANARY",
        "http://127.0.0.1/?sig=CANARY",
        "ftp://h/?sig=CANARY",
        "?sig=CANARY",
    ],
)
def test_an_address_that_is_none_is_shown_without_its_secrets(address: str) -> None:
    web = Web("https://127.0.0.1:1/api", "CANARYKEY", patience_s=1)
    with pytest.raises(DataError, match=r"could not be asked .*; expected https://HOST/") as caught:
        web.json(address, {})
    assert "CANARY" not in str(caught.value)
