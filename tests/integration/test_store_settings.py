"""Training from an object store: the same run as from a folder, and what its settings do."""

from pathlib import Path

import pytest

from rainspark.data.errors import ConfigError, DataError
from rainspark.data.exit_codes import ExitCode
from rainspark.data.store.storage import LocalStorage, open_storage
from rainspark.trainer.settings.experiment import PretrainConfig
from rainspark.trainer.settings.parse import parse_config
from rainspark.trainer.training.windows import Windows, open_windows
from tests.integration.runs import arguments, make_shards, metrics, train
from tests.s3_server import S3, s3, s3_server  # noqa: F401

SHORT = {"run__steps": 3, "run__evaluate_every": 3, "optim__warmup_steps": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("storms"), hours=4)


@pytest.fixture
def address(folder: Path, s3: S3) -> str:  # noqa: F811
    """Copy the shards to a bucket."""
    here, there = LocalStorage(folder), open_storage(s3.url)
    for name in here.names():
        there.write(name, here.read(name))
    return s3.url


def opened(address: str, **settings: object) -> Windows:
    argv = arguments(Path("shards"), Path("run"), **settings)
    argv[argv.index("--data.shards") + 1] = address
    config = parse_config(argv, PretrainConfig, prog="test")
    return open_windows(config.data, config.data.window)


def test_a_run_from_a_store_is_the_run_from_a_folder(folder: Path, address: str, tmp_path: Path) -> None:
    cached = {"data__shards": address, "data__cache_dir": tmp_path / "cache", "data__cache_gb": 0.1}
    for name, more in (("local", {"data__shards": folder}), ("store", {"data__shards": address}), ("cached", cached)):
        assert train(arguments(folder, tmp_path / name, **{**SHORT, **more})) == ExitCode.DONE

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
