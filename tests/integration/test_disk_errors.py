"""Full disks, read-only ones and ones that fail, at every operation: older checkpoints stay, and the user is report."""

import errno
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from rainspark.data.store.storage import open_storage
from rainspark.models.weights.manifest import latest_verified, step_folders, verify_folder
from rainspark.trainer.checkpoint.folder import load
from rainspark.trainer.checkpoint.transfer import finished_in, pull_latest, push, verify_in
from tests.fault_server import AFTER, FAIL, KILL, SHORT, TORN, Fault, FaultServer
from tests.integration.faults import pull_under, push_under, save_small, save_under, train_apart, train_under
from tests.integration.runs import smallest_arguments as arguments

HOURS = 3
KILLED, REFUSED = -9, 6
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS)


def failing(log: Path, actions: tuple[int, ...] = (), errors: tuple[int, ...] = ERRORS) -> list[Fault]:
    """Give each error at each operation of a log, once and from then on, and other actions at it."""
    numbers = range(1, len(log.read_text().splitlines()) + 1)
    faults = [Fault(at=n, action=FAIL, errno=e, repeat=repeat) for n in numbers for e in errors for repeat in (1, 0)]
    return faults + [Fault(at=number, action=action) for number in numbers for action in actions]


@pytest.fixture(scope="module")
def log_of_save(tmp_path_factory: pytest.TempPathFactory, server: FaultServer) -> Path:
    folder = tmp_path_factory.mktemp("dry")
    for step in (1, 2):
        save_small(folder / "run", step)
    log = folder / "log"
    assert server.run(save_under, str(folder / "run"), 3, asdict(Fault(log=str(log)))).codes == [0]
    return log


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_a_save_on_a_disk_that_fails(tmp_path: Path, server: FaultServer, log_of_save: Path, every: int) -> None:
    """Save step 3 beside two older ones, under each fault: what is reported as saved is whole, what is older stays."""
    base = tmp_path / "base"
    for step in (1, 2):
        save_small(base, step)
    older = verify_folder(base / "checkpoints" / "step-00000002")
    actions, errors = ((KILL, TORN, AFTER, SHORT), ERRORS) if every == 1 else ((KILL, SHORT), (errno.ENOSPC,))
    for number, fault in enumerate(failing(log_of_save, actions, errors)[::every]):
        run = tmp_path / f"run-{number}"
        shutil.copytree(base, run)
        ended = server.run(save_under, str(run), 3, asdict(fault))
        report = f"{fault}: {ended}"
        kills = fault.action in (KILL, TORN, AFTER)
        assert ended.codes[0] in ((KILLED,) if kills else (0, REFUSED)), report
        newest = latest_verified(run / "checkpoints")
        assert newest is not None, report
        if ended.codes[0] == 0:
            assert newest.name == "step-00000003", report
        if ended.codes[0] == REFUSED:
            assert "checkpoint:" in ended.texts[0], report
            assert str(run / "checkpoints") in ended.texts[0], report
            assert "Traceback" not in ended.texts[0], report
        assert verify_folder(run / "checkpoints" / "step-00000002") == older, report
        save_small(run, 4)
        assert load(run).state.step == 4, report
        assert not list((run / "checkpoints").glob(".*")), report
        shutil.rmtree(run)


def faulty(
    server: FaultServer, folder: Path, every: int, work: Callable[..., object], *args: Callable[[str], Path]
) -> Iterator[tuple[int, str]]:
    """Do something once to count its operations, then under every n-th fault; give each number and report."""
    log = folder / "log"
    assert server.run(work, *(str(make("dry")) for make in args), asdict(Fault(log=str(log)))).codes == [0]
    faults = failing(log, (KILL, TORN, AFTER, SHORT), (errno.ENOSPC, errno.EIO))[::every]
    log.unlink()
    for number, fault in enumerate(faults):
        ended = server.run(work, *(str(make(str(number))) for make in args), asdict(fault))
        assert ended.codes[0] in (0, REFUSED, KILLED), f"{fault}: {ended}"
        yield number, f"{fault}: {ended}"


