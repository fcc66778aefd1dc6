"""Download radar files: `rainspark fetch knmi --dataset NAME --from DATE --to DATE --out FOLDER_OR_BUCKET`."""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Final

from tqdm import tqdm

from ..command import GOES_ON, CommandParser, first_time, last_time, run_command
from ..credentials import check_credentials, variable
from ..errors import DataError
from ..json_checks import shown
from ..sequences import TimeSpan
from ..store.storage import Storage, hold_folder, open_storage
from .download import Downloader
from .knmi_api import API_URL, DATASETS, KnmiApi, RemoteFile
from .web import AnswerError, Web

PARTS_FOLDER: Final = ".fetching"
MAX_FAILED_FILES: Final = 5


@dataclass(frozen=True, kw_only=True)
class FetchOptions:
    """What to download, and how: the options of the command.

    Attributes:
        dataset: Its name.
        version: Its version; None for the known one.
        start_s: First end time of the frames that are wanted.
        stop_s: End time behind the last one.
        out: Folder or address of a store.
        dry_run: Report what would be downloaded, and download nothing.
        api: Root of the API.
        parallel: Files at once.
        patience_min: Minutes that one request may wait for quota.
    """

    dataset: str
    version: str | None = None
    start_s: int
    stop_s: int
    out: str
    dry_run: bool = False
    api: str = API_URL
    parallel: int = 2
    patience_min: float = 75


def fetch_knmi(options: FetchOptions, key: str, *, pause_s: float = 1.0) -> tuple[int, int]:
    """Download the files of a KNMI dataset that hold frames of a time span; those that are there already are kept.

    Args:
        options: What and how.
        key: The API key; it goes to the API's own address and nowhere else.
        pause_s: Seconds that the pauses after failures begin with.

    Returns:
        Number of files and bytes that were downloaded (with `dry_run`: would be).

    Raises:
        DataError: The API refuses, there are no such files, the folder cannot be written, or files failed (named). What
            is whole stays, and what is half there is gone on with by the next call.
    """
    web = Web(options.api, key, patience_s=options.patience_min * 60, pause_s=pause_s)
    api = KnmiApi(web, options.api, options.dataset, options.version)
    span = TimeSpan(start_s=options.start_s, stop_s=options.stop_s)
    storage = open_storage(options.out, to_write=True)
    try:
        files = api.list_files(span)
        if not files:
            raise DataError(f"{api.dataset} lists no files with frames of {span}; check --from and --to")

        # What is there in its listed length is kept.
        missing = _missing(storage, files, options.parallel)
        num_bytes = sum(file.num_bytes for file in missing)
        sys.stderr.write(
            f"{api.dataset}: {len(files)} files, {files[0].name} to {files[-1].name}\n"
            f"{len(files) - len(missing)} of {len(files)} files are there already, {len(missing)} to download "
            f"({num_bytes / 1e6:,.1f} MB)\n"
        )

        if missing and not options.dry_run:
            bar = tqdm(total=num_bytes, desc="fetching", unit="B", unit_scale=True, mininterval=0.5)
            with bar, _parts_folder(storage) as parts:
                downloader = Downloader(web, api.download_url, parts, bar.update)
                _download(downloader, storage, missing, options.parallel)
        return len(missing), num_bytes
    finally:
        storage.close()


def _missing(storage: Storage, files: Sequence[RemoteFile], parallel: int) -> list[RemoteFile]:
    """Find the files that are not there with the listed length."""
    present = set(storage.names())
    with ThreadPool(parallel) as pool:
        whole = pool.map(lambda file: file.name in present and storage.size(file.name) == file.num_bytes, files)
    return [file for file, is_whole in zip(files, whole, strict=True) if not is_whole]


@contextmanager
def _parts_folder(storage: Storage) -> Iterator[Path]:
    """Make the folder of unfinished files and hold it alone; for a store it lies on the local disk and is removed."""
    if storage.folder is None:
        with tempfile.TemporaryDirectory(prefix="rainspark-fetch-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)
        return

    parts = storage.folder / PARTS_FOLDER
    with hold_folder(parts, "another download is writing there; wait for it"):
        yield parts
        # What is left are versions of files that are listed no more.
        shutil.rmtree(parts, ignore_errors=True)


def _download(downloader: Downloader, storage: Storage, files: Sequence[RemoteFile], parallel: int) -> None:
    """Download files, several at once; a file that fails does not stop the others, five do, and a key refused does."""
    failed: dict[str, Exception] = {}

    def fetch(file: RemoteFile) -> None:
        # Whatever failed so far decides whether another file is worth a try.
        is_refused = any(isinstance(error, AnswerError) for error in failed.values())
        if is_refused or len(failed) == MAX_FAILED_FILES:
            return
        try:
            downloader.fetch(file, storage)
        except (DataError, OSError) as error:
            failed[file.name] = error

    # Its threads are daemons: Ctrl-C does not wait for them.
    with ThreadPool(parallel) as pool:
        for _ in pool.imap_unordered(fetch, files):
            pass

    if failed:
        lines = "".join(f"\n  {name}: {error}" for name, error in sorted(failed.items()))
        raise DataError(f"{len(failed)} of {len(files)} files failed; the same command goes on:{lines}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 4 bad data, 3 wrong options, 130 interrupted."""

    def work() -> int:
        options = FetchOptions(**vars(make_parser().parse_args(argv)))
        check_credentials("knmi", options.api)
        fetch_knmi(options, variable("KNMI_API_KEY"))
        if not options.dry_run:
            sys.stdout.write(f"fetched       {shown(options.out)}\n")
        return 0

    return run_command(work, interrupted=GOES_ON)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of `rainspark fetch`."""
    parser = CommandParser(prog="rainspark fetch", description=__doc__)
    knmi = parser.add_subparsers(required=True, metavar="SERVICE").add_parser(
        "knmi", help="KNMI's Open Data API; the key comes from KNMI_API_KEY"
    )
    known = "; ".join(f"{name}: {dataset.what}" for name, dataset in DATASETS.items())
    add = knmi.add_argument
    add("--dataset", required=True, metavar="NAME", help=f"any of KNMI's, for example {known}")
    add("--version", metavar="V", help="its version (known for the datasets above)")
    add("--from", dest="start_s", type=first_time, required=True, metavar="DAY", help="first day or time, UTC")
    add("--to", dest="stop_s", type=last_time, required=True, metavar="DAY", help="last day or time, UTC, included")
    add("--out", required=True, metavar="FOLDER_OR_BUCKET", help="folder or s3://, gs://, az:// address")
    add("--dry-run", action="store_true", help="list only: nothing is downloaded")
    add("--parallel", type=int, choices=range(1, 17), default=2, metavar="N", help="files at once, 1 to 16 (2)")
    add("--patience-min", type=int, default=75, metavar="MIN", help="minutes that a request waits for quota (75)")
    add("--api", default=API_URL, metavar="URL", help=f"root of the API ({API_URL})")
    return parser


if __name__ == "__main__":
    sys.exit(main())
