"""The checkpoint: what goes in comes out bit for bit, or is refused; a kill at any moment loses nothing finished."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rainspark.models.weights.manifest import (
    CheckpointError,
    best_checkpoint,
    chosen_weights,
    latest_verified,
    read_manifest,
    step_folders,
    verify_folder,
    write_manifest,
)
from rainspark.trainer.checkpoint.__main__ import main
from rainspark.trainer.checkpoint.folder import load, save
from rainspark.trainer.checkpoint.state import TrainState, check_resume, installed_versions
from rainspark.trainer.forecasting.build import build_nowcaster
from rainspark.trainer.settings.model import NowcastConfig
from tests.disks import small_disk

CONFIG: dict[str, Any] = {
    "run": {"dir": "runs/a", "steps": 100, "save_every": 10, "keep_last": 3, "allow_plan_change": False},
    "data": {"shards": "shards", "window": 12, "micro_batch": 8, "lanes": 4, "block_mb": 8.0, "threads": 2},
    "model": {"encoder": "resnet18", "space": {"kind": "log"}},
    "optim": {"lr": 1e-3, "betas": [0.9, 0.95], "clip_norm": None},
    "engine": {"zero_stage": None, "precision": "fp32"},
    "tracking": {"tensorboard": True},
    "seed": 0,
}
PLAN: dict[str, Any] = {"data": "abc", "micro_batch": 8, "lanes": 4, "block_bytes": 8, "selection": {"window": 12}}


def _state(step: int, **changes: Any) -> TrainState:
    fields: dict[str, Any] = {"step": step, "epoch": 0, "seed": 0, "config": CONFIG, "plan": PLAN, "loss_scale": None}
    fields |= {"optimizer_steps": {"weight": float(step)}, "versions": installed_versions()}
    return TrainState(**(fields | changes))


def _tensors(step: int, num_values: int = 64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {"weight": torch.randn(num_values, generator=generator), "count": torch.tensor(step)}


def _save(run: Path, step: int, *, keep_last: int = 3, num_values: int = 64, **parts: Any) -> Path:
    tensors = _tensors(step, num_values)
    return save(run, _state(step), tensors, {"weight.exp_avg": tensors["weight"] / 2}, keep_last=keep_last, **parts)


def _steps(run: Path) -> list[int]:
    return [step for step, _ in step_folders(run / "checkpoints")]


def _same(tensors: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return _bits(tensors) == _bits(expected)


def _bits(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[torch.dtype, torch.Size, bytes]]:
    return {name: (value.dtype, value.shape, value.contiguous().numpy().tobytes()) for name, value in tensors.items()}


_dtypes = st.sampled_from([torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool])
_shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)
_json: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def _draw_tensor(kind: tuple[torch.dtype, tuple[int, ...], int]) -> torch.Tensor:
    dtype, shape, seed = kind
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 100
    return (values > 0) if dtype == torch.bool else values.to(dtype)


_tensor_dicts = st.dictionaries(
    st.text(st.characters(codec="utf-8"), max_size=12).filter(lambda name: name != "__metadata__"),
    st.tuples(_dtypes, _shapes, st.integers(0, 1000)).map(_draw_tensor),
    max_size=5,
)


_objects = st.dictionaries(st.text(max_size=8), _json, max_size=4)
_states = st.builds(
    _state,
    step=st.just(7),
    config=_objects,
    plan=_objects,
    optimizer_steps=st.dictionaries(st.text(max_size=8), st.floats(0, 1e9), max_size=3),
    loss_scale=st.none() | st.floats(2.0**-20, 2.0**40),
    seed=st.integers(0, 2**63),
    data=_objects,
    metrics=st.dictionaries(st.text(max_size=8), st.floats(allow_nan=False, allow_infinity=False), max_size=3),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(model=_tensor_dicts, optimizer=_tensor_dicts, average=_tensor_dicts, state=_states)
def test_what_goes_in_comes_out(
    tmp_path_factory: pytest.TempPathFactory,
    model: dict[str, torch.Tensor],
    optimizer: dict[str, torch.Tensor],
    average: dict[str, torch.Tensor],
    state: TrainState,
) -> None:
    run = tmp_path_factory.mktemp("run")
    path = save(run, state, model, optimizer, keep_last=2, average=average)
    loaded = load(run)
    assert loaded.path == path == run / "checkpoints" / "step-00000007"
    assert loaded.state == state
    assert all(map(_same, (loaded.model, loaded.optimizer, loaded.average), (model, optimizer, average)))
    # Averaged weights have a file only where there are any.
    assert ("ema.safetensors" in read_manifest(path)) == bool(average)


def test_layouts_and_shared_memory_are_saved_by_value(tmp_path: Path) -> None:
    image = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    flat = torch.arange(10.0)
    model = {
        "channels_last": image.to(memory_format=torch.channels_last),
        "transposed": image.transpose(0, 3),
        "strided": image[:, ::2, 1:, ::3],
        "expanded": torch.tensor(3.0).expand(4, 4),
        "whole": flat,
        "tied": flat,
        "head": flat[:6],
        "tail": flat[4:],
        "gradient": torch.ones(3, requires_grad=True),
        "parameter": torch.nn.Parameter(torch.zeros((), dtype=torch.float64)),
        "not finite": torch.tensor([torch.nan, torch.inf]),
    }
    expected = {name: tensor.detach().clone() for name, tensor in model.items()}
    save(tmp_path, _state(1), model, {}, keep_last=2)
    loaded = load(tmp_path)
    assert _same(loaded.model, expected)
    loaded.model["whole"].add_(1)
    assert torch.equal(loaded.model["tied"], expected["tied"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64])
def test_low_precision_is_refused_before_anything_is_written(tmp_path: Path, dtype: torch.dtype) -> None:
    with pytest.raises(CheckpointError, match=r"model\.safetensors: weight is .*float32 or float64"):
        save(tmp_path, _state(1), {"weight": torch.zeros(2, dtype=dtype)}, {}, keep_last=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), Path("x")])
def test_state_that_json_would_lose_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(CheckpointError, match="the state of step 1 cannot be stored as plain JSON"):
        save(tmp_path, _state(1, config={"optim": {"lr": value}}), {}, {}, keep_last=2)
    assert list(tmp_path.iterdir()) == []


def test_the_state_of_the_largest_model_reads_back(tmp_path: Path) -> None:
    """JSON objects are bounded, and this one has a key a parameter."""
    with torch.device("meta"):
        model = build_nowcaster(NowcastConfig(encoder="resnet101", translation="mixer", mask_ratio=0.5))
    steps = {name: 1.0 for name, _ in model.named_parameters()}
    assert len(steps) > 400
    path = save(tmp_path, _state(1, optimizer_steps=steps), _tensors(1), {}, keep_last=2)
    assert load(path).state.optimizer_steps == steps


def test_files_follow_the_umask_and_none_is_a_pickle(tmp_path: Path) -> None:
    path = _save(tmp_path, 1)
    modes = {file.name: file.stat().st_mode & 0o777 for file in path.iterdir()}
    assert sorted(modes) == ["MANIFEST.json", "model.safetensors", "optimizer.safetensors", "state.json"]
    assert len(set(modes.values())) == 1
    assert not any(file.read_bytes().startswith((b"PK", b"\x80")) for file in path.iterdir())
    assert json.loads((path / "state.json").read_bytes())["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_a_flipped_bit_of_any_file_is_refused_by_its_name_and_the_one_before_is_used(tmp_path: Path) -> None:
    """That every single bit counts is shown of the manifest, which all of them are read by."""
    _save(tmp_path, 1)
    newest = _save(tmp_path, 2, average=_tensors(9))
    for path in sorted(newest.iterdir()):
        whole = path.read_bytes()
        half = len(whole) // 2
        path.write_bytes(whole[:half] + bytes([whole[half] ^ 4]) + whole[half + 1 :])
        with pytest.raises(CheckpointError, match=re.escape(path.name)):
            load(newest)
        assert load(tmp_path).state.step == 1
        path.write_bytes(whole)


def test_whole_files_of_wrong_content_are_refused(tmp_path: Path) -> None:
    """The hashes are right, and what they prove is not a checkpoint."""
    path = _save(tmp_path, 5)
    good = {file.name: file.read_bytes() for file in path.iterdir()}
    state = json.loads(good["state.json"])
    cases: list[tuple[str, bytes, str]] = [
        ("state.json", b"{", "it is no JSON"),
        ("state.json", json.dumps(state | {"schema_version": 2}).encode(), "key schema_version is 2; expected 1"),
        ("state.json", json.dumps(state | {"more": 1}).encode(), "key more is unknown"),
        ("state.json", json.dumps(state | {"epoch": "1"}).encode(), "key epoch is 1; expected a valid integer"),
        ("state.json", json.dumps(state | {"step": True}).encode(), "key step is True; expected a valid integer"),
        ("state.json", json.dumps(state | {"step": 6}).encode(), "holds step 6, not the step of its name"),
        ("model.safetensors", b"\x80\x04.", r"model\.safetensors: cannot be read as safetensors"),
    ]
    for name, content, message in cases:
        (path / name).write_bytes(content)
        write_manifest(path)
        with pytest.raises(CheckpointError, match=message):
            load(path)
        (path / name).write_bytes(good[name])
    (path / "optimizer.safetensors").unlink()
    write_manifest(path)
    with pytest.raises(CheckpointError, match=r"it has no optimizer\.safetensors"):
        load(path)


def test_load_takes_a_run_its_checkpoints_one_checkpoint_and_a_copy(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        load(run)
    first, second = _save(run, 1), _save(run / "checkpoints", 2)
    assert [load(path).state.step for path in (run, run / "checkpoints", first, second)] == [2, 2, 1, 2]
    first.rename(tmp_path / "best")
    assert load(tmp_path / "best").state.step == 1
    with pytest.raises(CheckpointError, match="there is no such folder"):
        load(first)


def test_a_checkpoint_just_written_never_goes(tmp_path: Path) -> None:
    for step in (6, 7, 8, 4):
        _save(tmp_path, step, keep_last=2)
    assert _steps(tmp_path) == [8, 4]


def test_nothing_older_goes_before_the_new_one_is_proved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk returns other bytes than were written: the error comes before the pruning."""
    for step in (1, 2):
        _save(tmp_path, step, keep_last=2)
    rename = Path.rename

    def rename_then_rot(self: Path, target: Path) -> Path:
        moved = rename(self, target)
        if target.name == "step-00000003":
            (target / "model.safetensors").write_bytes(b"rot")
        return moved

    monkeypatch.setattr(Path, "rename", rename_then_rot)
    with pytest.raises(CheckpointError, match=r"step-00000003/model\.safetensors: 3 bytes"):
        _save(tmp_path, 3, keep_last=2)
    monkeypatch.undo()
    assert _steps(tmp_path) == [3, 2, 1]
    assert load(tmp_path).state.step == 2


