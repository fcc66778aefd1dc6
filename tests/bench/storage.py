"""Reading from an object store: our share of what its client can do, and windows a second from store, cache and folder.

    python -m tests.bench.storage [--sequences 48] [--mb_per_s 100] [--round_trip_ms 20] [--only raw|windows]

A real S3 server (../shared/tools/s3_up.sh) behind a line of stated bandwidth and delay, which is a process of its own.
"""

import argparse
import fcntl
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

import obstore
from obstore.store import S3Store

from rainspark.data.shards.index import Index
from rainspark.data.store.storage import Storage, open_storage
from rainspark.data.stream.options import ReadOptions
from rainspark.data.stream.reading import STORE_READERS, SequenceReader
from rainspark.data.stream.stream import Stream
from rainspark.data.windows.mixing import BatchLayout
from rainspark.data.windows.selection import Selection, WindowTable, select_windows
from tests.bench.data import BATCH, MAX_FRAMES, WINDOW, frames_to_pack, long_runs, sparse
from tests.data.archives import PackedArchive, pack_archive
from tests.s3_server import ACCESS_KEY, SECRET_KEY, free_port, upload

REPOSITORY = Path(__file__).resolve().parents[2]
MB, MIB = 1e6, 2**20
ROUNDS = 3
# Few and short: an archive that is read in seconds has to hold many blocks a lane, as a real one does.
LANES, BLOCK_BYTES = 4, 6 * MIB
# How windows are read, and in how many passes; None: as many as the table asks for.
WAYS = {"folder": None, "store": None, "store, cold cache": 1, "store, warm cache": None}
LINE_BYTES, LINE_SLACK_S = 1 << 18, 0.005


def line(port: int, target_port: int, bytes_per_s: float, round_trip_s: float) -> None:
    """Pass connections on: replies share one bandwidth, and a request waits for the round trip, there and back.

    Bytes go from socket to socket inside the kernel (splice), so that the line takes little of the machine.
    """
    free_at, lock = 0.0, threading.Lock()

    def reply(server: socket.socket, client: socket.socket) -> None:
        nonlocal free_at
        from_pipe, into_pipe = os.pipe()
        fcntl.fcntl(into_pipe, fcntl.F_SETPIPE_SZ, LINE_BYTES)
        while count := os.splice(server.fileno(), into_pipe, LINE_BYTES):
            with lock:
                # What the line cannot take yet stays with the sender.
                free_at = max(free_at, time.monotonic() - LINE_SLACK_S) + count / bytes_per_s
                due = free_at
            time.sleep(max(0.0, due - time.monotonic()))
            while count:
                count -= os.splice(from_pipe, client.fileno(), count)
        os.close(from_pipe)
        os.close(into_pipe)

    def ask(client: socket.socket, server: socket.socket) -> None:
        while data := client.recv(LINE_BYTES):
            time.sleep(round_trip_s)
            server.sendall(data)

    def run(passing: Callable[[socket.socket, socket.socket], None], source: socket.socket, to: socket.socket) -> None:
        try:
            passing(source, to)
        except OSError:
            pass
        finally:
            for end in (source, to):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    with socket.create_server(("127.0.0.1", port), backlog=64) as listening:
        sys.stdout.write("listening\n")
        sys.stdout.flush()
        while True:
            client, _ = listening.accept()
            server = socket.create_connection(("127.0.0.1", target_port))
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for passing, source, to in ((ask, client, server), (reply, server, client)):
                threading.Thread(target=run, args=(passing, source, to), daemon=True).start()


