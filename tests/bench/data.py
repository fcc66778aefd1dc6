"""Reading windows: our shards and stream against float32 gzip-9 HDF5 windows as SmaAt-UNet stores them.

    python -m tests.bench.data [--knmi FOLDER] [--sequences 192] [--threads 1]

Rates are windows per second of processor time (all threads together), so that a shared machine tells the truth too.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from rainspark.data.frames import parse_crop
from rainspark.data.stream.options import ReadOptions
from rainspark.data.stream.stream import Stream
from rainspark.data.windows.mixing import BatchLayout, default_block_bytes
from rainspark.data.windows.selection import Selection, WindowTable, select_windows
from tests.data import knmi_frames
from tests.data.archives import PackedArchive, pack_archive
from tests.data.radar_files import storms

WINDOW, MAX_FRAMES, ROWS, COLS = 24, 144, 288, 288
CENTRE = "284:572,225:513"
# 5734 of 314 958 frames end a window of NL-50's training set (Trebing et al. 2021).
NL50_DENSITY = 5734 / 314_958
# The highest depth of the training years, mm in 5 minutes, by which SmaAt-UNet divides.
NL50_MAX_MM = 47.83
BATCH, LANES = 64, 16


@dataclass(frozen=True, kw_only=True)
class Result:
    """One way of reading: processor seconds and wall seconds a window, bytes a window, and where our time went."""

    name: str
    cpu_s: float
    wall_s: float
    num_bytes: float
    parts: str = ""


def frames_to_pack(folder: Path | None) -> npt.NDArray[np.uint16]:
    """Read the centre crop of real frames, or make storms: uint16 (t, 288, 288)."""
    if folder is None:
        return storms(148, ROWS, COLS, seed=0)
    return np.stack([knmi_frames.read(ref.path, parse_crop(CENTRE)).counts for ref in knmi_frames.scan([folder])])


def long_runs(frames_thw: npt.NDArray[np.uint16], count: int) -> Iterator[npt.NDArray[np.uint16]]:
    """Make `count` runs of 144 frames: the frames back and forth in time, mirrored in space by turns."""
    there_and_back = np.concatenate([frames_thw, frames_thw[-2:0:-1]])
    mirrored = [there_and_back, there_and_back[:, ::-1], there_and_back[:, :, ::-1], there_and_back[:, ::-1, ::-1]]
    for i in range(count):
        order = (np.arange(MAX_FRAMES) + 11 * i) % len(there_and_back)
        yield mirrored[i % 4][order]


def read_hdf5(path: Path, windows: Sequence[npt.NDArray[np.uint16]], repeats: int) -> Result:
    """Write windows as SmaAt-UNet does (h5py's own chunks, gzip 9, float32), then read them one by one into a batch."""
    with h5py.File(path, "w") as file:
        images = file.create_dataset(
            "train/images",
            shape=(len(windows), WINDOW, ROWS, COLS),
            dtype="float32",
            chunks=True,
            compression="gzip",
            compression_opts=9,
        )
        for i, counts_thw in enumerate(windows):
            images[i] = counts_thw * np.float32(0.01 / NL50_MAX_MM)
    batch = np.zeros((len(windows), WINDOW, ROWS, COLS), np.float32)
    with h5py.File(path, "r") as file:
        images = file["train/images"]
        num_bytes = images.id.get_storage_size() / len(windows)
        order = np.random.default_rng(0).permutation(len(windows))
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(repeats):
            for place, i in enumerate(order.tolist()):
                batch[place] = images[i]
        count = repeats * len(windows)
        return Result(
            name="HDF5 float32 gzip 9, any density",
            cpu_s=(time.process_time() - cpu) / count,
            wall_s=(time.perf_counter() - wall) / count,
            num_bytes=num_bytes,
        )


def read_stream(archive: PackedArchive, table: WindowTable, name: str, threads: int, decoded_mb: float) -> Result:
    """Read one epoch."""
    layout = BatchLayout(
        seed=0,
        global_batch=BATCH,
        micro_batch=BATCH,
        lanes=LANES,
        block_bytes=default_block_bytes(BATCH, LANES),
    )
    options = ReadOptions(threads=threads, decoded_mb=decoded_mb)
    stream = Stream(archive.storage, archive.index, table, layout, options=options)
    cpu, wall, count = time.process_time(), time.perf_counter(), 0
    for batches in stream.steps(0, stream.steps_per_epoch):
        count += sum(len(batch.window_b) for batch in batches)
        del batches
    cpu, wall, stats = time.process_time() - cpu, time.perf_counter() - wall, stream.stats()
    return Result(
        name=f"{name}, {decoded_mb:.0f} MiB of decoded frames",
        cpu_s=cpu / count,
        wall_s=wall / count,
        num_bytes=stats["bytes_read"] / count,
        parts=(
            f"{stats['frames_decoded'] / count:.2f} frames decoded, {stats['decoded_bytes_peak'] / 2**20:.0f} MiB held"
        ),
    )


def sparse(table: WindowTable, run: int) -> WindowTable:
    """Take a share of the windows as small as NL-50's, in stretches of `run` starts."""
    rng = np.random.default_rng(0)
    count = max(int(len(table) * NL50_DENSITY), 2 * BATCH)
    first = rng.choice(len(table) // run, -(-count // run), replace=False) * run
    rows = np.sort((first[:, None] + np.arange(run)).ravel())
    return WindowTable(table.sequence[rows], table.start[rows], table.selection)


def main() -> None:
    """Pack, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--knmi", type=Path, help="folder of real KNMI files instead of synthetic storms")
    parser.add_argument("--sequences", type=int, default=192)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    frames_thw = frames_to_pack(options.knmi)
    print(f"{len(frames_thw)} {'real' if options.knmi else 'synthetic'} frames, {(frames_thw > 0).mean():.0%} wet")
    with tempfile.TemporaryDirectory() as folder:
        archive = pack_archive(
            Path(folder) / "shards",
            long_runs(frames_thw, options.sequences),
            window=WINDOW,
            max_frames=MAX_FRAMES,
            num_shards=16,
            keep_counts=False,
        )
        table = select_windows(archive.index, Selection(window=WINDOW))
        some = [run_thw[5 * i : 5 * i + WINDOW] for i, run_thw in enumerate(long_runs(frames_thw, 24))]
        results = [read_hdf5(Path(folder) / "windows.h5", some, repeats=2)]
        for decoded_mb in (2048, 1024, 256):
            results.append(read_stream(archive, table, "stream, every start", options.threads, decoded_mb))
        for name, run in (("scattered", 1), ("in events of 2 h", 24)):
            label = f"stream, NL-50's density {name}"
            results.append(read_stream(archive, sparse(table, run), label, options.threads, 1024))
        stored = sum(shard.num_bytes for shard in archive.index.shards) / len(table)
    base = results[0]
    print(f"{'':58} {'windows/s a core':>17} {'ratio':>6} {'ms wall':>8} {'kB a window':>12} {'ratio':>7}")
    for one in results:
        print(
            f"{one.name:58} {1 / one.cpu_s:17.0f} {base.cpu_s / one.cpu_s:6.1f} {1000 * one.wall_s:8.2f} "
            f"{one.num_bytes / 1000:12.1f} {one.num_bytes / base.num_bytes:7.3f}"
        )
        if one.parts:
            print(f"    {one.parts}")
    print(f"stored: {stored / 1000:.1f} kB a window, whatever is selected later")


if __name__ == "__main__":
    main()
