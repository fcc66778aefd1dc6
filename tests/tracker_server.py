"""A server of trackers with faults: it answers late, never, or with an error; where it answers, it is MLflow's API."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Fault = Literal["none", "slow", "hangs", "500"]
SLOW_S = 0.3
"""What a slow server waits before each answer."""

# Pictures go to the server too: without an address for them MLflow's client writes into the working folder.
_ARTIFACTS = "mlflow-artifacts:/1/artifacts"
_INFO = {"run_id": "1" * 32, "run_uuid": "1" * 32, "experiment_id": "1", "status": "RUNNING"}
_RUN = {"info": {**_INFO, "artifact_uri": _ARTIFACTS}, "data": {}}
_EXPERIMENT = {"experiment_id": "1", "name": "rainspark", "lifecycle_stage": "active", "artifact_location": "/x"}
_ANSWERS: dict[str, Any] = {
    "experiments/search": {"experiments": [_EXPERIMENT]},
    "experiments/get": {"experiment": _EXPERIMENT},
    "runs/create": {"run": _RUN},
    "runs/get": {"run": _RUN},
    "runs/update": {"run_info": _RUN["info"]},
}


class TrackerServer(ThreadingHTTPServer):
    """Listens on a free port of this machine.

    Attributes:
        fault: What is wrong with it; may be changed while it runs.
        requests: Method and path of every request.
        metrics: What MLflow clients have logged: (name, step, value).
    """

    daemon_threads = True

    def __init__(self, fault: Fault) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.fault = fault
        self.requests: list[str] = []
        self.metrics: list[tuple[str, int, float]] = []
        self.let_go = threading.Event()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: TrackerServer
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append(f"{self.command} {self.path}")
        if self.server.fault == "hangs":
            self.server.let_go.wait()
            self.close_connection = True
            return
        if self.server.fault == "slow":
            time.sleep(SLOW_S)
        path = self.path.partition("?")[0].rpartition("/api/2.0/mlflow/")[2]
        if path == "runs/log-batch" and self.server.fault != "500":
            self.server.metrics += [
                (m["key"], m.get("step", 0), m["value"]) for m in json.loads(body).get("metrics", [])
            ]
        reply = json.dumps(_ANSWERS.get(path, {})).encode()
        self.send_response(500 if self.server.fault == "500" else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    do_GET = do_POST = do_PUT = do_PATCH = do_HEAD = _answer

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def tracker_server(fault: Fault) -> Iterator[TrackerServer]:
    """Serve until the block ends."""
    server = TrackerServer(fault)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.let_go.set()
        server.shutdown()
        server.server_close()
        thread.join()
