"""What an evaluation is asked for and what it scores: options, names, overlaps in time, and windows as rain."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from rainspark.data.errors import ConfigError
from rainspark.data.sequences import TimeSpan
from rainspark.data.stream.stream import Batch
from rainspark.trainer.checkpoint.seen import WindowTimes
from rainspark.trainer.contestants.entries import BASELINES, read_entries
from rainspark.trainer.contestants.windows import windows_of
from rainspark.trainer.settings.data import ArchiveConfig, WindowsConfig
from rainspark.trainer.settings.evaluation import LISTS, EvaluateConfig, parse_evaluation

BASE = ["--data.shards", "S", "--out", "O"]


def test_lists_are_read_word_by_word() -> None:
    argv = [*BASE, "--models", "a", "b=c d", "persistence", "--thresholds", "0.5", "2", "--scales", "1", "9"]
    config = parse_evaluation([*argv, "--cases", "2010-08-26T03:00", "--limit", "4"])
    assert config.models == ("a", "b=c d", "persistence")
    assert (config.thresholds, config.scales, config.limit) == ((0.5, 2.0), (1, 9), 4)
    assert config.case_times_s == (1_282_791_600,)
    assert parse_evaluation([*BASE, '--models=["a"]', "--thresholds", "[0.5, 1]"]).thresholds == (0.5, 1.0)


WORDS = st.text(min_size=1).filter(lambda word: not word.startswith(("--", "[")) and "~" not in word)


@example(["._"])
@given(st.lists(WORDS, min_size=1, max_size=4))
def test_any_word_may_name_a_model(words: list[str]) -> None:
    assert parse_evaluation([*BASE, "--models", *words]).models == tuple(words)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--models"], "models is empty"),
        (["--models", "a", "--thresholds", "-1"], "thresholds holds -1.0; expected finite numbers above 0"),
        (
            ["--models", "a", "--thresholds", ".nan"],
            "thresholds holds nan; expected finite numbers above 0 and up to 1000000000",
        ),
        (["--models", "a", "--thresholds", *map(str, range(1, 102))], "holds 101 values; expected 100 at most"),
        (["--models", "a", "--scales", "[]"], "scales is empty"),
        (["--models", "a", "--scales", "5", "1"], "scales holds 1 after 5; expected rising order: 1, 5"),
        (["--models", "a", "--scales", "1.5"], "scales"),
        (["--models", "a", "--limit", "0"], "limit is 0; it must be 1 or more"),
        (["--models", "a", "--cases", "noon"], "cases: 'noon' is no time; expected UTC such as 2010-08-26T04:00"),
        (["--models", "a", "--protocol", "published", "--thresholds", "1", "2"], "thresholds is 1, 2; add 0.5"),
        (["--models", "a", "--split", "tests"], "split"),
        (["--model", "a", "b"], "--model a b; the nearest valid key is models"),
        (["--models", "a", "--data.test_share", "1.5"], "data.test_share is 1.5; it must be below 1"),
        (["--models", "a", "--data.guard_h", ".inf"], "data.guard_h is inf; it must be finite"),
        (["--models", "a", "--data.test_times", '["2019-01-01/2020-01-01"]'], "data.train_times is not"),
    ],
)
def test_slips_on_the_command_line_are_named(more: list[str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        parse_evaluation([*BASE, *more])


def test_the_split_is_that_of_training_unless_it_is_stated() -> None:
    training = WindowsConfig(shards="S")
    unstated = ArchiveConfig(shards="S")
    assert (unstated.split_shares, unstated.split_guard_h) == (training.split_shares, training.split_guard_h)
    assert (training.validation_share, training.test_share, training.guard_h) == (0.1, 0.0, 24.0)
    assert unstated.stated_split == []
    stated = ArchiveConfig(shards="S", guard_h=0, test_share=0.2)
    assert (stated.split_shares, stated.split_guard_h) == ((0.1, 0.2), 0)
    assert stated.stated_split == ["test_share", "guard_h"]
    assert set(LISTS) < {field.name for field in fields(EvaluateConfig)}


def test_models_are_named_by_the_user_or_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("run_a", "x=y"):
        Path(name).mkdir()
    words = ["run_a", f"b={tmp_path / 'run_a'}", "x=y", str(tmp_path / "x=y"), "still=persistence", "advection"]
    entries = read_entries(words[:3] + words[4:])
    assert [entry.name for entry in entries] == ["run_a", "b", "x=y", "still", "advection"]
    assert [entry.kind for entry in entries] == ["run", "run", "run", "persistence", "advection"]
    (absolute,) = read_entries(words[3:4])
    assert (absolute.name, absolute.folder, entries[2].folder) == ("x=y", tmp_path / "x=y", Path("x=y"))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["extrapolaton"], "neither the folder of a run nor a baseline .*; the nearest baseline is extrapolation"),
        (["nothing/like/it"], rf"nor a baseline \({', '.join(BASELINES)}\)$"),
        (["a=persistence", "a=advection"], r"two of them are called 'a' \(persistence and advection\)"),
        (["=persistence", "persistence"], "two of them are called 'persistence'"),
        ([".a=persistence"], "the name '.a' cannot be a file's .* give another, as NAME=.a=persistence"),
        (["a\\b=persistence"], "cannot be a file's"),
        (["a\nb=persistence"], "cannot be a file's"),
        ([f"{'n' * 101}=persistence"], r"cannot be a file's \(1 to 100 bytes"),
        ([f"{'☔' * 34}=persistence"], r"cannot be a file's \(1 to 100 bytes"),
        (["persistence=advection"], "'persistence' is the name of a baseline, and advection is not that one"),
        (["training_mean=."], "'training_mean' is the name of a baseline"),
    ],
)
def test_models_that_cannot_be(words: list[str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        read_entries(words)


numbers = st.integers(-60, 60)


@given(
    first=numbers, start_s=numbers, window=st.integers(1, 8), cadence_s=st.integers(1, 7), length_s=st.integers(1, 50)
)
def test_a_window_meets_a_span_when_one_of_its_frames_ends_in_it(
    first: int, start_s: int, window: int, cadence_s: int, length_s: int
) -> None:
    span = TimeSpan(start_s=start_s, stop_s=start_s + length_s)
    ends = [first + cadence_s * frame for frame in range(window)]
    windows = WindowTimes(first_s=np.array([first]), num_frames=window, cadence_s=cadence_s)
    assert windows.inside([span]).tolist() == [any(span.start_s <= end < span.stop_s for end in ends)]


def test_windows_are_cut_out_of_batches_as_rain() -> None:
    counts = torch.arange(3 * 4 * 2 * 2, dtype=torch.int32).view(3, 4, 2, 2)
    counts[1, 0, 0, 0] = 65535
    counts[2, 3, 1, 1] = 65535
    batch = Batch(
        counts_bthw=counts.to(torch.uint16),
        scale_mmh_b=torch.tensor([0.12, 0.12, 0.25]),
        has_missing=True,
        window_b=np.array([5, 6, 7]),
        index_b=np.arange(3),
        step=0,
        micro_step=0,
        epoch=0,
    )
    padded = Batch(**{**vars(batch), "window_b": np.array([5, -1, 7])})
    windows = list(windows_of(iter([batch, padded]), 3))
    assert [window.row for window in windows] == [5, 6, 7, 5, 7]
    assert [window.past_valid_bthw is None for window in windows[:3]] == [True, False, True]
    assert [window.future_valid_bthw is None for window in windows[:3]] == [True, True, False]

    measured = counts != 65535
    rain = torch.where(measured, counts * batch.scale_mmh_b.view(3, 1, 1, 1), 0.0)
    for number, window in enumerate(windows[:3]):
        torch.testing.assert_close(window.past_mmh_bthw[0], rain[number, :3])
        torch.testing.assert_close(window.future_mmh_bthw[0], rain[number, 3:])
    torch.testing.assert_close(windows[1].past_valid_bthw, measured[1:2, :3])
    torch.testing.assert_close(windows[2].future_valid_bthw, measured[2:3, 3:])
