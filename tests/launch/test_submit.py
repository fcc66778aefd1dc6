"""Submission through Submitit: options, the script that Slurm gets, and what is refused before."""

import importlib.util
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from rainspark.launch.job import run_submitted
from rainspark.launch.slurm import LaunchError
from rainspark.launch.submit import format_minutes, job_words, main, read_minutes, read_options
from tests.conftest import REPOSITORY

BASE = ["pretrain", "--time", "24:00"]
WORDS = ["--", "--config", "configs/pretrain_resnet50.yaml", "--data.shards", "shards"]


@pytest.mark.parametrize(
    ("text", "minutes", "said"),
    [
        ("24:00", 1440, "1 d"), ("0:30", 30, "30 min"), ("1:05", 65, "1 h 5 min"), ("90", 90, "1 h 30 min"),
        ("02:00:00", 120, "2 h"), ("00:00:01", 1, "1 min"), ("1-00", 1440, "1 d"), ("2-12:30", 3630, "2 d 12 h 30 min"),
        ("1-00:00:30", 1441, "1 d 1 min"), ("100:00", 6000, "4 d 4 h"),
    ],
)  # fmt: skip
def test_time_limits(text: str, minutes: int, said: str) -> None:
    assert read_minutes(text) == minutes
    assert format_minutes(minutes) == said


@pytest.mark.parametrize("text", ["", "0", "00:00", "1:60", "1:00:60", "1h", "1-", "-5", "1:2:3:4", "UNLIMITED"])
def test_time_limits_that_are_none(text: str) -> None:
    with pytest.raises(LaunchError, match="--time is"):
        read_minutes(text)


def dry_run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main([*words[:1], "--dry-run", *words[1:]]) == 0
    return capsys.readouterr().out


def test_the_script_that_slurm_gets(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    site = ["--partition", "gpu", "--account", "rain", "--qos", "high", "--constraint", "a100", "--reservation", "r"]
    options = ["--nodes", "4", "--gpus", "8", "--cpus", "12", "--mem", "400G", "--modules", "gcc cuda/12", *site]
    text = dry_run(capsys, *BASE, *options, "--folder", str(tmp_path / "a b"), "--signal-s", "300", *WORDS)
    assert "4 node(s), 8 rank(s) a node, time limit 1 d, warned 300 s before" in text
    expected = {
        "nodes=4", "gpus-per-node=8", "ntasks-per-node=8", "cpus-per-task=12", "mem=400G", "time=1440", "partition=gpu",
        "account=rain", "qos=high", "constraint=a100", "reservation=r", "requeue", "open-mode=append",
        "signal=B:USR2@300", "job-name=rainspark", f"output='{tmp_path}/a b/%j_0_log.out'",
    }  # fmt: skip
    found = {line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")}
    assert found == expected
    lines = text.splitlines()
    # Python takes the shell's place: Slurm's signals to the batch step reach it.
    assert f"exec {sys.executable} -u -m submitit.core._submit '{tmp_path}/a b'" in lines
    assert not any(line.startswith("srun") for line in lines)
    assert lines.index("module load gcc cuda/12 || exit 3") < lines.index("export SUBMITIT_EXECUTOR=slurm")
    assert f"--home {REPOSITORY} --entry pretrain -- --config configs/pretrain_resnet50.yaml" in text
    script = text[text.index("#!/bin/bash") : text.index("# runs:")]
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    assert not (tmp_path / "a b").exists()


def test_the_batch_step_gets_the_options_of_the_ranks(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    container = ["--container", "i.sif", "--container-runtime", "apptainer", "--mounts", "/d:/d"]
    text = dry_run(
        capsys, *BASE, "--ranks-per-node", "3", *container, "--python", "/p y", "--folder", str(tmp_path), *WORDS
    )
    assert f"--ranks-per-node 3 {' '.join(container)} --container-python python3 --" in text
    assert "#SBATCH --ntasks-per-node=3" in text
    assert "exec '/p y' -u -m" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*BASE, "--nodes", "0", *WORDS], "--nodes: '0' is no whole number of 1 or more"),
        ([*BASE, "--gpus", "-1", *WORDS], "--gpus: '-1' is no whole number of 0 or more"),
        (["pretrain", "--time", "0:02", *WORDS], "--signal-s 180 is no shorter than --time 2 min"),
        ([*BASE, "--mounts", "/a:/a", *WORDS], "need --container IMAGE"),
        (["pretrain", *WORDS], "arguments are required: --time; --help lists the options"),
        ([*BASE, "--ndoes", "2", *WORDS], "unrecognized arguments: --ndoes 2"),
        (["finetune", "--time", "1:00"], "no configuration for finetune"),
        ([*BASE, "--", "configs/pretrain_resnet50.yaml"], "RAINSPARK_SHARDS"),
        ([*BASE, "--", "configs/not_there.yaml"], "there is no such file"),
        (["finetune", "--time", "1:00", "--", "--run.dir", "x"], "no configuration for finetune"),
        ([*BASE, *WORDS, "--nodes", "2"], "--nodes is no option of the training program; options of sbatch stand"),
        ([*BASE, *WORDS, "--optim.lrr", "1"], "the nearest valid key is optim.lr"),
        ([*BASE, *WORDS, "--engine.precision", "fp12"], "precision"),
        ([*BASE, *WORDS, "--data.global_batch", "7"], "multiple of data.micro_batch"),
    ],
)
def test_what_is_refused_before_the_queue(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAINSPARK_SHARDS", "RAINSPARK_RUN"):
        monkeypatch.delenv(name, raising=False)
    assert main(words) == 3
    said = capsys.readouterr()
    assert message in said.err
    assert said.out == ""


def test_overrides_alone_take_the_default_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("submitit")
    text = dry_run(capsys, *BASE, "--", "--run.dir", "x", "--data.shards", "s")
    assert "\nrecipe  pretrain_resnet50\n" in text
    assert "-- --config pretrain_resnet50 --run.dir x --data.shards s\n" in text
    assert "\nrecipe  configs/pretrain_resnet50.yaml\n" in dry_run(capsys, *BASE, *WORDS)


def test_without_slurm_or_submitit_it_says_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if importlib.util.find_spec("submitit"):
        assert main([*BASE, *WORDS]) == 3
        assert "sbatch was not found" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "submitit.slurm.slurm", None)
    assert main([*BASE, *WORDS]) == 3
    assert "pip install -e '.[slurm]'" in capsys.readouterr().err


def test_what_submitit_carries_is_a_name_and_words() -> None:
    pytest.importorskip("submitit")
    from submitit.core.utils import DelayedSubmission

    asked = read_options([*BASE, *WORDS])
    carried = pickle.dumps(DelayedSubmission(run_submitted, job_words(asked, asked.words)))
    assert b"rainspark.launch.job" in carried
    assert len(carried) < 2000
