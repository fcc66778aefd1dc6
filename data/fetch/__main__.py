"""Download radar files: `rainspark fetch knmi --dataset NAME --from DATE --to DATE --out FOLDER_OR_BUCKET`."""

import argparse
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from tqdm import tqdm

from ..command import GOES_ON, CommandParser, run_command
from ..errors import DataError
from ..json_checks import shown
from ..sequences import TimeSpan
from ..store.storage import Storage, open_storage
from .download import Downloader, publish
from .knmi_api import API_URL, DATASETS, KEY_ADVICE, KEY_VARIABLE, KnmiApi, Listing, RemoteFile
from .web import AnswerError, StoppedError, Web

PARTS_FOLDER: Final = ".fetching"
MAX_FAILED_FILES: Final = 5
MAX_PARALLEL: Final = 16
QUOTA_PER_HOUR: Final = 1000
"""Requests of a registered key (https://developer.dataplatform.knmi.nl/open-data-api)."""


@dataclass(frozen=True, kw_only=True)
class FetchOptions:
    """What to download, and how.

    Attributes:
        dataset: Its name.
        version: Its version.
        span: End times of the frames that are wanted.
        api: Root of the API.
        parallel: Files at once.
        patience_s: Seconds that one request may wait for quota.
        first_pause_s: Longest pause after a first fault.
    """

    dataset: str
    version: str
    span: TimeSpan
    api: str = API_URL
    parallel: int = 2
    patience_s: float = 4500.0
    first_pause_s: float = 1.0


def fetch_knmi(options: FetchOptions, out: str, key: str, *, dry_run: bool = False) -> tuple[int, int]:
    """Download the files of a KNMI dataset that hold frames of a time span; those that are there already are kept.

    Args:
        options: What and how.
        out: Folder or address of a store.
        key: The API key; it goes to the API's own address and nowhere else.
        dry_run: Say what would be downloaded, and download nothing.

    Returns:
        Number of files and bytes that were downloaded (with `dry_run`: would be).

    Raises:
        DataError: The API refuses, there are no such files, OUT cannot be written, or files failed (named). What is
            whole stays, and what is half there is gone on with by the next call.
    """
    say: Callable[[str], None] = lambda line: tqdm.write(line, file=sys.stderr)  # noqa: E731
    web = Web(key=key, key_url=options.api, patience_s=options.patience_s, first_pause_s=options.first_pause_s, say=say)
    api = KnmiApi(web, options.api, options.dataset, options.version)
    storage = open_storage(out, to_write=True)
    try:
        listing = api.list_files(options.span)
        _describe(options, listing)
        missing = _missing(storage, listing.files, options.parallel)
        num_bytes = sum(file.num_bytes for file in missing)
        sys.stderr.write(
            f"{len(listing.files) - len(missing)} of {len(listing.files)} files are there already, "
            f"{len(missing)} to download ({num_bytes / 1e6:,.1f} MB)\n"
        )
        if missing and not dry_run:
            with _parts_folder(storage) as parts:
                _check_space(parts, num_bytes if storage.folder is not None else 0)
                _download(web, api, storage, parts, missing, options.parallel)
        return len(missing), num_bytes
    finally:
        storage.close()


def _describe(options: FetchOptions, listing: Listing) -> None:
    """Say what the list holds; raises DataError where that is nothing."""
    if listing.num_untimed:
        sys.stderr.write(f"warning: {listing.num_untimed} listed files hold no time in their names and are left out\n")
    if not listing.files:
        raise DataError(
            f"{options.dataset} {options.version} lists no files with frames of {options.span}; check --from and --to"
        )
    hours = len(listing.files) / QUOTA_PER_HOUR
    pace = f"; one request a file: {hours:.1f} h at {QUOTA_PER_HOUR} requests an hour" if hours > 1 else ""
    sys.stderr.write(
        f"{options.dataset} {options.version}: {len(listing.files)} files, "
        f"{sum(file.num_bytes for file in listing.files) / 1e6:,.1f} MB, {listing.files[0].name} to "
        f"{listing.files[-1].name}{pace}\n"
    )


def _missing(storage: Storage, files: Sequence[RemoteFile], parallel: int) -> list[RemoteFile]:
    """Find the files that are not there with the listed length."""
    present = set(storage.names())
    with ThreadPoolExecutor(parallel, thread_name_prefix="rainspark-fetch") as executor:
        there = executor.map(lambda file: file.name in present and storage.size(file.name) == file.num_bytes, files)
        return [file for file, is_there in zip(files, there, strict=True) if not is_there]


@contextmanager
def _parts_folder(storage: Storage) -> Iterator[Path]:
    """Make the folder of unfinished files and hold it alone; for a store it lies on the local disk and is removed."""
    if storage.folder is None:
        with tempfile.TemporaryDirectory(prefix="rainspark-fetch-") as folder:
            yield Path(folder)
        return
    parts = storage.folder / PARTS_FOLDER
    try:
        parts.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(parts, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise DataError(f"{parts}: could not be made: {error.strerror or error}; choose another --out") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"{storage.url}: another download is writing there; wait for it") from error
        except OSError:
            # Some network file systems lock no folders; then nothing but the user keeps two downloads apart.
            sys.stderr.write(f"warning: {parts} cannot be locked; do not start a second download into it\n")
        yield parts
        with suppress(OSError):
            parts.rmdir()
    finally:
        os.close(descriptor)


