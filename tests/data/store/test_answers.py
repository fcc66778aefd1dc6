"""Servers that are not what the user took them for: each is named at once, in words that help."""

import shutil
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from rainspark.data.errors import DamagedError, DataError
from rainspark.data.store.object_store import ObjectStorage, open_store
from rainspark.data.store.retries import RetryPolicy
from tests.web_server import Reply, web_server

HTML = b"<html><body>Welcome! Please log in.</body></html>"
BYTES = bytes(range(256)) * 100
Answer = Callable[[str, dict[str, str]], Reply]


def error_body(code: str) -> bytes:
    return f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>Told.</Message></Error>'.encode()


def ranged(headers: dict[str, str]) -> Reply:
    """Answer a request of a range of BYTES."""
    first, last = (int(text) for text in headers["range"].removeprefix("bytes=").split("-"))
    body = BYTES[first : last + 1]
    return Reply(206, {"Content-Range": f"bytes {first}-{first + len(body) - 1}/{len(BYTES)}"}, body)


@pytest.fixture
def s3_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ObjectStorage]:
    def opened(host: str) -> ObjectStorage:
        for name, value in (("ENDPOINT_URL", f"http://{host}"), ("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "s")):
            monkeypatch.setenv(f"AWS_{name}", value)
        return open_store("s3://bucket/p", deadline_s=5, connections=2)

    return opened


@pytest.mark.parametrize(
    ("reply", "most", "message"),
    [
        (Reply(200, {"ETag": '"x"'}, HTML), 1, "non-partial response .*check that the endpoint is a store's own"),
        (Reply(404, {}, HTML), 1, r"a: could not read: no such object; check the address"),
        (Reply(301, {}, error_body("PermanentRedirect")), 1, "lies in another region: set AWS_REGION to its own"),
        (Reply(302, {"Location": "/bucket/p/a"}, b""), 11, "the way leads in circles, or to a page to log in"),
        (Reply(400, {}, error_body("ExpiredToken")), 1, "status 400, ExpiredToken, Told.*AWS_SESSION_TOKEN"),
        (Reply(403, {}, error_body("RequestTimeTooSkewed")), 1, "RequestTimeTooSkewed.*; check this machine's clock, "),
        (Reply(407, {}, b""), 1, "status 407; check the address and the store's settings"),
        (Reply(501, {}, error_body("NotImplemented")), 1, "status 501"),
        (Reply(404, {}, error_body("NoSuchBucket")), 1, "there is no such bucket"),
    ],
    ids=["html", "html-404", "region", "circle", "expired", "clock", "proxy", "not-implemented", "bucket"],
)
def test_what_no_second_try_changes_is_raised_at_once(
    s3_at: Callable[[str], ObjectStorage], reply: Reply, most: int, message: str
) -> None:
    with web_server(lambda *_: reply) as (host, asked), pytest.raises(DataError, match=message):
        s3_at(host).read("a")
    assert 1 <= len(asked) <= most


def test_a_page_that_takes_a_write_is_no_store(s3_at: Callable[[str], ObjectStorage]) -> None:
    with web_server(lambda *_: Reply(200, {}, HTML)) as (host, asked):
        for if_absent in (False, True):
            with pytest.raises(DataError, match=r"ETag Header missing.*check that the endpoint is a store's own"):
                s3_at(host).write("a", b"1", if_absent=if_absent)
    assert len(asked) == 2


def test_a_place_that_is_not_there_is_no_lost_sequence(s3_at: Callable[[str], ObjectStorage]) -> None:
    with web_server(lambda *_: Reply(404, {}, HTML)) as (host, _):
        store = s3_at(host)
        for ask in (store.names, lambda: store.write("a", b"1")):
            with pytest.raises(DataError, match="status 404, there is no such place; check the address") as caught:
                ask()
            assert not isinstance(caught.value, DamagedError)


def test_a_web_server_without_ranges_is_named() -> None:
    with web_server(lambda *_: Reply(200, {}, BYTES)) as (host, asked):
        storage = open_store(f"http://{host}/p", deadline_s=5, connections=2)
        with pytest.raises(DataError, match=r"/a: .*expected a server that answers ranges .* copy the files into a"):
            storage.read("a", 0, 10)
    assert len(asked) == 1


def test_a_cut_that_no_length_shows_is_seen() -> None:
    num_asked = 0

    def answer(_: str, headers: dict[str, str]) -> Reply:
        nonlocal num_asked
        num_asked += 1
        whole = ranged(headers)
        return whole._replace(body=whole.body[:5000], num_claimed=-1) if num_asked <= 2 else whole

    with web_server(answer) as (host, _):
        storage = open_store(f"http://{host}/p", deadline_s=5, connections=2)
        assert storage.read("a", 3, 20_000) == BYTES[3:20_000]
    assert storage.stats()["retries"] == 2


def listing(keys: list[str], *, page: int, fail_at: int = 0) -> Answer:
    """A store that lists so many keys a page, in its own order, and once fails."""
    num_asked = 0

    def answer(path: str, _: dict[str, str]) -> Reply:
        nonlocal num_asked
        num_asked += 1
        if num_asked == fail_at:
            return Reply(503)
        query = {name: values[0] for name, values in parse_qs(urlsplit(path).query).items()}
        start = int(query.get("continuation-token", 0))
        wanted = [key for key in keys if key.startswith(query["prefix"]) and key > query.get("start-after", "")]
        left = wanted[start:]
        more = len(left) > page
        token = f"<NextContinuationToken>{start + page}</NextContinuationToken>" if more else ""
        entries = "".join(
            f"<Contents><Key>{key}</Key><LastModified>2020-01-01T00:00:00.000Z</LastModified><Size>1</Size></Contents>"
            for key in left[:page]
        )
        text = f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{token}{entries}</ListBucketResult>"
        return Reply(200, {}, text.encode())

    return answer


@pytest.mark.parametrize("names", [[f"{i:04}" for i in range(1200)], [f"{i * 7 % 1200:04}" for i in range(1200)]])
def test_a_listing_in_any_order_goes_on_after_a_fault(s3_at: Callable[[str], ObjectStorage], names: list[str]) -> None:
    with web_server(listing([f"p/{name}" for name in names], page=1000, fail_at=2)) as (host, _):
        assert s3_at(host).names() == sorted(names)


def test_marks_of_folders_are_no_files_of_theirs(s3_at: Callable[[str], ObjectStorage]) -> None:
    with web_server(listing(["p/", "p/a", "p/sub/x", "p2/y"], page=1000)) as (host, _):
        assert s3_at(host).names() == ["a", "sub/x"]


@pytest.mark.parametrize("key", ["p/b//c", "p/../c", "p/b\x7f"])
def test_an_object_that_no_file_can_be_called_is_named(s3_at: Callable[[str], ObjectStorage], key: str) -> None:
    with web_server(listing(["p/a", key, "p/z"], page=1000)) as (host, asked):
        with pytest.raises(DataError, match=r"could not list: .*remove that object, or choose a prefix of their own"):
            s3_at(host).names()
        assert len(asked) == 1


def test_a_large_upload_is_tried_again_after_the_deadline_of_small_ones(
    s3_at: Callable[[str], ObjectStorage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rainspark.data.store.object_store._UPLOAD_BYTES_PER_S", 1.0)
    num_refused = 0

    def answer(_path: str, _headers: dict[str, str]) -> Reply:
        nonlocal num_refused
        num_refused += 1
        return Reply(500) if num_refused <= 4 else Reply(200, {"ETag": '"x"', "Content-Length": "10"}, b"x" * 10)

    with web_server(answer) as (host, _):
        store = s3_at(host)
        # No second try fits into this deadline; ten bytes at one a second add ten seconds to it.
        monkeypatch.setattr(store._retries, "policy", RetryPolicy(deadline_s=0.1, try_s=0.1))
        store.write("a", b"x" * 10)
    assert store.stats()["retries"] == 4


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority of our own, and a server's certificate that it has signed."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl, which makes certificates, is not installed")
    folder = tmp_path_factory.mktemp("certificates")
    (folder / "more").write_text("subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
    for words in (
        "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=tests",
        "req -newkey rsa:2048 -nodes -keyout own.key -out own.csr -subj /CN=127.0.0.1",
        "x509 -req -in own.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out own.pem -days 2 -extfile more",
    ):
        subprocess.run([openssl, *words.split()], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("is_trusted", [True, False])
def test_certificates_are_checked(certificates: Path, monkeypatch: pytest.MonkeyPatch, is_trusted: bool) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "own.pem", certificates / "own.key")
    if is_trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.pem"))

    with web_server(lambda _, headers: ranged(headers), context) as (host, _):
        storage = open_store(f"https://{host}/p", deadline_s=5, connections=2)
        if is_trusted:
            assert storage.read("a") == BYTES
            assert storage.read("a", 5, 300) == BYTES[5:300]
        else:
            with pytest.raises(DataError, match=r"/a: .*certificate is not accepted; .*clock; .*SSL_CERT_FILE names"):
                storage.read("a")
