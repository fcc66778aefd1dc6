"""KNMI's Open Data API: which files a dataset has, what times their names say, and where each can be had.

Source: KNMI Data Platform, Open Data API (https://developer.dataplatform.knmi.nl/open-data-api).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import quote

from ..errors import DataError
from ..json_checks import shown
from ..sequences import TimeSpan
from .web import AnswerError, Web, shown_url

API_URL: Final = "https://api.dataplatform.knmi.nl/open-data"
KEY_VARIABLE: Final = "KNMI_API_KEY"
KEY_ADVICE: Final = (
    "ask for a free one at https://developer.dataplatform.knmi.nl/open-data-api (registered: 1000 requests an hour; "
    f"that page shows a public anonymous one too) and set it: export {KEY_VARIABLE}=..."
)
PAGE_FILES: Final = 1000
MAX_PAGES: Final = 10_000
MAX_FILE_BYTES: Final = 2**42
# Names become files of the user's disk: no folders, nothing hidden, nothing that steers a terminal.
FILE_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
SPAN: Final = re.compile(r"_(\d{8})T?(\d{6})_(\d{8})T?(\d{6})(?=[_.])", re.ASCII)
TIME: Final = re.compile(r"_(\d{8})T?(\d{4}(?:\d{2})?)(?=[_.])", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A dataset of KNMI that is known here.

    Attributes:
        version: Its version.
        what: One file of it, for people.
        prefix: What comes before the time in its files' names, if they sort by time.
    """

    version: str
    what: str
    prefix: str


DATASETS: Final[Mapping[str, Dataset]] = {
    "nl_rdr_data_rtcor_5m_tar": Dataset(
        version="1.0", what="a tar of 288 composites, 08:05 to 08:00 UTC", prefix="RAD25_OPER_R___TARRRT__L2__"
    ),
    "nl_rdr_data_rtcor_5m": Dataset(version="1.0", what="one 5-minute composite", prefix="RAD_NL25_RAC_RT_"),
    "rad_nl25_rac_mfbs_5min": Dataset(
        version="2.0", what="a zip of a year's composites", prefix="RADNL_CLIM____MFBSNL25_05m_"
    ),
    "radar_forecast": Dataset(version="2.0", what="one 2-hour forecast", prefix="RAD_NL25_RAC_FM_"),
}


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file as the API lists it: its name, length in bytes, and when it was last changed, as the server writes it."""

    name: str
    num_bytes: int
    modified: str


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The files of a time span, in the order of their names, and how many names hold no time that can be read."""

    files: tuple[RemoteFile, ...]
    num_untimed: int


