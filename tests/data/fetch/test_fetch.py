"""Downloading from KNMI's API, against a real server on this machine that imitates it and its faults."""

import io
import re
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from rainspark.data.errors import DataError
from rainspark.data.exit_codes import ExitCode
from rainspark.data.fetch.__main__ import FetchOptions, fetch_knmi, main
from rainspark.data.fetch.knmi_api import times_of_name
from tests.data.fetch.knmi_server import KEY, Knmi, running

DATASET = "nl_rdr_data_rtcor_5m_tar"
DAY = timedelta(days=1)


def epoch(year: int, month: int, day: int, hour: int = 0, minute: int = 0) -> int:
    """Give a UTC time as epoch seconds."""
    return int(datetime(year, month, day, hour, minute, tzinfo=UTC).timestamp())


def day_tar(number: int, size: int = 3000) -> bytes:
    """Make a tar whose one member differs from every other's."""
    content = bytes((number * 7 + i * i) % 251 for i in range(size))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo(f"RAD_NL25_RAC_RT_{number}.h5")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def day_name(first: datetime) -> str:
    """Name the tar that begins on a day."""
    return f"RAD25_OPER_R___TARRRT__L2__{first:%Y%m%d}T080500_{first + DAY:%Y%m%d}T080000_0001.tar"


DAYS = [datetime(2018, 12, 30, tzinfo=UTC) + i * DAY for i in range(8)]
WANTED = [day_name(day) for day in DAYS[1:5]]
"""31 December's holds the first hours of 1 January; 3 January's is the last one that begins before 4 January."""


@pytest.fixture
def knmi(monkeypatch: pytest.MonkeyPatch) -> Iterator[Knmi]:
    """Run the servers with eight daily tars, and set the key."""
    monkeypatch.setenv("KNMI_API_KEY", f" {KEY}\n")
    with running(Knmi({day_name(day): day_tar(i) for i, day in enumerate(DAYS)})) as servers:
        yield servers


def fetch(knmi: Knmi, out: Path | str, **changes: Any) -> tuple[int, int]:
    """Download the three days with short pauses."""
    start_s, stop_s = epoch(2019, 1, 1), epoch(2019, 1, 4)
    options = FetchOptions(dataset=DATASET, start_s=start_s, stop_s=stop_s, out=str(out), patience_min=1)
    return fetch_knmi(replace(options, api=f"{knmi.api_url}/open-data", **changes), KEY, pause_s=0.001)


def unfinished(out: Path, name: str) -> Path:
    """Find what a killed download left of a file."""
    return next(iter((out / ".fetching").glob(f"*-{name}.partial")), out / "nothing")


def assert_whole(knmi: Knmi, out: Path) -> None:
    """Demand that exactly the wanted files lie there, byte for byte, and nothing else."""
    assert sorted(path.name for path in out.iterdir()) == WANTED
    for name in WANTED:
        assert (out / name).read_bytes() == knmi.files[name]


def refused(knmi: Knmi, out: Path, message: str, **changes: float) -> None:
    """Demand an error without any secret, and no file under its name."""
    with pytest.raises(DataError, match=message) as caught:
        fetch(knmi, out, **changes)
    assert "canary" not in str(caught.value)
    assert not out.exists() or [path.name for path in out.iterdir() if not path.name.startswith(".")] == []


def test_every_page_is_read_and_only_the_span_is_downloaded(tmp_path: Path, knmi: Knmi) -> None:
    knmi.page_files = 2
    assert fetch(knmi, tmp_path / "out") == (4, sum(len(knmi.files[name]) for name in WANTED))
    assert_whole(knmi, tmp_path / "out")
    lists = [request.path for request in knmi.log if request.path.partition("?")[0].endswith("/files")]
    # The list is sorted by time: the page with what lies behind the span is the last one asked for.
    assert len(lists) == 3
    assert all("maxKeys=1000" in path and "orderBy=filename" in path and "sorting=asc" in path for path in lists)
    assert ["nextPageToken=token-2" in path for path in lists] == [False, True, False]


def test_what_is_there_is_not_downloaded_again(tmp_path: Path, knmi: Knmi) -> None:
    fetch(knmi, tmp_path)
    knmi.log.clear()
    assert fetch(knmi, tmp_path) == (0, 0)
    assert knmi.paths("store") == []
    cut = tmp_path / WANTED[2]
    cut.write_bytes(cut.read_bytes()[:100])
    assert fetch(knmi, tmp_path)[0] == 1
    assert_whole(knmi, tmp_path)


