"""A run whose checkpoints are kept in a second place, a folder or a real S3 server, and goes on from there."""

import logging
import shutil
from pathlib import Path

import pytest

from rainspark.data.exit_codes import ExitCode
from rainspark.data.store.storage import open_storage
from tests.integration.runs import arguments, make_shards, metrics, tensors, train
from tests.s3_server import S3, s3, s3_server  # noqa: F401

CHECKPOINTS = ["step-00000002", "step-00000004"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("archive"), hours=3)


def pushed(url: str) -> list[str]:
    return sorted({name.split("/")[1] for name in open_storage(url).names("checkpoints/")})


def check_run_goes_on_from(
    url: str, shards: Path, folder: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Train two steps, lose the run's folder, and go on with the same command; an undisturbed run tells the truth."""
    run, whole = folder / "run", folder / "whole"
    settings = {"run__steps": 4, "run__save_every": 2, "run__evaluate_every": 4, "optim__warmup_steps": 1}
    argv = arguments(shards, run, run__checkpoint_url=url, **settings)
    assert train(argv, stop_in_step=2) == ExitCode.REQUEUE
    assert pushed(url) == CHECKPOINTS[:1]
    shutil.rmtree(run)
    with caplog.at_level(logging.INFO):
        assert train(argv) == ExitCode.DONE
    assert "2 of 4 steps are done" in caplog.text
    copy = f"{url.removeprefix('file://')}/checkpoints/{CHECKPOINTS[-1]}"
    assert caplog.text.count(f"copied to {copy}") == 1
    assert f"copied to    {copy}" in capsys.readouterr().out
    assert pushed(url) == CHECKPOINTS
    assert train(arguments(shards, whole, **settings)) == ExitCode.DONE
    found, expected = tensors(run), tensors(whole)
    assert found.keys() == expected.keys()
    assert all(found[name].equal(expected[name]) for name in expected)
    assert metrics(run)[-1] == metrics(whole)[-1]


def test_a_run_goes_on_from_another_folder(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    check_run_goes_on_from(f"file://{tmp_path}/store", shards, tmp_path, caplog, capsys)


def test_a_run_goes_on_from_a_store_that_fails_now_and_then(
    shards: Path,
    tmp_path: Path,
    s3: S3,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    s3.inject(
        [{"match": "(GET|PUT|HEAD)", "skip": 2, "times": 1, "do": do} for do in ("503", "refuse", "500", "429") * 10]
    )
    check_run_goes_on_from(f"{s3.url}/run", shards, tmp_path, caplog, capsys)
    assert any(done for _, _, done in s3.log())
