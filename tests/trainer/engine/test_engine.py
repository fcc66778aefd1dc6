"""One process: what is refused and how it is told, what a state holds, settings that must not change the numbers."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rainspark.data.errors import ConfigError
from rainspark.models.weights.manifest import CheckpointError
from rainspark.trainer.engine.engine import Engine
from rainspark.trainer.engine.processes import Identity, check_clipping, check_launcher, read_identity
from rainspark.trainer.engine.replicated import LossScale
from rainspark.trainer.settings.engine import EngineConfig
from rainspark.trainer.settings.optim import OptimConfig
from tests.conftest import REPOSITORY
from tests.programs import environment
from tests.trainer.engine.cases import ADAMW, SGD, batch_of, equal, flat, make_engine, train_step

LAMB = OptimConfig(name="lamb", lr=1e-3, clip_norm=1.0)
# All that `accelerate launch` 1.15 sets when it is asked for nothing.
LAUNCHER = {
    "ACCELERATE_USE_CPU": "False",
    "ACCELERATE_MIXED_PRECISION": "no",
    "ACCELERATE_DYNAMO_BACKEND": "NO",
    "ACCELERATE_DYNAMO_MODE": "default",
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": "False",
    "ACCELERATE_DYNAMO_USE_DYNAMIC": "False",
    "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "False",
    "OMP_NUM_THREADS": "1",
}


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = make_engine(None, ADAMW)
    yield engine
    engine.shutdown(clean=True)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "fp64"])
def test_launcher_defaults_are_no_contradiction(precision: Any) -> None:
    check_launcher(EngineConfig(precision=precision), LAUNCHER)
    check_clipping(3.0, LAUNCHER)


@pytest.mark.parametrize(
    ("settings", "variable", "value", "ours"),
    [
        ({"precision": "fp32"}, "MIXED_PRECISION", "bf16", "engine.precision=fp32"),
        ({"precision": "fp16"}, "MIXED_PRECISION", "bf16", "engine.precision=fp16"),
        ({}, "USE_DEEPSPEED", "true", "engine.zero_stage=null"),
        ({"zero_stage": 2}, "DEEPSPEED_ZERO_STAGE", "3", "engine.zero_stage=2"),
        ({"zero_stage": 2}, "DEEPSPEED_ZERO_STAGE", "0", "engine.zero_stage=2"),
        ({"zero_stage": 2}, "DEEPSPEED_CONFIG_FILE", "ds.json", "derived from ours"),
        ({"zero_stage": 2}, "DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "cpu", "no offloading"),
        ({}, "GRADIENT_ACCUMULATION_STEPS", "4", "data.global_batch"),
        ({}, "DYNAMO_BACKEND", "INDUCTOR", "engine.compile=false"),
        ({"compile": True}, "DYNAMO_BACKEND", "EAGER", "engine.compile=true"),
        ({"device": "cuda"}, "USE_CPU", "true", "engine.device=cuda"),
        ({}, "USE_FSDP", "true", "no FSDP"),
    ],
)
def test_contradicting_launcher_is_refused(settings: dict[str, Any], variable: str, value: str, ours: str) -> None:
    environment = {**LAUNCHER, f"ACCELERATE_{variable}": value}
    with pytest.raises(ConfigError, match=f"ACCELERATE_{variable}={value.lower()}.*{ours}"):
        check_launcher(EngineConfig(**settings), environment)


def test_agreeing_launcher_is_taken() -> None:
    theirs = {
        "MIXED_PRECISION": "bf16",
        "USE_DEEPSPEED": "true",
        "DEEPSPEED_ZERO_STAGE": "2",
        "DYNAMO_BACKEND": "INDUCTOR",
    }
    environment = {**LAUNCHER, **{f"ACCELERATE_{name}": value for name, value in theirs.items()}}
    check_launcher(EngineConfig(precision="bf16", zero_stage=2, compile=True), environment)
    check_clipping(1.0, {"ACCELERATE_GRADIENT_CLIPPING": "1.0"})


@pytest.mark.parametrize("clip_norm", [None, 2.0])
def test_contradicting_clipping_is_refused(clip_norm: float | None) -> None:
    with pytest.raises(ConfigError, match=r"GRADIENT_CLIPPING=1\.0.*optim\.clip_norm="):
        check_clipping(clip_norm, {"ACCELERATE_GRADIENT_CLIPPING": "1.0"})


def test_engine_refuses_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ConfigError, match=r"bf16.*engine\.precision=fp32"):
        Engine(EngineConfig(device="cpu"))


MASTER = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def test_place_is_read_from_the_environment() -> None:
    assert read_identity({}) == Identity(rank=0, world_size=1, local_rank=0)
    assert read_identity({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", **MASTER}) == Identity(
        rank=5, world_size=8, local_rank=1
    )


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "not LOCAL_RANK"),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0", **MASTER}, "RANK=2.*WORLD_SIZE=2"),
        ({"RANK": "x", "WORLD_SIZE": "2", "LOCAL_RANK": "0", **MASTER}, "no whole number"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "MASTER_ADDR, MASTER_PORT is not set"),
        ({**LAUNCHER, **MASTER}, "starts only one; add --multi_gpu"),
    ],
)
def test_bad_places_are_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_identity(environment)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timeout_s": 0.0}, "engine.timeout_s"),
        ({"start_timeout_s": 0.0}, "engine.start_timeout_s"),
        ({"precision": "fp64", "zero_stage": 1}, "fp64.*engine.zero_stage=1"),
        ({"compile": True, "zero_stage": 3}, "engine.compile=true.*zero_stage=3"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EngineConfig(**settings)


def test_state_is_complete_and_shares_nothing(engine: Engine) -> None:
    state = engine.export_state()
    names = {name for name, _ in engine.bare_model.named_parameters()}
    assert state.model.keys() == engine.bare_model.state_dict().keys()
    assert state.optimizer.keys() == {f"{name}.{moment}" for name in names for moment in ("exp_avg", "exp_avg_sq")}
    assert state.optimizer_steps == dict.fromkeys(names, 0.0)
    copy = {name: value.clone() for name, value in flat(state).items()}
    train_step(engine, 0)
    assert equal(flat(state), copy)
    assert not equal(flat(engine.export_state()), copy)


def test_import_is_strict(engine: Engine) -> None:
    state = engine.export_state()

    fewer = {name: value for name, value in state.model.items() if name != "norm.running_mean"}
    refused: list[tuple[dict[str, Any], str]] = [
        ({"model": fewer}, r"model: missing norm\.running_mean"),
        ({"model": {**state.model, "stranger": torch.zeros(1)}}, "not expected stranger"),
        ({"model": {**state.model, "head.bias": torch.zeros(3)}}, r"head\.bias is \(3,\), expected \(8,\)"),
        ({"optimizer": {}}, r"optimizer: missing .*head\.bias\.exp_avg"),
        ({"optimizer_steps": {}}, "optimizer_steps: missing"),
    ]
    for changes, message in refused:
        with pytest.raises(CheckpointError, match=message):
            engine.import_state(replace(state, **changes))


def run(optim: OptimConfig = ADAMW, steps: int = 5, **settings: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    engine = make_engine(None, optim, **settings)
    losses = [train_step(engine, step, micro_steps=2)[0] for step in range(steps)]
    state = flat(engine.export_state())
    engine.shutdown(clean=True)
    return losses, state


def test_channels_last_changes_layout_only() -> None:
    engine = make_engine(None, ADAMW, channels_last=True)
    conv = engine.bare_model.get_submodule("conv")
    assert conv.get_parameter("weight").stride() == (27, 1, 9, 3)
    seen: list[bool] = []
    conv.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    train_step(engine, 0)
    engine.shutdown(clean=True)
    assert seen == [True]
    (losses, state), (plain, reference) = run(channels_last=True, precision="fp64"), run(precision="fp64")
    assert losses == pytest.approx(plain, rel=1e-10)
    for name, value in reference.items():
        assert state[name].is_contiguous()
        assert torch.allclose(state[name], value, rtol=1e-7, atol=1e-9), name


@pytest.mark.slow
def test_compile_keeps_names_and_numbers() -> None:
    (losses, state), (plain, reference) = run(compile=True), run()
    assert losses == pytest.approx(plain, rel=1e-4)
    assert state.keys() == reference.keys()


def test_clipping_bounds_the_step_and_reports_the_norm_before_it() -> None:
    free, tight = (OptimConfig(name="sgd", momentum=0.0, clip_norm=clip) for clip in (None, 0.01))
    moved = []
    for optim in (free, tight):
        engine = make_engine(None, optim)
        before = engine.export_state().model
        _, norm, _ = train_step(engine, 0, rate=1.0, decay=0.0)
        after = engine.export_state().model
        names = [name for name, _ in engine.bare_model.named_parameters()]
        moved.append((norm, torch.cat([(after[name] - before[name]).flatten() for name in names]).norm().item()))
        engine.shutdown(clean=True)
    assert moved[0][0] == moved[1][0]
    assert moved[0][1] == pytest.approx(moved[0][0], rel=1e-4)
    assert moved[1][1] == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("optim", [SGD, ADAMW, LAMB], ids=lambda optim: optim.name)
def test_resume_is_bit_identical_with_every_optimizer(optim: OptimConfig) -> None:
    engine = make_engine(None, optim)
    for step in range(2):
        train_step(engine, step)
    middle = engine.export_state()
    train_step(engine, 2)
    end = flat(engine.export_state())
    engine.shutdown(clean=True)
    engine = make_engine(None, optim, seed=3)
    engine.import_state(middle)
    train_step(engine, 2)
    assert equal(flat(engine.export_state()), end)
    engine.shutdown(clean=True)


SCRIPT = """
import sys
from tests.trainer.engine.cases import ADAMW, make_engine, train_step
engine = make_engine(None, ADAMW)
losses = [train_step(engine, step, rate=1e-3)[0] for step in range(3)]
sys.stdout.write(f"rank {engine.rank} of {engine.world_size}: {losses[-1]!r}\\n")
engine.shutdown(clean=True)
"""


def test_accelerate_launches_two_processes(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    words = ["-m", "accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "0", "--multi_gpu"]
    variables = environment(PYTHONPATH=REPOSITORY, HF_HOME=tmp_path)
    done = subprocess.run(
        [sys.executable, *words, str(script)], env=variables, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = sorted(line for line in done.stdout.splitlines() if line.startswith("rank"))
    assert [line.split(":")[0] for line in lines] == ["rank 0 of 2", "rank 1 of 2"]
    assert len({line.split(": ")[1] for line in lines}) == 1, "the loss of all"


def test_a_step_without_terms_or_with_a_bad_loss_is_skipped_and_leaves_the_loss_scale() -> None:
    """The loss is computed without the scale, so a bad one says nothing of it; a gradient that overflows does."""
    engine = make_engine(None, ADAMW, precision="fp16")
    before = engine.export_state()
    zero, one = torch.zeros(()), torch.ones(())
    for skip, factor, share in ((one, 0.0, 1), (zero, torch.inf, 0.5)):
        engine.start_step()
        engine.backward(engine.model(batch_of(0, torch.float32)).prediction_b8.sum() * factor)
        assert engine.update(rate=1.0, decay=0.1, skip=skip).skipped
        after = engine.export_state()
        assert equal(flat(before), flat(after))
        assert after.loss_scale == LossScale.INITIAL * share
    engine.shutdown(clean=True)


def test_the_loss_scale_goes_on_counting_its_good_steps_after_a_resume() -> None:
    scale = LossScale(torch.device("cpu"))
    good, bad, judged = torch.zeros((), dtype=torch.bool), torch.ones((), dtype=torch.bool), torch.ones(()) > 0
    for _ in range(LossScale.INTERVAL - 3):
        scale.update(good, judged)
    resumed = LossScale(torch.device("cpu"))
    resumed.restore(float(scale.value), scale.good_steps)
    for overflowed, says, value, count in (
        (good, judged, 1, LossScale.INTERVAL - 2),
        (bad, ~judged, 1, LossScale.INTERVAL - 2),
        (good, judged, 1, LossScale.INTERVAL - 1),
        (good, judged, 2, 0),
        (good, judged, 2, 1),
        (bad, judged, 1, 0),
    ):
        resumed.update(overflowed, says)
        assert (float(resumed.value), resumed.good_steps) == (LossScale.INITIAL * value, count)


def test_a_state_holds_the_good_steps_of_fp16_only() -> None:
    for precision, count in (("fp16", 3), ("fp32", 0)):
        engine = make_engine(None, ADAMW, precision=precision)
        for step in range(3):
            train_step(engine, step)
        state = engine.export_state()
        assert state.loss_scale_good_steps == count
        engine.import_state(replace(state, loss_scale_good_steps=7 if count else 0))
        assert engine.export_state().loss_scale_good_steps == (7 if count else 0)
        engine.shutdown(clean=True)
