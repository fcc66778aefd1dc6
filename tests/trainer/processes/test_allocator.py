"""Memory that stays with a process."""

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource
import sys
from types import SimpleNamespace
import numpy as np
from rainspark.__main__ import main


def work(config=None):
    faults = [resource.getrusage(resource.RUSAGE_SELF).ru_minflt]
    for _ in range(2):
        fields = [np.ones(12_000_000, np.float32) for _ in range(4)]
        del fields
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    print(faults[1] - faults[0], faults[2] - faults[1])
    return 0


# What a training runs in, without the training.
sys.modules["rainspark.trainer.training.pretraining"] = SimpleNamespace(run=work)
if sys.argv[1] == "keep":
    main(["pretrain", "--data.shards", "shards", "--run.dir", "run"])
else:
    work()
"""


@pytest.mark.parametrize(
    ("how", "variables", "kept"),
    [("keep", {}, True), ("leave", {}, False), ("keep", {"MALLOC_MMAP_THRESHOLD_": "131072"}, False)],
)
def test_what_was_freed_is_used_again_unless_the_environment_decides(
    how: str, variables: dict[str, str], kept: bool
) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | variables
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, how], env=environment, capture_output=True, text=True, check=True
    )
    first, second = map(int, done.stdout.split())
    assert first > 0
    assert (second < first / 4) == kept
