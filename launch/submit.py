"""Submit a training job through Submitit: the same batch step, ranks and options as `sbatch launch/multinode.sh`.

`rainspark submit pretrain --nodes 4 --gpus 8 --partition gpu --time 24:00 -- --config pretrain_resnet50`.
"""

import argparse
import importlib
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ..data.command import run_command, whole_number
from ..data.exit_codes import ExitCode
from ..trainer.settings.experiment import TRAININGS
from ..trainer.settings.parse import parse_config
from .job import check_container, make_options, run_submitted
from .slurm import LaunchError
from .words import DEFAULT_CONFIG, ENTRIES, complete, configurations, setting, split_words, with_config

HOME: Final = Path(__file__).resolve().parents[1]
_TIME: Final = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d{1,2}))?(?::(\d{1,2}))?")
_DAY_MIN: Final = 24 * 60


def read_minutes(text: str) -> int:
    """Read a time limit: `HH:MM`, `HH:MM:SS`, `D-HH`, `D-HH:MM`, `D-HH:MM:SS`, or minutes; seconds are rounded up.

    sbatch itself reads `24:00` as 24 minutes; here two numbers are hours and minutes, as with days in front.

    Raises:
        LaunchError: It is none of these.
    """
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise LaunchError(f"--time is {text!r}; expected HH:MM, HH:MM:SS, D-HH, D-HH:MM, D-HH:MM:SS or minutes")
    days, first, second, third = (int(digits) if digits else None for digits in match.groups())
    assert first is not None
    if any(number is not None and number > 59 for number in (second, third)):
        raise LaunchError(f"--time is {text!r}; minutes and seconds go to 59")
    # Two numbers without days are hours and minutes.
    if days is None and second is None:
        minutes = first
    else:
        minutes = (days or 0) * _DAY_MIN + first * 60 + (second or 0) + bool(third)
    if minutes < 1:
        raise LaunchError(f"--time is {text!r}; a minute or more")
    return minutes


