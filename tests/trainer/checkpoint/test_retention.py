"""Which checkpoints stay, against a slow and plain telling of the rule, in numbers, in a folder and in a store."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rainspark.data.store.storage import LocalStorage
from rainspark.models.weights.manifest import latest_verified, step_folders
from rainspark.trainer.checkpoint.retention import steps_to_remove
from rainspark.trainer.checkpoint.transfer import finished_in, push
from tests.integration.faults import save_small

_steps = st.sets(st.integers(1, 60), min_size=1, max_size=14)
_every = st.none() | st.integers(1, 12)


def plainly(there: set[int], whole: set[int], new: int, keep_last: int, keep_every: int | None) -> set[int]:
    """Say what goes: each older one, unless one of four reasons holds."""
    going = set()
    for step in there:
        among_newest = sum(other > step for other in there - {new}) < keep_last - 1
        milestone = keep_every is not None and step % keep_every == 0
        newer_whole = [other for other in whole - {new} if other > step]
        second_whole = step in whole and not newer_whole
        if step != new and not among_newest and not milestone and not second_whole:
            going.add(step)
    return going


@given(
    there=_steps, damaged=st.sets(st.integers(1, 60)), new=st.integers(1, 60), keep_last=st.integers(2, 6), every=_every
)
def test_what_goes_is_what_the_rule_says(
    there: set[int], damaged: set[int], new: int, keep_last: int, every: int | None
) -> None:
    there |= {new}
    whole = there - damaged | {new}
    going = steps_to_remove(there, lambda step: step in whole, new=new, keep_last=keep_last, keep_every=every)
    assert going == sorted(going, reverse=True)
    assert set(going) == plainly(there, whole, new, keep_last, every)
    left = there - set(going)
    assert max(whole) in left, "the newest whole one stays"
    assert len(whole & left) >= min(2, len(whole)), "two whole ones stay"
    assert all(step in left for step in there if every and step % every == 0)


@settings(max_examples=8)
@given(
    gaps=st.lists(st.integers(1, 4), min_size=1, max_size=9),
    damaged=st.sets(st.integers(0, 8), max_size=4),
    keep_last=st.integers(2, 4),
    every=_every,
)
def test_folder_and_store_keep_alike(
    tmp_path_factory: pytest.TempPathFactory, gaps: list[int], damaged: set[int], keep_last: int, every: int | None
) -> None:
    """After every save: what the rule says is there, and the newest whole one is found."""
    folder = tmp_path_factory.mktemp("run")
    storage = LocalStorage(folder / "store")
    step, there, whole = 0, set[int](), set[int]()
    for number, gap in enumerate(gaps):
        step += gap
        path = save_small(folder, step, keep_last=keep_last, keep_every=every)
        push(path, storage, keep_last=keep_last, keep_every=every)
        there, whole = there | {step}, whole | {step}
        gone = plainly(there, whole, step, keep_last, every)
        there, whole = there - gone, whole - gone
        assert {number for number, _ in step_folders(folder / "checkpoints")} == there
        if not damaged:
            assert {int(name.removeprefix("step-")) for name in finished_in(storage)} == there
        assert latest_verified(folder / "checkpoints") == path
        if number in damaged:
            (path / "state.json").write_bytes(b"{}")
            whole -= {step}


def test_remains_in_a_store_count_for_nothing_and_go(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "store")
    for step in (10, 20, 30):
        push(save_small(tmp_path, step, keep_last=9), storage, keep_last=9)
    for step in (15, 25, 40):
        storage.write(f"checkpoints/step-{step:08d}/model.safetensors", b"cut off")
    partial = tmp_path / "store" / "checkpoints" / "step-00000040" / ".optimizer.safetensors.1-0.partial"
    partial.write_bytes(b"killed")
    push(save_small(tmp_path, 35, keep_last=9), storage, keep_last=2, keep_every=5)
    assert finished_in(storage) == [f"step-{step:08d}" for step in (35, 30, 20, 10)]
    names = {name.split("/")[1] for name in storage.names("checkpoints/")}
    assert names == {f"step-{step:08d}" for step in (35, 30, 20, 10, 40)}, "what may be on its way is left alone"
    assert not partial.exists()


def test_milestones_that_a_store_lacks_follow(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "store")
    for step in range(1, 8):
        path = save_small(tmp_path, step, keep_last=2, keep_every=3)
    push(path, storage, keep_last=2, keep_every=3)
    assert finished_in(storage) == ["step-00000007", "step-00000006", "step-00000003"]
    assert [step for step, _ in step_folders(tmp_path / "checkpoints")] == [7, 6, 3]
