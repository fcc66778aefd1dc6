"""Turn what a command line names into the places that sources search: paths, and objects of stores."""

import re
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from ..command import expand_home
from ..credentials import redact
from ..errors import DataError
from ..sequences import TimeSpan
from ..sources.files import Place
from ..sources.places.buckets import Bucket, ObjectStore
from ..store.storage import URL_SCHEME, open_storage

STORES: Final = ("s3", "gs", "az")
DEADLINE_S: Final = 300.0
"""Seconds after which an object that still cannot be read is given up, as everywhere (data.deadline_s)."""


def place_of(text: str, span: TimeSpan | None = None) -> Place:
    """Read a place: a path, file://PATH, or s3://, gs:// or az:// with a bucket and a prefix or pattern of keys.

    Args:
        text: As the user gives it.
        span: Times that are wanted, whose days are listed of a pattern with codes of days.

    Raises:
        DataError: An address that is mistyped, or of a web server, which cannot be listed.
    """
    match = URL_SCHEME.match(text)
    if match is None:
        # Nearly an address: refused there, before it is shown as a path.
        open_storage(text)
        return Path(expand_home(text))
    scheme = match.group(1).lower()
    rest = text[match.end() :]
    if scheme == "file":
        return Path(unquote(rest))
    if scheme not in STORES:
        raise DataError(
            f"{redact(text)} cannot be listed; expected files, folders, or s3://, gs:// or "
            "az://BUCKET/PREFIX-OR-PATTERN: fetch files of a web server first"
        )

    bucket, _, pattern = rest.partition("/")
    if not bucket or re.search(r"[@?#*%]", bucket) or "#" in pattern:
        raise DataError(
            f"{redact(text)}: expected {scheme}://BUCKET/PREFIX-OR-PATTERN, without user, password or fragment: "
            "credentials are taken from the environment"
        )
    return Bucket(address=f"{scheme}://{bucket}", pattern=pattern.lstrip("/"), span=span, open=_open)


def _open(address: str) -> ObjectStore:
    """Open a store, without a signature where the environment holds no credentials."""
    # Imported late: reading a folder needs no network library.
    from ..store.object_store import open_store

    return open_store(address, deadline_s=DEADLINE_S, may_be_public=True)
