"""The settings of an evaluation, and how its command line is read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from ...data.errors import ConfigError
from .data import ArchiveConfig, epoch_s
from .parse import parse_config
from .ranges import check_number, check_rising

Split = Literal["test", "validation", "train", "all"]
LISTS: Final = ("models", "thresholds", "scales", "cases")
"""Settings whose values may follow each other on the command line: `--models RUN_A RUN_B persistence`."""

PUBLISHED_THRESHOLD_MMH: Final = 0.5
"""SmaAt-UNet: Trebing, Stanczyk and Mehrkanoon (2021), Pattern Recognition Letters 145, 178-186,
doi:10.1016/j.patrec.2021.01.036."""

MOST_SCALE: Final = 4096
"""Side of a neighbourhood in pixels: beyond any composite's, and memory grows with its square."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """An evaluation: which models, on which windows, with which scores.

    Args:
        data: The archive.
        models: Each as MODEL or NAME=MODEL. A run's folder. A baseline: `persistence`; `advection`: the last frame
            carried on with the motion of the last three; `extrapolation`: the same by pysteps; `training_mean`;
            `damped_extrapolation`; pysteps' `sprog`, `anvil`, `linda`, `steps` and `lagrangian_probability`, with
            options as `steps:members=16`. A folder of NetCDF files: forecasts made elsewhere. `package.module:Class`: a
            class with a method of models/nowcasting/forecasts.py.
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
        members: Of runs that are ensembles. Null: 16.
        unknown: Pixels that models such as `extrapolation` cannot know, because what lay outside the frame or was not
            measured flows in: `leave_out` of the scores of every model alike, or count them as `dry` for that one. The
            report says how many.
        fit_windows: Training windows, evenly spread, that `training_mean` and `damped_extrapolation` are fitted on.
        cases: Times (UTC) of the last radar frame of forecasts to draw. Null: the wettest, the one that changes most
            and a middling one.
        allow_overlap: Score windows that a run was trained on all the same; the report says so.
        allow_other_grid: Score a run on pixels of another size or at another cadence than it learned from; the report
            says so.
        workers: Processes that run pysteps' methods. Null: a core each.
        cache: Folder where their forecasts are kept, for an evaluation of the same windows; `none`: nowhere. Null:
            rainspark/forecasts in the user's cache folder, until that holds 10 GB.
        device: `auto` takes the GPU where there is one.
        seed: Of the bootstrap, and of members.
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
    members: int | None = None
    unknown: Literal["dry", "leave_out"] = "leave_out"
    fit_windows: int = 256
    cases: tuple[str, ...] | None = None
    allow_overlap: bool = False
    allow_other_grid: bool = False
    workers: int | None = None
    cache: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0
    progress: Literal["auto", "bar", "lines"] = "auto"

    def __post_init__(self) -> None:
        """Check what needs no data."""
        if not self.models:
            raise ConfigError("models is empty; name runs and baselines, such as --models RUN persistence")
        for name in ("limit", "frames_in", "frames_out", "fit_windows", "members", "workers"):
            check_number(name, getattr(self, name), least=1)
        if self.cache == "":
            raise ConfigError("cache is empty; give a folder, or `none`")
        check_rising("thresholds", self.thresholds, "mm/h")
        check_rising("scales", self.scales, "pixels", most=MOST_SCALE)

        if self.protocol == "published" and PUBLISHED_THRESHOLD_MMH not in self.thresholds:
            stated = ", ".join(f"{threshold:g}" for threshold in self.thresholds)
            raise ConfigError(
                f"protocol is published, which is about rain above {PUBLISHED_THRESHOLD_MMH:g} mm/h, and thresholds is "
                f"{stated}; add {PUBLISHED_THRESHOLD_MMH:g}"
            )
        # Read once here, so that a slip ends the command before any data is opened.
        _ = self.case_times_s

    @property
    def case_times_s(self) -> tuple[int, ...] | None:
        """Give the stated cases as epoch seconds; None where none are stated."""
        return None if self.cases is None else tuple(map(_read_case, self.cases))


def parse_evaluation(argv: Sequence[str]) -> EvaluateConfig:
    """Read the command line: `--config FILE`, `--key.sub value`, and lists as one value a word.

    Raises:
        ConfigError: As `trainer.settings.parse.parse_config`.
    """
    return parse_config(argv, EvaluateConfig, prog="rainspark evaluate", lists=LISTS)


def _read_case(text: str) -> int:
    try:
        return epoch_s(text)
    except ValueError as error:
        raise ConfigError(
            f"cases: {text!r} is no time; expected UTC such as 2010-08-26T04:00, the last radar frame of a forecast"
        ) from error