def test_a_step_that_is_there_stays_or_is_mended(tmp_path: Path) -> None:
    path = _save(tmp_path, 1)
    before = {file.name: file.stat().st_mtime_ns for file in path.iterdir()}
    save(tmp_path, _state(1, epoch=9), {}, {}, keep_last=2)
    assert {file.name: file.stat().st_mtime_ns for file in path.iterdir()} == before
    (path / "model.safetensors").write_bytes(b"rot")
    _save(tmp_path, 1)
    verify_folder(path)
    assert _same(load(path).model, _tensors(1))
    assert sorted(item.name for item in path.parent.iterdir()) == ["step-00000001"]


def test_leftovers_of_dead_saves_are_removed(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    for name in (".saving-step-00000001", ".saving-step-00000009", ".discarded-step-00000003"):
        (checkpoints / name).mkdir(parents=True)
        (checkpoints / name / "model.safetensors").write_bytes(b"half")
    (checkpoints / "notes.txt").write_bytes(b"mine")
    assert latest_verified(checkpoints) is None
    _save(tmp_path, 1)
    assert sorted(item.name for item in checkpoints.iterdir()) == ["notes.txt", "step-00000001"]


@pytest.mark.parametrize(
    ("size", "read_only", "message"),
    [
        ("2m", False, r"optimizer\.safetensors: cannot be written: .*No space left on device"),
        ("8m", True, r"step-00000002: cannot be written: Read-only file system"),
    ],
)
def test_a_disk_that_fails_is_named_and_the_older_one_stays(
    tmp_path: Path, size: str, read_only: bool, message: str
) -> None:
    run = tmp_path / "run"
    with small_disk(run, f"size={size}"):
        _save(run, 1)
        if read_only:
            subprocess.run(["mount", "-o", "remount,ro", str(run)], check=True)
        with pytest.raises(CheckpointError, match=message):
            _save(run, 2, num_values=400_000)
        assert sorted(item.name for item in (run / "checkpoints").iterdir()) == ["step-00000001"]
        assert _same(load(run).model, _tensors(1))


def test_a_file_where_the_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_bytes(b"")
    with pytest.raises(CheckpointError, match="checkpoints: cannot be written: File exists"):
        _save(tmp_path, 1)


def _changed(changes: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    changed: dict[str, Any] = json.loads(json.dumps(base))
    for key, value in changes.items():
        *sections, leaf = key.split(".")
        innermost = changed
        for section in sections:
            innermost = innermost.setdefault(section, {})
        innermost[leaf] = value
    return changed


def test_resume_accepts_what_does_not_change_the_mathematics(tmp_path: Path) -> None:
    _save(tmp_path, 1)
    saved = load(tmp_path).state
    assert check_resume(saved, CONFIG, PLAN, allow_plan_change=False) == []
    changes = {"engine.zero_stage": 2, "tracking.tensorboard": False, "run.steps": 200, "run.dir": "b"}
    changes |= {"data.shards": "moved", "data.threads": 8, "engine.precision": "bf16"}
    assert check_resume(saved, _changed(changes, CONFIG), PLAN, allow_plan_change=False) == [
        'data.shards: saved "shards", asked "moved"',
        "data.threads: saved 2, asked 8",
        'engine.precision: saved "fp32", asked "bf16"',
        "engine.zero_stage: saved null, asked 2",
        'run.dir: saved "runs/a", asked "b"',
        "run.steps: saved 100, asked 200",
        "tracking.tensorboard: saved true, asked false",
    ]


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("seed", 1, "seed: saved 0, asked 1"),
        ("seed", False, "seed: saved 0, asked false"),
        ("optim.lr", 2e-3, "optim.lr: saved 0.001, asked 0.002"),
        ("optim.betas", [0.9, 0.99], r"optim\.betas: saved \[0.9, 0.95\], asked \[0.9, 0.99\]"),
        ("optim.clip_norm", 5.0, "optim.clip_norm: saved null, asked 5.0"),
        ("model.space.kind", "linear", 'model.space.kind: saved "log", asked "linear"'),
        ("data.window", 24, "data.window: saved 12, asked 24"),
        ("model.new", 1, "model.new: saved nothing, asked 1"),
        ("data.engine.x", 1, "data.engine.x: saved nothing, asked 1"),
    ],
)
@pytest.mark.parametrize("allow", [False, True])
def test_resume_refuses_every_other_difference_by_name(key: str, value: object, shown: str, allow: bool) -> None:
    with pytest.raises(CheckpointError, match=shown):
        check_resume(_state(1), _changed({key: value}, CONFIG), PLAN, allow_plan_change=allow)


