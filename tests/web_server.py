"""A web server on this machine that answers what a function says, lost connections included."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Reply(NamedTuple):
    """An answer: status (0: the connection is reset), headers, body.

    Attributes:
        status: Of HTTP.
        headers: Besides Content-Length.
        body: All that is sent.
        num_claimed: Content-Length, where it is not the body's; -1 for none. The connection ends after the body then.
        then: Called once the body is sent.
    """

    status: int
    headers: Mapping[str, str] = {}
    body: bytes = b""
    num_claimed: int | None = None
    then: Callable[[], object] = bool


@contextmanager
def web_server(
    answer: Callable[[str, dict[str, str]], Reply], context: ssl.SSLContext | None = None
) -> Iterator[tuple[str, list[str]]]:
    """Serve what `answer` gives for (path, headers by lower-case name); gives host and port, and the requests."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked.append(f"{self.command} {self.path}")
            reply = answer(self.path, {name.lower(): value for name, value in self.headers.items()})
            if not reply.status:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                self.close_connection = True
                self.connection.close()
                return

            self.send_response(reply.status)
            length = len(reply.body) if reply.num_claimed is None else reply.num_claimed
            lengths = {"Content-Length": str(length)} if length >= 0 else {}
            for name, value in {**lengths, **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(reply.body)
            reply.then()
            self.close_connection |= reply.num_claimed is not None

        do_HEAD = do_PUT = do_DELETE = do_POST = do_GET

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """Clients that leave in the middle are part of the tests."""

    server = Server(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
