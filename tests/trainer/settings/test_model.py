"""Settings of fine-tuning and of splits in time: what contradicts itself or would have no effect is refused by name."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rainspark.data.errors import ConfigError
from rainspark.data.sequences import TimeSpan
from rainspark.trainer.settings.data import WindowsConfig, parse_span
from rainspark.trainer.settings.evaluation import EvaluateConfig
from rainspark.trainer.settings.experiment import FinetuneConfig, PretrainConfig
from rainspark.trainer.settings.model import NowcastConfig
from rainspark.trainer.settings.parse import as_dict, as_yaml, from_dict, parse_config

NEEDED = ["--data.shards", "s", "--run.dir", "r"]
SMAAT = ["--model.name", "smaat_unet"]
DAY = 86_400


def parse(*words: str) -> FinetuneConfig:
    return parse_config([*NEEDED, *words], FinetuneConfig, prog="test")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.frames_in", "0"], r"model\.frames_in is 0"),
        (["--model.head", "advected", "--model.frames_in", "1"], r"model\.frames_in is 1; it must be 2 or more"),
        ([*SMAAT, "--model.match", "floor", "--model.frames_in", "1"], r"model\.frames_in is 1; it must be 2 or more"),
        (["--model.head", "direct", "--model.match", "extrapolated", "--model.frames_in", "1"], r"must be 2 or more"),
        (["--model.frames_out", "0"], r"model\.frames_out is 0"),
        (["--model.decoder_width", "100"], r"decoder_width is 100.*multiple of 32"),
        (["--model.mask_ratio", ".nan"], r"model\.mask_ratio is nan"),
        (["--model.depth_drop", "-0.1"], r"model\.depth_drop is -0\.1"),
        ([*SMAAT, "--model.smaat_width", "1"], r"model\.smaat_width is 1; it must be 2 or more"),
        (["--model.ensemble", "true", "--model.loss", "crps"], r"ensemble needs model\.head cascade"),
        (["--model.head", "cascade", "--model.loss", "crps"], r"ensemble is false and model\.loss crps: an"),
        (["--model.head", "cascade", "--model.ensemble", "true"], r"ensemble is true and model\.loss mse: .* neither"),
        (["--model.loss", "l1"], r"model\.loss.*mse_ssim.*l1"),
        (["--model.translaton", "mixer"], r"translaton.*nearest valid key is model\.translation"),
        (["--run.dir", ""], r"run\.dir is ''; name the folder of the run"),
        (["--run.dir", " \t"], r"run\.dir is ' \\t'; name the folder of the run"),
        (["--run.choose_by", "ssim"], r"run\.choose_by.*csi.*ssim"),
        (["--data.crop", "48"], r"data\.crop is 48; a multiple of 32"),
        (["--data.crop", "0"], r"data\.crop is 0; a multiple of 32"),
        (["--data.target_frame", "24"], r"data\.target_frame is 24, outside a window of 24 frames"),
        (["--data.test_share", "1"], r"data\.test_share is 1"),
        (["--data.window", "4"], r"data\.window"),
        (["--engine.zero_stage", "9"], r"engine\.zero_stage"),
        (["--model.freeze", "both", "--model.translation", "identity", "--model.head", "patch"], r"nothing to train"),
    ],
)  # fmt: skip
def test_what_a_user_gets_wrong_is_named(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.compile(message, re.DOTALL)):
        parse(*words)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("encoder", "resnet18"),
        ("decoder_width", "32"),
        ("decoder_activation", "relu6"),
        ("translation", "mixer"),
        ("head", "direct"),
        ("freeze", "encoder"),
        ("mask_ratio", "0.5"),
        ("depth_drop", "0.1"),
    ],
)
def test_what_a_smaat_unet_does_not_have_cannot_be_set(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.{key} {value}: no effect with model\.name smaat_unet"):
        parse(*SMAAT, f"--model.{key}", value)
    others = ["--model.translation", "linear", "--model.head", "patch", f"--model.{key}", value]
    assert parse(*others).model.name == "spat_spark"


def test_all_that_has_no_effect_is_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"model\.head patch, model\.mask_ratio 0\.3: no effect"):
        parse(*SMAAT, "--model.mask_ratio", "0.3", "--model.head", "patch")
    with pytest.raises(ConfigError, match=r"model\.smaat_width 32: no effect with model\.name spat_spark"):
        parse("--model.smaat_width", "32")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (SMAAT, "model.name is smaat_unet"),
        (["--model.freeze", "encoder"], "model.freeze is encoder"),
        (["--model.freeze", "both"], "model.freeze is both"),
    ],
)
def test_layer_decay_without_an_encoder_to_train_is_refused(words: list[str], why: str) -> None:
    with pytest.raises(ConfigError, match=rf"optim\.layer_decay is 0\.8: no effect, as {re.escape(why)}"):
        parse(*words, "--optim.layer_decay", "0.8")
    assert parse(*words).optim.layer_decay == 1


def test_one_frame_is_enough_where_no_motion_is_found() -> None:
    assert parse(*SMAAT, "--model.frames_in", "1").model.frames_in == 1
    assert parse("--model.head", "direct", "--model.frames_in", "1").model.frames_in == 1


@pytest.mark.parametrize(
    "text",
    [
        "2016-01-01",
        "/2016-01-01",
        "2016-01-01/2017-01-01/2018-01-01",
        "2016-01-01 to 2017-01-01",
        "2016-01-01T25:00/2017-01-01",
        "",
    ],
)
def test_a_span_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.train_times: .* is no span of time; expected START/STOP in UTC"):
        WindowsConfig(shards="s", train_times=(text,))


@pytest.mark.parametrize("text", ["2017-01-01/2016-01-01", "2016-01-01/2016-01-01"])
def test_a_span_that_ends_before_it_begins_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.test_times: .* ends before it begins"):
        WindowsConfig(shards="s", train_times=("2015-01-01/2015-02-01",), test_times=(text,))


def test_spans_are_utc_unless_they_say_otherwise() -> None:
    span = TimeSpan(start_s=0, stop_s=DAY)
    for text in (
        "1970-01-01/1970-01-02",
        " 1970-01-01T00:00 / 1970-01-02T00:00Z ",
        "1970-01-01T01:00+01:00/1970-01-02",
    ):
        assert parse_span("x", text) == span


@pytest.mark.parametrize(
    ("train", "validation", "test", "guard_h", "pair"),
    [
        ("2016-01-01/2016-01-10", "2016-01-11/2016-01-20", None, 48.0, ("train", "validation")),
        ("2016-01-10/2016-01-20", "2016-01-01/2016-01-09", None, 25.0, ("train", "validation")),
        ("2016-01-01/2016-01-10", "2016-01-20/2016-01-30", "2016-01-29/2016-02-10", 0.0, ("validation", "test")),
        ("2016-01-01/2016-03-01", None, "2016-02-01/2016-02-02", 0.0, ("train", "test")),
    ],
)
def test_parts_that_touch_each_other_are_refused(
    train: str, validation: str | None, test: str | None, guard_h: float, pair: tuple[str, str]
) -> None:
    parts = {"validation_times": validation, "test_times": test}
    stated = {name: (text,) for name, text in parts.items() if text is not None}
    with pytest.raises(ConfigError, match=rf"data\.{pair[0]}_times .* and data\.{pair[1]}_times .* overlap or are nea"):
        WindowsConfig(shards="s", guard_h=guard_h, train_times=(train,), **stated)  # type: ignore[arg-type]


def test_parts_as_far_apart_as_the_guard_are_taken() -> None:
    config = WindowsConfig(
        shards="s", guard_h=24, train_times=("2016-01-01/2016-01-10", "2016-02-01/2016-02-10"),
        validation_times=("2016-01-11/2016-01-31",), test_times=("2016-02-11/2016-03-01",),
    )  # fmt: skip
    spans = config.stated_spans()
    assert spans is not None
    assert [len(spans[part]) for part in ("train", "validation", "test")] == [2, 1, 1]
    assert WindowsConfig(shards="s").stated_spans() is None


@given(
    edges=st.lists(st.integers(0, 400), min_size=4, max_size=4, unique=True).map(sorted),
    guard=st.integers(0, 200),
    swapped=st.booleans(),
)
def test_the_guard_is_the_distance_of_the_parts(edges: list[int], guard: int, swapped: bool) -> None:
    """Two spans of whole days, in either order, against their plain distance."""
    days = [f"{1971 + edge // 365}-{(edge % 365) // 28 % 12 + 1:02d}-{edge % 28 + 1:02d}" for edge in edges]
    stamps = [parse_span("x", f"1970-01-01/{day}").stop_s for day in days]
    if not stamps[0] < stamps[1] < stamps[2] < stamps[3]:
        return
    first, second = (f"{days[0]}/{days[1]}",), (f"{days[2]}/{days[3]}",)
    train, test = (second, first) if swapped else (first, second)
    far_enough = stamps[2] - stamps[1] >= guard * 3600
    if far_enough:
        WindowsConfig(shards="s", guard_h=guard, train_times=train, test_times=test)
    else:
        with pytest.raises(ConfigError, match="overlap or are nearer"):
            WindowsConfig(shards="s", guard_h=guard, train_times=train, test_times=test)


def test_times_without_those_of_training_are_refused() -> None:
    for name in ("validation_times", "test_times"):
        with pytest.raises(ConfigError, match=rf"data\.{name} is set and data\.train_times is not"):
            WindowsConfig(shards="s", **{name: ("2016-01-01/2017-01-01",)})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"data\.train_times holds no span"):
        WindowsConfig(shards="s", train_times=())


@pytest.mark.parametrize("name", ["validation_share", "test_share"])
def test_a_share_beside_stated_times_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.{name} is 0\.3, but data\.train_times states the parts' times"):
        WindowsConfig(shards="s", train_times=("2016-01-01/2017-01-01",), **{name: 0.3})  # type: ignore[arg-type]


def test_stated_times_read_back_from_the_command_line_the_file_and_the_checkpoint(tmp_path: Path) -> None:
    config = parse(
        "--data.train_times", '["2016-01-01T00:00/2017-01-01T00:00", "2018-01-01/2018-02-01"]',
        "--data.test_times", '["2019-01-01/2020-01-01"]',
    )  # fmt: skip
    assert config.data.train_times == ("2016-01-01T00:00/2017-01-01T00:00", "2018-01-01/2018-02-01")
    path = tmp_path / "config.yaml"
    path.write_text(as_yaml(config))
    assert parse_config(["--config", str(path)], FinetuneConfig, prog="test") == config
    assert from_dict(as_dict(config), FinetuneConfig) == config


def test_a_span_that_is_no_list_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"data\.train_times"):
        parse("--data.train_times", "2016-01-01/2017-01-01")


def test_the_settings_of_another_kind_of_run_are_refused_by_name() -> None:
    pretraining = as_dict(parse_config(NEEDED, PretrainConfig, prog="test"))
    with pytest.raises(ConfigError, match=r"model\.loss.*spectral.*masked"):
        from_dict(pretraining, FinetuneConfig)


def test_every_setting_is_explained() -> None:
    """A setting that its class's text leaves out has no help on the command line."""
    for cls in (NowcastConfig, WindowsConfig, EvaluateConfig):
        text = "".join(base.__doc__ or "" for base in cls.__mro__)
        explained = set(re.findall(r"^        (\w+): ", text, re.MULTILINE))
        assert explained == set(cls.__dataclass_fields__)