def _check_space(parts: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(parts).free
    if free < num_bytes:
        raise DataError(f"{parts}: {num_bytes / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB free; choose another --out")


def _download(
    web: Web, api: KnmiApi, storage: Storage, parts: Path, files: Sequence[RemoteFile], parallel: int
) -> None:
    """Download files, several at once; a file that fails does not stop the others, five do."""
    failed: dict[str, DataError] = {}
    with tqdm(
        total=sum(file.num_bytes for file in files), desc="fetching", unit="B", unit_scale=True, mininterval=0.5
    ) as bar:
        downloader = Downloader(web, api.download_url, parts, bar.update)
        bar.update(sum(downloader.open_parts(file) for file in files))
        executor = ThreadPoolExecutor(parallel, thread_name_prefix="rainspark-fetch")
        try:
            futures = {executor.submit(_fetch_one, downloader, storage, file): file for file in files}
            for future in as_completed(futures):
                error = _error_of(future)
                if error is not None:
                    failed[futures[future].name] = error
                    refused = isinstance(error, AnswerError) and error.status in (401, 403)
                    if refused or len(failed) == MAX_FAILED_FILES:
                        break
        finally:
            web.stop()
            executor.shutdown(wait=True, cancel_futures=True)
    if failed:
        lines = "".join(
            f"\n  {error}" if name in str(error) else f"\n  {name}: {error}" for name, error in sorted(failed.items())
        )
        raise DataError(f"{len(failed)} of {len(files)} files failed; the same command goes on:{lines}")


def _fetch_one(downloader: Downloader, storage: Storage, file: RemoteFile) -> None:
    path = downloader.fetch(file)
    publish(path, file.name, storage)
    downloader.forget(file)


def _error_of(future: "Future[None]") -> DataError | None:
    try:
        future.result()
    except DataError as error:
        return error
    except OSError as error:
        return DataError(f"{error.filename or 'disk'}: could not write: {error.strerror or error}")
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 4 bad data, 130 interrupted (argparse: 2, usage)."""
    arguments = make_parser().parse_args(argv)

    def work() -> int:
        options = _options(arguments)
        try:
            fetch_knmi(options, arguments.out, _key(), dry_run=arguments.dry_run)
        except StoppedError as error:
            raise KeyboardInterrupt from error
        if not arguments.dry_run:
            sys.stdout.write(f"fetched       {shown(arguments.out)}\n")
        return 0

    return run_command(work, interrupted=GOES_ON)


def _key() -> str:
    """Read the key; it is a secret and stands in no message."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key:
        raise DataError(f"{KEY_VARIABLE} is not set; expected an API key of KNMI: {KEY_ADVICE}")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise DataError(f"{KEY_VARIABLE} holds spaces or signs that no key has; expected the key alone")
    return key


def _options(arguments: argparse.Namespace) -> FetchOptions:
    version = arguments.version
    if version is None:
        known = DATASETS.get(arguments.dataset)
        if known is None:
            raise DataError(
                f"--dataset {shown(arguments.dataset)}: its version is not known here; give --version "
                f"(known: {', '.join(f'{name} {one.version}' for name, one in DATASETS.items())})"
            )
        version = known.version
    start_s, stop_s = _time(arguments.first, "--from", 0), _time(arguments.last, "--to", 1)
    if start_s >= stop_s:
        raise DataError(f"--from {arguments.first} lies after --to {arguments.last}; expected the earlier one first")
    if not 1 <= arguments.parallel <= MAX_PARALLEL or not 0 <= arguments.patience_min <= 100_000:
        raise DataError(
            f"--parallel {arguments.parallel}, --patience-min {arguments.patience_min:g}: expected 1 to {MAX_PARALLEL} "
            "files at once and at least 0 minutes"
        )
    return FetchOptions(
        dataset=arguments.dataset,
        version=version,
        span=TimeSpan(start_s=start_s, stop_s=stop_s),
        api=arguments.api,
        parallel=arguments.parallel,
        patience_s=arguments.patience_min * 60,
    )


def _time(text: str, option: str, num_days: int) -> int:
    """Read a day or a time, UTC; a day given as the last one is wanted whole."""
    for form, extra in (("%Y-%m-%d", timedelta(days=num_days)), ("%Y-%m-%dT%H:%M", timedelta(seconds=num_days))):
        with suppress(ValueError, OverflowError):
            return int((datetime.strptime(text, form).replace(tzinfo=UTC) + extra).timestamp())
    raise DataError(f"{option} {shown(text)!r}: expected a day, 2019-01-31, or a time, 2019-01-31T12:00 (UTC)")


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of `rainspark fetch`."""
    parser = CommandParser(prog="rainspark fetch", description=__doc__)
    knmi = parser.add_subparsers(dest="command", required=True).add_parser(
        "knmi", help=f"KNMI's Open Data API; the key comes from {KEY_VARIABLE}"
    )
    known = "; ".join(f"{name}: {dataset.what}" for name, dataset in DATASETS.items())
    knmi.add_argument("--dataset", required=True, metavar="NAME", help=f"any of KNMI's, for example {known}")
    knmi.add_argument("--version", metavar="V", help="its version (known for the datasets above)")
    knmi.add_argument("--from", dest="first", required=True, metavar="DAY", help="first day or time, UTC")
    knmi.add_argument("--to", dest="last", required=True, metavar="DAY", help="last day or time, UTC, included")
    knmi.add_argument("--out", required=True, metavar="FOLDER_OR_BUCKET", help="folder or s3://, gs://, az:// address")
    knmi.add_argument("--dry-run", action="store_true", help="list only: nothing is downloaded")
    knmi.add_argument("--parallel", type=int, default=2, metavar="N", help="files at once (2)")
    knmi.add_argument(
        "--patience-min", type=float, default=75, metavar="MIN", help="minutes that a request waits for quota (75)"
    )
    knmi.add_argument("--api", default=API_URL, metavar="URL", help=f"root of the API ({API_URL})")
    return parser


if __name__ == "__main__":
    sys.exit(main())