def format_minutes(minutes: int) -> str:
    """Write a time limit so that nobody takes it for another one."""
    days, rest = divmod(minutes, _DAY_MIN)
    parts = [(days, "d"), (rest // 60, "h"), (rest % 60, "min")]
    return " ".join(f"{number} {unit}" for number, unit in parts if number)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of `rainspark submit`; raises LaunchError for wrong options."""
    options = make_options("rainspark submit")
    options.description = "Submit a training job to Slurm through Submitit."
    options.epilog = (
        "After -- : [CONFIG] [--key.sub VALUE ...] of the training program; CONFIG of pretrain is "
        f"{DEFAULT_CONFIG} where none is given."
    )
    options.add_argument("entry", choices=ENTRIES)

    # What is asked of Slurm.
    options.add_argument("--nodes", type=whole_number(1), default=1, metavar="N")
    gpus_help = "GPUs a node, each with a rank (default: 0)"
    options.add_argument("--gpus", type=whole_number(0), default=0, metavar="N", help=gpus_help)
    options.add_argument("--cpus", type=whole_number(1), default=None, metavar="N", help="CPUs a rank")
    options.add_argument("--mem", default=None, metavar="SIZE", help="memory a node, as 64G")
    options.add_argument("--time", required=True, metavar="HH:MM", help="limit; also D-HH:MM, HH:MM:SS, or minutes")
    for name in ("partition", "account", "qos", "constraint", "reservation"):
        options.add_argument(f"--{name}", default=None)

    # What the job does with it.
    options.add_argument("--name", default="rainspark", help="of the job")
    options.add_argument("--modules", default="", metavar='"A B"', help="environment modules to load")
    options.add_argument("--python", default=None, metavar="PATH", help="of the nodes; default: this one")
    options.add_argument("--folder", type=Path, default=Path("runs/submitted"), help="for the script and the logs")
    signal_help = "warning before the time limit"
    options.add_argument("--signal-s", type=whole_number(1), default=180, metavar="S", help=signal_help)
    options.add_argument("--dry-run", action="store_true", help="print the batch script and submit nothing")
    return options


def read_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        LaunchError: A value is out of its range.
    """
    options = make_parser()
    own, words = split_words(sys.argv[1:] if argv is None else argv)
    asked = options.parse_args(own)
    asked.words = words
    check_container(asked)
    asked.minutes = read_minutes(asked.time)
    if asked.signal_s >= asked.minutes * 60:
        raise LaunchError(f"--signal-s {asked.signal_s} is no shorter than --time {format_minutes(asked.minutes)}")
    return asked


def job_words(asked: argparse.Namespace, words: Sequence[str]) -> list[str]:
    """Write the batch step's command line, as launch/multinode.sh does."""
    words_of_job = ["--home", str(HOME), "--entry", asked.entry]
    for name in ("ranks_per_node", "container", "container_runtime", "mounts"):
        if (value := getattr(asked, name)) is not None:
            words_of_job += [f"--{name.replace('_', '-')}", str(value)]
    if asked.container:
        words_of_job += ["--container-python", asked.container_python]
    return [*words_of_job, "--", *words]


def parameters(asked: argparse.Namespace) -> dict[str, Any]:
    """Give the job's options in Submitit's words; the batch step is Python itself and runs srun."""
    # A task a rank, as sbatch has to allocate CPUs for them; the batch step itself starts them by srun.
    ranks = asked.ranks_per_node or asked.gpus or 1
    setup = []
    if asked.modules:
        setup.append(f"module load {shlex.join(asked.modules.split())} || exit {ExitCode.CONFIG:d}")
    more = {"requeue": True, "signal": f"B:USR2@{asked.signal_s}"}
    if asked.reservation:
        more["reservation"] = asked.reservation
    if asked.mem:
        more["mem"] = asked.mem

    options = {
        "job_name": asked.name,
        "nodes": asked.nodes,
        "ntasks_per_node": ranks,
        "cpus_per_task": asked.cpus,
        "gpus_per_node": asked.gpus or None,
        "time": asked.minutes,
        "use_srun": False,
        "stderr_to_stdout": True,
        "setup": setup,
        "additional_parameters": more,
        **{name: getattr(asked, name) for name in ("partition", "account", "qos", "constraint")},
    }
    # Submitit's own accounting key, which sites that check keys would refuse.
    return {name: value for name, value in options.items() if value is not None} | {"wckey": None}


def make_executor(asked: argparse.Namespace) -> Any:
    """Make Submitit's executor with the job's options.

    Raises:
        LaunchError: Submitit or Slurm is not installed here.
    """
    try:
        slurm = importlib.import_module("submitit.slurm.slurm")
    except ImportError:
        raise LaunchError(
            "submitit is not installed: pip install -e '.[slurm]', or use sbatch launch/multinode.sh"
        ) from None
    if shutil.which("sbatch") is None and not asked.dry_run:
        raise LaunchError("sbatch was not found: submit from a machine of the cluster, or look with --dry-run")
    python = shlex.quote(asked.python or sys.executable)

    class Executor(slurm.SlurmExecutor):  # type: ignore[name-defined, misc]
        """Submitit's, whose batch step is no shell, so that Slurm's signals reach what handles them."""

        @classmethod
        def affinity(cls) -> int:
            return 2

        def text(self) -> str:
            """Return the batch script."""
            return str(self._make_submission_file_text(self._submitit_command_str, "dry"))

    executor = Executor(folder=asked.folder.absolute(), python=f"exec {python}")
    executor.update_parameters(**parameters(asked))
    return executor


def submit(asked: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Check, submit, and print where to look; returns 0.

    Raises:
        ConfigError: The settings are wrong, or Slurm refuses the job.
    """
    # Check everything that can be known before the queue.
    words = with_config(asked.words, asked.entry)
    checked = complete(words, environment, f"{asked.name}-JOBID")
    parse_config(checked, TRAININGS[asked.entry], prog=f"rainspark {asked.entry}")
    executor = make_executor(asked)

    ranks = asked.ranks_per_node or asked.gpus or 1
    sys.stdout.write(
        f"{asked.entry}: {asked.nodes} node(s), {ranks} rank(s) a node, time limit {format_minutes(asked.minutes)}, "
        f"warned {asked.signal_s} s before\nrecipe  {', '.join(configurations(words))}\n"
    )
    if asked.dry_run:
        sys.stdout.write(f"{executor.text()}\n# runs: rainspark.launch.job {shlex.join(job_words(asked, words))}\n")
        return ExitCode.DONE

    try:
        job = executor.submit(run_submitted, job_words(asked, words))
    except Exception as error:
        # Submitit has several kinds of its own, and Slurm's words stand in all of them.
        raise LaunchError(f"Slurm did not take the job: {error}") from error

    run = (setting(checked, "run.dir") or "").replace("JOBID", job.job_id)
    sys.stdout.write(
        f"job     {job.job_id}\nrun     {run}\nlog     {job.paths.stdout}\n"
        f"watch   squeue --job {job.job_id}; tail -F {shlex.quote(str(job.paths.stdout))}\n"
        f"stop    scancel {job.job_id}    (saves, ends)\n"
        f"yield   scancel --batch --signal=USR2 {job.job_id}    (saves, requeues)\n"
    )
    return ExitCode.DONE


def main(argv: Sequence[str] | None = None) -> int:
    """Submit; return 0, or 3 for what the user has to change.

    Args:
        argv: Command line without the program's name.
    """
    return run_command(lambda: submit(read_options(argv), os.environ))


if __name__ == "__main__":
    sys.exit(main())