@contextmanager
def served(folder: Path, mb_per_s: float, round_trip_ms: float) -> Iterator[str]:
    """Start the server and the line before it; give the line's address.

    The client's environment is set to the server itself.
    """
    tools = REPOSITORY.parent / "shared" / "tools"
    weed = shutil.which("weed") or shutil.which("weed", path=str(Path(sys.executable).parent)) or "weed"
    port, environment = free_port(1, 2, 3, 10_000, 10_001, 10_002, 10_003), dict(os.environ)
    subprocess.run([tools / "s3_up.sh", folder, str(port)], env={**environment, "WEED": weed}, check=True)
    line_port = free_port()
    command = [sys.executable, "-m", "tests.bench.storage", "--line"]
    stated = [str(line_port), str(port), str(mb_per_s * MB), str(round_trip_ms / 1000)]
    with subprocess.Popen([*command, *stated], stdout=subprocess.PIPE, cwd=REPOSITORY) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"listening\n"
            os.environ |= {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
                "AWS_ACCESS_KEY_ID": ACCESS_KEY,
                "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
                "AWS_DEFAULT_REGION": "us-east-1",
            }
            yield f"http://127.0.0.1:{line_port}"
        finally:
            process.kill()
            subprocess.run([tools / "s3_down.sh", folder], check=False, capture_output=True)


def read_raw(ranges: Sequence[tuple[str, int, int]], readers: int) -> float:
    """Read ranges by the client alone, as many at once as we do; give the seconds."""
    client = S3Store(
        "bench",
        prefix="shards",
        endpoint=os.environ["AWS_ENDPOINT_URL"],
        access_key_id=ACCESS_KEY,
        secret_access_key=SECRET_KEY,
        region="us-east-1",
        client_options={"allow_http": True},
    )

    def read(one: tuple[str, int, int]) -> int:
        return len(obstore.get_range(client, one[0], start=one[1], end=one[2]))

    began = time.perf_counter()
    with ThreadPoolExecutor(readers) as pool:
        total = sum(pool.map(read, ranges))
    assert total == sum(stop - start for _, start, stop in ranges)
    return time.perf_counter() - began


class Noted:
    """A storage that notes which ranges are read."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.ranges: list[tuple[str, int, int]] = []

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Read a range."""
        self.ranges.append((name, start, stop))
        return self._storage.read(name, start, stop)

    def read_checked(self, name: str, start: int, stop: int, check: Callable[[bytes], None]) -> bytes:
        """Read a range and check it."""
        self.ranges.append((name, start, stop))
        return self._storage.read_checked(name, start, stop, check)


def read_verified(storage: Any, index: Index) -> float:
    """Read and verify every sequence in the order of a lane, without decoding; give the seconds."""
    order = sorted(range(len(index.sequences)), key=lambda i: (index.sequences[i].shard, index.sequences[i].offset))
    began = time.perf_counter()
    reader = SequenceReader(storage, index, readers=STORE_READERS, ahead_bytes=512 * MIB)
    try:
        reader.request([(sequence, place) for place, sequence in enumerate(order)])
        for sequence in order:
            reader.frames(sequence)
            reader.release(sequence)
    finally:
        reader.close()
    return time.perf_counter() - began


def print_shares(storage: Storage, index: Index) -> float:
    """Compare fetch and verify with the client alone, by turns; give our bytes a second.

    The share is of the best of each, the median that of the turns' ratios.
    """
    print(f"{'requests':>9}{'MB each':>9}{'client MB/s':>13}{'ours MB/s':>11}{'share':>7}{'median':>8}")
    raw, ours, noted = [], [], Noted(storage)
    for _ in range(ROUNDS):
        noted = Noted(storage)
        ours.append(read_verified(noted, index))
        raw.append(read_raw(noted.ranges, STORE_READERS))
    total = sum(stop - start for _, start, stop in noted.ranges)
    best, client = total / min(ours), total / min(raw)
    print(
        f"{len(noted.ranges):9}{total / len(noted.ranges) / MB:9.1f}{client / MB:13.1f}{best / MB:11.1f}"
        f"{best / client:7.2f}{median(there / here for here, there in zip(ours, raw, strict=True)):8.2f}"
    )
    return best


def windows_per_s(
    storage: Storage, index: Index, table: WindowTable, threads: int, epochs: int
) -> tuple[float, dict[str, float]]:
    """Read some epochs; give windows a second and what the stream counted."""
    layout = BatchLayout(seed=0, global_batch=BATCH, micro_batch=BATCH, lanes=LANES, block_bytes=BLOCK_BYTES)
    stream = Stream(storage, index, table, layout, options=ReadOptions(threads=threads))
    began, count = time.perf_counter(), 0
    for batches in stream.steps(0, epochs * stream.steps_per_epoch):
        count += sum(len(batch.window_b) for batch in batches)
        del batches
    return count / (time.perf_counter() - began), stream.stats()


