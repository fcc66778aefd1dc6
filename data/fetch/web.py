"""HTTP through `requests`: answers checked, tried again within limits, and a key that no other host gets to see."""

import contextlib
import email.utils
import json
import os
import random
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import SplitResult, urljoin, urlsplit

import requests
import urllib3

from ..errors import DataError
from ..json_checks import shown

CONNECT_TIMEOUT_S: Final = 20.0
READ_TIMEOUT_S: Final = 30.0
MAX_FAULTS: Final = 8
"""Tries in a row that bring nothing before a request is given up: two to four minutes with the pauses between them."""
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0
MAX_REDIRECTS: Final = 5
MAX_JSON_BYTES: Final = 2**24
PIECE_BYTES: Final = 2**18
PASSING_STATUSES: Final = frozenset({408, 425, 500, 502, 503, 504})
"""Answers that another try may not get; 429 is handled apart."""
LOCAL_HOSTS: Final = frozenset({"127.0.0.1", "::1", "localhost"})


class AnswerError(DataError):
    """A server's answer that another try would not change."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class StoppedError(Exception):
    """Wakes a thread that waits or reads while everything is being stopped; never seen outside."""


class FaultError(Exception):
    """What another try may cure; its text holds no address."""


@dataclass(frozen=True)
class Body:
    """The body of an answer while it is read.

    Attributes:
        status: 200, or 206 for the rest of a file.
        headers: Names in any case.
        pieces: Its bytes; a FaultError where the connection is lost.
    """

    status: int
    headers: Mapping[str, str]
    pieces: Iterator[bytes]


class Web:
    """Sends GET requests, from several threads.

    Args:
        key: Value of the Authorization header; "" for none.
        key_url: The one address (scheme, host and port of it) that gets the key.
        patience_s: Seconds that one request may wait in all for a server that says 429, too many requests.
        first_pause_s: Longest pause after a first fault; it doubles up to a minute, and each pause is drawn between 0
            and that ("full jitter": M. Brooker, Exponential Backoff And Jitter, AWS Architecture Blog, 2015).
        say: Gets a line for people when a wait is longer than a few seconds.
    """

    def __init__(
        self,
        *,
        key: str,
        key_url: str,
        patience_s: float,
        say: Callable[[str], None],
        first_pause_s: float = FIRST_PAUSE_S,
    ) -> None:
        self._key, self._key_place = key, _place(_split(key_url))
        self._local = _place(_split(key_url))[1] in LOCAL_HOSTS
        self._patience_s, self._first_pause_s, self._say = patience_s, first_pause_s, say
        self._stopped = threading.Event()
        self._sessions = threading.local()
        self._open_responses: set[requests.Response] = set()
        self._free_at_s = 0.0
        # Pauses need no repeatable numbers, only different ones in every process.
        self._random = random.Random(os.urandom(16))
        check_address(key_url, self._local)

    def stop(self) -> None:
        """Let every wait and read end soon, with a StoppedError in its thread."""
        self._stopped.set()
        for response in tuple(self._open_responses):
            # Wakes a thread that waits for bytes; without it (urllib3 before 2.3) the thread waits for its timeout.
            with contextlib.suppress(AttributeError, ValueError, OSError):
                response.raw.shutdown()

    def json(self, url: str, params: Mapping[str, str]) -> Any:
        """Ask for JSON of at most 16 MiB.

        Raises:
            AnswerError: Another answer than 200.
            DataError: No JSON, no answer within the limits, or an address that is not allowed.
        """

        def once() -> Any:
            with self._open(url, params, 0) as body:
                data = b""
                for piece in body.pieces:
                    data += piece
                    if len(data) > MAX_JSON_BYTES:
                        raise DataError(
                            f"{shown_url(url)}: an answer of more than {MAX_JSON_BYTES} bytes; expected JSON"
                        )
            length = body.headers.get("Content-Length", str(len(data)))
            if length != str(len(data)):
                raise FaultError(f"the answer ended after {len(data)} of {shown(length)} bytes")
            return data

        data = self._patiently(url, once)
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise DataError(
                f"{shown_url(url)}: the answer is no JSON; is it the address of the right service?"
            ) from None

    @contextmanager
    def body(self, url: str, start: int = 0) -> Iterator[Body]:
        """Open the body of a file from a byte on (status 206, if the server can; from the first, status 200, if not).

        Raises:
            AnswerError: An answer that is neither.
            DataError: No answer within the limits, or an address that is not allowed.
        """
        with contextlib.ExitStack() as stack:
            yield self._patiently(url, lambda: stack.enter_context(self._open(url, {}, start)))

    def pause(self, num_faults: int, url: str, reason: str) -> None:
        """Wait before another try.

        Raises:
            DataError: There were too many faults in a row.
        """
        if num_faults >= MAX_FAULTS:
            raise DataError(f"{shown_url(url)}: given up after {num_faults} tries: {reason}; try again later")
        longest_s = min(LONGEST_PAUSE_S, self._first_pause_s * 2 ** (num_faults - 1))
        wait_s = self._random.uniform(0, longest_s)
        if longest_s > 5:
            self._say(f"{shown_url(url)}: {reason}, {num_faults} times; trying again in {wait_s:.0f} s")
        self._wait(wait_s)

    def _wait(self, wait_s: float) -> None:
        if self._stopped.wait(max(wait_s, 0.0)):
            raise StoppedError

    def _patiently(self, url: str, once: Callable[[], Any]) -> Any:
        """Try until it works; faults are counted, waits for quota are added up."""
        num_faults, num_refused, waited_s = 0, 0, 0.0
        while True:
            keyed = _place(_split(url)) == self._key_place
            if keyed:
                self._wait(self._free_at_s - time.monotonic())
            try:
                return once()
            except FaultError as fault:
                num_faults += 1
                self.pause(num_faults, url, str(fault))
            except _QuotaError as refused:
                num_refused += 1
                drawn_s = self._random.uniform(0, min(LONGEST_PAUSE_S, self._first_pause_s * 2 ** min(num_refused, 10)))
                wait_s = drawn_s if refused.after_s is None else refused.after_s
                waited_s += wait_s
                if waited_s > self._patience_s:
                    raise DataError(
                        f"{shown_url(url)}: too many requests (HTTP 429): it asks to wait {wait_s:.0f} s more, and "
                        f"{self._patience_s:.0f} s in all are allowed (--patience-min); the same command goes on later"
                    ) from None
                if wait_s > 5:
                    self._say(f"quota used up (HTTP 429): waiting {wait_s:.0f} s, as the server asks")
                if keyed:
                    self._free_at_s = max(self._free_at_s, time.monotonic() + wait_s)
                self._wait(wait_s)

    @contextmanager
    def _open(self, url: str, params: Mapping[str, str], start: int) -> Iterator[Body]:
        """Send one request, follow its redirects, and judge the answer."""
        for _ in range(MAX_REDIRECTS + 1):
            check_address(url, self._local)
            response = self._send(url, params, start)
            self._open_responses.add(response)
            try:
                if response.status_code in (301, 302, 303, 307, 308):
                    url, params = urljoin(url, response.headers.get("Location", "")), {}
                    continue
                self._judge(response, url, start)
                yield Body(response.status_code, response.headers, self._pieces(response))
                return
            finally:
                self._open_responses.discard(response)
                response.close()
        raise DataError(
            f"{shown_url(url)}: more than {MAX_REDIRECTS} redirects; is it the address of the right service?"
        )

    def _send(self, url: str, params: Mapping[str, str], start: int) -> requests.Response:
        headers = {"Accept-Encoding": "identity", "User-Agent": "rainspark"}
        if start:
            headers["Range"] = f"bytes={start}-"
        if self._key and _place(_split(url)) == self._key_place:
            headers["Authorization"] = self._key
        if self._stopped.is_set():
            raise StoppedError
        try:
            return self._session().get(
                url, params=params, headers=headers, stream=True, allow_redirects=False,
                timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
            )  # fmt: skip
        # The libraries' own words hold the whole address, signature and all.
        except requests.Timeout:
            raise FaultError("no answer in time") from None
        except requests.exceptions.SSLError:
            raise DataError(f"{shown_url(url)}: its certificate is not accepted; check the address and clock") from None
        except requests.exceptions.ProxyError:
            raise FaultError("the proxy (HTTPS_PROXY) does not answer") from None
        except requests.ConnectionError:
            raise FaultError("no connection") from None
        except (requests.RequestException, ValueError, urllib3.exceptions.HTTPError) as error:
            raise DataError(f"{shown_url(url)}: could not be asked ({type(error).__name__})") from None

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._sessions, "session", None)
        if session is None:
            session = self._sessions.session = requests.Session()
            # Proxies come from the environment; passwords of ~/.netrc shall not replace the key or go to other hosts.
            session.auth = _unchanged
        return session

    def _judge(self, response: requests.Response, url: str, start: int) -> None:
        status = response.status_code
        if status == 200 or (status == 206 and start):
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise DataError(f"{shown_url(url)}: sends an encoded body that was not asked for; expected it as it is")
            return
        if status == 429:
            raise _QuotaError(_seconds_of(response.headers.get("Retry-After")))
        if status in PASSING_STATUSES:
            raise FaultError(f"HTTP {status}")
        raise AnswerError(f"{shown_url(url)}: HTTP {status}{self._said(response)}", status)

    def _said(self, response: requests.Response) -> str:
        """Give what the API says in {"error": ...} or {"message": ...}, without the key."""
        with contextlib.suppress(ValueError, RecursionError, FaultError, AttributeError):
            values = json.loads(next(self._pieces(response), b"")[:65536])
            text = str(values.get("error") or values.get("message") or "")
            return f" ({shown(text.replace(self._key, '***') if self._key else text)})" if text else ""
        return ""

    def _pieces(self, response: requests.Response) -> Iterator[bytes]:
        """Give the bytes as they came: a body that claims to be compressed stays so."""
        try:
            for piece in response.raw.stream(PIECE_BYTES, decode_content=False):
                if self._stopped.is_set():
                    raise StoppedError
                yield piece
            if self._stopped.is_set():
                raise StoppedError
        except (urllib3.exceptions.HTTPError, OSError):
            if self._stopped.is_set():
                raise StoppedError from None
            raise FaultError("the connection was lost in the middle") from None


class _QuotaError(Exception):
    """The server says 429: too many requests."""

    def __init__(self, after_s: float | None) -> None:
        super().__init__("too many requests")
        self.after_s = after_s


def knock(address: str, timeout_s: float) -> None:
    """Find out whether there is a server, whatever it answers; proxies are taken from the environment.

    Args:
        address: of the server, http or https.
        timeout_s: that it has to answer; finding the address of a name comes on top.

    Raises:
        OSError: There is none, or it does not answer in time.
    """
    try:
        with urllib.request.urlopen(address, timeout=timeout_s):
            pass
    except urllib.error.HTTPError:
        pass
    except urllib.error.URLError as error:
        # Which certificates to trust is for whoever goes in; there is somebody.
        if not isinstance(error.reason, ssl.SSLError):
            raise


def check_address(url: str, local: bool) -> None:
    """Refuse an address that is not https; http only on this machine, for one that began there.

    Raises:
        DataError: Naming it.
    """
    parts = _split(url)
    scheme, host, _ = _place(parts)
    allowed = scheme == "https" or (scheme == "http" and local and host in LOCAL_HOSTS)
    if not (allowed and host) or parts.username or parts.password:
        raise DataError(
            f"{shown_url(url)}: this address is not allowed; expected https://HOST/... without a user name "
            "(http:// on this machine only)"
        )


def shown_url(url: str) -> str:
    """Write an address for people: no user, password, query (it may be signed) or fragment."""
    try:
        scheme, host, port = _place(urlsplit(url))
        path = urlsplit(url).path
    except ValueError:
        return "an address that is none"
    return f"{shown(scheme)}://{shown(host)}{'' if port is None else f':{port}'}{shown(path)}"


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        raise DataError("an address that is none; expected https://HOST/...") from None


def _place(parts: SplitResult) -> tuple[str, str, int | None]:
    try:
        port = parts.port
    except ValueError:
        raise DataError("an address with a port that is no number; expected https://HOST/...") from None
    usual = {"https": 443, "http": 80}.get(parts.scheme)
    return parts.scheme, parts.hostname or "", None if port == usual else port


def _seconds_of(text: str | None) -> float | None:
    """Read Retry-After: seconds or a date (RFC 9110, 10.2.3); None for neither."""
    if text is None:
        return None
    if text.strip().isascii() and text.strip().isdigit() and len(text) < 12:
        return float(text)
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None


def _unchanged(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request
