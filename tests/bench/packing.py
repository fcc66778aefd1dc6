"""Packing rates and memory: KNMI composites as files, tar and zip, and OPERA's composites in tiles.

    python -m tests.bench.packing [--shared ../shared] [--knmi 288] [--odim 18]

Real files are copied under later times until there are enough. Each pack is a process of its own; its frames are those
of the input, its seconds those of the clock and of the processor, its memory the highest resident size.
"""

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from rainspark.data.sources.knmi_writer import product_time
from tests.data.radar_files import FIRST_S, write_archive

CENTRE = "284:572,225:513"


def copies(originals: Sequence[Path], folder: Path, count: int, name: str, retime: Callable[[Any, int], None]) -> Path:
    """Copy files under later times, five minutes apart."""
    folder.mkdir()
    for number in range(count):
        time_s = FIRST_S + 300 * number
        path = folder / f"{datetime.fromtimestamp(time_s, UTC):{name}}"
        shutil.copyfile(originals[number % len(originals)], path)
        with h5py.File(path, "r+") as file:
            retime(file, time_s)
    return folder


def retime_knmi(file: Any, time_s: int) -> None:
    """Set the times of a KNMI file."""
    file["overview"].attrs["product_datetime_start"] = np.bytes_(product_time(time_s - 300))
    file["overview"].attrs["product_datetime_end"] = np.bytes_(product_time(time_s))


def retime_odim(file: Any, time_s: int) -> None:
    """Set the times of an ODIM file."""
    for group, prefix, at_s in (
        ("what", "", time_s),
        ("dataset1/what", "start", time_s - 300),
        ("dataset1/what", "end", time_s),
    ):
        moment = datetime.fromtimestamp(at_s, UTC)
        file[group].attrs[f"{prefix}date"] = np.bytes_(f"{moment:%Y%m%d}")
        file[group].attrs[f"{prefix}time"] = np.bytes_(f"{moment:%H%M%S}")


def measure(title: str, frames: int, arguments: Sequence[str]) -> None:
    """Pack in a process of its own and print what it took."""
    before, start_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    program = "import resource, sys; from rainspark.data.pack.__main__ import main; code = main(sys.argv[1:]); "
    program += "sys.stdout.write(f'\\n{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}'); sys.exit(code)"
    ended = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    wall_s, after = time.perf_counter() - start_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    peak_mb = int(ended.stdout.rsplit("\n", 1)[-1]) / 1000
    print(f"{title:40} {frames / wall_s:8.1f} frames/s   {frames / cpu_s:8.1f} a CPU second   {peak_mb:6.0f} MB")


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--knmi", type=int, default=288, help="composites")
    parser.add_argument("--odim", type=int, default=18, help="composites")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        real = sorted((arguments.shared / "data" / "knmi").glob("*.h5"))
        folder = copies(real, work / "knmi", arguments.knmi, "RAD_NL25_RAP_5min_%Y%m%d%H%M.h5", retime_knmi)
        files = sorted(folder.iterdir())
        inputs = {
            "KNMI, a quarter in a tar": write_archive(work / "quarter.tar", files[: len(files) // 4]),
            "KNMI, files": folder,
            "KNMI, tar": write_archive(work / "all.tar", files),
            "KNMI, zip": write_archive(work / "all.zip", files),
        }
        for number, (title, path) in enumerate(inputs.items()):
            frames = arguments.knmi if number else arguments.knmi // 4
            measure(title, frames, ["knmi", str(path), "--crop", CENTRE, "--out", str(work / f"knmi{number}")])
        real = sorted((arguments.shared / "data" / "odim").glob("T_PABV*"))
        folder = copies(real, work / "odim", arguments.odim, "T_PABV21_C_EUOC_%Y%m%d%H%M%S.hdf", retime_odim)
        command = ["odim", str(folder), "--zr", "200,1.6", "--window", "6", "--out"]
        measure("OPERA 4400 x 3800, 195 tiles of 288", arguments.odim, [*command, str(work / "tiles"), "--tile", "288"])
        measure(
            "OPERA, one crop of 288", arguments.odim, [*command, str(work / "crop"), "--crop", "2200:2488,1800:2088"]
        )


if __name__ == "__main__":
    main()
