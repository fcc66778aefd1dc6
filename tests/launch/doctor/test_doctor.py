"""`rainspark doctor`: settings, batches, data, memory, checkpoints, and what the command says and returns."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rainspark.data.exit_codes import ExitCode
from rainspark.launch.doctor import __main__ as doctor
from rainspark.launch.doctor.checkpoints import check_checkpoints, check_second_place
from rainspark.launch.doctor.data import check_archive, check_cache, check_sample
from rainspark.launch.doctor.findings import CHECKPOINT, DATA, MIB, SETTINGS
from rainspark.launch.doctor.memory import check_memory, checkpoint_bytes, machine_bytes, model_size
from rainspark.launch.doctor.memory_trace import measure_activations
from rainspark.launch.doctor.settings import check_batches, check_epochs, check_launcher, check_settings
from rainspark.trainer.checkpoint.folder import TrainState, installed_versions, save
from rainspark.trainer.settings.parse import as_dict
from rainspark.trainer.training.windows import open_stream
from tests.integration.runs import arguments, make_shards
from tests.launch.doctor.cases import failure, job_of, levels


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few hours of storms."""
    return make_shards(tmp_path_factory.mktemp("storms"), hours=4)


def test_codes_are_the_trainers() -> None:
    assert (SETTINGS, DATA, CHECKPOINT) == (ExitCode.CONFIG, ExitCode.DATA, ExitCode.CHECKPOINT)


def test_settings_that_are_wrong_are_one_line(tmp_path: Path) -> None:
    config, found = check_settings(arguments(tmp_path, tmp_path, optim__lrr=1), "pretrain")
    assert config is None
    assert "the nearest valid key is optim.lr" in str(failure(found))
    config, found = check_settings(arguments(tmp_path, tmp_path, data__micro_batch=3), "pretrain")
    assert (config, failure(found).code) == (None, SETTINGS)
    assert check_settings(["--data.shards", "x", "--run.dir", "y"], "finetune")[0] is not None


def test_a_launcher_that_contradicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(tmp_path, tmp_path)
    assert levels(check_launcher(job.config)) == ["ok"]
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert "ACCELERATE_MIXED_PRECISION=bf16" in failure(check_launcher(job.config)).found


def test_world_sizes(tmp_path: Path) -> None:
    found = check_batches(job_of(tmp_path, tmp_path, world_size=2, data__global_batch=16, data__micro_batch=8))
    assert levels(found) == ["ok", "ok"]
    assert found[0].found == (
        "16 windows a step = 2 micro-steps x 8; 4 windows a forward on each of 2 ranks; "
        "numbers of ranks that work: 1, 2, 4, 8"
    )
    wrong = failure(check_batches(job_of(tmp_path, tmp_path, world_size=3, data__global_batch=8)))
    assert (wrong.code, "cannot be divided among 3 ranks" in wrong.found) == (SETTINGS, True)
    assert "start 2 ranks" in wrong.advice
    shared = check_batches(job_of(tmp_path, tmp_path, world_size=4, data__global_batch=8, data__lanes=2))
    assert levels(shared) == ["ok", "warn"]
    assert "ranks share lanes" in shared[1].found
    assert "data.lanes 3" in failure(check_batches(job_of(tmp_path, tmp_path, data__lanes=3))).found


def test_the_archive_and_its_epochs(shards: Path, tmp_path: Path) -> None:
    job = job_of(shards, tmp_path / "run")
    windows, found = check_archive(job)
    assert windows is not None
    assert levels(found) == ["ok", "ok"]
    assert levels(check_sample(job, windows)) == ["ok"]
    epochs = check_epochs(job, windows)
    assert "steps an epoch; run.steps 8 is" in epochs[0].found
    many = job_of(shards, tmp_path / "run", data__global_batch=4096, data__micro_batch=4)
    assert failure(check_epochs(many, windows)).code == SETTINGS


def test_archives_that_are_wrong(shards: Path, tmp_path: Path) -> None:
    assert failure(check_archive(job_of(tmp_path / "none", tmp_path / "run"))[1]).code == DATA
    changed = tmp_path / "changed"
    changed.mkdir()
    (changed / "index.json").write_text(
        (shards / "index.json").read_text().replace('"cadence_s":300', '"cadence_s":600')
    )
    assert "fingerprint" in failure(check_archive(job_of(changed, tmp_path / "run"))[1]).found
    cached = job_of(shards, tmp_path / "run", data__cache_dir=tmp_path / "cache")
    assert failure(check_archive(cached)[1]).code == SETTINGS


