"""The batch step's own decisions: its words, srun's, the allocation as Slurm says it, ports."""

import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rainspark.data.errors import ConfigError
from rainspark.launch.job import Job, choose_runtime, main, mounts, srun_command, step_environment
from rainspark.launch.slurm import (
    FIRST_PORT,
    NUM_PORTS,
    Allocation,
    LaunchError,
    choose_port,
    counts_per_node,
    fields,
    is_out,
    listening_ports,
    may_requeue,
    read_allocation,
    seconds,
)
from rainspark.launch.step import StopRequests
from rainspark.launch.words import complete, configurations, setting, with_config
from rainspark.trainer.settings.experiment import PretrainConfig
from rainspark.trainer.settings.parse import parse_config
from tests.conftest import REPOSITORY


def allocation(**changes: object) -> Allocation:
    found: dict[str, object] = {
        "job_id": "7", "restart": 0, "hosts": ("a", "b"), "gpus_per_node": 0, "tasks_per_node": 1, "cpus_per_node": 8,
    }  # fmt: skip
    return Allocation(**(found | changes))  # type: ignore[arg-type]


def job(**changes: object) -> Job:
    found: dict[str, object] = {
        "home": Path("/repo"), "entry": "pretrain", "words": ("--config", "c d.yaml"), "ranks_per_node": None,
        "python": "/py", "container": None, "runtime": None, "mounts": None,
    }  # fmt: skip
    return Job(**(found | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "gpus", "tasks", "ranks", "cpus"),
    [(None, 0, None, 1, 8), (None, 0, 4, 4, 2), (None, 8, 1, 8, 1), (2, 8, 1, 2, 4), (16, 0, 1, 16, 0)],
)
def test_ranks_and_their_cpus(asked: int | None, gpus: int, tasks: int | None, ranks: int, cpus: int) -> None:
    command = srun_command(job(ranks_per_node=asked), allocation(gpus_per_node=gpus, tasks_per_node=tasks))
    assert command[:5] == [
        "srun", "--nodes=2", f"--ntasks={2 * ranks}", f"--ntasks-per-node={ranks}",
        f"--cpus-per-task={cpus}" if cpus else "--overcommit",
    ]  # fmt: skip
    assert ("--gpu-bind=none" in command) == (gpus > 0)
    assert "--kill-on-bad-exit=1" in command
    assert command[-6:] == ["/py", "-m", "rainspark.launch.rank", "/repo/trainer/pretrain.py", "--config", "c d.yaml"]


def test_only_the_ranks_run_in_the_container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    inside = job(container="image.sif", runtime="apptainer", mounts="/data:/data", python="python3")
    bound = f"/repo:/repo,{tmp_path}:{tmp_path},/data:/data"
    assert mounts(inside, str(tmp_path)) == bound
    command = srun_command(inside, allocation(gpus_per_node=4))
    at = command.index("apptainer")
    assert command[at : at + 8] == [
        "apptainer", "exec", "--nv", "--pwd", str(tmp_path), "--bind", bound, "image.sif",
    ]  # fmt: skip
    assert command[at + 8 :][:3] == ["python3", "-m", "rainspark.launch.rank"]
    assert "--nv" not in srun_command(inside, allocation())
    command = srun_command(job(container="user/image:1", runtime="srun"), allocation())
    assert "--container-image=user/image:1" in command
    assert f"--container-workdir={tmp_path}" in command
    assert "apptainer" not in command


def test_a_container_needs_something_that_runs_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match="apptainer and singularity not found on this node"):
        choose_runtime(None)
    with pytest.raises(LaunchError, match="singularity not found"):
        choose_runtime("singularity")


def test_the_ranks_meet_at_the_first_host_and_inherit_the_users_environment() -> None:
    outer = {
        "GLOO_SOCKET_IFNAME": "ib0", "NCCL_SOCKET_IFNAME": "ib0", "AWS_SECRET_ACCESS_KEY": "s", "PYTHONPATH": "/mine",
        "SLURM_NTASKS_PER_NODE": "1", "SLURM_CPUS_PER_TASK": "64", "SLURM_GPUS_PER_NODE": "8", "SLURM_JOB_ID": "7",
        "SLURM_GPUS_PER_TASK": "1", "SLURM_EXPORT_ENV": "NONE",
    }  # fmt: skip
    found = step_environment(outer, "a", 15001)
    assert (found["MASTER_ADDR"], found["MASTER_PORT"], found["PYTHONPATH"]) == ("a", "15001", "/mine")
    assert {name for name in outer if name not in found} == {
        "SLURM_NTASKS_PER_NODE", "SLURM_CPUS_PER_TASK", "SLURM_GPUS_PER_TASK", "SLURM_EXPORT_ENV",
    }  # fmt: skip
    assert all(found[name] == outer[name] for name in outer if name in found)


@pytest.mark.parametrize(
    ("text", "expected"), [("8", (8,)), ("8(x2)", (8, 8)), ("72(x2),36,8(x3)", (72, 72, 36, 8, 8, 8))]
)
def test_counts_by_node(text: str, expected: tuple[int, ...]) -> None:
    assert counts_per_node(text) == expected


