"""The settings of an evaluation, and how its command line is read."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Final, Literal

from ...data.errors import ConfigError
from ...data.windows.selection import Published, Rule
from ..settings.parse import WindowsConfig, parse_config
from ..verification.rows import PUBLISHED_THRESHOLD_MMH, Settings

Split = Literal["test", "validation", "train", "all"]
LISTS: Final = ("models", "thresholds", "scales", "cases")
"""Settings whose values may follow each other on the command line: `--models RUN_A RUN_B persistence`."""

SPLIT_KEYS: Final = ("validation_share", "test_share", "guard_h", "train_times", "validation_times", "test_times")


@dataclass(frozen=True, kw_only=True)
class ArchiveConfig:
    """The archive that is scored, and, where no run says how it was split in time, its split.

    Args:
        shards: Where packed shards lie (`rainspark pack`): a folder, or s3://, gs://, az:// or https://.
        source: Score only this source of a mixed archive.
        select: As in training: `nl50`, `nl20`, the published selections.
        select_rule: As in training: `strict` or `smaat_compat`.
        min_rain_fraction: Share of rainy pixels that a window needs to be scored, 0 to 1, instead of `select`.
        target_frame: The frame of the window that decides, counted from 0; -1 is the last. Null: 17 (the published
            frame 18) with `select`, else the last.
        validation_share: As in training; only without runs, whose records say it (null: 0.1).
        test_share: Likewise (null: 0).
        guard_h: Likewise (null: 24).
        train_times: Likewise, START/STOP in UTC instead of shares.
        validation_times: Likewise.
        test_times: Likewise.
        threads: Threads a process that read, verify and decode.
        decoded_mb: Megabytes of decoded frames kept a process.
        prefetch_mb: Megabytes of compressed sequences under way or held ahead a process.
        readers: Threads a process that read. Null: `threads` for a folder, 8 for a store.
        deadline_s: Seconds after which an operation on a store that still fails is an error.
        cache_dir: Folder on this machine's disk that keeps shards of a store, for all processes. Null: none.
        cache_gb: Gigabytes that the cache may take.
    """

    shards: str
    source: str | None = None
    select: Published | None = None
    select_rule: Rule = "strict"
    min_rain_fraction: float = 0.0
    target_frame: int | None = None
    validation_share: float | None = None
    test_share: float | None = None
    guard_h: float | None = None
    train_times: tuple[str, ...] | None = None
    validation_times: tuple[str, ...] | None = None
    test_times: tuple[str, ...] | None = None
    threads: int = 2
    decoded_mb: float = 256.0
    prefetch_mb: float = 512.0
    readers: int | None = None
    deadline_s: float = 300.0
    cache_dir: str | None = None
    cache_gb: float = 50.0

    def __post_init__(self) -> None:
        """Check the ranges as training does."""
        for name in ("guard_h", "decoded_mb", "prefetch_mb", "deadline_s", "cache_gb"):
            if (value := getattr(self, name)) is not None and not math.isfinite(value):
                raise ConfigError(f"data.{name} is {value}; it must be a finite number")
        _ = self.windows

    @property
    def windows(self) -> WindowsConfig:
        """Give the settings that training has too, in its form."""
        stated = [item.name for item in fields(self) if item.name not in SPLIT_KEYS or item.name in self.stated]
        return WindowsConfig(**{name: getattr(self, name) for name in stated})

    @property
    def stated(self) -> list[str]:
        """Name the settings of the split that the user has set."""
        return [name for name in SPLIT_KEYS if getattr(self, name) is not None]


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """An evaluation: which models, on which windows, with which scores.

    Args:
        data: The archive.
        models: Runs (RUN or NAME=RUN) and baselines: `persistence`; `advection`: the last frame carried on with the
            motion of the last three; `extrapolation`: the same by pysteps; `training_mean`; `damped_extrapolation`.
        out: Folder of scores.json, scores.csv, scores.md, rows and pictures.
        split: Part of the archive: `test`, `validation` or `train` as the runs recorded it, or `all` of it.
        report: Folder of the HTML page. Null: none.
        thresholds: An event is rain above so many mm/h; rising.
        scales: Sides of the fractions skill score's neighbourhoods in pixels, rising.
        protocol: `published` shows the scores of SmaAt-UNet's protocol beside the standard ones.
        compare_to: A model that all others are compared with in pairs.
        limit: Score only so many windows, evenly spread. Null: all.
        frames_in: Past frames of a window. Null: as many as the model that takes most.
        frames_out: Lead times. Null: as many as the run that gives fewest, 12 without runs.
        micro_batch: Windows read at a time, over all processes. Null: 4 a process. Scores do not depend on it.
        fit_windows: Training windows, evenly spread, that `training_mean` and `damped_extrapolation` are fitted on.
        cases: Times (UTC) of the last radar frame of forecasts to draw. Null: the wettest, the one that changes most
            and a middling one.
        allow_overlap: Score windows that a run was trained on all the same; the report says so.
        device: `auto` takes the GPU where there is one.
        seed: Of the bootstrap.
        progress: A bar where the terminal shows one, else log lines; or one of the two.
    """

    data: ArchiveConfig
    models: tuple[str, ...]
    out: str
    split: Split = "test"
    report: str | None = None
    thresholds: tuple[float, ...] = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
    scales: tuple[int, ...] = (1, 5, 17, 33)
    protocol: Literal["standard", "published"] = "standard"
    compare_to: str | None = None
    limit: int | None = None
    frames_in: int | None = None
    frames_out: int | None = None
    micro_batch: int | None = None
    fit_windows: int = 256
    cases: tuple[str, ...] | None = None
    allow_overlap: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0
    progress: Literal["auto", "bar", "lines"] = "auto"

    def __post_init__(self) -> None:
        """Check what needs no data."""
        if not self.models:
            raise ConfigError("models is empty; name runs and baselines, such as --models RUN persistence")
        for name in ("limit", "frames_in", "frames_out", "micro_batch", "fit_windows"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be 1 or more")
        self.settings((1.0,))
        if self.protocol == "published" and PUBLISHED_THRESHOLD_MMH not in self.thresholds:
            found = ", ".join(f"{threshold:g}" for threshold in self.thresholds)
            raise ConfigError(
                f"protocol is published, which is about rain above {PUBLISHED_THRESHOLD_MMH:g} mm/h, and thresholds is "
                f"{found}; add {PUBLISHED_THRESHOLD_MMH:g}"
            )
        _ = self.case_times_s

    def settings(self, leads_min: tuple[float, ...]) -> Settings:
        """Give what is scored at these lead times.

        Raises:
            ConfigError: Thresholds or scales that are no rising list.
        """
        try:
            return Settings(leads_min=leads_min, thresholds_mmh=self.thresholds, scales_px=self.scales)
        except ConfigError as error:
            named = str(error).replace("thresholds_mmh", "thresholds").replace("scales_px", "scales")
            raise ConfigError(named) from error

    @property
    def case_times_s(self) -> tuple[int, ...] | None:
        """Give the stated cases as epoch seconds; None where none are stated."""
        if self.cases is None:
            return None
        return tuple(_epoch_s(text) for text in self.cases)


def parse_evaluation(argv: Sequence[str]) -> EvaluateConfig:
    """Read the command line: `--config FILE`, `--key.sub value`, and lists as one value a word.

    Raises:
        ConfigError: As `trainer.settings.parse.parse_config`.
    """
    return parse_config(gather_lists(argv), EvaluateConfig, prog="trainer/evaluate.py")


def gather_lists(argv: Sequence[str]) -> list[str]:
    """Write `--models a b` as `--models=["a", "b"]`, which the parser takes; other words stay as they are."""
    words: list[str] = []
    place = 0
    while place < len(argv):
        word = argv[place]
        place += 1
        name = word.removeprefix("--")
        if not (word.startswith("--") and name in LISTS):
            words.append(word)
            continue
        values = []
        while place < len(argv) and not argv[place].startswith("--"):
            values.append(argv[place])
            place += 1
        if len(values) == 1 and values[0].startswith("["):
            words.append(f"{word}={values[0]}")
        elif name in ("models", "cases"):
            words.append(f"{word}={json.dumps(values)}")
        else:
            words.append(f"{word}=[{', '.join(values)}]")
    return words


def _epoch_s(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(
            f"cases: {text!r} is no time; expected UTC such as 2010-08-26T04:00, the last radar frame of a forecast"
        ) from error
    return int((moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment).timestamp())