@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_a_damaged_shard_is_named(shards: Path, tmp_path: Path, damage: str) -> None:
    copy = tmp_path / "shards"
    copy.mkdir()
    for path in shards.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    for path in copy.glob("*.tar"):
        content = bytearray(path.read_bytes())
        content[len(content) // 3] ^= 1
        path.write_bytes(content if damage == "flipped" else content[: len(content) // 3])
    job = job_of(copy, tmp_path / "run", job__sample=10_000)
    windows, _ = check_archive(job)
    assert windows is not None
    found = [finding for finding in check_sample(job, windows) if finding.level == "FAIL"]
    assert {finding.code for finding in found} == {DATA}
    assert ".tar" in found[0].found


def test_the_cache_is_looked_at(tmp_path: Path) -> None:
    url = "https://example.invalid/shards"
    assert check_cache(job_of(tmp_path, tmp_path)) == []
    good = job_of(tmp_path, tmp_path, data__shards=url, data__cache_dir=tmp_path / "cache", data__cache_gb=1e-6)
    assert levels(check_cache(good)) == ["ok"]
    assert not (tmp_path / "cache").exists()
    large = job_of(tmp_path, tmp_path, data__shards=url, data__cache_dir=tmp_path / "cache", data__cache_gb=1e9)
    assert levels(check_cache(large)) == ["warn"]
    (tmp_path / "file").write_text("")
    wrong = job_of(tmp_path, tmp_path, data__shards=url, data__cache_dir=tmp_path / "file" / "cache")
    assert failure(check_cache(wrong)).code == SETTINGS


def test_memory_against_what_there_is(shards: Path, tmp_path: Path) -> None:
    job = job_of(shards, tmp_path / "run")
    windows, _ = check_archive(job)
    assert windows is not None
    size = model_size(job)
    assert size.parameters > 11e6
    assert checkpoint_bytes(job, size) == 12 * size.parameters + size.buffer_bytes + MIB
    activations = measure_activations(job.config, windows.index)
    assert 0 < activations.per_window < activations.of(2)
    found = check_memory(job, windows, size, activations)
    assert levels(found) == ["ok", "ok"]
    assert "GiB from step to step" in found[0].found
    on_gpus = job_of(shards, tmp_path / "run", engine__device="cuda", job__device_memory_gb=0.1)
    assert failure(check_memory(on_gpus, windows, size, activations)).what == "device memory"
    many = job_of(shards, tmp_path / "run", world_size=4, job__ranks_per_node=100_000)
    assert failure(check_memory(many, windows, size, activations)).what == "machine memory"
    assert machine_bytes() > 2**28


def test_checkpoints_that_are_there(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = job_of(shards, run)
    windows, _ = check_archive(job)
    assert windows is not None
    assert "none yet" in check_checkpoints(job, windows)[0].found
    plan = open_stream(windows, job.config.data, seed=0, rank=0, world_size=1, pin=False).fingerprint()
    for step in (2, 3):
        state = TrainState(
            step=step, epoch=0, seed=0, config=as_dict(job.config), plan=plan, loss_scale=None,
            optimizer_steps={"weight": float(step)}, versions=installed_versions(),
        )  # fmt: skip
        save(run, state, {"weight": torch.ones(4)}, {"weight.exp_avg": torch.ones(4)}, keep_last=2)
    found = check_checkpoints(job_of(shards, run, run__log_every=7), windows)
    assert levels(found) == ["ok"] * len(found)
    assert "would go on from step-00000003: 3 of 8 steps are done" in found[0].found
    assert any("run.log_every" in finding.found for finding in found)
    assert check_checkpoints(job_of(shards, run, run__steps=3), windows)[0].level == "warn"
    other = failure(check_checkpoints(job_of(shards, run, optim__lr=0.5), windows))
    assert (other.code, "optim.lr" in other.found) == (CHECKPOINT, True)
    newest = run / "checkpoints" / "step-00000003" / "model.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    damaged = check_checkpoints(job, windows)
    assert [damaged[0].level, "model.safetensors" in damaged[0].found] == ["warn", True]
    assert "step-00000002" in damaged[1].found


def test_the_second_place(tmp_path: Path) -> None:
    assert check_second_place(job_of(tmp_path, tmp_path)) == []
    place = tmp_path / "copies"
    assert levels(check_second_place(job_of(tmp_path, tmp_path, run__checkpoint_url=place))) == ["ok"]
    assert list(place.iterdir()) == []
    (tmp_path / "file").write_text("")
    wrong = failure(check_second_place(job_of(tmp_path, tmp_path, run__checkpoint_url=tmp_path / "file" / "copies")))
    assert wrong.code == CHECKPOINT


def test_a_store_without_credentials_tells_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-4711")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "canary-4712")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    job = job_of(tmp_path, tmp_path, run__checkpoint_url="s3://bucket/run", run__push_deadline_s=1.0)
    found = failure(check_second_place(job))
    assert found.code == CHECKPOINT
    assert "canary" not in str(found)


def test_the_command_says_one_line_a_finding(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each has its own test, and costs seconds.
    monkeypatch.setattr("rainspark.launch.doctor.machine._IMPORTED", ())
    words = arguments(shards, tmp_path / "run")
    assert doctor.main(words) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    warnings = sum(line.startswith("warn") for line in lines)
    assert last == f"{len(lines)} findings: {len(lines) - warnings} ok, {warnings} warn, 0 FAIL; exit code 0"
    assert any("1 shard, 1 sequence," in line for line in lines)
    assert {line[:6] for line in lines} <= {"ok    ", "warn  "}
    assert {"shards", "batch", "space", "memory a rank", "signal lead time"} <= {
        line[6:].partition(":")[0] for line in lines
    }
    assert doctor.main(["--json", *words, "--optim.lrr", "1"]) == SETTINGS
    told = json.loads(capsys.readouterr().out)
    assert [(finding["level"], finding["what"], finding["code"]) for finding in told] == [
        ("FAIL", "settings", SETTINGS)
    ]


def test_ranks_that_contradict_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--world-size", "7", "--nodes", "2", "--ranks-per-node", "4"], ["--nodes", "0"], ["--sample", "x"],
                  ["--time-signal-s", "nan"], ["--time-signal-s", "-1"], ["--device-memory-gb", "inf"]):  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            doctor.main(words)
        assert ended.value.code == SETTINGS
        assert capsys.readouterr().err.startswith("settings: ")


def test_its_own_options_are_read_before_torch() -> None:
    code = (
        "import sys\nfrom rainspark.launch.doctor import __main__ as doctor\n"
        "try:\n    doctor.main(['--nodes', '0'])\n"
        "except SystemExit as end:\n    print(end.code, 'torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert ended.stdout.split() == ["3", "False"]


def test_a_python_without_the_packages_is_one_line(tmp_path: Path) -> None:
    """As outside the virtual environment."""
    code = (
        "import sys\nsys.modules['jsonargparse'] = None\nfrom rainspark.launch.doctor import __main__ as doctor\n"
        "sys.exit(doctor.main(['--data.shards', 'x', '--run.dir', 'y']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, env=environment
    )
    assert ended.returncode == SETTINGS
    assert ended.stderr == (
        f"settings: jsonargparse is not installed in {sys.executable}: run make, then . .venv/bin/activate\n"
    )


def test_nothing_foreign_stands_between_the_findings(shards: Path, tmp_path: Path) -> None:
    """torch's profiler, which measures activations, writes to standard error by itself where it finds no GPU."""
    code = (
        "import sys\nfrom rainspark.launch.doctor import __main__ as doctor, machine\nmachine._IMPORTED = ()\n"
        "sys.exit(doctor.main(sys.argv[1:]))"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("KINETO")}
    environment |= {"PYTHONPATH": str(Path(__file__).resolve().parents[3]), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments(shards, tmp_path / "run")],
        cwd=tmp_path, capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    assert any("memory a rank" in line for line in lines)
    assert all(line.startswith(("ok    ", "warn  ")) for line in lines[:-1])
