"""Seconds of the processor that commands take besides their work: `python -m tests.bench.start [--against TREE]`.

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

from tests.conftest import REPOSITORY
from tests.integration.runs import arguments, make_shards, nowcast_arguments

ONE_STEP = {"run.steps": 1, "run.evaluate_every": 1, "run.save_every": 100, "optim.warmup_steps": 0}


def commands(folder: Path) -> dict[str, list[str]]:
    """Write the command lines by name; runs are new ones, but for that which forecasts."""
    shards, run = make_shards(folder), folder / "run"
    return {
        "help": ["pretrain", "--help"],
        "a mistyped setting": ["pretrain", "--data.shard", "x"],
        "pretrain": ["pretrain", *arguments(shards, run, **ONE_STEP)],
        "finetune": ["finetune", *nowcast_arguments(shards, run, **ONE_STEP)],
        "forecast": ["forecast", "--run", str(run), "--input", str(folder / "radar"), "--out", str(folder / "out")],
    }


def processor_s(words: list[str], packages: Path) -> float:
    """Run a command and return the user and system time of it and of its children."""
    before = os.times()
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(packages)}
    subprocess.run([sys.executable, "-m", "rainspark", *words], env=variables, capture_output=True, check=False)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description="What commands take besides their work.")
    parser.add_argument("--against", type=Path, help="another checkout of this project")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    trees = [REPOSITORY, *([options.against.resolve()] if options.against else [])]
    with tempfile.TemporaryDirectory() as folder:
        # A tree is imported by the name of the package, whatever its folder is called.
        packages = [Path(folder) / str(number) for number in range(len(trees))]
        for place, tree in zip(packages, trees, strict=True):
            place.mkdir()
            (place / "rainspark").symlink_to(tree)

        for name, words in commands(Path(folder)).items():
            taken_s: list[list[float]] = [[] for _ in trees]
            for _ in range(options.rounds):
                for place, times in zip(packages, taken_s, strict=True):
                    if "--run.dir" in words:
                        run = Path(words[words.index("--run.dir") + 1])
                        shutil.rmtree(run, ignore_errors=True)
                    times.append(processor_s(words, place))
            medians = [statistics.median(times) for times in taken_s]
            texts = [f"{median:.2f} s" for median in medians] + [f"{medians[0] / medians[-1]:.2f}"] * (len(trees) - 1)
            sys.stdout.write("\t".join([name, *texts]) + "\n")


if __name__ == "__main__":
    main()
