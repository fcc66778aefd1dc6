"""Canary secrets in the environment, the configuration and addresses: none of them is found anywhere afterwards."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from rainspark.data.exit_codes import ExitCode
from rainspark.trainer.processes.entry import run_entry
from tests.conftest import REPOSITORY
from tests.integration.runs import arguments, pretrain, settings, smallest_arguments
from tests.programs import environment, free_port

NAMES = (
    "AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AZURE_STORAGE_ACCOUNT_KEY WANDB_API_KEY KNMI_API_KEY "
    "NEPTUNE_API_TOKEN MLFLOW_TRACKING_PASSWORD MLFLOW_TRACKING_TOKEN HF_TOKEN TRACKIO_WRITE_TOKEN"
)
SECRETS = {
    name: f"canary{number:02}Zx9{'q7Lm'[number % 4]}0a1b2c3d4e5f6g7h8i9j0k1l2m3n"
    for number, name in enumerate(NAMES.split())
}
IN_ADDRESSES = ("canaryUserPartOfAddress", "canaryPassPartOfAddress", "canaryQueryPartOfAddress")
ADDRESS = f"https://{IN_ADDRESSES[0]}:{IN_ADDRESSES[1]}@store.example/a?X-Amz-Signature={IN_ADDRESSES[2]}&b=1"
CANARIES = (*SECRETS.values(), *IN_ADDRESSES)

CRASHING = '''
import sys
from rainspark.trainer.settings.experiment import FinetuneConfig
from rainspark.trainer.processes.entry import run_process
from rainspark.trainer.settings.parse import parse_config
from rainspark.trainer.training.run import run_training
from rainspark.trainer.training.finetuning import Finetuning

class Crashing(Finetuning):
    """Fails in the middle, as a library would that quotes what it was asked for."""

    def evaluated(self, finished, metrics):
        import logging, os, threading
        logging.getLogger("a library").warning("asked for %s with %s", ADDRESS, os.environ["HF_TOKEN"])
        thread = threading.Thread(target=lambda: 1 / 0 if not ADDRESS else fail(os.environ["KNMI_API_KEY"]))
        thread.start()
        thread.join()
        try:
            raise OSError(f"GET {ADDRESS}: 403, Authorization: Bearer {os.environ['AWS_SESSION_TOKEN']}")
        except OSError as error:
            logging.exception("first try")
            raise RuntimeError(f"{os.environ['AWS_SECRET_ACCESS_KEY']} is no key for {ADDRESS}") from error

def fail(text):
    raise ValueError(text)

ADDRESS = sys.stdin.readline().strip()
run_process(lambda: run_training(Crashing, parse_config(sys.argv[1:], FinetuneConfig, prog="crashing")))
'''


def _forms(secret: str) -> set[bytes]:
    return {form.encode() for form in (secret, quote(secret, safe=""), secret.lower(), secret[6:])}


def _assert_clean(text: bytes, where: object) -> None:
    for secret in CANARIES:
        for form in _forms(secret):
            assert form not in text, f"{secret[:8]}... in {where}"


def _assert_files_clean(folder: Path) -> int:
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        _assert_clean(path.read_bytes(), path)
        _assert_clean(str(path).encode(), path)
    return len(files)


@contextmanager
def _process_list() -> Iterator[set[bytes]]:
    """Collect the command lines of all processes of this machine until the block ends."""
    seen: set[bytes] = set()
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    seen.add(path.read_bytes())
                except OSError:
                    continue

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()
    for line in seen:
        _assert_clean(line, "the process list")


def _environment(folder: Path, *pairs: str) -> dict[str, str]:
    """The canaries, and no server of anybody."""
    (folder / "home").mkdir(exist_ok=True)
    (folder / "tmp").mkdir(exist_ok=True)
    servers = ("WANDB_BASE_URL", "MLFLOW_TRACKING_URI", "TRACKIO_SERVER_URL", "HF_ENDPOINT")
    nobody = f"http://127.0.0.1:{free_port()}"
    return environment(
        *(f"{name}={nobody}" for name in servers),
        "MLFLOW_TRACKING_USERNAME=me",
        *pairs,
        **SECRETS,
        PYTHONPATH=REPOSITORY,
        HOME=folder / "home",
        TMPDIR=folder / "tmp",
    )


def test_a_run_that_crashes_in_a_library(shards: Path, tmp_path: Path) -> None:
    """Log, checkpoints, metrics, tracebacks of the program and of a thread, W&B's files, process list."""
    short = settings(
        'run.steps=3 run.evaluate_every=2 run.save_every=1 optim.warmup_steps=1 tracking.services=["wandb"]',
        "tracking.tensorboard=true tracking.close_s=5 data.validation_share=0.25",
    )
    argv = smallest_arguments(shards, tmp_path / "run", **short)
    with _process_list() as seen:
        ended = subprocess.run(
            [sys.executable, "-c", CRASHING, *argv],
            cwd=tmp_path,
            env=_environment(tmp_path),
            input=f"{ADDRESS}\n".encode(),
            capture_output=True,
            timeout=300,
        )
    assert ended.returncode == ExitCode.CRASH
    _assert_clean(ended.stdout + ended.stderr, "the output")
    text = ended.stderr.decode()
    for words in (
        "asked for https://[hidden]@store.example/a?[hidden] with [hidden]",
        "RuntimeError: [hidden] is no",
        "OSError: GET https://[hidden]@store.example",
        "ValueError: [hidden]",
        "Traceback",
    ):
        assert words in text
    assert any(b"wandb-core" in line for line in seen), "W&B's helper was not there to be looked at"
    assert _assert_files_clean(tmp_path) > 10


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("run__checkpoint_url", ADDRESS),
        ("run__checkpoint_url", f"s3://{IN_ADDRESSES[0]}:{IN_ADDRESSES[1]}@bucket/run"),
        ("data__shards", ADDRESS),
        ("data__shards", f"az://container/shards?sig={IN_ADDRESSES[2]}"),
        ("data__cache_dir", f"s3:/{IN_ADDRESSES[0]}:{IN_ADDRESSES[1]}@bucket"),
        ("init_from", f"https://store.example/weights.safetensors?token={IN_ADDRESSES[2]}"),
        ("tracking__project", f"api_key={IN_ADDRESSES[2]}"),
        ("run__steps", ADDRESS),
        ("run__nonsense", ADDRESS),
    ],
)
def test_settings_with_credentials_are_refused_and_not_repeated(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: str
) -> None:
    argv = arguments(shards, tmp_path / "run", **{key: value})
    assert run_entry(lambda: pretrain(argv)) == ExitCode.CONFIG
    shown = capsys.readouterr()
    _assert_clean((shown.out + shown.err).encode(), "the message")
    name = key.replace("__", ".")
    assert name in shown.err
    if key not in ("tracking__project", "run__steps", "run__nonsense"):
        assert f"{name} holds what looks like a credential" in shown.err
        assert "AWS_SECRET_ACCESS_KEY" in shown.err
    assert not (tmp_path / "run").exists()