def test_the_key_goes_to_the_api_alone(tmp_path: Path, knmi: Knmi, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password canary-password\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    fetch(knmi, tmp_path / "out")
    for request in knmi.log:
        assert request.headers.get("authorization") == (KEY if request.server == "api" else None)
    knmi.log.clear()
    knmi.script["list"] = ["redirect"]
    refused(knmi, tmp_path / "other", "lists no files with frames of")
    assert [("authorization" in request.headers) for request in knmi.log if request.server == "store"] == [False]


@pytest.mark.parametrize(
    ("kind", "faults"),
    [
        ("list", ["429:1"]),
        ("list", ["429:date"]),
        ("list", ["429:soon", "429:-1"]),
        ("list", ["429", "429", "500", "reset", "503"]),
        ("url", ["429:1", "502", "", "reset"]),
        ("data", ["500", "reset", "", "429", "503", "408"]),
        ("data", ["cut:0", "cut:700", "cut:1", "cut:100"]),
        ("data", ["403", "404", "410", "400"]),
    ],
)
def test_passing_faults_cost_nothing_but_tries(tmp_path: Path, knmi: Knmi, kind: str, faults: list[str]) -> None:
    knmi.script[kind] = list(faults)
    fetch(knmi, tmp_path)
    assert_whole(knmi, tmp_path)
    assert knmi.script[kind] == []


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_body_is_gone_on_with_where_the_server_can(tmp_path: Path, knmi: Knmi, ranges: bool) -> None:
    knmi.ranges = ranges
    knmi.script["data"] = ["cut:700", "cut:750", ""]
    fetch(knmi, tmp_path, parallel=1)
    assert_whole(knmi, tmp_path)
    asked = [request.headers.get("range") for request in knmi.log if request.server == "store"]
    assert asked == [None, "bytes=700-", f"bytes={1450 if ranges else 750}-", None, None, None]


def test_the_rest_of_another_version_is_not_joined_on(tmp_path: Path, knmi: Knmi) -> None:
    knmi.script["data"] = ["cut:700", "*reset"]
    with pytest.raises(DataError, match=r"(?s)4 of 4 files failed.*given up after 8 tries: .*connection"):
        fetch(knmi, tmp_path, parallel=1)
    assert unfinished(tmp_path, WANTED[0]).stat().st_size == 700
    knmi.script.clear()
    knmi.modified = "2021"
    knmi.files = {name: data[:600] + bytes(100) + data[700:] for name, data in knmi.files.items()}
    fetch(knmi, tmp_path, parallel=1)
    assert_whole(knmi, tmp_path)


def test_a_file_that_is_replaced_meanwhile_is_downloaded_anew(tmp_path: Path, knmi: Knmi) -> None:
    def change() -> None:
        knmi.etag = '"two"'
        knmi.files = {name: bytes(600) + data[600:] for name, data in knmi.files.items()}

    knmi.script["data"] = ["cut:700"]
    knmi.after_cut = change
    fetch(knmi, tmp_path, parallel=1)
    assert_whole(knmi, tmp_path)


def test_an_expired_address_is_asked_for_again_but_not_for_ever(tmp_path: Path, knmi: Knmi) -> None:
    knmi.script["data"] = ["403", "403"]
    fetch(knmi, tmp_path / "a", parallel=1)
    assert knmi.issued == 4 + 2
    knmi.script["data"] = ["*403"]
    refused(
        knmi,
        tmp_path / "b",
        "its temporary address is refused: http://127.0.0.1:[0-9]+/store/[^?]*[?].hidden.: HTTP 403",
    )


def test_the_quota_is_waited_for_only_as_long_as_allowed(tmp_path: Path, knmi: Knmi) -> None:
    knmi.script["list"] = ["429:3600"]
    refused(knmi, tmp_path, r"too many requests \(HTTP 429\): it asks to wait 3600 s more, and 60 s in all are allowed")
    knmi.script["list"] = ["429:1", "429:1", "429:1"]
    refused(knmi, tmp_path, "HTTP 429", patience_min=0.03)


def test_a_dead_server_is_given_up(tmp_path: Path, knmi: Knmi) -> None:
    knmi.script["list"] = ["*500"]
    refused(knmi, tmp_path, "/files: given up after 8 tries: HTTP 500; try again later")
    assert len(knmi.log) == 8


def test_a_wrong_key_is_explained_and_not_shown(
    tmp_path: Path, knmi: Knmi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KNMI_API_KEY", "wrong-canary")
    assert main(arguments(knmi, tmp_path / "out")) == ExitCode.DATA
    output = "".join(capsys.readouterr())
    assert "is not accepted or has expired: ask for a free key at https://developer.dataplatform.knmi.nl" in output
    assert "canary" not in output
    assert not (tmp_path / "out").exists()


def test_a_key_that_is_refused_later_stops_at_once(tmp_path: Path, knmi: Knmi) -> None:
    knmi.script["url"] = ["*403"]
    refused(knmi, tmp_path, "is not accepted or has expired", parallel=1)
    assert len([path for path in knmi.paths("api") if path.endswith("/url")]) <= 2


@pytest.mark.parametrize("size", [1, 10**6])
def test_another_size_than_the_listed_one_is_an_error(tmp_path: Path, knmi: Knmi, size: int) -> None:
    knmi.sizes = dict.fromkeys(WANTED, size)
    refused(knmi, tmp_path, rf"another version of it .[0-9]+. than its list names .{size} bytes.; it was replaced")


def test_sizes_written_as_text_are_read(tmp_path: Path, knmi: Knmi) -> None:
    knmi.sizes = {name: str(len(data)) for name, data in knmi.files.items()}
    fetch(knmi, tmp_path)
    assert_whole(knmi, tmp_path)


@pytest.mark.parametrize("size", [0, -5, True, None, 2.5, "1e3", "", 2**60, []])
def test_sizes_that_are_none_are_refused(tmp_path: Path, knmi: Knmi, size: object) -> None:
    knmi.sizes = {WANTED[0]: size}
    refused(knmi, tmp_path / "out", "has a size of .*; expected bytes, above 0")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../evil.tar", "/etc/evil", ".hidden", "x\x1b[31m", "", "x" * 300, "x.partial"])
def test_names_that_are_no_plain_ones_are_refused(tmp_path: Path, knmi: Knmi, name: str) -> None:
    knmi.files = {name: b"x", **knmi.files}
    with pytest.raises(DataError, match=r"lists a file named .*; expected a plain name") as caught:
        fetch(knmi, tmp_path / "out", dataset="another", version="1")
    assert str(caught.value).isprintable()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("[]", "the answer is no list of files"),
        ('{"files": {}}', "the answer is no list of files"),
        ('{"files": [], "isTruncated": "yes"}', "the list goes on and names no new page"),
        ('{"files": [], "isTruncated": true}', "the list goes on and names no new page"),
        ('{"files": [7]}', "lists a file named"),
        ("[" * 100_000, "the answer is no JSON"),
        ('{"isTruncated": fals', "the answer is no JSON"),
    ],
)
def test_answers_that_are_no_lists_are_refused(tmp_path: Path, knmi: Knmi, page: str, message: str) -> None:
    knmi.script["list"] = [f"raw:{page}"]
    refused(knmi, tmp_path / "out", message)


def test_a_list_that_turns_in_a_circle_is_refused(tmp_path: Path, knmi: Knmi) -> None:
    knmi.page_files, knmi.repeat_token = 1, True
    refused(knmi, tmp_path / "out", "the list goes on and names no new page")


def test_the_kinds_of_files_are_checked(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.h5", b"x" * 500)
    year = "RADNL_CLIM____MFBSNL25_05m_20181231T235500_20191231T235500_0002.zip"
    single = "RAD_NL25_RAC_RT_201901010005.h5"
    files = {WANTED[0]: day_tar(1), year: buffer.getvalue(), single: b"\x89HDF\r\n\x1a\n" + bytes(99)}
    with running(Knmi(files)) as knmi:
        assert fetch(knmi, tmp_path / "good", dataset="another", version="2.0")[0] == 3
        knmi.files = {WANTED[0]: b"<html>" * 400, year: buffer.getvalue()[:-30], single: b"\x89HDG" + bytes(99)}
        kinds = r"begins with b'<html><h'; expected a whole \.tar file.*a whole \.zip file.*a whole \.h5 file"
        with pytest.raises(DataError, match=rf"(?s)3 of 3 files failed.*{kinds}"):
            fetch(knmi, tmp_path / "bad", dataset="another", version="2.0")


def test_times_of_names() -> None:
    assert times_of_name(day_name(DAYS[0])) == (epoch(2018, 12, 30, 8, 5), epoch(2018, 12, 31, 8))
    old = "RAD25_OPER_R___TARRRT__L2__20181219080000_20181220075500_0001.tar"
    assert times_of_name(old) == (epoch(2018, 12, 19, 8), epoch(2018, 12, 20, 7, 55))
    year = "RADNL_CLIM____MFBSNL25_05m_20181231T235500_20191231T235500_0002.zip"
    assert times_of_name(year) == (epoch(2018, 12, 31, 23, 55), epoch(2019, 12, 31, 23, 55))
    assert times_of_name("RAD_NL25_RAC_RT_202002290005.h5") == (epoch(2020, 2, 29, 0, 5),) * 2
    for name in ("README.txt", "RAD_NL25_RAC_RT_201902290005.h5", "RAD_NL25_RAC_RT_201901012460.h5", "a_20190101.nc"):
        assert times_of_name(name) is None


def arguments(knmi: Knmi, out: Path, *more: str) -> list[str]:
    """Make the command line of the three days."""
    days = ["--from", "2019-01-01", "--to", "2019-01-03"]
    return ["knmi", "--dataset", DATASET, *days, "--out", str(out), "--api", f"{knmi.api_url}/open-data", *more]


def test_the_command_and_its_dry_run(tmp_path: Path, knmi: Knmi, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(knmi, tmp_path / "out", "--dry-run")) == 0
    assert not (tmp_path / "out").exists()
    assert re.search(rf"1.0: 4 files, {WANTED[0]} to {WANTED[-1]}\n0 of 4 files are there", capsys.readouterr().err)
    assert main(arguments(knmi, tmp_path / "out")) == 0
    assert_whole(knmi, tmp_path / "out")
    shown = "".join(capsys.readouterr())
    assert "fetched       " in shown
    assert "canary" not in shown


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (["--from", "2019-02-01"], 4, "lists no files with frames of 2019-02-01.*; check --from and --to"),
        (["--from", "1 January"], 3, "--from: '1 January'; expected a day, 2019-01-31"),
        (["--to", "2019-02-30"], 3, "--to: '2019-02-30'; expected a day"),
        (["--dataset", "unknown"], 4, "dataset 'unknown', version '': expected a name, and a --version where"),
        (["--dataset", "../x", "--version", "1"], 4, "dataset '../x', version '1': expected a name"),
        (["--parallel", "0"], 3, "--parallel: invalid choice: 0"),
        (["--patience-min", "nan"], 3, "--patience-min: 'nan' is no whole number"),
        (["--api", "http://api.example/open-data"], 4, "http://api.example/.*: could not be asked .*; expected https:"),
        (["--api", "ftp://127.0.0.1/"], 4, "could not be asked .*; expected https"),
        (["--out", "ftp://bucket"], 4, "ftp://"),
        (["--out", "https://127.0.0.1:9/knmi"], 4, "https://127.0.0.1:9/knmi: a web server is only read"),
    ],
)
def test_wrong_options_are_refused(
    tmp_path: Path, knmi: Knmi, capsys: pytest.CaptureFixture[str], change: list[str], code: int, message: str
) -> None:
    assert main(arguments(knmi, tmp_path, *change)) == code
    output = "".join(capsys.readouterr())
    assert re.search(message, output)
    assert "canary" not in output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (
            "",
            "no credentials in the environment; ask for a free key at .* set it: export KNMI_API_KEY=",
        ),
        ("a\r\nX-Evil: 1", "could not be asked"),
    ],
)
def test_a_key_that_is_none_is_explained(
    tmp_path: Path,
    knmi: Knmi,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    key: str,
    message: str,
) -> None:
    monkeypatch.setenv("KNMI_API_KEY", key)
    assert main(arguments(knmi, tmp_path)) == ExitCode.DATA
    assert re.search(message, capsys.readouterr().err)
    assert knmi.log == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_download_goes_on(tmp_path: Path, knmi: Knmi, number: signal.Signals) -> None:
    knmi.files = {name: day_tar(i, 600_000) for i, name in enumerate(knmi.files)}
    knmi.script["data"] = ["", "slow"]
    command = [sys.executable, "-m", "rainspark.data.fetch", *arguments(knmi, tmp_path, "--parallel", "1")]
    process = subprocess.Popen(
        command,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # What runs in the background of a script ignores Ctrl-C, and so do its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert knmi.sent.wait(60)
    while not unfinished(tmp_path, WANTED[1]).exists() or not unfinished(tmp_path, WANTED[1]).stat().st_size:
        assert process.poll() is None
    process.send_signal(number)
    shown, _ = process.communicate(timeout=60)
    assert KEY not in shown
    if number == signal.SIGINT:
        assert process.returncode == ExitCode.INTERRUPTED
        assert shown.rstrip().endswith("interrupted; the same command goes on where it stopped")
        assert "Traceback" not in shown
    have = unfinished(tmp_path, WANTED[1]).stat().st_size
    assert sorted(path.name for path in tmp_path.iterdir()) == [".fetching", WANTED[0]]
    knmi.script.clear()
    knmi.log.clear()
    fetch(knmi, tmp_path, parallel=1)
    assert_whole(knmi, tmp_path)
    assert [request.headers.get("range") for request in knmi.log if request.server == "store"] == [
        f"bytes={have}-",
        None,
        None,
    ]


def test_a_second_download_into_a_folder_is_refused(tmp_path: Path, knmi: Knmi) -> None:
    knmi.script["data"] = ["slow"]
    command = [sys.executable, "-m", "rainspark.data.fetch", *arguments(knmi, tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        assert knmi.sent.wait(60)
        with pytest.raises(DataError, match="another download is writing there; wait for it"):
            fetch(knmi, tmp_path)
        process.kill()
