"""Settings: read strictly, refused with the key and the nearest valid one, written so that they read back."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rainspark.data.command import MOST_NUMBER, MOST_SEED
from rainspark.data.errors import ConfigError
from rainspark.data.exit_codes import ExitCode
from rainspark.trainer.processes.entry import run_entry
from rainspark.trainer.settings.evaluation import parse_evaluation
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
        # Of a value no key is near: the setting is the right one.
        (
            ["--data.weights", "[weight]"],
            r"data\.weights\": Expected table of text to float or null\. Got value: \['weight'\]$",
        ),
        (
            ["--data.weights", '{"weight": "x"}'],
            r"data\.weights\": Expected table .* Got value: \{'weight': 'x'\}$",
        ),
        (["--run.keep_every", "steps"], r"^Parser key \"run\.keep_every\": Expected int or null\. Got value: steps$"),
        (["--data", "shards"], r"^Parser key \"data\": Unable to load config [^;]+$"),
    ],
)
def test_what_a_user_mistypes_is_named(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.compile(message, re.DOTALL)):
        parse(*words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--run.steps", "9" * 24], r"^run\.steps is 9{24}; expected a number from -1000000000 to 1000000000$"),
        (["--run.steps", "-" + "9" * 24], r"^run\.steps is -9{24}; expected a number from"),
        (["--run.steps", "9" * 5000], r"^--run\.steps is 9{20}\.\.\., a number of 5000 digits; expected one from"),
        (["--run.steps=" + "9" * 5000], r"^--run\.steps is 9{20}\.\.\., a number of 5000 digits"),
        (["--optim.lr", "0x" + "f" * 5000], r"^--optim\.lr is 0xf{18}\.\.\., a number of 5002 digits"),
        (["--optim.betas", f"[0.9, {'9' * 5000}]"], r"^--optim\.betas is 9{20}\.\.\., a number of 5000 digits"),
        (["--optim.lr", "1e400"], r"^optim\.lr is inf; it must be finite"),
        (["--optim.lr", "1_000e99"], r"^optim\.lr is 1e\+102; expected a number from"),
        (["--optim.lr=-1e99"], r"^optim\.lr is -1e\+99; expected a number from"),
        (["--optim.betas", "[0.9, 1e99]"], r"^optim\.betas is 1e\+99; expected a number from"),
        (["--data.weights", '{"a": 1e99}'], r"^data\.weights\.a is 1e\+99; expected a number from"),
        (["--seed", "9" * 24], r"^seed is 9{24}; expected a number from -9223372036854775808 to 9223372036854775808$"),
        (["--data.threads", "1000000"], r"data\.threads is 1000000; it must be at most 1024"),
        (["--data.window", "1000000"], r"data\.window is 1000000; it must be at most 10000"),
        (["--data.block_mb", "1e8"], r"data\.block_mb is 100000000\.0; it must be at most 100000"),
        (["--model.decoder_width", "32000000"], r"model\.decoder_width is 32000000; it must be at most 16384"),
    ],
)
def test_a_number_beyond_every_bound_is_named_with_the_bound(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(*words)


def test_numbers_at_the_bound_are_taken() -> None:
    config = parse("--run.steps", str(MOST_NUMBER), "--optim.lr", "1e9", "--seed", str(-MOST_SEED))
    assert (config.run.steps, config.optim.lr, config.seed) == (MOST_NUMBER, 1e9, -MOST_SEED)


@pytest.mark.parametrize("case", ["steps_huge", "empty_config"])
def test_the_files_that_users_sent_in_are_refused(shared_dir: Path, case: str) -> None:
    messages = {"steps_huge": r"^run\.steps is 9{23}; expected a number from", "empty_config": "holds no settings"}
    with pytest.raises(ConfigError, match=messages[case]):
        parse("--config", str(shared_dir / "cases" / case / "c.yaml"))


def test_a_leading_tilde_of_a_path_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.yaml").write_text("run: {dir: ~/runs/b}\ndata: {cache_dir: ~/c}\n")
    words = ["--config=~/own.yaml", "--data.shards=~/packed", "--run.checkpoint_url", "s3://bucket/~/c"]
    config = parse_config([*words, "--init_from", "~/a"], PretrainConfig, prog="test")
    assert config.run.dir == f"{tmp_path}/runs/b"
    assert (config.data.cache_dir, config.data.shards) == (f"{tmp_path}/c", f"{tmp_path}/packed")
    assert (config.run.checkpoint_url, config.init_from) == ("s3://bucket/~/c", f"{tmp_path}/a")

    scored = parse_evaluation(["--data.shards=~/p", "--out=~/o", "--models", "~/x", "n=~/y", "a~b", "--report", "~/r"])
    assert (scored.out, scored.report, scored.data.shards) == tuple(f"{tmp_path}/{name}" for name in "orp")
    assert scored.models == (f"{tmp_path}/x", f"n={tmp_path}/y", "a~b")


def test_a_home_folder_that_there_is_not_is_named() -> None:
    for words in (["--run.dir", "~no-such-user/a"], ["--config", "~no-such-user/c.yaml"]):
        with pytest.raises(ConfigError, match=r"^~no-such-user/.*: there is no user or home folder of that name"):
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
        ("", r"bad\.yaml holds no settings; list some, such as run"),
        ("# steps: 3\n---\n", r"bad\.yaml holds no settings"),
        ("{}\n", r"bad\.yaml holds no settings"),
        ("- run\n- data\n", r"bad\.yaml holds a list; expected sections"),
        ("3\n", r"bad\.yaml holds the value 3; expected sections"),
        ("optim: {3: 4}\n", r"bad\.yaml, line 1: 3 is no name of a setting"),
        ("run: {dir: 2020-13-45}\n", r"bad\.yaml is not YAML: month must be in 1\.\.12"),
        (
            f"run:\n  steps: {'9' * 5000}\n",
            r"bad\.yaml, line 2: 9{20}\.\.\., a number of 5000 digits; expected",
        ),
        (f"run: {{steps: 0b{'1' * 5000}}}\n", r"bad\.yaml, line 1: 0b1{18}\.\.\., a number of 5002 digits"),
        ("optim:\n  lr: 1_000e99\n", r"optim\.lr is 1e\+102; expected a number from"),
        ("run: {dir: !!python/object/apply:os.system ['touch /tmp/never']}\n", r"bad\.yaml|python"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        parse("--config", str(path))


@pytest.mark.parametrize("content", [bytes(range(128, 256)), "run: {dir: é}".encode("latin-1"), b"run: {dir: \0}"])
def test_a_file_that_is_no_text_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"^\S*bad\.yaml is not YAML: .*[^\n]$"):
        parse("--config", str(path))


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"--config {tmp_path}: is a folder; name a file of settings"):
        parse("--config", str(tmp_path))


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
