"""The batch script, run without Slurm up to where it needs it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

SCRIPT = REPOSITORY / "launch" / "multinode.sh"


def run(
    words: list[str], more: dict[str, str], *, cwd: Path = REPOSITORY, script: Path = SCRIPT
) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "RAINSPARK", "LMOD"))}
    return subprocess.run(
        ["bash", str(script), *words], env={**kept, **more}, cwd=cwd, capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip


def test_bash_reads_it_and_slurm_finds_its_defaults() -> None:
    assert subprocess.run(["bash", "-n", str(SCRIPT)], check=False).returncode == 0
    assert os.access(SCRIPT, os.X_OK)
    lines = SCRIPT.read_text().splitlines()
    options = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")}
    assert {"--requeue", "--open-mode=append", "--signal=B:USR2@180", "--output=%x-%j.log"} <= options
    # Slurm stops reading at the first command.
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert max(number for number, line in enumerate(lines) if line.startswith("#SBATCH")) < first_command


def test_help_names_every_option() -> None:
    done = run(["--help"], {})
    assert done.returncode == 0
    for option in ("entry", "modules", "python", "ranks-per-node", "container", "container-runtime", "mounts"):
        assert f"--{option} " in done.stdout
    for name in ("RAINSPARK_SHARDS", "RAINSPARK_RUN", "RAINSPARK_HOME"):
        assert name in done.stdout


@pytest.mark.parametrize(
    ("words", "more", "message"),
    [
        ([], {}, "submit it with 'sbatch launch/multinode.sh'"),
        (["--entry"], {}, "--entry stands at the end without a value"),
        (["--python", "/bin/false"], {"SLURM_JOB_ID": "1"}, "/bin/false has no rainspark: run make in the repository"),
        (["--python", "/no/python"], {"SLURM_JOB_ID": "1"}, "--python: /no/python is no interpreter"),
        (["--modules", "cuda"], {"SLURM_JOB_ID": "1", "PATH": "/usr/bin:/bin"}, "--modules: "),
    ],
)
def test_what_is_wrong_is_said(words: list[str], more: dict[str, str], message: str) -> None:
    done = run(words, more)
    assert (done.returncode, done.stdout) == (3, "")
    assert message in done.stderr


def test_slurm_runs_a_copy_that_finds_the_repository_and_passes_the_words_on(tmp_path: Path) -> None:
    copy = tmp_path / "slurm_script"
    shutil.copy(SCRIPT, copy)
    spy = tmp_path / "bin" / "python"
    spy.parent.mkdir()
    spy.write_text('#!/bin/bash\nprintf "%s\\n" "$PYTHONPATH" "$PPID" "$@"\n')
    spy.chmod(0o755)
    more = {"SLURM_JOB_ID": "1", "RAINSPARK_HOME": str(REPOSITORY), "PYTHONPATH": "/mine"}
    words = [
        "--python",
        str(tmp_path),
        "--entry=finetune",
        "--ranks-per-node",
        "4",
        "x y.yaml",
        "--modules",
        "not ours",
    ]
    done = run(words, more, cwd=tmp_path, script=copy)
    assert done.returncode == 0, done.stderr
    path, parent, *given = done.stdout.splitlines()
    assert path == "/mine"
    assert parent == str(os.getpid()), "the batch step takes the place of the script, which Slurm signals"
    own = [
        "-u",
        "-m",
        "rainspark.launch.job",
        "--home",
        str(REPOSITORY),
        "--entry",
        "finetune",
        "--ranks-per-node",
        "4",
        "--",
    ]
    assert given == [*own, "x y.yaml", "--modules", "not ours"]


def test_modules_are_loaded_in_order(tmp_path: Path) -> None:
    (tmp_path / "init").mkdir()
    (tmp_path / "init" / "bash").write_text('module() { echo "$UNSET module $*"; [[ $2 != bad ]]; }\n')
    more = {"SLURM_JOB_ID": "1", "MODULESHOME": str(tmp_path)}
    done = run(["--modules", "gcc/12 cuda", "--python", "/bin/true"], more)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == [" module load gcc/12", " module load cuda"]
    done = run(["--modules", "gcc bad", "--python", "/bin/true"], more)
    assert done.returncode == 3
    assert "bad cannot be loaded" in done.stderr


def test_in_an_allocation_without_shards_it_says_what_to_export(tmp_path: Path) -> None:
    # Slurm's own expansion of host names needs no cluster, but its tools.
    if shutil.which("scontrol") is None:
        pytest.skip("scontrol (Slurm's tools) is not installed")
    config = tmp_path / "slurm.conf"
    config.write_text("ClusterName=none\nSlurmctldHost=localhost\nNodeName=n[0-1]\n")
    job = {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n[0-1]", "SLURM_SUBMIT_DIR": str(REPOSITORY)}
    done = run(["--python", sys.executable], {**job, "SLURM_CONF": str(config)})
    assert done.returncode == 3
    assert "export RAINSPARK_SHARDS=FOLDER_OR_URL" in done.stderr
    assert "recipe pretrain_resnet50" in done.stderr
    done = run(["--python", sys.executable, "--nodes", "2", "x.yaml"], {**job, "SLURM_CONF": str(config)})
    assert done.returncode == 3
    assert "options of sbatch stand before the script, as in `sbatch --nodes ... launch/multinode.sh" in done.stderr
