"""Import what ranks need, and leave one thread: a process that has imported this forks ranks in milliseconds."""

from pathlib import Path

import blosc2
import torch

import rainspark.trainer.training.finetuning
import rainspark.trainer.training.pretraining  # noqa: F401

torch.set_num_threads(1)
# It starts its threads when it is imported.
blosc2.set_nthreads(1)
num_threads = sum(1 for _ in Path("/proc/self/task").iterdir())
if num_threads != 1:
    raise SystemExit(f"{num_threads} threads after the imports: forking would not be sound")
