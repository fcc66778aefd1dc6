"""Check a training job before it is submitted: `rainspark doctor --config FILE_OR_RECIPE --data.shards S --run.dir R`.

Settings of the training program may follow (--config, --data.shards, --run.dir, ...). One line a finding: "ok", "warn"
(it starts, and may not go as wished) or "FAIL"; the last line counts them. Exit code: 0 without a FAIL, else that of
the first one: 3 settings and the machine, 4 data, 6 where checkpoints go.
"""

import argparse
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from ...data.command import MOST_NUMBER, CommandParser, run_command, whole_number
from ...data.errors import ConfigError
from ...data.exit_codes import ExitCode
from ...data.json_checks import shown
from . import batches, data, disk, machine, memory, second_place
from .findings import Finding, Job, Known, fail, number, ok

LEAD_S: Final = 180.0
"""Seconds of warning before the time limit that launch/multinode.sh and `rainspark submit` ask for."""


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of `rainspark doctor`."""
    parser = CommandParser(prog="rainspark doctor", description=__doc__)
    parser.add_argument("--entry", choices=("pretrain", "finetune"), default="pretrain", help="what will be trained")
    parser.add_argument("--nodes", type=whole_number(1), metavar="INT", default=1, help="nodes of the job (1)")
    parser.add_argument("--ranks-per-node", type=whole_number(1), metavar="INT", default=1, help="ranks on each (1)")
    signal_help = f"seconds from the stop signal to the end of the job ({LEAD_S:g})"
    parser.add_argument("--time-signal-s", type=_amount, metavar="FLOAT", default=LEAD_S, help=signal_help)
    sample_help = "sequences that are read, verified and decoded (16)"
    parser.add_argument("--sample", type=whole_number(1), metavar="INT", default=16, help=sample_help)
    memory_help = "memory of a GPU of the job, where this machine has none"
    parser.add_argument("--device-memory-gb", type=_amount, metavar="FLOAT", help=memory_help)
    return parser


def _amount(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 < value <= MOST_NUMBER):
        raise argparse.ArgumentTypeError(f"{shown(text)!r} is no number above 0 and up to {MOST_NUMBER}")
    return value


def examine(job: Job) -> Iterator[Finding]:
    """Check everything, cheap things first; each finding is given as soon as it is known.

    Args:
        job: The run that is asked about.
    """
    known = Known()
    yield from batches.check_batches(job)
    yield from machine.check_versions()
    yield from disk.check_folder(job)
    yield from machine.check_clock(Path(job.config.run.dir))

    yield from data.check_archive(job, known)
    if known.windows is not None:
        yield from data.check_sample(job, known.windows)
    yield from second_place.check_second_place(job)

    yield from memory.check_model(job, known)
    if known.size is not None:
        num_bytes = memory.checkpoint_bytes(job, known.size)
        yield from disk.check_space(job, num_bytes)
        yield from disk.check_lead_time(job, num_bytes)
    if known.windows is not None and known.size is not None:
        yield from memory.check_memory(job, known.windows, known.size)

    yield from machine.check_backend(job)
    if job.world_size > 1:
        yield from machine.check_collective()


def _findings(argv: Sequence[str], options: argparse.Namespace) -> Iterator[Finding]:
    from ...trainer.settings.experiment import TRAININGS
    from ...trainer.settings.parse import parse_config

    # The settings are read as the training program does, with all its checks across them.
    try:
        config = parse_config(argv, TRAININGS[options.entry], prog="rainspark doctor")
    except ConfigError as error:
        yield fail("settings", str(error), ExitCode.CONFIG, advice=_other_entry(argv, options.entry))
        return
    yield ok("settings", f"{options.entry} into {config.run.dir}, {config.run.steps} steps")

    job = Job(
        config=config,
        world_size=options.nodes * options.ranks_per_node,
        ranks_per_node=options.ranks_per_node,
        lead_s=options.time_signal_s,
        sample=options.sample,
        device_memory_gb=options.device_memory_gb,
    )
    yield from examine(job)


def _other_entry(argv: Sequence[str], entry: str) -> str:
    """Advise to state another training where these settings are its own."""
    from ...trainer.settings.experiment import TRAININGS
    from ...trainer.settings.parse import parse_config

    (other,) = TRAININGS.keys() - {entry}
    try:
        parse_config(argv, TRAININGS[other], prog="rainspark doctor")
    except ConfigError:
        return ""
    return f"these are settings of {other}: add --entry {other}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    Args:
        argv: Command line without the program's name; None: this process'.
    """
    # torch's profiler, by which activations are measured, writes to standard error how it starts.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    return run_command(lambda: _examine_and_report(argv))


def _examine_and_report(argv: Sequence[str] | None) -> int:
    """Write the findings as they come, and what they come to; returns the exit code."""
    from ...data.frames import printable

    options, rest = make_parser().parse_known_args(argv)
    reported = []
    for finding in _findings(rest, options):
        reported.append(finding)
        sys.stdout.write(f"{printable(str(finding))}\n")
        sys.stdout.flush()

    code = next((finding.code for finding in reported if finding.code), 0)
    levels = [finding.level for finding in reported]
    counts = ", ".join(f"{levels.count(level)} {level}" for level in ("ok", "warn", "FAIL"))
    sys.stdout.write(f"{number(len(reported), 'finding')}: {counts}; exit code {code}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
