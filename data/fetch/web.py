"""HTTP through `requests`, whose requests are sent again within limits; the key goes to the API alone."""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

import requests
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3 import Retry
from urllib3.exceptions import HTTPError

from ..credentials import redact
from ..errors import DataError
from ..json_checks import shown

TIMEOUTS_S: Final = (20.0, 30.0)
"""For a connection, and for the next bytes."""
MAX_TRIES: Final = 8
PASSING_STATUSES: Final = frozenset({408, 425, 500, 502, 503, 504})
"""Answers that another try may not get."""
TOO_MANY_REQUESTS: Final = 429
MAX_JSON_BYTES: Final = 2**24
LOCAL_PREFIXES: Final = ("http://127.0.0.1:", "http://localhost:", "http://[::1]:")


class AnswerError(DataError):
    """A server's answer that another try would not change."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Web:
    """Sends GET requests to https:// addresses, from several threads; on this machine to http:// ones too.

    Args:
        api_url: The API's root.
        key: The API key; `json` sends it.
        patience_s: Seconds that one request may wait in all because the server says 429, too many requests.
        pause_s: Seconds that the pauses after failures begin with; they double up to a minute (60 times that).
    """

    def __init__(self, api_url: str, key: str, *, patience_s: float, pause_s: float = 1.0) -> None:
        self._key = key
        self._patience_s = patience_s
        # `other` are certificates that are not accepted.
        self.retries = Retry(
            total=MAX_TRIES - 1,
            other=0,
            status_forcelist=PASSING_STATUSES,
            raise_on_status=False,
            respect_retry_after_header=False,
            backoff_factor=pause_s,
            backoff_jitter=pause_s,
            backoff_max=60 * pause_s,
        )

        self._session = _Session()
        # Passwords of ~/.netrc shall not replace the key or go to other hosts.
        self._session.auth = lambda request: request
        self._session.headers.update({"Accept-Encoding": "identity", "User-Agent": "rainspark"})
        self._session.adapters.clear()
        for prefix in ("https://", *(prefix for prefix in LOCAL_PREFIXES if api_url.startswith(prefix))):
            self._session.mount(prefix, HTTPAdapter(max_retries=self.retries))

    def json(self, url: str, params: Mapping[str, str]) -> Any:
        """Ask the API for JSON of at most 16 MiB.

        Raises:
            AnswerError: Another answer than 200.
            DataError: No JSON, no answer within the limits, or an address that is not allowed.
        """
        with self.get(url, params, {"Authorization": self._key}) as response:
            try:
                return json.loads(response.raw.read(MAX_JSON_BYTES))
            except (HTTPError, ValueError, RecursionError):
                raise DataError(f"{redact(url)}: the answer is no JSON; is it the right address?") from None

    @contextmanager
    def get(self, url: str, params: Mapping[str, str], headers: Mapping[str, str]) -> Iterator[requests.Response]:
        """Open an answer; reading its `raw` raises urllib3's HTTPError where the connection is lost.

        Raises:
            AnswerError: An answer that is neither 200 nor 206.
            DataError: No answer within the limits, or an address that is not allowed.
        """
        # Quota: waited for as the server asks; urllib3 would count that among the failures.
        waited_s = 0.0
        while (response := self._send(url, params, headers)).status_code == TOO_MANY_REQUESTS:
            asked_s = None
            with response, suppress(HTTPError, ValueError):
                asked_s = self.retries.get_retry_after(response.raw)
            pause_s = self.retries.backoff_max if asked_s is None else max(asked_s, self.retries.backoff_factor)
            waited_s += pause_s
            if waited_s > self._patience_s:
                raise DataError(
                    f"{redact(url)}: too many requests (HTTP 429): it asks to wait {pause_s:.0f} s more, and "
                    f"{self._patience_s:.0f} s in all are allowed (--patience-min); the same command goes on later"
                )
            tqdm.write(f"quota used up (HTTP 429): waiting {pause_s:.0f} s, as the server asks", file=sys.stderr)
            time.sleep(pause_s)

        # What urllib3 has given up, and what it leaves to its caller.
        with response:
            status = response.status_code
            if status in PASSING_STATUSES:
                raise given_up(url, f"HTTP {status}")
            if status not in (200, 206):
                raise AnswerError(f"{redact(url)}: HTTP {status}", status)
            yield response

    def _send(self, url: str, params: Mapping[str, str], headers: Mapping[str, str]) -> requests.Response:
        # The libraries' own words hold the whole address, signature and all.
        try:
            return self._session.get(url, params=params, headers=headers, stream=True, timeout=TIMEOUTS_S)
        except requests.ConnectionError as error:
            raise given_up(url, f"no connection ({type(error).__name__})") from None
        except (requests.RequestException, HTTPError, ValueError) as error:
            problem = f"{redact(shown(url))}: could not be asked ({type(error).__name__})"
            raise DataError(f"{problem}; expected https://HOST/... (http:// on this machine only)") from None


class _Session(requests.Session):
    """Sends no password of ~/.netrc to whom a request is redirected."""

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        """Take the key off a request that was redirected to another host."""
        if self.should_strip_auth(response.url, prepared_request.url):  # type: ignore[no-untyped-call]
            prepared_request.headers.pop("Authorization", None)


def given_up(url: str, reason: str) -> DataError:
    """Word the error of a request that was sent again and again."""
    return DataError(f"{redact(url)}: given up after {MAX_TRIES} tries: {reason}; try again later")


def knock(address: str, timeout_s: float) -> None:
    """Find out whether there is a server, whatever it answers; proxies are taken from the environment.

    Args:
        address: of the server, http or https.
        timeout_s: that it has to answer; finding the address of a name comes on top.

    Raises:
        OSError: There is none, or it does not answer in time.
    """
    # Which certificates to trust is for whoever goes in; there is somebody.
    with suppress(requests.exceptions.SSLError):
        requests.get(address, timeout=timeout_s, stream=True, allow_redirects=False).close()
