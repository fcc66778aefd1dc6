"""Pretrain an encoder: `accelerate launch trainer/pretrain.py --config X --data.shards S --run.dir R`."""

import sys
from pathlib import Path

# The folder of a script stands first on sys.path, and its rooms would hide packages of the same names.
TREE = Path(__file__).resolve().parents[1]
sys.path[:] = [folder for folder in sys.path if Path(folder or ".").resolve() != TREE / "trainer"]

import rainspark  # noqa: E402

rainspark.check_tree(TREE)

if __name__ == "__main__":
    from rainspark.trainer.processes.entry import run_process
    from rainspark.trainer.training.pretraining import main

    run_process(main)