def test_a_file_of_settings_with_credentials_is_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in (
        f"run: {{dir: here, checkpoint_url: '{ADDRESS}'}}\ndata: {{shards: there}}\n",
        f"run: {{dir: here}}\ndata: {{shards: there}}\nsecret_key: {IN_ADDRESSES[2]}\n",
        f"run: {{dir: here}}\ndata: {ADDRESS}\n",
        f"password: {IN_ADDRESSES[1]}: {IN_ADDRESSES[2]}\n",
    ):
        (tmp_path / "x.yaml").write_text(text)
        assert run_entry(lambda: pretrain(["--config", str(tmp_path / "x.yaml")])) == ExitCode.CONFIG
        shown = capsys.readouterr()
        _assert_clean((shown.out + shown.err).encode(), text)


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", ["null", "2"])
def test_two_ranks_of_slurm_with_all_services(shards: Path, tmp_path: Path, zero_stage: str) -> None:
    """Two processes as launch/rank.py starts them; the servers are not there, or all is here, with DeepSpeed."""
    short = settings(
        'run.steps=3 run.evaluate_every=2 tracking.services=["wandb","mlflow","trackio","neptune"]',
        f"optim.warmup_steps=1 tracking.tensorboard=true tracking.close_s=8 engine.zero_stage={zero_stage}",
    )
    argv = arguments(shards, tmp_path / "run", **short)
    variables = _environment(tmp_path, f"MASTER_ADDR=127.0.0.1 MASTER_PORT={free_port()} SLURM_JOB_ID=1")
    if zero_stage == "2":
        # Everything on this machine, with the keys there all the same.
        variables["WANDB_MODE"] = "offline"
        del variables["MLFLOW_TRACKING_URI"], variables["TRACKIO_SERVER_URL"]
    with _process_list() as seen:
        command = [sys.executable, "-m", "rainspark.launch.rank", str(REPOSITORY / "trainer" / "pretrain.py"), *argv]
        ranks = []
        for number in "01":
            task = {"SLURM_PROCID": number, "SLURM_LOCALID": number, "SLURM_NODEID": "0"}
            task |= {"SLURM_NTASKS": "2", "SLURM_TASKS_PER_NODE": "2"}
            pipe = subprocess.PIPE
            ranks.append(subprocess.Popen(command, cwd=tmp_path, env=variables | task, stdout=pipe, stderr=pipe))
        for rank in ranks:
            output, errors = rank.communicate(timeout=400)
            assert rank.returncode == ExitCode.DONE, errors.decode()[-3000:]
            _assert_clean(output + errors, "a rank's output")
    assert sum(b"pretrain.py" in line for line in seen) >= 2
    assert _assert_files_clean(tmp_path) > 10
