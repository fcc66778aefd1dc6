"""A task of srun becomes a rank: its environment, and the program in its place."""

import json
import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from rainspark.data.errors import ConfigError
from rainspark.launch.rank import extensions_folder, rank_environment
from rainspark.launch.slurm import LaunchError
from rainspark.trainer.engine.processes import Identity, read_identity
from tests.conftest import REPOSITORY

TASK = {
    "SLURM_PROCID": "5", "SLURM_NTASKS": "7", "SLURM_LOCALID": "1", "SLURM_NODEID": "2", "SLURM_JOB_ID": "99",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3),1", "MASTER_ADDR": "node0", "MASTER_PORT": "15000", "SLURM_STEP_ID": "3",
}  # fmt: skip


def become(tmp_path: Path, words: list[str], **more: str) -> subprocess.CompletedProcess[str]:
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
            import json, os, sys
            print(json.dumps({"parent": os.getppid(), "argv": sys.argv[1:], **os.environ}))
            sys.exit(int(os.environ.get("END_WITH", "0")))
        """)
    )
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "OMP", "TORCH"))}
    command = [sys.executable, "-m", "rainspark.launch.rank", str(program), *words]
    return subprocess.run(
        command, env={**kept, **TASK, "TMPDIR": str(tmp_path), **more}, cwd=REPOSITORY, capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip


def test_a_task_becomes_the_program_with_a_launchers_environment(tmp_path: Path) -> None:
    words = ["--run.dir", "a b", "--data.shards=$(touch x)"]
    done = become(tmp_path, words, SLURM_CPUS_PER_TASK="6", END_WITH="75")
    assert done.returncode == 75, done.stderr
    found = json.loads(done.stdout)
    assert found["argv"] == words
    assert found["parent"] == os.getpid(), "the program takes the place of the process that was started"
    assert read_identity(found) == Identity(rank=5, world_size=7, local_rank=1)
    assert (found["LOCAL_WORLD_SIZE"], found["OMP_NUM_THREADS"]) == ("2", "6")
    folder = Path(found["TORCH_EXTENSIONS_DIR"])
    assert folder.is_dir()
    assert folder.is_relative_to(tmp_path)


def test_what_the_user_has_set_is_left(tmp_path: Path) -> None:
    more = {"OMP_NUM_THREADS": "3", "TORCH_EXTENSIONS_DIR": "/mine", "GLOO_SOCKET_IFNAME": "ib0"}
    found = json.loads(become(tmp_path, [], SLURM_CPUS_PER_TASK="6", **more).stdout)
    assert {name: found[name] for name in more} == more


@pytest.mark.parametrize("name", ["SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "MASTER_ADDR", "MASTER_PORT"])
def test_what_is_missing_is_named(tmp_path: Path, name: str) -> None:
    done = become(tmp_path, [], **{name: ""})
    assert done.returncode == 3
    assert f"{name} not set" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("name", "text"),
    [("SLURM_NODEID", "two"), ("SLURM_NODEID", "4"), ("SLURM_NODEID", "4,2"), ("SLURM_STEP_TASKS_PER_NODE", "x")],
)
def test_a_variable_that_slurm_does_not_write_is_named(tmp_path: Path, name: str, text: str) -> None:
    done = become(tmp_path, [], **{name: text})
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert f"{name}" in done.stderr


@pytest.mark.parametrize("text", ["4,2", "one", "-1", "9" * 5000])
@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK"])
def test_a_rank_that_is_no_number_is_named(name: str, text: str) -> None:
    whole = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    with pytest.raises(ConfigError, match=f"^the environment variable {name}: .* is no whole number"):
        read_identity({**whole, name: text})
    with pytest.raises(ConfigError, match=r"^the environment variable LOCAL_RANK: "):
        read_identity({"LOCAL_RANK": text})


def test_every_rank_of_an_uneven_step_has_its_place() -> None:
    ranks = [(0, 0, 0), (1, 0, 1), (2, 1, 0), (3, 1, 1), (4, 2, 0), (5, 2, 1), (6, 3, 0)]
    for rank, node, local in ranks:
        task = {**TASK, "SLURM_PROCID": str(rank), "SLURM_NODEID": str(node), "SLURM_LOCALID": str(local)}
        assert rank_environment(task)["LOCAL_WORLD_SIZE"] == ("1" if node == 3 else "2")


def test_every_start_builds_in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    starts = [{}, {"SLURM_STEP_ID": "4"}, {"SLURM_RESTART_COUNT": "1"}, {"SLURM_JOB_ID": "100"}]
    folders = [extensions_folder({**TASK, **start}) for start in starts]
    assert len(set(folders)) == len(starts)
    assert extensions_folder(TASK) == folders[0]
    assert all(stat.S_IMODE(folder.stat().st_mode) == 0o700 for folder in [*folders, folders[0].parent])


def test_what_starts_of_weeks_ago_have_built_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    current = extensions_folder(TASK)
    own, elsewhere = current.parent, tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    for name in ("1-0-0-node1", "2-0-0-node1"):
        (own / name / "fused").mkdir(parents=True)
        (own / name / "link").symlink_to(elsewhere)
        (own / name / "fused" / "lock").touch()
    (own / "3-0-0-node1").symlink_to(elsewhere)
    (own / "4-0-0-node1").touch()
    for path in [*own.iterdir(), elsewhere]:
        if path.name != "2-0-0-node1":
            os.utime(path, (1, 1), follow_symlinks=False)
    extensions_folder(TASK)
    assert (own / "1-0-0-node1").exists(), "one rank a node does it"
    os.utime(current)
    extensions_folder({**TASK, "SLURM_LOCALID": "0"})
    left = {path.name for path in own.iterdir()}
    assert left == {current.name, "2-0-0-node1", "3-0-0-node1", "4-0-0-node1"}
    assert (elsewhere / "kept").exists()


def test_code_is_not_loaded_from_a_folder_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    own = extensions_folder(TASK).parent
    for mode in (0o720, 0o702):
        own.chmod(mode)
        with pytest.raises(LaunchError, match="not a folder that only this user writes to"):
            extensions_folder(TASK)
    own.chmod(0o700)
    own.rename(tmp_path / "elsewhere")
    own.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LaunchError, match="not a folder that only this user writes to"):
        extensions_folder(TASK)
