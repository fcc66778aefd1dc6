"""`rainspark doctor`: settings, batches, data, memory, checkpoints, and what the command says and returns."""

import subprocess
import sys
from pathlib import Path

import pytest

from rainspark.data.exit_codes import ExitCode
from rainspark.launch.doctor import __main__ as doctor
from rainspark.launch.doctor.batches import check_batches
from rainspark.launch.doctor.data import check_archive, check_sample
from rainspark.launch.doctor.findings import MIB, Known
from rainspark.launch.doctor.memory import check_memory, checkpoint_bytes, machine_bytes, model_size
from rainspark.launch.doctor.memory_trace import measure_activations
from rainspark.launch.doctor.second_place import check_second_place
from tests.integration.runs import arguments, make_shards
from tests.launch.doctor.cases import failure, job_of, levels
from tests.programs import environment


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few hours of storms."""
    return make_shards(tmp_path_factory.mktemp("storms"), hours=4)


@pytest.mark.parametrize(("recipe", "is_other"), [("finetune_small", True), ("pretrain_resnet50", False)])
def test_settings_of_another_training_are_known_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: str, is_other: bool
) -> None:
    words = ["--config", recipe, "--data.shards", str(tmp_path), "--run.dir", str(tmp_path / "run"), "--run.steps", "0"]
    assert doctor.main(words) == ExitCode.CONFIG
    assert "--entry" not in capsys.readouterr().out
    assert doctor.main([*words[:-2], *(() if is_other else ("--model.loss", "csi"))]) == ExitCode.CONFIG
    assert ("add --entry finetune" in capsys.readouterr().out) == is_other


def test_world_sizes(tmp_path: Path) -> None:
    found = check_batches(job_of(tmp_path, tmp_path, world_size=2, data__global_batch=16, data__micro_batch=8))
    assert levels(found) == ["ok", "ok"]
    assert found[0].found == (
        "16 windows a step = 2 micro-steps x 8; 4 windows a forward on each of 2 ranks; "
        "numbers of ranks that work: 1, 2, 4, 8"
    )
    wrong = failure(check_batches(job_of(tmp_path, tmp_path, world_size=3, data__global_batch=8)))
    assert (wrong.code, "cannot be divided among 3 ranks" in wrong.found) == (ExitCode.CONFIG, True)
    assert "start 2 ranks" in wrong.advice
    shared = check_batches(job_of(tmp_path, tmp_path, world_size=4, data__global_batch=8, data__lanes=2))
    assert levels(shared) == ["ok", "warn"]
    assert "ranks share lanes" in shared[1].found
    assert "data.lanes 3" in failure(check_batches(job_of(tmp_path, tmp_path, data__lanes=3))).found


def test_archives_that_are_wrong(shards: Path, tmp_path: Path) -> None:
    assert failure(check_archive(job_of(tmp_path / "none", tmp_path / "run"), Known())).code == ExitCode.DATA
    changed = tmp_path / "changed"
    changed.mkdir()
    (changed / "index.json").write_text(
        (shards / "index.json").read_text().replace('"cadence_s":300', '"cadence_s":600')
    )
    assert "fingerprint" in failure(check_archive(job_of(changed, tmp_path / "run"), Known())).found
    cached = job_of(shards, tmp_path / "run", data__cache_dir=tmp_path / "cache")
    assert failure(check_archive(cached, Known())).code == ExitCode.CONFIG


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
    known = Known()
    check_archive(job, known)
    windows = known.windows
    assert windows is not None
    found = [finding for finding in check_sample(job, windows) if finding.level == "FAIL"]
    assert {finding.code for finding in found} == {ExitCode.DATA}
    assert ".tar" in found[0].found


def test_memory_against_what_there_is(shards: Path, tmp_path: Path) -> None:
    job = job_of(shards, tmp_path / "run")
    known = Known()
    check_archive(job, known)
    windows = known.windows
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


def test_the_second_place(tmp_path: Path) -> None:
    assert check_second_place(job_of(tmp_path, tmp_path)) == []
    place = tmp_path / "copies"
    assert levels(check_second_place(job_of(tmp_path, tmp_path, run__checkpoint_url=place))) == ["ok"]
    assert list(place.iterdir()) == []
    (tmp_path / "file").write_text("")
    wrong = failure(check_second_place(job_of(tmp_path, tmp_path, run__checkpoint_url=tmp_path / "file" / "copies")))
    assert wrong.code == ExitCode.CHECKPOINT


def test_a_store_without_credentials_tells_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-4711")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "canary-4712")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    job = job_of(tmp_path, tmp_path, run__checkpoint_url="s3://bucket/run", run__push_deadline_s=1.0)
    found = failure(check_second_place(job))
    assert found.code == ExitCode.CHECKPOINT
    assert "canary" not in str(found)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"optim__lrr": 1}, "the nearest valid key is optim.lr"), ({"data__micro_batch": 3}, "data.micro_batch")],
)
def test_settings_that_are_wrong_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: dict[str, object], message: str
) -> None:
    assert doctor.main(arguments(tmp_path, tmp_path, **wrong)) == ExitCode.CONFIG
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("FAIL  settings: ")
    assert message in first
    assert last == "1 finding: 0 ok, 0 warn, 1 FAIL; exit code 3"


@pytest.mark.parametrize(
    "words",
    [
        ["--nodes", "0"],
        ["--sample", "x"],
        ["--time-signal-s", "nan"],
        ["--time-signal-s", "-1"],
        ["--device-memory-gb", "inf"],
    ],
)
def test_options_out_of_their_range_end_with_the_code_of_settings(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor.main(words) == ExitCode.CONFIG
    assert capsys.readouterr().err.startswith("settings: ")


def test_its_own_options_are_read_before_torch() -> None:
    code = (
        "import sys\nfrom rainspark.launch.doctor import __main__ as doctor\n"
        "print(doctor.main(['--nodes', '0']), 'torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["3", "False"]


def test_the_command_writes_one_line_a_finding_and_nothing_else(shards: Path, tmp_path: Path) -> None:
    """torch's profiler, which measures activations, writes to standard error by itself where it finds no GPU."""
    code = "import sys\nfrom rainspark.launch.doctor import __main__ as doctor\nsys.exit(doctor.main(sys.argv[1:]))"
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments(shards, tmp_path / "run")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=environment(without=["KINETO"]),
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    *lines, last = ended.stdout.splitlines()
    warnings = sum(line.startswith("warn") for line in lines)
    assert last == f"{len(lines)} findings: {len(lines) - warnings} ok, {warnings} warn, 0 FAIL; exit code 0"
    assert any("1 shard, 1 sequence," in line for line in lines)
    assert {line[:6] for line in lines} <= {"ok    ", "warn  "}
    assert all(line.startswith("ok") for line in lines if line[6:].startswith(("shards:", "sample:")))
    checks = {line[6:].partition(":")[0] for line in lines}
    assert {"settings", "batch", "versions", "run.dir", "clock", "shards", "sample"} <= checks
    assert {"space", "memory a rank", "signal lead time", "backend"} <= checks