def test_resume_names_all_differences_at_once_and_what_is_gone() -> None:
    config = _changed({"seed": 3, "optim.lr": 1.0}, CONFIG)
    del config["model"]["encoder"]
    with pytest.raises(CheckpointError) as caught:
        check_resume(_state(1), config, PLAN | {"data": "xyz"}, allow_plan_change=True)
    lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert lines == [
        'model.encoder: saved "resnet18", asked nothing',
        "optim.lr: saved 0.001, asked 1.0",
        'plan.data: saved "abc", asked "xyz"',
        "seed: saved 0, asked 3",
    ]


def test_the_micro_batch_changes_only_when_asked_for() -> None:
    config, plan = _changed({"data.micro_batch": 4, "data.lanes": 2}, CONFIG), PLAN | {"micro_batch": 4, "lanes": 2}
    with pytest.raises(CheckpointError, match=r"allow_plan_change true[\s\S]*data\.micro_batch: saved 8, asked 4"):
        check_resume(_state(1), config, plan, allow_plan_change=False)
    accepted = check_resume(_state(1), config, plan, allow_plan_change=True)
    keys = [line.partition(":")[0] for line in accepted]
    assert keys == ["data.lanes", "data.micro_batch", "plan.lanes", "plan.micro_batch"]


def test_the_command_line_lists_verifies_and_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run: Callable[..., int] = lambda *words: main([str(word) for word in words])  # noqa: E731
    first, second = _save(tmp_path, 1), _save(tmp_path, 2)
    assert run("list", tmp_path) == run("verify", tmp_path) == run("verify", first) == 0
    rows = capsys.readouterr().out.splitlines()[1:3]
    assert [row.split()[0] for row in rows] == ["step-00000002", "step-00000001"]
    assert [row.split()[-1] for row in rows] == ["yes", "yes"]
    assert f"{sum(file.stat().st_size for file in second.iterdir()):,}" in rows[0]
    (second / "model.safetensors").write_bytes(b"rot")
    assert run("verify", tmp_path) == 4
    written = capsys.readouterr()
    assert written.out.splitlines()[1].endswith("NO")
    assert "step-00000002/model.safetensors: 3 bytes" in written.err
    assert run("show", second) == 4
    assert run("show", tmp_path) == 0
    shown = capsys.readouterr().out
    assert "model: 2 tensors, 65 values (float32, int64)" in shown
    assert '"encoder": "resnet18"' in shown
    assert str(first) in shown


