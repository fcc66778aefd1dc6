"""KNMI's Open Data API: which files a dataset has, what times their names say, and where each can be had.

Source: KNMI Data Platform, Open Data API (https://developer.dataplatform.knmi.nl/open-data-api).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from ..credentials import ADVICE, redact
from ..errors import DataError
from ..json_checks import shown
from ..sequences import TimeSpan
from .web import AnswerError, Web

API_URL: Final = "https://api.dataplatform.knmi.nl/open-data"
PAGE_FILES: Final = 1000
MAX_FILE_BYTES: Final = 2**42
# Names become files of the user's disk: no folders, nothing hidden, nothing that steers a terminal.
FILE_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
TIMES: Final = re.compile(r"_(\d{8})T?(\d{4}(?:\d{2})?)(?:_(\d{8})T?(\d{6}))?(?=[_.])", re.ASCII)


@dataclass(frozen=True)
class Dataset:
    """A dataset of KNMI that is known here.

    Attributes:
        version: Its version.
        prefix: What comes before the time in its files' names, which sort by time.
        what: One file of it, for people.
    """

    version: str
    prefix: str
    what: str


DATASETS: Final[Mapping[str, Dataset]] = {
    "nl_rdr_data_rtcor_5m_tar": Dataset("1.0", "RAD25_OPER_R___TARRRT__L2__", "a day of 288 composites, to 08:00 UTC"),
    "nl_rdr_data_rtcor_5m": Dataset("1.0", "RAD_NL25_RAC_RT_", "one 5-minute composite"),
    "rad_nl25_rac_mfbs_5min": Dataset("2.0", "RADNL_CLIM____MFBSNL25_05m_", "a zip of a year's composites"),
    "radar_forecast": Dataset("2.0", "RAD_NL25_RAC_FM_", "one 2-hour forecast"),
}


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file as the API lists it: its name, length in bytes, and when it was last changed, as the server writes it."""

    name: str
    num_bytes: int
    modified: str


class KnmiApi:
    """One dataset of the API.

    Args:
        web: Sends the requests, with the key.
        url: The API's root.
        dataset: Its name.
        version: Its version; None for the known one.

    Raises:
        DataError: A name or version that is none.
    """

    def __init__(self, web: Web, url: str, dataset: str, version: str | None) -> None:
        known = DATASETS.get(dataset)
        self._prefix = known.prefix if known is not None else ""
        version = version or (known.version if known is not None else "")
        if not FILE_NAME.fullmatch(dataset) or not FILE_NAME.fullmatch(version):
            raise DataError(
                f"dataset {shown(dataset)!r}, version {shown(version)!r}: expected a name, and a --version where the "
                f"dataset is none of {', '.join(DATASETS)}"
            )
        self.dataset = f"{dataset} {version}"
        self._web = web
        self._files_url = f"{url.rstrip('/')}/v1/datasets/{dataset}/versions/{version}/files"
        self._shown = redact(self._files_url)

    def list_files(self, span: TimeSpan) -> list[RemoteFile]:
        """List the files that hold frames of a time span, sorted by name.

        Raises:
            DataError: The API refuses, or its answers are not what its manual says.
        """
        files = {file.name: file for page in self._pages(span) for file in page}
        # Names without a time are left out.
        times = {name: ends for name in files if (ends := times_of_name(name)) is not None}
        wanted = [name for name, (first, last) in times.items() if first < span.stop_s and last >= span.start_s]
        return [files[name] for name in sorted(wanted)]

    def _pages(self, span: TimeSpan) -> Iterator[list[RemoteFile]]:
        """Read the pages of the list, sorted by name, up to the last one that can hold files of the span."""
        params = {"maxKeys": str(PAGE_FILES), "orderBy": "filename", "sorting": "asc"}
        if self._prefix:
            # A file begins a year before its last frame at most, so earlier names need not be listed.
            begin = datetime.fromtimestamp(span.start_s, UTC) - timedelta(days=370)
            params["begin"] = f"{self._prefix}{begin:%Y%m%d}"

        tokens: set[str] = set()
        while True:
            page = self._ask(self._files_url, params)
            entries = page.get("files") if isinstance(page, dict) else None
            if not isinstance(entries, list):
                raise DataError(f"{self._shown}: the answer is no list of files; is it the right address?")
            files = [_remote_file(entry, self._shown) for entry in entries]
            yield files

            # Names of a known dataset sort by time: what begins behind the span ends the list.
            last = times_of_name(files[-1].name) if files and self._prefix else None
            if not page.get("isTruncated") or (last is not None and last[0] >= span.stop_s):
                return
            token = page.get("nextPageToken")
            if not isinstance(token, str) or token in tokens:
                raise DataError(f"{self._shown}: the list goes on and names no new page; start again")
            tokens.add(token)
            params["nextPageToken"] = token

    def download_url(self, name: str) -> str:
        """Ask for the temporary address of a file.

        Raises:
            DataError: The API refuses, or gives none.
        """
        answer = self._ask(f"{self._files_url}/{name}/url", {})
        url = answer.get("temporaryDownloadUrl") if isinstance(answer, dict) else None
        if not isinstance(url, str):
            raise DataError(f"{self._shown}/{name}/url: the answer holds no temporaryDownloadUrl; expected one")
        return url

    def _ask(self, url: str, params: Mapping[str, str]) -> Any:
        try:
            return self._web.json(url, params)
        except AnswerError as error:
            advice = "check --dataset and --version"
            if error.status in (401, 403):
                advice = f"the key in KNMI_API_KEY is not accepted or has expired: {ADVICE['knmi']}"
            raise AnswerError(f"{error}; {advice}", error.status) from None


def times_of_name(name: str) -> tuple[int, int] | None:
    """Read the first and last time of a file's frames, epoch seconds UTC, from its name; None where it holds none.

    Daily tars and yearly zips name their first and last frame, other files their one time.
    """
    match = TIMES.search(name)
    if match is None:
        return None
    first_day, first_time, last_day, last_time = match.groups()
    texts = (f"{first_day}{first_time:0<6}", f"{last_day or first_day}{last_time or first_time:0<6}")
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
