"""What a run would stumble over, said before the queue does: `rainspark doctor --config configs/x.yaml`.

Everything that the entry point takes may follow (`--data.shards S --run.dir R ...`). One line a finding: "ok", "warn"
(it starts, and may not go as wished) or "FAIL"; the last line counts them. Exit code: 0 without a FAIL, else the first
one's, in the trainer's own codes: 3 settings and the machine, 4 data, 6 where checkpoints go.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from . import checkpoints as doctor_checkpoints
from . import data as doctor_data
from . import disk as doctor_disk
from . import machine as doctor_machine
from . import memory as doctor_memory
from . import settings as doctor_settings
from .findings import CHECKPOINT, SETTINGS, Finding, Job, as_json, guarded, number

if TYPE_CHECKING:
    from ...trainer.settings.experiment import TrainingConfig

LEAD_S: Final = 180.0
"""Warning before the time limit where no batch script says another."""
SCRIPT: Final = Path(__file__).with_name("multinode.sh")


class _Parser(argparse.ArgumentParser):
    """Ends with the code of bad settings."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and end."""
        sys.stderr.write(f"settings: {message}\n")
        raise SystemExit(SETTINGS)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="rainspark doctor", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--entry", choices=("pretrain", "finetune"), default="pretrain", help="what will be trained")
    parser.add_argument("--nodes", type=_count, help="nodes of the job (1)")
    parser.add_argument("--ranks-per-node", type=_count, help="ranks on each (1)")
    parser.add_argument("--world-size", type=_count, help="ranks in all, instead")
    parser.add_argument("--time-signal-s", type=_amount, help="seconds from the stop signal to the end of the job; "
                        "launch/multinode.sh's where it is not given")  # fmt: skip
    parser.add_argument("--sample", type=_count, default=16, help="sequences that are read, verified and decoded")
    parser.add_argument(
        "--device-memory-gb", type=_amount, help="memory of a GPU of the job, where this machine has none"
    )
    parser.add_argument("--json", action="store_true", help="one JSON list instead of lines")
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _amount(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def _ranks(given: argparse.Namespace, parser: argparse.ArgumentParser) -> tuple[int, int]:
    """Work out (ranks, ranks a node)."""
    nodes, each, total = given.nodes, given.ranks_per_node, given.world_size
    if total is None:
        return (nodes or 1) * (each or 1), each or 1
    if nodes is None:
        nodes = -(-total // each) if each else 1
    each = each or -(-total // nodes)
    if each * nodes != total:
        parser.error(f"--world-size {total} is not --nodes {nodes} x --ranks-per-node {each}; leave one of them out")
    return total, each


def examine(job: Job) -> Iterator[Finding]:
    """Look at everything, cheap things first; each finding is given as soon as it is known.

    Args:
        job: The run that is asked about.
    """
    folder = Path(job.config.run.dir)
    yield from doctor_settings.check_launcher(job.config)
    yield from doctor_settings.check_batches(job)
    yield from doctor_machine.check_versions()
    yield from doctor_machine.check_limits(job)
    yield from doctor_disk.check_folder(job)
    yield from doctor_machine.check_clock(folder)
    windows, found = doctor_data.check_archive(job)
    yield from found
    if windows is not None:
        yield from doctor_settings.check_epochs(job, windows)
        yield from doctor_data.check_sample(job, windows)
    yield from doctor_data.check_cache(job)
    yield from doctor_checkpoints.check_second_place(job)
    if windows is not None:
        yield from doctor_checkpoints.check_checkpoints(job, windows)
    size, found = doctor_memory.count_model(job)
    yield from found
    if size is not None:
        num_bytes = doctor_memory.checkpoint_bytes(job, size)
        yield from doctor_disk.guarded_writing("space", CHECKPOINT, partial(doctor_disk.check_space, job, num_bytes))
        yield from doctor_disk.check_lead_time(job, num_bytes)
    if windows is not None and size is not None:
        yield from doctor_memory.check_memory(job, windows, size)
    yield from doctor_machine.check_backend(job)
    if job.config.engine.zero_stage is not None:
        yield from guarded(
            "extensions", SETTINGS, lambda: doctor_machine.check_build_locks(doctor_machine.extensions_folder())
        )
    yield from doctor_machine.check_imports(job)
    if job.world_size > 1:
        yield from doctor_machine.check_collective()


def _findings(argv: Sequence[str], given: argparse.Namespace, world_size: int, each: int) -> Iterator[Finding]:
    config: TrainingConfig | None
    config, found = doctor_settings.check_settings(argv, given.entry)
    yield from found
    if config is None:
        return
    lead_s = given.time_signal_s
    if lead_s is None:
        lead_s = doctor_disk.lead_time_s(SCRIPT) or LEAD_S
    job = Job(
        config=config, world_size=world_size, ranks_per_node=each, lead_s=lead_s, sample=given.sample,
        device_memory_gb=given.device_memory_gb,
    )  # fmt: skip
    yield from examine(job)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    Args:
        argv: Command line without the program's name; None: this process'.
    """
    parser = _parser()
    # torch's profiler, by which activations are measured, tells on standard error how it starts.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    given, rest = parser.parse_known_args(argv)
    world_size, each = _ranks(given, parser)
    try:
        return _report(_findings(rest, given, world_size, each), json_list=given.json)
    except ModuleNotFoundError as error:
        parser.error(f"{error.name} is not installed in {sys.executable}: run make, then . .venv/bin/activate")


def _report(findings: Iterator[Finding], *, json_list: bool) -> int:
    """Write the findings as they come, and what they come to; returns the exit code."""
    from ...data.frames import printable

    code, told = 0, []
    for finding in findings:
        code = code or finding.code
        told.append(finding)
        if not json_list:
            sys.stdout.write(f"{printable(str(finding))}\n")
            sys.stdout.flush()
    if json_list:
        sys.stdout.write(json.dumps([as_json(finding) for finding in told], indent=1) + "\n")
        return code
    levels = [finding.level for finding in told]
    counts = ", ".join(f"{levels.count(level)} {level}" for level in ("ok", "warn", "FAIL"))
    sys.stdout.write(f"{number(len(told), 'finding')}: {counts}; exit code {code}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