class KnmiApi:
    """One dataset of the API.

    Args:
        web: Sends the requests, with the key.
        url: The API's root.
        dataset: Its name.
        version: Its version.

    Raises:
        DataError: A name or version that is none.
    """

    def __init__(self, web: Web, url: str, dataset: str, version: str) -> None:
        for what, text in (("dataset", dataset), ("version", version)):
            if FILE_NAME.fullmatch(text) is None:
                raise DataError(f"{what} {shown(text)!r}: expected a name such as nl_rdr_data_rtcor_5m_tar, 1.0")
        self._web, self._dataset, self._version = web, dataset, version
        self._files_url = f"{url.rstrip('/')}/v1/datasets/{dataset}/versions/{version}/files"
        self._shown = shown_url(self._files_url)

    def list_files(self, span: TimeSpan) -> Listing:
        """List the files that hold frames of a time span, page by page.

        Raises:
            DataError: The API refuses, or its answers are not what its manual says.
        """
        params = {"maxKeys": str(PAGE_FILES), "orderBy": "filename", "sorting": "asc"}
        prefix = DATASETS[self._dataset].prefix if self._dataset in DATASETS else ""
        if prefix:
            # A file begins a year before its last frame at most, so earlier names need not be listed.
            begin = datetime.fromtimestamp(span.start_s, UTC) - timedelta(days=370)
            params["begin"] = f"{prefix}{begin:%Y%m%d}"
        found: dict[str, RemoteFile] = {}
        num_untimed, last, tokens = 0, "", set[str]()
        for _ in range(MAX_PAGES):
            page = self._page(params)
            for entry in page["files"]:
                file = _remote_file(entry, self._shown)
                if found.setdefault(file.name, file) != file:
                    raise DataError(f"{self._shown}: {file.name} was replaced while it was listed; start again")
            token = page.get("nextPageToken")
            names = [entry["filename"] for entry in page["files"]]
            rising = all(a < b for a, b in zip([last, *names], names, strict=False))
            last = names[-1] if names else last
            if not page["isTruncated"] or (prefix and rising and self._is_past(prefix, last, span)):
                break
            if not isinstance(token, str) or not token or token in tokens or not names:
                raise DataError(
                    f"{self._shown}: the list goes on (isTruncated), but nextPageToken is "
                    f"{'a repeated one' if token in tokens else type(token).__name__}; expected a new one: start again"
                )
            tokens.add(token)
            params["nextPageToken"] = token
        else:
            raise DataError(f"{self._shown}: more than {MAX_PAGES} pages of files; expected fewer")
        wanted = []
        for file in found.values():
            times = times_of_name(file.name)
            if times is None:
                num_untimed += 1
            elif times[0] < span.stop_s and times[1] >= span.start_s:
                wanted.append(file)
        return Listing(files=tuple(sorted(wanted, key=lambda file: file.name)), num_untimed=num_untimed)

    def download_url(self, name: str) -> str:
        """Ask for the temporary address of a file.

        Raises:
            DataError: The API refuses, or gives none.
        """
        answer = self._ask(f"{self._files_url}/{quote(name, safe='')}/url", {})
        url = answer.get("temporaryDownloadUrl") if isinstance(answer, dict) else None
        if not isinstance(url, str) or not url.isprintable() or len(url) > 16_384:
            raise DataError(f"{self._shown}/{name}/url: the answer holds no temporaryDownloadUrl; expected one")
        return url

    def _page(self, params: Mapping[str, str]) -> dict[str, Any]:
        page = self._ask(self._files_url, params)
        good = (
            isinstance(page, dict)
            and isinstance(page.get("files"), list)
            and isinstance(page.setdefault("isTruncated", False), bool)
        )
        if not good:
            raise DataError(f"{self._shown}: the answer is no list of files; is it the address of the right service?")
        return dict(page)

    def _ask(self, url: str, params: Mapping[str, str]) -> Any:
        try:
            return self._web.json(url, params)
        except AnswerError as error:
            advice = {
                400: "; check --dataset and --version",
                401: f"; the key in {KEY_VARIABLE} is not accepted: {KEY_ADVICE}",
                403: f"; the key in {KEY_VARIABLE} is not accepted or has expired: {KEY_ADVICE}",
                404: "; is there such a dataset, version and file? See https://dataplatform.knmi.nl",
            }.get(error.status, "")
            raise AnswerError(f"{error}{advice}", error.status) from None

    def _is_past(self, prefix: str, name: str, span: TimeSpan) -> bool:
        """Tell whether this name, and so all that sort after it, begin after the span."""
        times = times_of_name(name)
        return name.startswith(prefix) and times is not None and times[0] >= span.stop_s


def times_of_name(name: str) -> tuple[int, int] | None:
    """Read the first and last time of a file's frames, epoch seconds UTC, from its name; None where it holds none.

    Daily tars and yearly zips name their first and last frame, other files their one time.
    """
    span, single = SPAN.search(name), TIME.search(name)
    if span is not None:
        texts = (span.group(1) + span.group(2), span.group(3) + span.group(4))
    elif single is not None:
        texts = (f"{single.group(1)}{single.group(2):0<6}",) * 2
    else:
        return None
    try:
        first, last = (datetime.strptime(text, "%Y%m%d%H%M%S").replace(tzinfo=UTC) for text in texts)
    except ValueError:
        return None
    return int(first.timestamp()), int(last.timestamp())


def _remote_file(entry: Any, where: str) -> RemoteFile:
    """Check one file of a page."""
    name = entry.get("filename") if isinstance(entry, dict) else None
    if not isinstance(name, str) or FILE_NAME.fullmatch(name) is None or name.endswith(".partial"):
        raise DataError(f"{where}: lists a file named {shown(name)!r}; expected a plain name: nothing of it is written")
    size = entry.get("size")
    # Seen written both as a number and as text.
    if isinstance(size, str) and size.isascii() and size.isdigit() and len(size) < 16:
        size = int(size)
    if type(size) is not int or not 0 < size <= MAX_FILE_BYTES:
        raise DataError(f"{where}: {name} has a size of {shown(size)!r}; expected bytes, above 0")
    return RemoteFile(name=name, num_bytes=size, modified=shown(entry.get("lastModified", "")))