def test_older_checkpoints_do_without_figures_and_origin(tmp_path: Path) -> None:
    path = save(tmp_path, _state(3, data={"source": "x"}, metrics={"csi": 0.5}), _tensors(3), {}, keep_last=2)
    document = json.loads((path / "state.json").read_text())
    del document["data"], document["metrics"]
    (path / "state.json").write_text(json.dumps(document))
    write_manifest(path)
    assert (load(path).state.data, load(path).state.metrics) == ({}, {})


def test_weights_are_chosen_best_first_and_averaged_first(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert chosen_weights(run) == run
    older = _save(run, 1)
    newest = save(run, _state(2), _tensors(2), {}, keep_last=2, average=_tensors(3))
    assert best_checkpoint(run) is None
    assert chosen_weights(run) == newest / "ema.safetensors"
    assert chosen_weights(newest) == newest / "ema.safetensors"
    assert chosen_weights(older) == older / "model.safetensors"
    assert chosen_weights(older / "model.safetensors") == older / "model.safetensors"
    for step in (3, 4):
        save(run / "best", _state(step), _tensors(step), {}, keep_last=2)
    best = best_checkpoint(run)
    assert best == run / "best" / "checkpoints" / "step-00000004"
    assert chosen_weights(run) == best / "model.safetensors"
    assert chosen_weights(newest) == newest / "ema.safetensors"
    (best / "model.safetensors").write_bytes(b"")
    assert best_checkpoint(run) == best
    with pytest.raises(CheckpointError, match=r"best/checkpoints/step-00000004/model\.safetensors"):
        chosen_weights(run)


def test_checkpoints_from_before_a_setting_existed_go_on_where_it_is_off() -> None:
    off = {"data.test_share": 0.0, "data.train_times": None, "model.ensemble": False, "optim.ema_decay": None}
    now = _changed(off, CONFIG)
    assert check_resume(_state(1), now, PLAN, allow_plan_change=False) == []
    changed = _changed({"optim.ema_decay": 0.9}, now)
    with pytest.raises(CheckpointError, match=r"optim\.ema_decay: saved null, asked 0\.9"):
        check_resume(_state(1), changed, PLAN, allow_plan_change=False)