def cached(storage: Storage, index: Index, folder: Path) -> Storage:
    """Keep shards of a store on local disk."""
    from rainspark.data.store.cache import CachedStorage

    files = {shard.name: (shard.num_bytes, shard.sha256) for shard in index.shards}
    return CachedStorage(storage, folder, 10**12, files)


def print_windows(archive: PackedArchive, url: str, rate: float, threads: int, folder: Path) -> None:
    """Compare store, cold and warm cache, and folder, where every window is read and where few of each sequence are.

    By turns, and the median of each turn's ratio: the machine is shared. A store's is to the slower of the line and of
    the folder.
    """
    index = archive.index
    whole = select_windows(index, Selection(window=WINDOW))
    print(f"\n{'':44}{'windows/s':>10}{'requests':>9}{'MB read':>9}{'MB sent':>9}{'median':>8}")
    for label, table, epochs in (("every start", whole, 1), ("few of each sequence", sparse(whole, 1), 2)):
        results: dict[str, list[tuple[float, dict[str, float]]]] = {name: [] for name in WAYS}
        for turn in range(ROUNDS):
            cache = folder / f"cache-{epochs}-{turn}"
            for name, passes in WAYS.items():
                with ExitStack() as opened:
                    storage: Storage = archive.storage
                    if name != "folder":
                        storage = opened.enter_context(closing(open_storage(url)))
                    if name.endswith("cache"):
                        storage = cached(storage, index, cache)
                    results[name].append(windows_per_s(storage, index, table, threads, passes or epochs))

        for name in WAYS:
            best, stats = max(results[name], key=lambda result: result[0])
            ratios = []
            for (windows, counts), (local, _) in zip(results[name], results["folder"], strict=True):
                line_rate = rate * counts["windows"] / counts["bytes_read"]
                ratios.append(windows / (min(local, line_rate) if name == "store" else local))
            sent = stats["store_bytes_read"] / MB if "store" in name else 0.0
            print(
                f"{f'{label}: {name}':44}{best:10.0f}{stats['requests']:9.0f}{stats['bytes_read'] / MB:9.0f}{sent:9.0f}"
                f"{median(ratios):8.2f} {'of the slower' if name == 'store' else 'of folder'}"
            )


def main() -> None:
    """Pack, upload, measure, print."""
    if sys.argv[1:2] == ["--line"]:
        port, target, bytes_per_s, round_trip_s = sys.argv[2:]
        line(int(port), int(target), float(bytes_per_s), float(round_trip_s))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--knmi", type=Path, help="folder of real KNMI files instead of synthetic storms")
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--frames", type=int, default=MAX_FRAMES, help="longest sequence")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--mb_per_s", type=float, default=100)
    parser.add_argument("--round_trip_ms", type=float, default=20)
    parser.add_argument("--only", choices=("raw", "windows"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive = pack_archive(
            folder / "shards",
            long_runs(frames_to_pack(options.knmi), options.sequences),
            window=WINDOW,
            max_frames=options.frames,
            num_shards=8,
            keep_counts=False,
        )
        total = sum(shard.num_bytes for shard in archive.index.shards)
        print(f"{len(archive.index.sequences)} sequences, {total / MB:.0f} MB; a line of {options.mb_per_s:g} MB/s, "
              f"{options.round_trip_ms:g} ms; {STORE_READERS} readers")  # fmt: skip
        with served(folder / "s3", options.mb_per_s, options.round_trip_ms) as line_url:
            upload(archive.folder, "s3://bench/shards").close()
            os.environ["AWS_ENDPOINT_URL"] = line_url
            rate = options.mb_per_s * MB
            if options.only != "windows":
                with closing(open_storage("s3://bench/shards")) as storage:
                    rate = print_shares(storage, archive.index)
            if options.only != "raw":
                print_windows(archive, "s3://bench/shards", rate, options.threads, folder)


if __name__ == "__main__":
    main()