@pytest.mark.parametrize("text", ["", "8(x", "a", "8,", "-1"])
def test_counts_that_slurm_does_not_write(text: str) -> None:
    with pytest.raises(LaunchError, match="counts by node"):
        counts_per_node(text)


@pytest.mark.parametrize("text", ["4,2", "many", "-1", "9" * 5000])
@pytest.mark.parametrize("name", ["SLURM_RESTART_COUNT", "SLURM_GPUS_ON_NODE", "SLURM_NTASKS_PER_NODE"])
def test_a_variable_of_slurm_that_is_no_number_is_named(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"^the environment variable {name}: .* is no whole number"):
        read_allocation({"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[0-1]", name: text})


def test_counts_of_cpus_that_slurm_does_not_write_are_named() -> None:
    with pytest.raises(LaunchError, match=r"^SLURM_JOB_CPUS_PER_NODE is '8\(x9{9}\)'; expected Slurm's counts"):
        read_allocation({"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n", "SLURM_JOB_CPUS_PER_NODE": f"8(x{'9' * 9})"})


def test_a_jobs_record_is_read_though_values_hold_spaces() -> None:
    line = (
        "JobId=1 JobName=a b UserId=root(0) JobState=RUNNING Reason=None Requeue=1 Restarts=0 ExitCode=0:0 "
        "TRES=cpu=2,mem=2000M,node=2 Command=/a dir/multinode.sh --optim.lr WorkDir=/x y StdOut=/x y/run-1.log Power=\n"
    )
    found = fields(line)
    assert (found["JobId"], found["JobState"], found["Restarts"]) == ("1", "RUNNING", "0")
    assert found["StdOut"] == "/x y/run-1.log"
    assert found["WorkDir"] == "/x y"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0:42", 42), ("3:00", 180), ("1:02:03", 3723), ("2-00:00:01", 172801), ("UNLIMITED", math.inf), ("", math.inf)],
)
def test_time_left(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize(
    ("state", "reason", "expected"),
    [
        ("RUNNING", "None", True),
        ("COMPLETING", "TimeLimit", True),
        ("TIMEOUT", "TimeLimit", True),
        # Cancelled; requeued by Slurm or a user; a node was lost.
        ("COMPLETING", "None", False),
        ("CANCELLED", "None", False),
        ("PENDING", "BeginTime", False),
        ("NODE_FAIL", "NodeDown", False),
    ],
)
def test_only_a_running_or_timed_out_job_is_requeued_by_us(state: str, reason: str, expected: bool) -> None:
    assert may_requeue({"JobState": state, "Reason": reason}) == expected
    assert may_requeue({}), "Slurm did not answer"


@pytest.mark.parametrize(
    ("state", "out"),
    [
        ("allocated", False), ("mixed", False), ("idle", False), ("completing", False), ("draining", False),
        ("allocated*", True), ("down", True), ("down*", True), ("fail", True), ("failing", True), ("unknown*", True),
    ],
)  # fmt: skip
def test_nodes_that_cannot_run_a_step(state: str, out: bool) -> None:
    assert is_out(state) == out


def test_every_start_has_a_port_of_its_own_that_nobody_listens_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = [choose_port(job_id, attempt) for job_id in ("7", "8") for attempt in range(1, 11)]
    assert len(set(ports)) == len(ports)
    assert all(FIRST_PORT <= port < FIRST_PORT + NUM_PORTS <= 32768 for port in ports)
    code = (
        "import socket,sys; s=socket.create_server(('', int(sys.argv[1]))); print('up', flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, str(ports[0])], **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == b"up\n"
        assert ports[0] in listening_ports(Path("/proc/net"))
        assert choose_port("7", 1) == FIRST_PORT + (ports[0] - FIRST_PORT + 1) % NUM_PORTS
        process.communicate(timeout=30)
    assert choose_port("7", 1) == ports[0]
    assert listening_ports(tmp_path) == set()
    monkeypatch.setattr("rainspark.launch.slurm.NUM_PORTS", 1)
    monkeypatch.setattr("rainspark.launch.slurm.listening_ports", lambda _: {FIRST_PORT})
    with pytest.raises(LaunchError, match="is taken"):
        choose_port("7", 1)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["--config", "pretrain_resnet50"]),
        (["x.yaml"], ["--config", "x.yaml"]),
        (["x.yaml", "--optim.lr", "2e-3"], ["--config", "x.yaml", "--optim.lr", "2e-3"]),
        (["--config=x.yaml"], ["--config=x.yaml"]),
        # Overrides alone override the recipe, and take its place no more than it takes theirs.
        (["--run.steps", "4"], ["--config", "pretrain_resnet50", "--run.steps", "4"]),
        (["--run.dir=x"], ["--config", "pretrain_resnet50", "--run.dir=x"]),
        (["--run.dir", "x", "--config", "y.yaml"], ["--run.dir", "x", "--config", "y.yaml"]),
        (["--run.dir", "x", "--config=y.yaml"], ["--run.dir", "x", "--config=y.yaml"]),
    ],
)
def test_a_first_word_that_is_no_option_is_the_configuration(words: list[str], expected: list[str]) -> None:
    assert with_config(words, "pretrain") == expected


