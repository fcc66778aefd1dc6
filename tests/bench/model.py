"""`python -m tests.bench.model [--quick] [--device cpu|cuda]`: packed patches against masked and plain dense encoders.

Frames are 288 x 288 x 12. Times are medians of runs that take turns (another user of the machine slows all alike),
forward and backward; ratios are to `packed`. Memory is the peak that runs add, in a process of their own.

    gather     masked dense, statistics over positions picked by index, as published
    multiply   masked dense, statistics by multiplication with the mask
    plain      dense, no mask: what an ordinary ResNet costs
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from rainspark.models.encoder import build_encoder
from rainspark.models.patches import pack
from rainspark.models.spark import SparK
from rainspark.models.sparse import PatchLayout
from tests.bench.memory import inputs
from tests.models.masked_dense import MaskedDense
from tests.peak_memory import added_bytes

SIZE, GRID = 288, (9, 9)
KINDS = ("packed", "gather", "multiply", "plain")
Run = Callable[[], None]


def encoder_run(kind: str, name: str, frames: Tensor, positions: Tensor) -> Run:
    """Forward and backward of an encoder; returns the call to time."""
    if kind == "packed":
        encoder = build_encoder(name, frames.shape[1]).to(frames.device)

        def packed() -> None:
            maps = encoder.forward_packed(frames, PatchLayout.from_positions(positions, GRID))
            torch.autograd.backward(torch.stack([x.mean() for x in maps]).sum())
            encoder.zero_grad()

        return packed
    dense = MaskedDense(name, frames.shape[1], "multiply" if kind == "multiply" else "gather").to(frames.device)
    visible = None if kind == "plain" else PatchLayout.from_positions(positions, GRID).visible_bhw()

    def masked() -> None:
        torch.autograd.backward(torch.stack([x.mean() for x in dense(frames, visible)]).sum())
        dense.zero_grad()

    return masked


class DenseInPacked(nn.Module):
    """A masked dense encoder that hands its visible patches on, so that it fits into `SparK`."""

    def __init__(self, name: str, in_chans: int, kind: str) -> None:
        super().__init__()
        self.dense = MaskedDense(name, in_chans, "multiply" if kind == "multiply" else "gather")
        self.kind, self.in_chans, self.strides = kind, in_chans, (4, 8, 16, 32)
        self.channels = build_encoder(name, in_chans).channels

    def forward_packed(self, frames: Tensor, layout: PatchLayout, _: Tensor | None = None) -> list[Tensor]:
        """Packed maps."""
        maps = self.dense(frames, None if self.kind == "plain" else layout.visible_bhw())
        return [pack(x, layout.visible_bv, layout.grid_hw) for x in maps]


def step_run(kind: str, name: str, frames: Tensor, positions: Tensor) -> Run:
    """A whole step (SparK with its decoder and SGD); returns the call to time."""
    encoder: nn.Module = (
        build_encoder(name, frames.shape[1]) if kind == "packed" else DenseInPacked(name, frames.shape[1], kind)
    )
    model = SparK(encoder).to(frames.device)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)

    def step() -> None:
        loss = model.loss_sum(model(frames, positions)) / positions.numel()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()

    return step


def decoder_run(frames: Tensor) -> Run:
    """Forward and backward of the decoder alone, with gradients of its inputs; returns the call to time."""
    model = SparK(build_encoder("resnet18", frames.shape[1])).to(frames.device)
    maps = [
        torch.rand(frames.shape[0], 768 // 2**i, GRID[0] * 2**i, GRID[1] * 2**i, device=frames.device).requires_grad_()
        for i in range(4)
    ]

    def decode() -> None:
        torch.autograd.backward(model.dense_decoder(maps).mean())

    return decode


def medians(runs: dict[str, Run], repeats: int) -> dict[str, float]:
    """Milliseconds of each, taking turns; the first turn warms up."""
    times: dict[str, list[float]] = {key: [] for key in runs}
    for turn in range(repeats + 1):
        for key, run in runs.items():
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                times[key].append((time.perf_counter() - start) * 1e3)
    return {key: statistics.median(values) for key, values in times.items()}


def peak_mb(what: str, kind: str, name: str, ratio: float, batch: int, device: str) -> float:
    """Peak memory that two runs add, measured in a process of its own."""
    call = [sys.executable, "-m", "tests.bench.model", "--peak", what, kind, name, str(ratio), str(batch), device]
    return float(subprocess.run(call, capture_output=True, text=True, check=True).stdout)


def report_peak(what: str, kind: str, name: str, ratio: str, batch: str, device: str) -> None:
    """The child's side of `peak_mb`."""
    frames, positions = inputs(SIZE, int(batch), device, float(ratio))
    run = (encoder_run if what == "encoder" else step_run)(kind, name, frames, positions)

    def twice() -> None:
        run()
        run()

    print(added_bytes(twice, device) / 2**20)


def line(label: str, values: dict[str, float], unit: str) -> None:
    """One line of the table: packed, and the others with their ratio to it."""
    cells = [f"{values['packed']:9.0f}"]
    cells += [f"{values[kind]:9.0f} ({values[kind] / values['packed']:4.2f}x)" for kind in KINDS[1:]]
    print(f"{label:34s} {unit} " + "  ".join(cells), flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="resnet50 at 0.6, few repeats")
    parser.add_argument("--encoders", nargs="+", default=["resnet18", "resnet26", "resnet50"])
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.3, 0.6])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, help="images (default 2 on CPU, 32 on GPU)")
    parser.add_argument("--peak", nargs=6, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        report_peak(*arguments.peak)
        return
    device = arguments.device
    batch = arguments.batch or (32 if device == "cuda" else 2)
    repeats = 3 if arguments.quick else arguments.repeats
    machine = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU thread(s)"
    print(f"{machine} of {platform.node() and platform.machine()}, torch {torch.__version__}, float32, batch {batch}")
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    print(f"{'':34s}         {'packed':>9s}  " + "  ".join(f"{kind:>17s}" for kind in KINDS[1:]))
    for ratio in (0.6,) if arguments.quick else arguments.ratios:
        frames, positions = inputs(SIZE, batch, device, ratio)
        for name in ("resnet50",) if arguments.quick else arguments.encoders:
            line(
                f"{name} mask {ratio} encoder",
                medians({kind: encoder_run(kind, name, frames, positions) for kind in KINDS}, repeats),
                "ms",
            )
            runs = {kind: step_run(kind, name, frames, positions) for kind in KINDS} | {"decoder": decoder_run(frames)}
            times = medians(runs, repeats)
            share = times["decoder"] / times["packed"]
            line(f"{name} mask {ratio} step (decoder {share:.0%})", times, "ms")
            for what in ("encoder", "step"):
                peaks = {kind: peak_mb(what, kind, name, ratio, batch, device) for kind in KINDS}
                line(f"{name} mask {ratio} {what} peak", peaks, "MB")


if __name__ == "__main__":
    main()
