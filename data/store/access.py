"""How an object store is opened: address, endpoint, credentials and time limits.

Credentials come from the environment variables that the stores' own tools use; none is kept here, none is looked for at
a cloud's metadata service unless the environment asks for it, since elsewhere that is a long silent wait.
"""

import os
import re
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, urlsplit

from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, HTTPStore, S3Store

from ..errors import DataError
from ..redaction import redact
from .names import check_name

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

Client = S3Store | GCSStore | AzureStore | HTTPStore

EXPECTED_ADDRESS: Final = "expected a path, file://, s3://, gs://, az:// or https://"
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,221}")
_LOCAL_HOSTS: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_YES: Final = frozenset({"1", "true", "on", "yes", "y"})
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


def open_access(url: str, limits: TimeLimits) -> Access:
    """Open a store by its address.

    Raises:
        DataError: A malformed address, one that holds credentials, an unknown scheme, missing or contradicting settings
            in the environment.
    """
    address = _split(url)
    if address.scheme in {"http", "https"}:
        return _open_web(address, limits)
    bucket, prefix = address.netloc, address.path.strip("/")
    shown = f"{address.scheme}://{bucket}" + (f"/{prefix}" if prefix else "")
    if not _BUCKET.fullmatch(bucket):
        raise DataError(f"{shown}: {bucket!r} is no bucket's name; expected {address.scheme}://BUCKET/PREFIX")
    if prefix:
        check_name(shown, prefix)
    _check_endpoint(address.scheme, shown)
    {"s3": _check_s3, "gs": _check_gs, "az": _check_az}[address.scheme](shown)
    allow_http = _endpoint(address.scheme).startswith("http://") or _emulated(address)
    patient = replace(limits, read_s=limits.request_s)

    def connect(limits: TimeLimits, retries: int) -> Client:
        options = _client_options(limits, allow_http=allow_http)
        retry = _retry_config(retries, limits)
        if address.scheme == "s3":
            # One DELETE an object: not every store of this kind knows the request for many.
            config = {"disable_bulk_delete": True}
            return S3Store(bucket, prefix=prefix or None, config=config, client_options=options, retry_config=retry)  # type: ignore[arg-type]
        if address.scheme == "gs":
            return GCSStore(bucket, prefix=prefix or None, client_options=options, retry_config=retry)
        return AzureStore(bucket, prefix=prefix or None, client_options=options, retry_config=retry)

    try:
        return Access(
            url=shown,
            client=connect(limits, 0),
            writer=connect(patient, 0),
            uploader=connect(patient, _UPLOAD_RETRIES),
            read_only=False,
            endpoint=redact(_endpoint(address.scheme)),
        )
    except (BaseError, ValueError, OSError) as error:
        # The page of Rust's debug output below the first line names settings.
        raise DataError(f"{shown}: the store cannot be opened: {redact(str(error).partition(chr(10))[0])}") from None


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


def _open_web(address: SplitResult, limits: TimeLimits) -> Access:
    url = address.geturl().rstrip("/")
    if not address.hostname:
        raise DataError(f"{url}: names no host; expected https://HOST/PATH")
    plain = address.scheme == "http"
    if plain and address.hostname not in _LOCAL_HOSTS and not _is_set("RAINSPARK_ALLOW_HTTP"):
        raise DataError(
            f"{url}: http:// is open to whoever listens or changes; expected https://, or set RAINSPARK_ALLOW_HTTP=1 "
            "for a network of your own"
        )
    options = _client_options(limits, allow_http=plain)
    try:
        client = HTTPStore(url, client_options=options, retry_config=_retry_config(0, limits))
    except (BaseError, ValueError, OSError) as error:
        raise DataError(f"{url}: cannot be opened: {redact(str(error).partition(chr(10))[0])}") from None
    return Access(url=url, client=client, writer=client, uploader=client, read_only=True)


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
    return next((value for name in _ENDPOINTS[scheme] if (value := os.environ.get(name, "").strip())), "")


def _check_endpoint(scheme: str, shown: str) -> None:
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


def _emulated(address: SplitResult) -> bool:
    return address.scheme == "az" and _is_set("AZURE_STORAGE_USE_EMULATOR")


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").strip().lower() in _YES


def _given(*names: str) -> bool:
    return any(os.environ.get(name, "").strip() for name in names)


def _check_s3(shown: str) -> None:
    if _is_set("AWS_SKIP_SIGNATURE") or _given(
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_METADATA_ENDPOINT",
    ):
        return
    missing = [name for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY") if not _given(name)]
    # AWS_EC2_METADATA_DISABLED is the AWS tools' own switch; said outright to be off, the machine's role is meant.
    if missing and os.environ.get("AWS_EC2_METADATA_DISABLED", "").strip().lower() != "false":
        raise DataError(
            f"{shown}: {' and '.join(missing)} not set in the environment; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY (with AWS_SESSION_TOKEN for temporary ones; `aws configure export-credentials "
            "--format env` prints those of a profile), or AWS_SKIP_SIGNATURE=true for a public bucket, or "
            "AWS_EC2_METADATA_DISABLED=false to use the role of the machine"
        )


def _check_gs(shown: str) -> None:
    default = Path.home() / ".config" / "gcloud" / "application_default_credentials.json"
    variables = ("GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH", "GOOGLE_APPLICATION_CREDENTIALS")
    if (
        _is_set("GOOGLE_SKIP_SIGNATURE")
        or _given(*variables, "GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_BEARER_TOKEN", "GCE_METADATA_HOST")
        or default.is_file()
    ):
        return
    raise DataError(
        f"{shown}: no credentials of Google in the environment; set GOOGLE_APPLICATION_CREDENTIALS or "
        "GOOGLE_SERVICE_ACCOUNT to the path of a key file (or run `gcloud auth application-default login`), or "
        "GOOGLE_SKIP_SIGNATURE=true for a public bucket, or GCE_METADATA_HOST to use the account of the machine"
    )


def _check_az(shown: str) -> None:
    if _is_set("AZURE_STORAGE_USE_EMULATOR"):
        return
    if not _given("AZURE_STORAGE_ACCOUNT_NAME"):
        raise DataError(
            f"{shown}: AZURE_STORAGE_ACCOUNT_NAME is not set in the environment; expected the account of the container"
        )
    if _is_set("AZURE_SKIP_SIGNATURE") or _is_set("AZURE_USE_AZURE_CLI"):
        return
    if not _given(
        *("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_MASTER_KEY"),
        *("AZURE_STORAGE_SAS_KEY", "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_TOKEN", "AZURE_FEDERATED_TOKEN_FILE"),
        *("AZURE_CLIENT_SECRET", "AZURE_STORAGE_CLIENT_SECRET", "AZURE_MSI_ENDPOINT", "AZURE_IDENTITY_ENDPOINT"),
    ):
        raise DataError(
            f"{shown}: no credentials of Azure in the environment; set AZURE_STORAGE_ACCOUNT_KEY, or "
            "AZURE_STORAGE_SAS_TOKEN, or AZURE_CLIENT_ID, AZURE_CLIENT_SECRET and AZURE_TENANT_ID, or "
            "AZURE_SKIP_SIGNATURE=true for a public container, or AZURE_IDENTITY_ENDPOINT for the machine's identity"
        )
