"""Settings: read strictly, refused with the key and the nearest valid one, written so that they read back."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rainspark.data.errors import ConfigError
from rainspark.data.exit_codes import ExitCode
from rainspark.trainer.processes.entry import run_entry
from rainspark.trainer.settings.experiment import FinetuneConfig, PretrainConfig, flatten
from rainspark.trainer.settings.parse import as_dict, as_yaml, dotted_keys, parse_config
from tests.conftest import REPOSITORY

NEEDED = ["--data.shards", "s", "--run.dir", "r"]


def parse(*words: str) -> PretrainConfig:
    return parse_config([*NEEDED, *words], PretrainConfig, prog="test")


def test_command_line_overrides_the_file_and_the_file_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("optim: {lr: 1e-3, warmup_steps: 7}\nmodel: {encoder: resnet18}\n")
    config = parse("--config", str(path), "--optim.lr", "2e-3")
    assert (config.optim.lr, config.optim.warmup_steps, config.model.encoder) == (2e-3, 7, "resnet18")
    assert config.data.global_batch == PretrainConfig(run=config.run, data=config.data).data.global_batch


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--optim.lrr", "1"], r"optim\.lrr.*nearest valid key is optim\.lr"),
        (["--modle.encoder", "resnet18"], r"modle\.encoder.*nearest valid key is model\.encoder"),
        (["--optim.wei", "1"], r"unrecognized arguments: --optim\.wei"),
        (["--data.shard", "t"], r"data\.shard t; the nearest valid key is data\.shards"),
        (["--model.encode=resnet18"], r"model\.encode.*nearest valid key is model\.encoder"),
        (["--conf", "x.yaml"], r"--conf x\.yaml; the nearest valid key is config"),
        (["--optim.lr", "fast"], r"optim\.lr.*float.*fast"),
        (["--run.steps", "2.5"], r"run\.steps.*int.*2\.5"),
        (["--model.encoder", "resnet19"], r"model\.encoder\": Expected one of .*'resnet18'.*Got value: resnet19$"),
        (["--data.global_batch", "10", "--data.micro_batch", "4"], r"global_batch 10 .*micro_batch 4.*1, 2, 5, 10"),
        (["--run.keep_last", "1"], r"run\.keep_last is 1.*2 or more"),
        (["--run.steps", "5", "--optim.warmup_steps", "5"], r"warmup_steps 5 .*run\.steps 5"),
        (
            ["--engine.timeout_s", "300", "--data.shards", "s3://bucket/shards"],
            r"data\.deadline_s is 300 and engine\.timeout_s 300: .* longer",
        ),
        (
            ["--engine.timeout_s", "50", "--run.checkpoint_url", "s3://bucket/run"],
            r"run\.push_deadline_s is 60 and engine\.timeout_s 50: .* longer",
        ),
        (
            ["--engine.timeout_s", "9", "--tracking.services", "[mlflow]"],
            r"tracking\.close_s is 15 and engine\.timeout_s 9: .* longer",
        ),
        (["--model.mask_ratio", "0"], r"model\.mask_ratio is 0"),
        (["--model.mask_ratio", "1"], r"model\.mask_ratio is 1.0; it must be below 1"),
        (["--model.decoder_width", "100"], r"decoder_width is 100.*multiple of 32"),
        (["--model.depth_drop", "1"], r"depth_drop is 1"),
        (["--model.space.scale_mmh", "0"], r"scale_mmh is 0"),
        (["--model.space.clip_mmh", "-1"], r"clip_mmh is -1"),
        (["--data.target_frame", "12"], r"target_frame is 12.*12 frames"),
        (["--data.min_rain_fraction", "50"], r"min_rain_fraction is 50.0; it must be at most 1"),
        (["--data.validation_share", "1"], r"validation_share is 1"),
        (["--data.guard_h", "-1"], r"guard_h is -1"),
        (["--data.threads", "0"], r"data\.threads is 0"),
        (["--data.decoded_mb", "0"], r"decoded_mb"),
        (["--optim.clip_norm", ".inf"], r"optim\.clip_norm is inf"),
        (["--data.guard_h", ".nan"], r"data\.guard_h is nan; it must be finite and 0 or more"),
        (["--optim.betas", "[0.9, .nan]"], r"optim\.betas"),
        (["--config", "/nowhere/x.yaml"], r"/nowhere/x\.yaml"),
    ],
)
def test_what_a_user_mistypes_is_named(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.compile(message, re.DOTALL)):
        parse(*words)


def test_where_a_run_starts_from_is_the_same_place_for_every_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = parse("--init_from", "../other/run")
    assert config.init_from == str(tmp_path / ".." / "other" / "run")


def test_required_settings_are_named() -> None:
    with pytest.raises(ConfigError, match=r"run\.dir|data\.shards"):
        parse_config([], PretrainConfig, prog="test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "optim: {lr: 1e-3}\nmodel: {encoder: resnet18}\noptim: {lr: 2e-3}\n",
            r"bad\.yaml, line 3: optim is set twice",
        ),
        ("optim:\n  lr: 1\n  lr: 2\n", r"bad\.yaml, line 3: lr is set twice"),
        ("optim: {lr_: 1e-3}\n", r"lr_.*nearest valid key is optim\.lr"),
        ("optim: [1\n", r"bad\.yaml"),
        ("model: {space: null}\n", r"bad\.yaml: model\.space is None"),
        ("optim: 3\n", r"bad\.yaml: optim is 3"),
        ("a: &a [1]\nb: [*a, *a]\n", r"bad\.yaml: uses an alias \(\*a\); write the value out"),
        ("[" * 200, r"bad\.yaml: nested deeper than 8 levels"),
        ("run: {dir: !!python/object/apply:os.system ['touch /tmp/never']}\n", r"bad\.yaml|python"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        parse("--config", str(path))


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_parses(path: Path) -> None:
    words = [*NEEDED, "--config", str(path)]
    if "frames_in" in yaml.safe_load(path.read_text())["model"]:
        parse_config(words, FinetuneConfig, prog="test")
    else:
        parse_config(words, PretrainConfig, prog="test")


@given(
    lr=st.floats(1e-8, 10),
    steps=st.integers(1, 10**9),
    clip=st.none() | st.floats(1e-3, 1e3),
    seed=st.integers(0, 2**63),
)
def test_the_saved_file_reads_back_to_the_same_run(
    tmp_path_factory: pytest.TempPathFactory, lr: float, steps: int, clip: float | None, seed: int
) -> None:
    words = [
        f"--optim.lr={lr!r}",
        f"--run.steps={steps}",
        f"--optim.clip_norm={'null' if clip is None else repr(clip)}",
    ]
    config = parse(*words, f"--seed={seed}")
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(as_yaml(config))
    assert parse_config(["--config", str(path)], PretrainConfig, prog="test") == config
    assert yaml.safe_load(path.read_text()) == as_dict(config)


@pytest.mark.parametrize("cls", [PretrainConfig, FinetuneConfig])
def test_dotted_keys_are_those_of_the_saved_file(cls: type[PretrainConfig | FinetuneConfig]) -> None:
    assert list(flatten(as_dict(parse_config(NEEDED, cls, prog="test")))) == dotted_keys(cls)


def test_an_error_never_steers_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    def main() -> ExitCode:
        parse("--\x1b[31mred", "1")
        return ExitCode.DONE

    assert run_entry(main) == ExitCode.CONFIG
    said = capfd.readouterr().err
    assert "\x1b" not in said
    assert r"\x1b[31mred" in said
