"""How an object store is opened: address, endpoint, credentials and time limits.

Credentials come from the environment (data/credentials.py); none is kept here, and none is looked for at a cloud's
metadata service unless the environment asks for it, since elsewhere that is a long silent wait.
"""

import re
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import SplitResult, urlsplit

from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, HTTPStore, S3Store

from ..credentials import check_credentials, has_credentials, is_on, redact, variable
from ..errors import DataError
from .names import check_name

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

Client = S3Store | GCSStore | AzureStore | HTTPStore
_KINDS: Final = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}

EXPECTED_ADDRESS: Final = "expected a path, file://, s3://, gs://, az:// or https://"
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,221}")
_LOCAL_HOSTS: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_UPLOAD_RETRIES: Final = 10
_ENDPOINTS: Final = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}


@dataclass(frozen=True, kw_only=True)
class TimeLimits:
    """Seconds that a client waits.

    Attributes:
        connect_s: For a connection.
        read_s: For the next bytes.
        request_s: For a whole request.
    """

    connect_s: float
    read_s: float
    request_s: float


@dataclass(frozen=True, kw_only=True)
class Access:
    """An opened store.

    Attributes:
        url: Its address, as messages name it.
        client: Sends every request once: what is repeated, and when, is decided by data/store/retries.py.
        writer: The same for writes: while a body is sent, no byte comes back, and that is no silence.
        uploader: Repeats the parts of a large upload by itself: one failed part of a hundred must not cost all of them.
        read_only: A web server: it cannot be listed either.
        endpoint: What the environment says is asked in place of the store's usual hosts, for messages; else "".
    """

    url: str
    client: Client
    writer: Client
    uploader: Client
    read_only: bool
    endpoint: str = ""


def open_access(url: str, limits: TimeLimits, *, may_be_public: bool = False) -> Access:
    """Open a store by its address; where it may be public, without a signature if the environment holds no credentials.

    Raises:
        DataError: A malformed address, one that holds credentials, an unknown scheme, missing or contradicting settings
            in the environment.
    """
    address = _split(url)
    read_only = address.scheme in {"http", "https"}
    kind: Any = HTTPStore
    if read_only:
        shown = _check_web(address)
        where: dict[str, Any] = {"url": shown}
        allow_http = address.scheme == "http"
    else:
        kind = _KINDS[address.scheme]
        is_public = may_be_public and not has_credentials(address.scheme)
        shown, prefix = _check_bucket(address, is_public=is_public)
        # One DELETE an object: not every store of this kind knows the request for many.
        config: dict[str, Any] = {"disable_bulk_delete": True} if address.scheme == "s3" else {}
        if is_public:
            config["skip_signature"] = True
        where = {"bucket": address.netloc, "prefix": prefix or None, "config": config or None}
        emulated = address.scheme == "az" and is_on("AZURE_STORAGE_USE_EMULATOR")
        allow_http = emulated or _endpoint(address.scheme).startswith("http://")

    def connect(limits: TimeLimits, retries: int) -> Client:
        options = _client_options(limits, allow_http=allow_http)
        return kind(**where, client_options=options, retry_config=_retry_config(retries, limits))

    # While a body is sent, no byte comes back.
    patient = replace(limits, read_s=limits.request_s)
    try:
        return Access(
            url=shown,
            client=connect(limits, 0),
            writer=connect(patient, 0),
            uploader=connect(patient, _UPLOAD_RETRIES),
            read_only=read_only,
            endpoint="" if read_only else redact(_endpoint(address.scheme)),
        )
    except (BaseError, ValueError, OSError) as error:
        # The page of Rust's debug output below the first line names settings.
        raise DataError(f"{shown}: the store cannot be opened: {redact(str(error).partition(chr(10))[0])}") from None


def _check_bucket(address: SplitResult, *, is_public: bool) -> tuple[str, str]:
    """Check bucket, prefix, endpoint and credentials of a store; gives its address for messages, and the prefix."""
    bucket = address.netloc
    prefix = address.path.strip("/")
    shown = f"{address.scheme}://{bucket}" + (f"/{prefix}" if prefix else "")
    if not _BUCKET.fullmatch(bucket):
        raise DataError(f"{shown}: {bucket!r} is no bucket's name; expected {address.scheme}://BUCKET/PREFIX")
    if prefix:
        check_name(shown, prefix)
    _check_endpoint(address.scheme, shown)
    if not is_public:
        check_credentials(address.scheme, shown)
    return shown, prefix


def _split(url: str) -> SplitResult:
    try:
        address = urlsplit(url)
        _ = address.port
    except ValueError as error:
        raise DataError(f"{redact(url)}: is no address: {error}; {EXPECTED_ADDRESS}") from None
    if address.scheme not in {"s3", "gs", "az", "http", "https"}:
        raise DataError(f"{redact(url)}: {address.scheme}:// is not known; {EXPECTED_ADDRESS}")
    if "@" in address.netloc or "?" in url or "#" in url:
        raise DataError(
            f"{redact(url)}: holds a user, a password, a query or a fragment; expected a plain address: credentials "
            "are taken from the environment, and signed addresses do not last as long as a run"
        )
    return address


def _check_web(address: SplitResult) -> str:
    """Check the address of a web server; gives it for messages."""
    url = address.geturl().rstrip("/")
    if not address.hostname:
        raise DataError(f"{url}: names no host; expected https://HOST/PATH")
    if address.scheme == "http" and address.hostname not in _LOCAL_HOSTS and not is_on("RAINSPARK_ALLOW_HTTP"):
        raise DataError(
            f"{url}: http:// is open to whoever listens or changes; expected https://, or set RAINSPARK_ALLOW_HTTP=1 "
            "for a network of your own"
        )
    return url


def _client_options(limits: TimeLimits, *, allow_http: bool) -> "ClientConfig":
    return {
        "allow_http": allow_http,
        "connect_timeout": timedelta(seconds=limits.connect_s),
        "read_timeout": timedelta(seconds=limits.read_s),
        "timeout": timedelta(seconds=limits.request_s),
    }


def _retry_config(retries: int, limits: TimeLimits) -> "RetryConfig":
    return {
        "max_retries": retries,
        "retry_timeout": timedelta(seconds=limits.request_s * 2 if retries else 0),
        "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=10), "base": 2},
    }


def _endpoint(scheme: str) -> str:
    """The endpoint that the environment names; empty where it names none."""
    return next((value for name in _ENDPOINTS[scheme] if (value := variable(name))), "")


def _check_endpoint(scheme: str, shown: str) -> None:
    # What obstore makes of a malformed endpoint names neither the variable nor the value.
    endpoint = _endpoint(scheme)
    if not endpoint:
        return
    try:
        parts = urlsplit(endpoint)
        whole = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        whole = False
    if not whole or "@" in endpoint or "?" in endpoint or re.search(r"[\s<>\"{}|\\^`]", endpoint):
        raise DataError(
            f"{shown}: the endpoint in {' or '.join(_ENDPOINTS[scheme])} is {redact(endpoint)!r}; expected "
            "https://HOST or https://HOST:PORT (http:// is taken as it is meant)"
        )
