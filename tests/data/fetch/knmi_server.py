"""A server on this machine that answers as KNMI's Open Data API and its file store do, faults included."""

import email.utils
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.web_server import Reply, web_server

KEY = "eyJ-canary-KEY-0123456789abcdef"


@dataclass(frozen=True)
class Request:
    """A request that came: at which server ("api" or "store"), its path with query, and its headers by lower name."""

    server: str
    path: str
    headers: dict[str, str]


@dataclass(eq=False)
class Knmi:
    """What the servers have and do.

    Attributes:
        files: Content by name, in the order of listing.
        sizes: Listed sizes that differ from the content's.
        page_files: Files of a page at most.
        script: Next faults by kind of request, "list", "url", "data": "429:SECONDS", "429" (without Retry-After),
            "429:date", a status, "reset", "cut:BYTES", "redirect", "raw:BODY", "slow" or "" for none; the last one,
            after "*", stays.
        ranges: Whether the store knows Range.
        modified: When the files were last changed.
        etag: Version mark of every file.
        repeat_token: Whether every page names the same next one.
        after_cut: Called when a cut answer was sent.
        log: The requests.
    """

    files: dict[str, bytes]
    sizes: dict[str, Any] = field(default_factory=dict)
    page_files: int = 1000
    script: dict[str, list[str]] = field(default_factory=dict)
    ranges: bool = True
    modified: str = "2020-01-01T00:00:00Z"
    etag: str = '"one"'
    repeat_token: bool = False
    after_cut: Callable[[], object] = bool
    log: list[Request] = field(default_factory=list)
    api_url: str = ""
    store_url: str = ""
    issued: int = 0
    sent: threading.Event = field(default_factory=threading.Event)

    def paths(self, server: str) -> list[str]:
        """List the paths, without queries, that were asked for at a server."""
        return [urlsplit(request.path).path for request in self.log if request.server == server]

    def answer_api(self, path: str, headers: dict[str, str]) -> Reply:
        """Answer as the API."""
        self.log.append(Request("api", path, headers))
        parts = urlsplit(path)
        if headers.get("authorization") != KEY:
            # As an unkind server might: it repeats what it was given.
            return _json(403, {"error": f"Access to this API has been disallowed {headers.get('authorization')}"})
        if not parts.path.endswith("/url"):
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            return self._fault("list") or _json(200, self._page(query))

        fault = self._fault("url")
        if fault is None:
            self.issued += 1
            name = unquote(parts.path.rsplit("/", 2)[-2])
            url = f"{self.store_url}/store/{name}?X-Amz-Signature=canary-signature-{self.issued}"
            return _json(200, {"contentType": "text/plain", "temporaryDownloadUrl": url})
        return fault

    def answer_store(self, path: str, headers: dict[str, str]) -> Reply:
        """Answer as the store of the files."""
        self.log.append(Request("store", path, headers))
        if path.startswith("/elsewhere"):
            return _json(200, {"isTruncated": False, "files": []})

        data = self.files[unquote(urlsplit(path).path.removeprefix("/store/"))]
        status, marks = 200, {"ETag": self.etag}
        if self.ranges and "range" in headers:
            start = int(headers["range"].removeprefix("bytes=").removesuffix("-"))
            status, marks["Content-Range"] = 206, f"bytes {start}-{len(data) - 1}/{len(data)}"
            data = data[start:]
        return self._fault("data", Reply(status, marks, data)) or Reply(status, marks, data)

    def _fault(self, kind: str, reply: Reply | None = None) -> Reply | None:
        """Take the next fault of a kind, and make its answer of the right one."""
        faults = self.script.get(kind, [])
        stays = bool(faults) and faults[0].startswith("*")
        action, _, detail = (faults[0][1:] if stays else faults.pop(0) if faults else "").partition(":")
        if not action:
            return None
        if action == "reset":
            return Reply(0)
        if action == "redirect":
            return Reply(302, {"Location": f"{self.store_url}/elsewhere?back"})
        if action == "raw":
            return Reply(200, {}, detail.encode())
        if action == "cut" and reply is not None:
            return reply._replace(body=reply.body[: int(detail)], num_claimed=len(reply.body), then=self.after_cut)
        if action == "slow" and reply is not None:
            return reply._replace(body=reply.body[: len(reply.body) // 2], num_claimed=len(reply.body), then=self._hang)
        after = email.utils.formatdate(time.time() + 1, usegmt=True) if detail == "date" else detail
        return Reply(int(action), {"Retry-After": after} if after else {}, b'{"message": "no"}')

    def _hang(self) -> None:
        self.sent.set()
        time.sleep(60)

    def _page(self, query: dict[str, str]) -> Any:
        first = int(query.get("nextPageToken", "token-0").removeprefix("token-"))
        names = [name for name in self.files if name >= query.get("begin", "")]
        count = min(self.page_files, int(query.get("maxKeys", "10")))
        entries = [
            {"filename": name, "size": self.sizes.get(name, len(self.files[name])), "lastModified": self.modified}
            for name in names[first : first + count]
        ]
        if first + count >= len(names):
            return {"isTruncated": False, "files": entries}
        token = f"token-{first if self.repeat_token else first + count}"
        return {"isTruncated": True, "files": entries, "nextPageToken": token}


def _json(status: int, values: Any) -> Reply:
    return Reply(status, {"Content-Type": "application/json"}, json.dumps(values).encode())


@contextmanager
def running(knmi: Knmi) -> Iterator[Knmi]:
    """Run the API and the store as two servers, on ports of their own."""
    with web_server(knmi.answer_api) as (api, _), web_server(knmi.answer_store) as (store, _):
        knmi.api_url, knmi.store_url = f"http://{api}", f"http://{store}"
        yield knmi
