"""Runs on a real S3 server: shards are read from it, or checkpoints kept on it, and a run goes on from there."""

import logging
import shutil
from pathlib import Path

import pytest

from rainspark.data.errors import ConfigError, DataError
from rainspark.data.exit_codes import ExitCode
from rainspark.data.store.storage import open_storage
from rainspark.trainer.settings.experiment import FinetuneConfig
from rainspark.trainer.settings.parse import parse_config
from rainspark.trainer.training.windows import Windows, open_windows
from tests.integration.runs import equal, metrics, smallest_arguments, tensors, train
from tests.s3_server import S3, s3, s3_server, upload  # noqa: F401

HOURS = 3
CHECKPOINTS = ["step-00000002", "step-00000004"]


def arguments(shards: Path | str, run: Path, **settings: object) -> list[str]:
    """Build the command line of the smallest run, which may wait for a store."""
    return smallest_arguments(shards, run, **{"engine__timeout_s": 1800, **settings})


def pushed(url: str) -> list[str]:
    return sorted({name.split("/")[1] for name in open_storage(url).names("checkpoints/")})


def check_run_goes_on_from(
    url: str, shards: Path, folder: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Train two steps, lose the run's folder, and go on with the same command; an undisturbed run tells the truth."""
    run, whole = folder / "run", folder / "whole"
    settings = {"run__save_every": 2}
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
    assert equal(tensors(run), tensors(whole))
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


@pytest.fixture
def address(shards: Path, s3: S3) -> str:  # noqa: F811
    """Copy the shards to a bucket."""
    upload(shards, s3.url)
    return s3.url


def opened(address: str, **settings: object) -> Windows:
    config = parse_config(arguments(address, Path("run"), **settings), FinetuneConfig, prog="test")
    return open_windows(config.data, config.window)


def test_a_run_from_a_store_is_the_run_from_a_folder(shards: Path, address: str, tmp_path: Path) -> None:
    cached = {"data__cache_dir": tmp_path / "cache", "data__cache_gb": 0.1}
    for name, archive, more in (("local", shards, {}), ("store", address, {}), ("cached", address, cached)):
        assert train(arguments(archive, tmp_path / name, **more)) == ExitCode.DONE

    def losses(name: str) -> list[float]:
        return [line["loss"] for line in metrics(tmp_path / name) if "loss" in line]

    assert losses("local") == losses("store") == losses("cached")
    assert sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file()) > 10_000


def test_a_cache_that_holds_too_few_shards_is_refused(address: str, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"data.cache_gb is 1e-06, and the \d+ shards .*\(lanes \+ 1\) take 0\.001: they would"
    ):
        opened(address, data__cache_dir=tmp_path / "cache", data__cache_gb=1e-6)
    assert not (tmp_path / "cache").exists()


def test_a_dead_store_is_given_up_at_the_deadline() -> None:
    for deadline_s in (0.5, 1.0):
        with pytest.raises(DataError, match=rf"refused; .*before the deadline of {deadline_s:g} s"):
            opened("http://127.0.0.1:9/shards", data__deadline_s=deadline_s)
