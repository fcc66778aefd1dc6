"""Seconds of the processor that short commands take: `python -m tests.bench.start [--against TREE]`.

A pretraining and a fine-tuning of one step with an evaluation and a picture, a forecast, a help and a mistyped setting,
each in processes of its own, this tree and the other one by turns; medians of user and system time together.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rainspark.data.exit_codes import ExitCode
from tests.conftest import REPOSITORY
from tests.integration.runs import arguments, make_shards, nowcast_arguments

ONE_STEP = {"run.steps": 1, "run.evaluate_every": 1, "run.save_every": 100, "optim.warmup_steps": 0}


def commands(shards: Path, run: Path) -> dict[str, tuple[list[str], ExitCode]]:
    """Build the command lines by name, with the codes that they end with; the forecast is of the last training."""
    forecast = ["forecast", "--run", run, "--input", shards.parent / "radar", "--out", run.parent / "forecast"]
    return {
        "help": (["pretrain", "--help"], ExitCode.DONE),
        "a mistyped setting": (["pretrain", "--data.shard", "x"], ExitCode.CONFIG),
        "pretrain": (["pretrain", *arguments(shards, run, **ONE_STEP)], ExitCode.DONE),
        "finetune": (["finetune", *nowcast_arguments(shards, run, **ONE_STEP)], ExitCode.DONE),
        "forecast": ([str(word) for word in forecast], ExitCode.DONE),
    }


def processor_s(words: list[str], code: ExitCode, packages: Path) -> float:
    """Run a command of the package in a folder; return the user and system time of it and of its children.

    Raises:
        SystemExit: It ended with another code.
    """
    before = os.times()
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(packages)}
    command = [sys.executable, "-m", "rainspark", *words]
    ended = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    after = os.times()
    if ended.returncode != code:
        raise SystemExit(f"{' '.join(words)} ended with {ended.returncode} instead of {code}: {ended.stderr[-500:]}")
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description="What short commands take.")
    parser.add_argument("--against", type=Path, help="another checkout of this project")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    trees = [REPOSITORY, *([options.against.resolve()] if options.against else [])]
    for tree in trees:
        if not (tree / "__main__.py").is_file():
            raise SystemExit(f"--against {tree}: no checkout of this project")

    with tempfile.TemporaryDirectory() as folder:
        shards = make_shards(Path(folder))
        # A tree is imported by the name of the package, whatever its folder is called.
        packages = [Path(folder) / str(number) for number in range(len(trees))]
        for place, tree in zip(packages, trees, strict=True):
            place.mkdir()
            (place / "rainspark").symlink_to(tree)

        for name in commands(shards, Path()):
            taken_s: list[list[float]] = [[] for _ in trees]
            for _ in range(options.rounds):
                for place, times in zip(packages, taken_s, strict=True):
                    words, code = commands(shards, place / "run")[name]
                    if "--run.dir" in words:
                        shutil.rmtree(place / "run", ignore_errors=True)
                    times.append(processor_s(words, code, place))
            medians = [statistics.median(times) for times in taken_s]
            texts = [f"{median:.2f} s" for median in medians] + [f"{medians[0] / medians[-1]:.2f}"] * (len(trees) - 1)
            sys.stdout.write("\t".join([name, *texts]) + "\n")


if __name__ == "__main__":
    main()
