"""Judge a failed request of an object store: try again, or raise an error that names what to change."""

import re
from collections.abc import Callable
from typing import Final, TypeVar

from obstore.exceptions import BaseError

from ..credentials import ADVICE, redact
from ..errors import DamagedError, DataError
from .retries import TransientError

RAISED_BY_OBSTORE: Final = (BaseError, OSError, ValueError)
_Result = TypeVar("_Result")
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z0-9.]{1,60})</Code>|\"code\": ?\"?([A-Za-z0-9]{1,60})")
_MESSAGE = re.compile(r"<Message>([^<]{1,300})</Message>")
# Codes that come with a status of the user's faults and are the network's: a body that was damaged or late.
_TRANSIENT_CODES: Final = frozenset(
    {"RequestTimeout", "BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"}
    | {"SlowDown", "OperationAborted", "ConditionalRequestConflict", "Md5Mismatch", "Crc64Mismatch", "ServerBusy"}
)
_TRANSIENT_STATUS: Final = frozenset({408, 425, 429, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524, 529, 599})
_SLOW_DOWN_STATUS: Final = frozenset({429, 503, 509, 529})
# What no second try changes, among the errors that carry no status: our own settings, certificates.
_LASTING = re.compile(
    r"builder error|URL scheme is not allowed|InvalidCertificate|certificate|InvalidUri|NotSupported"
    r"|not supported|invalid configuration|RangeNotSupported"
    r"|redirect without LOCATION|error following redirect|Received non-partial response|ETag Header missing"
    r"|object with invalid path"
)
# Codes of a credential that no longer holds, and of a clock that signs for another time, with whatever status.
_CLOCK_CODES: Final = frozenset({"RequestTimeTooSkewed", "RequestExpired"})
_ACCESS_CODES: Final = _CLOCK_CODES | {
    *("ExpiredToken", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId", "AuthorizationHeaderMalformed"),
    "AuthenticationFailed",
}
_ACCESS_ERRORS: Final = frozenset({"PermissionDeniedError", "UnauthenticatedError"})
_ADVICE: Final = {
    "without LOCATION": "the bucket lies in another region: set AWS_REGION to its own, and check the endpoint",
    "following redirect": "the way leads in circles, or to a page to log in: check the address and the endpoint",
    "InvalidCertificate": "check the address and this machine's clock; those of an authority of your own are read from "
    "the file that SSL_CERT_FILE names",
    "invalid path": "no file can be called so: remove that object, or choose a prefix of their own for your files",
    "Range request not supported": "expected a server that answers ranges (nginx, Apache, a store; `python -m "
    "http.server` does not): use one, or copy the files into a folder",
    "non-partial response": "expected the range that was asked for: check that the endpoint is a store's own",
    "ETag Header missing": "expected a store's answer: check that the endpoint is a store's own",
}
_SENT: Final = {
    "InvalidCertificate": "the server's certificate is not accepted",
    "ConnectionRefused": "the connection was refused",
    "ConnectionReset": "the connection was reset",
    "IncompleteBody": "the connection ended before all bytes had come",
    "IncompleteMessage": "the connection ended without an answer",
    "TimedOut": "no bytes came in time",
    "dns error": "the host's name was not found",
    "MissingContentLength": "the answer stated no length",
}


def status_of(error: Exception) -> int | None:
    """Find the HTTP status in an obstore error; None for one without an answer of the server."""
    match = _STATUS.search(str(error))
    return None if match is None else int(match.group(1))


def judged(where: str, action: str, attempt: Callable[[int], _Result]) -> Callable[[int], _Result]:
    """Wrap an attempt of data/store/retries.py, so that obstore's errors leave it judged."""

    def wrapped(failures: int) -> _Result:
        try:
            return attempt(failures)
        except DataError:
            raise
        except RAISED_BY_OBSTORE as error:
            raise judge(where, action, error) from None

    return wrapped


def judge(where: str, action: str, error: Exception) -> TransientError | DataError:
    """Turn an obstore error into one to try again after, or into one for the user.

    Args:
        where: The object, for messages.
        action: What was being done, as in "could not read".
        error: What obstore raised.
    """
    text = str(error)
    status = status_of(error)
    code = _code(text)
    reason = _reason(text, status, code)

    # What passes by itself.
    if code in _TRANSIENT_CODES or status in _TRANSIENT_STATUS:
        return TransientError(reason, slow_down=status in _SLOW_DOWN_STATUS or code in {"SlowDown", "ServerBusy"})

    # What is not there: a bucket, the place of a write, a file that an index may name.
    if isinstance(error, FileNotFoundError) or status == 404:
        if code in {"NoSuchBucket", "ContainerNotFound"}:
            return DataError(
                f"{where}: could not {action}: there is no such bucket ({code}); create it, or check the address"
            )
        if action != "read":
            return DataError(f"{where}: could not {action}: status 404, there is no such place; check the address")
        return DamagedError(f"{where}: could not {action}: no such object; check the address")

    if status in {401, 403} or code in _ACCESS_CODES or type(error).__name__ in _ACCESS_ERRORS:
        clock = "this machine's clock, " if code in _CLOCK_CODES else ""
        return DataError(
            f"{where}: could not {action}: the store refuses access: {reason}; check {clock}the rights on this object "
            f"and the credentials in the environment: {ADVICE.get(where.partition(':')[0], 'none are sent')}"
        )

    # Without a status no server has answered.
    if status is None and not _LASTING.search(text):
        return TransientError(reason)
    advice = next(
        (words for mark, words in _ADVICE.items() if mark in text), "check the address and the store's settings"
    )
    return DataError(f"{where}: could not {action}: {reason}; {advice}")


def _code(text: str) -> str | None:
    match = _CODE.search(text)
    return None if match is None else match.group(1) or match.group(2)


def _reason(text: str, status: int | None, code: str | None) -> str:
    """Shorten obstore's page of text to a few words; of the server's own, only those of the fields meant for that."""
    if status is None:
        for mark, words in _SENT.items():
            if mark in text:
                return words
        first_line = text.partition("\n")[0]
        return redact(re.sub(r"^Generic \w+ error: ", "", first_line))[:300]

    message = _MESSAGE.search(text)
    facts = [f"status {status}", code, message.group(1).strip() if message else ""]
    return redact(", ".join(fact for fact in facts if fact))