def test_configurations_are_found_in_either_form_of_their_option() -> None:
    assert configurations(["--config=a", "--run.dir", "r", "--config", "b"]) == ["a", "b"]


@pytest.mark.parametrize("words", [[], ["--run.steps", "4"], ["--run.dir", "x"]])
def test_fine_tuning_has_no_default_configuration(words: list[str]) -> None:
    with pytest.raises(LaunchError, match="no configuration for finetune"):
        with_config(words, "finetune")


@pytest.mark.parametrize(
    "words",
    [
        ["--nodes", "2", "x.yaml"], ["x.yaml", "--time=1:00"], ["--partition", "gpu"], ["-N", "2", "x.yaml"], ["-N2"],
        ["x.yaml", "--run.steps", "4", "-t", "10"], ["--account=a"], ["--gpus-per-node", "8"], ["-p", "gpu", "x.yaml"],
    ],
)  # fmt: skip
def test_options_of_sbatch_after_the_script_are_named(words: list[str]) -> None:
    wrong = next(word for word in words if word.startswith("-") and "." not in word)
    with pytest.raises(LaunchError, match=f"`sbatch {wrong} ... launch/multinode.sh CONFIG`"):
        with_config(words, "pretrain")


def test_options_of_the_launcher_after_the_configuration_are_named_and_values_are_not() -> None:
    with pytest.raises(LaunchError, match="--modules is an option of the launcher"):
        with_config(["x.yaml", "--modules", "cuda"], "pretrain")
    words = ["--config", "time", "--optim.lr", "-1", "--run.dir", "nodes", "-h", "--help"]
    assert with_config(words, "pretrain") == words


def test_the_last_setting_wins_as_for_the_training_program(tmp_path: Path) -> None:
    first, second, third = tmp_path / "a.yaml", tmp_path / "b.yaml", tmp_path / "c.yaml"
    first.write_text("run: {dir: from-a, steps: 9}\ndata: {shards: s}\n")
    second.write_text("run: {dir: from-b}\n")
    third.write_text("optim: {lr: 1.0e-3, warmup_steps: 2}\n")
    cases = [
        ["--config", str(first)],
        [f"--config={first}", "--run.dir", "word"],
        ["--run.dir=word", "--config", str(first)],
        ["--config", str(first), "--config", str(second)],
        ["--config", str(first), "--config", str(third)],
        ["--config", str(second), "--run.steps", "9", "--data.shards=s", "--run.dir", "word", "--config", str(third)],
    ]
    for words in cases:
        config = parse_config([*words, "--data.validation_share", "0.1"], PretrainConfig, prog="test")
        assert setting(words, "run.dir") == config.run.dir
        assert setting(words, "data.shards") == config.data.shards


def test_what_nobody_says_comes_from_the_environment_or_the_job() -> None:
    words = ["--optim.lr", "1"]
    shards = {"RAINSPARK_SHARDS": "s3://b/s"}
    assert complete(words, shards, "n-7") == [*words, "--data.shards", "s3://b/s", "--run.dir", "runs/n-7"]
    assert complete(words, {**shards, "RAINSPARK_RUN": "r"}, "n-7")[-2:] == ["--run.dir", "r"]
    whole = ["--data.shards", "mine", "--run.dir=here"]
    assert complete(whole, {**shards, "RAINSPARK_RUN": "r"}, "n-7") == whole
    with pytest.raises(LaunchError, match="`export RAINSPARK_SHARDS=FOLDER_OR_URL`"):
        complete(words, {}, "n-7")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no such file"),
        ("a: [", "is not YAML"),
        (b"\xff", "is not YAML"),
        ("[1]", "data.shards is not set"),
    ],
)
def test_a_configuration_that_cannot_be_read(tmp_path: Path, text: str | bytes | None, message: str) -> None:
    path = tmp_path / "x.yaml"
    if text is not None:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError, match=message):
        complete(["--config", str(path)], {}, "n")


def test_outside_of_slurm_it_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with pytest.raises(LaunchError, match="submit it with `sbatch"):
        read_allocation({})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match="scontrol was not found"):
        read_allocation({"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[0-1]"})
    monkeypatch.setattr(StopRequests, "install", lambda _: None)
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    for name in [name for name in os.environ if name.startswith("SLURM")]:
        monkeypatch.delenv(name)
    for words in (["--ranks-per-node", "0"], ["--mounts", "/a:/a"], [], ["--entry", "evaluate"]):
        assert main(["--home", str(REPOSITORY), *words, "--", "x.yaml"]) == 3
    assert "--ranks-per-node: '0' is no whole number of 1 or more" in caplog.text
    assert "need --container IMAGE" in caplog.text
    assert "--entry: invalid choice: 'evaluate'" in caplog.text
    assert "SLURM_JOB_ID and SLURM_JOB_NODELIST are not set" in caplog.text
