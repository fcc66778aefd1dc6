"""Checks of the settings, and the arithmetic of batches, lanes and ranks."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .findings import SETTINGS, Finding, Job, fail, guarded, number, ok, warn

if TYPE_CHECKING:
    from ...trainer.settings.experiment import TrainingConfig
    from ...trainer.training.windows import Windows


def check_settings(argv: Sequence[str], entry: str) -> tuple["TrainingConfig | None", list[Finding]]:
    """Read the settings as the entry point does, with all its checks across them.

    Args:
        argv: `--config FILE` and overrides.
        entry: "pretrain" or "finetune".
    """
    from ...trainer.settings.experiment import FinetuneConfig, PretrainConfig
    from ...trainer.settings.parse import parse_config

    config: TrainingConfig | None = None

    def read() -> list[Finding]:
        nonlocal config
        if entry == "finetune":
            config = parse_config(argv, FinetuneConfig, prog="rainspark doctor")
        else:
            config = parse_config(argv, PretrainConfig, prog="rainspark doctor")
        return [ok("settings", f"{entry} into {config.run.dir}, {config.run.steps} steps")]

    found = guarded("settings", SETTINGS, read)
    return config, found


def check_launcher(config: "TrainingConfig") -> list[Finding]:
    """Look for settings of `accelerate launch` in the environment that contradict ours."""
    from ...trainer.engine.processes import check_clipping
    from ...trainer.engine.processes import check_launcher as check

    def look() -> list[Finding]:
        check(config.engine, os.environ)
        check_clipping(config.optim.clip_norm, os.environ)
        return [ok("launcher", "nothing in the environment contradicts the settings")]

    return guarded("launcher", SETTINGS, look)


def check_batches(job: Job) -> list[Finding]:
    """Work out what each rank gets of a batch, and which numbers of ranks work."""
    from ...data.windows.mixing import default_lanes

    data, ranks = job.config.data, job.world_size
    lanes = data.lanes or default_lanes(data.micro)
    sizes = [size for size in range(1, data.micro + 1) if data.micro % size == 0]
    works = f"numbers of ranks that work: {', '.join(map(str, sizes))}"
    if data.micro % lanes:
        fitting = ", ".join(str(size) for size in sizes)
        return [
            fail(
                "batch",
                f"data.lanes {lanes} do not divide data.micro_batch {data.micro}",
                SETTINGS,
                expected=f"one of {fitting}",
                advice="change data.lanes",
            )
        ]
    if data.micro % ranks:
        near = min(sizes, key=lambda size: (abs(size - ranks), size))
        return [
            fail(
                "batch",
                f"data.micro_batch {data.micro} cannot be divided among {number(ranks, 'rank')}",
                SETTINGS,
                expected=f"a divisor of it ({', '.join(map(str, sizes))})",
                advice=f"start {number(near, 'rank')}, or set data.micro_batch to a multiple of {ranks}",
            )
        ]
    steps, part = data.global_batch // data.micro, data.micro // ranks
    text = f"{number(data.global_batch, 'window')} a step = {number(steps, 'micro-step')} x {data.micro}"
    where = "on one rank" if ranks == 1 else f"on each of {ranks} ranks"
    found = [ok("batch", f"{text}; {number(part, 'window')} a forward {where}; {works}")]
    if lanes % ranks:
        single = ", ".join(str(size) for size in sizes if lanes % size == 0)
        found.append(
            warn(
                "lanes",
                f"{number(lanes, 'lane')} on {ranks} ranks: ranks share lanes, and read the same sequences",
                expected=f"ranks that divide the lanes ({single})",
                advice=f"set data.lanes to a multiple of {ranks} that divides {data.micro}",
            )
        )
    else:
        found.append(
            ok("lanes", f"{number(lanes, 'lane')}, {lanes // ranks} a rank: every sequence is read by one rank only")
        )
    return found


def check_epochs(job: Job, windows: "Windows") -> list[Finding]:
    """Work out how often the windows are read."""
    data, steps = job.config.data, job.config.run.steps
    count = len(windows.train)
    if count < data.global_batch:
        return [
            fail(
                "epochs",
                f"{number(count, 'window')} to train on",
                SETTINGS,
                expected=f"one global batch of {data.global_batch} at least",
                advice="lower data.global_batch or data.min_rain_fraction, or take more data",
            )
        ]
    per_epoch = count // data.global_batch
    return [
        ok(
            "epochs",
            f"{number(count, 'window')} to train on, {number(per_epoch, 'step')} an epoch; "
            f"run.steps {steps} is {steps / per_epoch:.2f} epochs",
        )
    ]