@pytest.mark.parametrize("every", [31, pytest.param(1, marks=pytest.mark.slow)])
def test_copies_of_checkpoints_on_disks_that_fail(tmp_path: Path, server: FaultServer, every: int) -> None:
    """An older whole one can always be fetched, and the next try does it all."""
    store, run = tmp_path / "store", tmp_path / "run"
    first, second, third = (save_small(run, step, keep_last=3) for step in (1, 2, 3))
    for path in (first, second):
        push(path, open_storage(store), keep_last=2)

    def copy_of_store(name: str) -> Path:
        return Path(shutil.copytree(store, tmp_path / f"store-{name}"))

    for number, report in faulty(server, tmp_path, every, push_under, lambda _: third, copy_of_store):
        storage = open_storage(tmp_path / f"store-{number}")
        assert pull_latest(storage, tmp_path / f"fetched-{number}") is not None, report
        for name in finished_in(storage):
            verify_in(storage, name)
        push(third, storage, keep_last=2)
        assert finished_in(storage) == [third.name, second.name], report
        shutil.rmtree(tmp_path / f"store-{number}")

    for number, report in faulty(
        server, tmp_path, every, pull_under, lambda name: tmp_path / f"target-{name}", lambda _: store
    ):
        target = tmp_path / f"target-{number}"
        latest_verified(target / "checkpoints")
        pulled = pull_latest(open_storage(store), target)
        assert pulled is not None, report
        assert verify_folder(pulled) == verify_folder(second), report


@pytest.mark.parametrize("ranks", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_goes_on_after_one_failed_save_and_stops_after_two(
    tmp_path: Path, server: FaultServer, shards: Path, ranks: int
) -> None:
    once, twice, last = (tmp_path / name for name in ("once", "twice", "last"))
    full = {"action": FAIL, "errno": errno.ENOSPC}
    ended = server.run(
        train_under, arguments(shards, once), {"rank": 0, "step": 2, "fault": full | {"at": 3}}, ranks=ranks
    )
    assert ended.codes == [0] * ranks, ended
    assert "step 2: NOT SAVED: " in ended.texts[0]
    assert "the newest checkpoint is of step 1" in ended.texts[0]
    assert [step for step, _ in step_folders(once / "checkpoints")] == [4, 3]
    plan = {"rank": 0, "step": None, "fault": full | {"at": 30, "repeat": 0}}
    ended = server.run(train_under, arguments(shards, twice), plan, ranks=ranks)
    assert ended.codes == [REFUSED] * ranks, ended
    for text in ended.texts:
        assert "checkpoint: two saves in a row failed" in text
        assert "No space left on device" in text
        assert "the newest checkpoint is of step" in text
    assert latest_verified(twice / "checkpoints") is not None
    ended = server.run(
        train_under, arguments(shards, last), {"rank": 0, "step": 4, "fault": full | {"at": 3}}, ranks=ranks
    )
    assert ended.codes == [REFUSED] * ranks, ended
    assert all("checkpoint: the last save, after step 4, failed" in text for text in ended.texts)
    assert load(last).state.step == 3
    assert server.run(train_under, arguments(shards, last), {}, ranks=ranks).codes == [0] * ranks
    assert load(last).state.step == 4


@pytest.mark.parametrize("fails", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_stop_tries_its_save_once_more(tmp_path: Path, server: FaultServer, shards: Path, fails: int) -> None:
    """Whatever is asked to stop has no later save: one error of the disk costs it nothing, two are report."""
    argv = arguments(shards, tmp_path, run__save_every=2)
    fault = {"at": 3, "action": FAIL, "errno": errno.EIO, "repeat": 1 if fails == 1 else 0}
    ended = server.run(train_under, argv, {"rank": 0, "step": 2, "fault": fault, "stop_in_step": 2}, ranks=2)
    assert ended.codes == ([75, 75] if fails == 1 else [REFUSED, REFUSED]), ended
    assert "step 2: NOT SAVED: " in ended.texts[0]
    if fails == 1:
        assert load(tmp_path).state.step == 2
    else:
        assert all("two saves in a row failed, after step 2 (" in text for text in ended.texts)


def test_a_best_checkpoint_that_cannot_be_written_ends_all_ranks(
    tmp_path: Path, server: FaultServer, shards: Path
) -> None:
    """What was the best would be gone for good: no warning would do."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "best").write_bytes(b"")
    argv = arguments(shards, run, data__validation_share=0.25, run__evaluate_every=2)
    ended = server.run(train_apart, [argv, argv], None, ranks=2)
    assert ended.codes == [REFUSED, REFUSED], ended
    assert all(f"checkpoint: {run / 'best' / 'checkpoints'}: cannot be written: " in text for text in ended.texts)
