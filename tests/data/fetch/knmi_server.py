"""A web server on this machine that answers as KNMI's Open Data API and its file store do, faults included."""

import email.utils
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

KEY = "eyJ-canary-KEY-0123456789abcdef"


@dataclass(frozen=True)
class Request:
    """A request that came: at which server ("api" or "store"), its path with query, and its headers."""

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
            "429:date", a status, "reset", "cut:BYTES", "redirect", "html", "slow" or "" for none; the last one, after
            "*", stays.
        ranges: Whether the store knows Range.
        modified: When the files were last changed.
        etag: Version mark of every file.
        after_data: Called once when an answer of the store was sent.
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
    after_data: Callable[[], None] | None = None
    log: list[Request] = field(default_factory=list)
    api_url: str = ""
    store_url: str = ""
    issued: int = 0
    sent: threading.Event = field(default_factory=threading.Event)

    def next_fault(self, kind: str) -> str:
        """Take the next fault of a kind."""
        faults = self.script.get(kind, [])
        if faults and faults[0].startswith("*"):
            return faults[0][1:]
        return faults.pop(0) if faults else ""

    def paths(self, server: str) -> list[str]:
        """List the paths, without queries, that were asked for at a server."""
        return [urlsplit(request.path).path for request in self.log if request.server == server]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    knmi: Knmi
    role: str

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave in the middle are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer."""
        knmi, parts = self.server.knmi, urlsplit(self.path)
        knmi.log.append(Request(self.server.role, self.path, dict(self.headers)))
        name = unquote(parts.path.rsplit("/", 2)[-2])
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        if parts.path.startswith("/store/"):
            self._send_file(knmi, unquote(parts.path.removeprefix("/store/")), knmi.next_fault("data"))
        elif parts.path.startswith("/elsewhere"):
            self._json(200, {"isTruncated": False, "files": []})
        elif self.headers.get("Authorization") != KEY:
            # As an unkind server might: it repeats what it was given.
            self._json(403, {"error": f"Access to this API has been disallowed {self.headers.get('Authorization')}"})
        elif parts.path.endswith("/url"):
            if not self._faulty(knmi.next_fault("url")):
                knmi.issued += 1
                url = f"{knmi.store_url}/store/{name}?X-Amz-Signature=canary-signature-{knmi.issued}"
                self._json(200, {"contentType": "text/plain", "temporaryDownloadUrl": url})
        elif not self._faulty(knmi.next_fault("list")):
            self._json(200, self._page(knmi, query))

    def _page(self, knmi: Knmi, query: dict[str, str]) -> Any:
        first = int(query.get("nextPageToken", "token-0").removeprefix("token-"))
        names = [name for name in knmi.files if name >= query.get("begin", "")]
        count = min(knmi.page_files, int(query.get("maxKeys", "10")))
        shown = names[first : first + count]
        truncated = first + count < len(names)
        entries = [
            {
                "filename": name,
                "size": knmi.sizes.get(name, len(knmi.files[name])),
                "lastModified": knmi.modified,
            }
            for name in shown
        ]
        page: dict[str, Any] = {"isTruncated": truncated, "resultCount": len(shown), "files": entries}
        if truncated:
            page["nextPageToken"] = f"token-{first if knmi.repeat_token else first + count}"
        return page

    def _faulty(self, fault: str) -> bool:
        status, _, detail = fault.partition(":")
        if not fault:
            return False
        if status == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.close_connection = True
            self.connection.close()
        elif status == "redirect":
            self._answer(302, b"", {"Location": f"{self.server.knmi.store_url}/elsewhere?back"})
        elif status == "html":
            self._answer(200, b"<html>please log in</html>", {})
        elif status == "raw":
            self._answer(200, detail.encode(), {})
        else:
            given = email.utils.formatdate(time.time() + 1, usegmt=True) if detail == "date" else detail
            self._answer(int(status), b'{"message": "no"}', {"Retry-After": given} if given else {})
        return True

    def _send_file(self, knmi: Knmi, name: str, fault: str) -> None:
        kind, _, detail = fault.partition(":")
        if kind not in ("", "cut", "slow") and self._faulty(fault):
            return
        data, status, headers = knmi.files[name], 200, {"ETag": knmi.etag}
        wanted = self.headers.get("Range", "")
        if wanted and knmi.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            status, headers["Content-Range"] = 206, f"bytes {start}-{len(data) - 1}/{len(data)}"
            data = data[start:]
        if kind == "cut":
            self._answer(status, data[: int(detail)], headers, claimed=len(data))
            self.close_connection = True
            if knmi.after_data is not None:
                knmi.after_data()
                knmi.after_data = None
        elif kind == "slow":
            self._answer(status, data[: len(data) // 2], headers, claimed=len(data))
            self.wfile.flush()
            knmi.sent.set()
            time.sleep(60)
        else:
            self._answer(status, data, headers)

    def _json(self, status: int, values: Any) -> None:
        self._answer(status, json.dumps(values).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, data: bytes, headers: dict[str, str], claimed: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) if claimed is None else claimed))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def running(knmi: Knmi) -> Iterator[Knmi]:
    """Run the API and the store as two servers, on ports of their own."""
    servers = []
    for role in ("api", "store"):
        server = _Server(("127.0.0.1", 0), _Handler)
        server.knmi, server.role = knmi, role
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), name=f"knmi-{role}", daemon=True).start()
    knmi.api_url, knmi.store_url = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    try:
        yield knmi
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
