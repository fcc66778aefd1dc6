"""Checkpoints in a second place: what is there is whole or passed over, and nothing whole is lost."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from rainspark.data.store.storage import LocalStorage, Storage
from rainspark.models.weights.manifest import (
    MANIFEST_NAME,
    CheckpointError,
    latest_verified,
    verify_folder,
)
from rainspark.trainer.checkpoint.second_place import CheckpointStore
from rainspark.trainer.checkpoint.transfer import pull_latest, push
from tests.checkpoints import make_checkpoint


def steps(storage: Storage) -> list[int]:
    return sorted({int(name.split("/")[1].removeprefix("step-")) for name in storage.names("checkpoints/")})


@pytest.fixture
def store(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "store")


def test_what_is_pushed_is_pulled(tmp_path: Path, store: LocalStorage) -> None:
    folder = make_checkpoint(tmp_path / "a", 1)
    push(folder, store, keep_last=2)
    push(folder, store, keep_last=2)
    pulled = pull_latest(store, tmp_path / "b")
    assert pulled == tmp_path / "b" / "checkpoints" / "step-00000001"
    assert verify_folder(pulled) == verify_folder(folder)
    assert [path.name for path in pulled.parent.iterdir()] == ["step-00000001"]
    assert pull_latest(store, tmp_path / "b", newer_than=1) is None
    assert pull_latest(LocalStorage(tmp_path / "empty"), tmp_path / "b") is None


def test_the_oldest_go_and_the_two_newest_whole_ones_stay(tmp_path: Path, store: LocalStorage) -> None:
    for step in range(1, 6):
        push(make_checkpoint(tmp_path / "a", step), store, keep_last=3)
    assert steps(store) == [3, 4, 5]
    # The newer of two is cut short: what came before it is not removed for its sake.
    store.write("checkpoints/step-00000005/model.safetensors", b"short")
    push(make_checkpoint(tmp_path / "a", 6), store, keep_last=2)
    assert steps(store) == [4, 5, 6]
    push(make_checkpoint(tmp_path / "a", 7), store, keep_last=1)
    assert steps(store) == [6, 7]


@pytest.mark.parametrize("damage", ["unfinished", "missing", "manifest", "escaping"])
def test_broken_ones_are_passed_over_by_name(
    tmp_path: Path, store: LocalStorage, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        push(make_checkpoint(tmp_path / "a", step), store, keep_last=3)
    place = "checkpoints/step-00000002"
    if damage == "unfinished":
        store.delete(f"{place}/{MANIFEST_NAME}")
    elif damage == "missing":
        store.delete(f"{place}/model.safetensors")
    elif damage == "manifest":
        store.write(f"{place}/{MANIFEST_NAME}", b"{}")
    else:
        text = store.read(f"{place}/{MANIFEST_NAME}").replace(b"model.safetensors", b"../../../model.sa")
        store.write(f"{place}/{MANIFEST_NAME}", text)
    with caplog.at_level(logging.WARNING):
        pulled = pull_latest(store, tmp_path / "b")
    assert pulled == tmp_path / "b" / "checkpoints" / "step-00000001"
    assert "passed over" in caplog.text
    assert "step-00000002" in caplog.text
    assert [path.name for path in pulled.parent.iterdir()] == ["step-00000001"]


def test_no_damage_in_a_store_comes_through(
    tmp_path: Path, store: LocalStorage, caplog: pytest.LogCaptureFixture
) -> None:
    """Bit flips and truncations of every file of the newest one: the one before it is fetched, the file is named."""
    for step in (1, 2):
        push(make_checkpoint(tmp_path / "a", step), store, keep_last=3)
    names = store.names("checkpoints/step-00000002/")
    draws = np.random.default_rng(0)
    for trial in range(60):
        name = names[trial % len(names)]
        whole = store.read(name)
        damaged = bytearray(whole)
        if trial % 3 == 0:
            del damaged[int(draws.integers(len(whole))) :]
        else:
            damaged[int(draws.integers(len(whole)))] ^= 1 << int(draws.integers(8))
        store.write(name, bytes(damaged))
        caplog.clear()
        pulled = pull_latest(store, tmp_path / f"b{trial}")
        assert pulled is not None
        assert pulled.name == "step-00000001", (trial, name)
        assert "step-00000002" in caplog.text
        assert name.rpartition("/")[2] in caplog.text
        store.write(name, whole)
    pulled = pull_latest(store, tmp_path / "b")
    assert pulled is not None
    assert pulled.name == "step-00000002"


class _Noisy(LocalStorage):
    """Damages the first answer about weights on its way."""

    answers = 0

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        data = super().read(name, start, stop)
        if name.endswith(".safetensors"):
            self.answers += 1
            return data if self.answers > 1 else bytes([data[0] ^ 1]) + data[1:]
        return data


def test_what_is_damaged_on_the_way_is_fetched_again(tmp_path: Path, store: LocalStorage) -> None:
    push(make_checkpoint(tmp_path / "a", 1), store, keep_last=2)
    noisy = _Noisy(tmp_path / "store")
    assert pull_latest(noisy, tmp_path / "b") is not None
    assert noisy.answers == 2


def test_starting_anew_beside_broken_ones_is_the_users_decision(tmp_path: Path, store: LocalStorage) -> None:
    push(make_checkpoint(tmp_path / "a", 1), store, keep_last=2)
    store.write("checkpoints/step-00000001/model.safetensors", b"")
    with pytest.raises(CheckpointError, match=r"none of 1 checkpoints is whole; .*choose another run\.checkpoint_url"):
        pull_latest(store, tmp_path / "b")


def test_another_runs_checkpoint_stays_and_a_broken_one_is_replaced(tmp_path: Path, store: LocalStorage) -> None:
    push(make_checkpoint(tmp_path / "a", 1), store, keep_last=2)
    other = make_checkpoint(tmp_path / "b", 1, b"others")
    with pytest.raises(CheckpointError, match=r"step-00000001: holds another checkpoint of this step; .*another run"):
        push(other, store, keep_last=2)
    store.write("checkpoints/step-00000001/model.safetensors", b"short")
    push(other, store, keep_last=2)
    pulled = pull_latest(store, tmp_path / "c")
    assert pulled is not None
    assert verify_folder(pulled) == verify_folder(other)


def test_a_broken_folder_is_not_pushed(tmp_path: Path, store: LocalStorage) -> None:
    folder = make_checkpoint(tmp_path / "a", 1)
    (folder / "state.json").write_bytes(b"[]")
    with pytest.raises(CheckpointError, match=r"state\.json: damaged"):
        push(folder, store, keep_last=2)
    assert store.names() == []
    with pytest.raises(CheckpointError, match="not a checkpoint's folder"):
        push(tmp_path / "a", store, keep_last=2)


def test_the_newer_of_folder_and_store_is_taken(tmp_path: Path) -> None:
    store, run = CheckpointStore(str(tmp_path / "store")), tmp_path / "run"
    assert store.newest(run) is None
    first = make_checkpoint(run, 1)
    store.push(first, keep_last=2)
    assert store.newest_copy == f"{tmp_path}/store/checkpoints/step-00000001"
    second = make_checkpoint(run, 2)
    assert store.newest(run) == second
    store.push(second, keep_last=2)
    shutil.rmtree(second)
    assert store.newest(run) == second
    assert latest_verified(run / "checkpoints") == second
    # A damaged folder is mended from the store, and is told where the store has nothing either.
    (second / "state.json").write_bytes(b"[]")
    (first / "state.json").write_bytes(b"[]")
    assert store.newest(run) == second
    shutil.rmtree(second)
    with pytest.raises(CheckpointError, match="none of 1 checkpoints is whole"):
        CheckpointStore(str(tmp_path / "nothing")).newest(run)


@pytest.mark.parametrize("resumes", [False, True])
def test_a_store_that_fails_later_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture, resumes: bool) -> None:
    """Later than its first copy, which an earlier process of the run may have made."""
    place, run = tmp_path / "store", tmp_path / "run"
    place.write_bytes(b"")
    store = CheckpointStore(str(place))
    folder = make_checkpoint(run, 1)
    with pytest.raises(CheckpointError, match="could not list"):
        store.push(folder, keep_last=2)
    place.unlink()
    store.push(folder, keep_last=2)
    assert store.newest_copy == f"{place}/checkpoints/step-00000001"
    if resumes:
        store = CheckpointStore(str(place))
        assert store.newest(run) == folder
    shutil.rmtree(place)
    place.write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        store.push(make_checkpoint(run, 2), keep_last=2)
    assert "step-00000002: not copied to" in caplog.text
    assert not str(store.newest_copy).endswith("step-00000002"), "the last lines name what is there"


def test_the_runs_own_folder_is_no_second_place(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"run\.checkpoint_url is run\.dir, .*, itself: no second place"):
        CheckpointStore(f"file://{tmp_path}/run/").newest(tmp_path / "run")


class _Raced(LocalStorage):
    """A store where another run finishes the same step while this one sends it."""

    def write(self, name: str, data: bytes, *, if_absent: bool = False) -> None:
        super().write(name, data + b" ")
        super().write(name, data, if_absent=if_absent)


def test_two_runs_with_one_address_are_told_apart(tmp_path: Path) -> None:
    store = _Raced(tmp_path / "store")
    with pytest.raises(CheckpointError, match=r"step-00000001: holds another .* choose another run\.checkpoint_url"):
        push(make_checkpoint(tmp_path / "a", 1), store, keep_last=2)


def test_a_wrong_address_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"https://host/x: a web server is only read; expected a folder, s3://"):
        CheckpointStore("https://host/x")
