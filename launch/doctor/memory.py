"""Check memory: what a rank needs on its device and on the machine, by the formula of memory_formula.py."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ...data.exit_codes import ExitCode
from .findings import GIB, MIB, Finding, Job, Known, checked, fail, number, ok, warn

if TYPE_CHECKING:
    from ...trainer.training.windows import Windows
    from .memory_formula import ModelSize, RankMemory
    from .memory_trace import Activations

PROCESS_BYTES: Final = 1 * GIB
"""Interpreter, torch and DeepSpeed: 0.9 to 1.1 GiB measured on a CPU, of which ranks of a node share 0.4 GiB of pages.

CUDA's libraries take more.
"""
DEVICE_RESERVE_BYTES: Final = int(1.5 * GIB)
"""CUDA context, NCCL's buffers and convolution workspaces: an allowance, not measured here."""
COMFORTABLE: Final = 0.9
"""Above this share of a memory, fragmentation or a neighbour may end the run."""


@checked("model", ExitCode.CONFIG)
def check_model(job: Job, known: Known) -> Iterator[Finding]:
    """Count the model that the settings describe."""
    size = model_size(job)
    known.size = size
    yield ok("model", f"{size.parameters / 1e6:.1f} million parameters, {size.trained / 1e6:.1f} trained")


def model_size(job: Job) -> "ModelSize":
    """Count the model without building its weights."""
    import torch

    from ...trainer.forecasting.build import build_nowcaster
    from ...trainer.settings.experiment import FinetuneConfig
    from ...trainer.training.pretrain_task import build_spark
    from .memory_formula import size_of

    config = job.config
    # On the meta device a model has shapes and no memory.
    with torch.device("meta"):
        if isinstance(config, FinetuneConfig):
            return size_of(build_nowcaster(config.model))
        return size_of(build_spark(config))


def checkpoint_bytes(job: Job, size: "ModelSize") -> int:
    """Count the bytes of one checkpoint: weights, moments, averages, all whole."""
    from .memory_formula import num_moments, value_bytes

    unit = value_bytes(job.config.engine)
    weights = size.parameters * unit + size.buffer_bytes
    averages = weights if job.config.optim.ema_decay is not None else 0
    # state.json: the configuration, and a step count a parameter.
    return weights + averages + num_moments(job.config.optim) * size.trained * unit + MIB


@checked("memory", ExitCode.CONFIG)
def check_memory(
    job: Job, windows: "Windows", size: "ModelSize", measured: "Activations | None" = None
) -> Iterator[Finding]:
    """Estimate a rank's memory and compare it with what there is.

    Args:
        job: The run.
        windows: Its archive.
        size: Its model.
        measured: Its activations; None to measure them.
    """
    import torch

    from .memory_formula import rank_memory
    from .memory_trace import measure_activations

    data = job.config.data
    engine = job.config.engine
    num_windows = max(data.micro // job.world_size, 1)
    activations = measured or measure_activations(job.config, windows.index)
    memory = rank_memory(
        size,
        job.config.optim,
        engine,
        world_size=job.world_size,
        micro_steps=data.global_batch // data.micro,
        activations=activations.of(num_windows),
    )
    yield _describe(memory, num_windows)

    # On the host lie frames and, while it is saved, a rank's share of the checkpoint; without a GPU the model too.
    host = host_bytes(job, windows) + checkpoint_bytes(job, size) // job.ranks_per_node
    has_gpu = torch.cuda.is_available() or job.device_memory_gb is not None
    if engine.device == "cuda" or (engine.device == "auto" and has_gpu):
        yield _against_device(job, memory)
    else:
        host += memory.peak
    whose = f"{number(job.ranks_per_node, 'rank')} a node"
    yield _compared("machine memory", host * job.ranks_per_node, machine_bytes(), whose, per_rank=False)


def _describe(memory: "RankMemory", num_windows: int) -> Finding:
    names = ("weights", "master", "moments", "gradients", "average", "backward", "activations", "update")
    shares = [f"{name} {getattr(memory, name) / GIB:.2f}" for name in names if getattr(memory, name)]
    text = f"{memory.resident / GIB:.2f} GiB from step to step, {memory.peak / GIB:.2f} at the peak"
    return ok("memory a rank", f"{text} with {number(num_windows, 'window')} a forward ({', '.join(shares)})")


def _against_device(job: Job, memory: "RankMemory") -> Finding:
    import torch

    name = "GPU"
    if job.device_memory_gb is not None:
        there = round(job.device_memory_gb * 1e9)
    elif torch.cuda.is_available():
        name = torch.cuda.get_device_name(0)
        there = torch.cuda.get_device_properties(0).total_memory
    else:
        text = "there is no GPU here, and the memory of the job's is not known"
        return warn("device memory", text, advice="add --device-memory-gb")
    return _compared("device memory", memory.peak + DEVICE_RESERVE_BYTES, there, name, per_rank=True)


def _compared(what: str, needed: int, there: int, whose: str, *, per_rank: bool) -> Finding:
    text = f"{needed / GIB:.2f} GiB needed, {there / GIB:.1f} there ({whose})"
    advice = "lower data.micro_batch" + ("" if per_rank else " or data.decoded_mb, start fewer ranks a node")
    advice += ", or set model.checkpoint_blocks, engine.zero_stage 1 to 3 or engine.precision bf16"
    if needed > there:
        return fail(what, text, ExitCode.CONFIG, expected="less", advice=advice)
    if needed > COMFORTABLE * there:
        return warn(what, text, expected=f"{COMFORTABLE:.0%} of it at most", advice=advice)
    return ok(what, text)


def host_bytes(job: Job, windows: "Windows") -> int:
    """Count what a rank holds on the host: itself, compressed and decoded frames, batches made ready."""
    from ...data.windows.mixing import default_block_bytes, default_lanes

    data = job.config.data
    index = windows.index
    frame_bytes = index.rows * index.cols * 2
    lanes = data.lanes or default_lanes(data.micro)
    own_lanes = max(1, -(-lanes // job.world_size))

    block = default_block_bytes(data.global_batch, lanes) if data.block_mb is None else round(data.block_mb * 1e6)
    largest = max(entry.num_bytes for entry in index.sequences)
    # A block ends with the sequence that it began; the archive itself is the most that blocks can hold.
    held = min(own_lanes * (block + largest), sum(entry.num_bytes for entry in index.sequences))
    batch = max(data.global_batch // job.world_size, 1) * windows.train.window * frame_bytes
    frames = sum(entry.num_frames for entry in index.sequences) * frame_bytes
    decoded = min(round(data.decoded_mb * MIB), frames)
    ahead = min(round(data.prefetch_mb * MIB), held)
    return PROCESS_BYTES + held + ahead + decoded + (data.prefetch_steps + 3) * batch


def machine_bytes() -> int:
    """Give this machine's memory, or the share of it that a control group leaves to this process."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():
            whole = min(whole, int(text))
    return whole
