"""Which windows an evaluation scores: the split that the runs recorded, held against what the runs have seen."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...data.errors import ConfigError, DataError
from ...data.frames import Grid
from ...data.sequences import TimeSpan
from ...data.shards.index import Index, of_source
from ...data.store.storage import Storage
from ...data.windows.plan import evaluation_plan
from ...data.windows.selection import WindowTable, lost_to_gaps, select_windows
from ...models.nowcasting.motion import LEVELS
from ..checkpoint.seen import SYNTHETIC, Spans, listed
from ..forecasting.forecaster import RunForecaster
from ..settings.data import ArchiveConfig
from ..settings.evaluation import EvaluateConfig
from ..training.windows import open_archive, split_archive, window_times
from ..verification.rows import Settings, WindowId
from .contestants import FITTED, Entry, TrainingPart
from .overlap import check_overlaps, frames_seen

ADVECTION_PIXELS = 2 * LEVELS[0]
LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """What is scored.

    Attributes:
        storage: Where the shards lie.
        index: What they hold.
        table: The windows.
        frames_in: Past frames of each.
        frames_out: Future frames of each.
        settings: Lead times, thresholds, scales.
        spans: Times of the split; () for all of the archive.
        training: What baselines are fitted on; None where none is.
        caveats: What a reader must know before trusting a figure.
    """

    storage: Storage
    index: Index
    table: WindowTable
    frames_in: int
    frames_out: int
    settings: Settings
    spans: tuple[TimeSpan, ...]
    training: TrainingPart | None
    caveats: tuple[str, ...] = field(default=())

    def window_id(self, row: int) -> WindowId:
        """Name a window by the time that its forecast could be issued, and its place in the archive."""
        return WindowId(int(self.issue_s(np.array([row]))[0]), self.table.name(row, self.index))

    def issue_s(self, row_n: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Give the end times of the windows' last past frames, epoch seconds."""
        return window_times(self.index, self.table).first_s[row_n] + (self.frames_in - 1) * self.index.cadence_s

    def rows(self, limit: int | None) -> npt.NDArray[np.int64]:
        """Give the rows of the table that are scored, in order."""
        return evaluation_plan(self.table, 1, limit).ravel()


def make_plan(
    config: EvaluateConfig, entries: Sequence[Entry], runs: Mapping[str, RunForecaster], frames: tuple[int, int]
) -> Plan:
    """Choose the windows and refuse those that a run has seen.

    Args:
        config: The evaluation.
        entries: All models.
        runs: Those that are runs.
        frames: Past and future frames of a window.

    Raises:
        ConfigError: A split that contradicts the runs', that there is none of, or windows that a run was trained on.
        DataError: The archive does not verify, does not fit a run, or has no window in the split.
    """
    storage, index = open_archive(config.data, config.data.threads + 1)
    _demand_one_place(storage, index)
    parts = _split(config, index, runs)
    spans = () if config.split == "all" else parts[config.split]
    window = sum(frames)
    try:
        table = select_windows(index, config.data.selection(window, spans))
    except DataError as error:
        raise DataError(
            f"{storage.url}: the split {config.split!r} ({listed(spans)}) has no window: {error}"
        ) from error
    if any(entry.kind == "advection" for entry in entries) and min(index.rows, index.cols) < ADVECTION_PIXELS:
        raise DataError(
            f"{storage.url}: frames of {index.rows} x {index.cols} pixels; advection finds motion on "
            f"{ADVECTION_PIXELS} a side and more: leave it out"
        )
    caveats = [line for run in runs.values() for line in (*_grid_caveats(run, index), *_more_leads(run, frames[1]))]
    for run in runs.values():
        caveats += check_overlaps(config, run, window_times(index, table), index.source)
    if config.split == "validation" and runs:
        caveats.append("The runs' best checkpoints were chosen on this very part: their scores are a little too good.")
    minutes = tuple(index.cadence_s * (lead + 1) / 60 for lead in range(frames[1]))
    settings = Settings(leads_min=minutes, thresholds_mmh=config.thresholds, scales_px=config.scales)
    for threshold in config.thresholds:
        if abs(threshold / index.scale_mmh - round(threshold / index.scale_mmh)) < 1e-6:
            caveats.append(
                f"The threshold {threshold:g} mm/h lies on a step of the radar's rain ({index.scale_mmh:g} mm/h a "
                "count): rounding decides whether that very step is above it."
            )
    if table.selection.rule == "smaat_compat":
        lost = sum(lost_to_gaps(index, table.selection).values())
        caveats.append(f"{lost} windows of the published rule lie across gaps in time, and are not there to be scored.")
    for line in caveats:
        LOG.warning("%s", line)
    return Plan(
        storage=storage,
        index=index,
        table=table,
        frames_in=frames[0],
        frames_out=frames[1],
        settings=settings,
        spans=spans,
        training=_training_part(config, entries, runs, parts, window, storage, index),
        caveats=tuple(caveats),
    )


def _split(config: EvaluateConfig, index: Index, runs: Mapping[str, RunForecaster]) -> Spans:
    """Give the spans of the parts: the runs' own, or those of the settings."""
    needed = config.split != "all"
    if not runs:
        if not needed:
            return {}
        parts = split_archive(index, config.data)
        if needed and not parts[config.split]:
            key = f"data.{config.split}_share"
            raise ConfigError(f"split is {config.split}, and there is no such part; set {key} or data.train_times too")
        return parts
    if stated := config.data.stated_split:
        raise ConfigError(
            f"data.{stated[0]} is set, but the runs' records say how the archive is split; leave out "
            f"{', '.join(f'data.{name}' for name in stated)}"
        )
    spans = {name: frames_seen(run).spans for name, run in runs.items()}
    first = next(iter(spans))
    for name, own in spans.items():
        if needed and not own[config.split]:
            raise ConfigError(
                f"{name} was trained without a {config.split} part ({runs[name].path}); score another split, or `all` "
                "of an archive that it was not trained on"
            )
        if needed and own[config.split] != spans[first][config.split]:
            raise ConfigError(
                f"{first} and {name} were trained with different {config.split} parts: "
                f"{listed(spans[first][config.split])} and {listed(own[config.split])}; score them one by one, or "
                "with --split all on an archive that neither was trained on"
            )
    return spans[first]


def _demand_one_place(storage: Storage, index: Index) -> None:
    """Refuse a mix of radars or places: scores of several have no one grid, scale and step of rain."""
    try:
        _ = index.grid, index.crop, index.scale_mmh
    except DataError as error:
        raise DataError(f"{storage.url}: scores are made of one radar and place; {error}") from error


def _grid_caveats(run: RunForecaster, index: Index) -> list[str]:
    """Refuse another pixel size or cadence; say it where the run learned from another place or product."""
    cadence_s, source = run.data.get("cadence_s"), run.data.get("source")
    own = None if run.data.get("grid", "") is None else run.grid
    found = index.grid.cropped(index.crop)
    demands = [("frames every", f"{cadence_s} s", f"{index.cadence_s} s")]
    if own is not None:
        demands.insert(0, ("pixels", f"{own.pixel_km:g} km", f"{found.pixel_km:g} km"))
    for what, asked, given in demands:
        if asked != given:
            raise DataError(
                f"{run.name} was trained on {what} {asked}, and the shards hold {what} {given}; score it on an archive "
                "like the one that it was trained on"
            )
    if own is None:
        return [f"{run.name} was trained on several radars or parts of a grid ({source}), and this is {index.source}."]
    if source != index.source:
        caveats = [f"{run.name} was trained on {source}, and this is {index.source}."]
        return caveats if SYNTHETIC in (source, index.source) else caveats + _place_caveats(run.name, own, found)
    if source == SYNTHETIC:
        if (own.rows, own.cols) == (found.rows, found.cols):
            return []
        return [
            f"{run.name} was trained on {source} of {own.rows} x {own.cols} pixels; these are {found.rows} x "
            f"{found.cols}."
        ]
    return _place_caveats(run.name, own, found)


def _place_caveats(name: str, own: Grid, found: Grid) -> list[str]:
    """Say where a run's part of the map lies, and where the archive's."""
    if own.projection != found.projection:
        return [f"{name} was trained on another map projection: {own.projection}."]
    places = [_corners_km(grid) for grid in (own, found)]
    if places[0] == places[1]:
        return []
    south = round((own.y0_km - found.y0_km) / found.pixel_km)
    east = round((found.x0_km - own.x0_km) / found.pixel_km)
    moved = [
        f"{abs(pixels)} {unit} further {way if pixels > 0 else other}"
        for pixels, unit, way, other in ((south, "rows", "south", "north"), (east, "columns", "east", "west"))
        if pixels
    ]
    words = " and ".join(moved) or "from the same corner"
    return [
        f"{name} was trained on another part of the map: {own.rows} x {own.cols} pixels, {places[0]}; this is "
        f"{found.rows} x {found.cols} pixels, {places[1]}: {words}."
    ]


def _corners_km(grid: Grid) -> str:
    x1_km, y1_km = grid.x0_km + grid.cols * grid.pixel_km, grid.y0_km - grid.rows * grid.pixel_km
    return f"x {grid.x0_km:g} to {x1_km:g} km, y {y1_km:g} to {grid.y0_km:g} km"


def _more_leads(run: RunForecaster, frames_out: int) -> list[str]:
    if run.frames_out == frames_out:
        return []
    return [f"{run.name} forecasts {run.frames_out} frames; the first {frames_out} are scored."]


def _training_part(
    config: EvaluateConfig,
    entries: Sequence[Entry],
    runs: Mapping[str, RunForecaster],
    parts: Spans,
    window: int,
    storage: Storage,
    index: Index,
) -> TrainingPart | None:
    """Find the windows that baselines are fitted on: the first run's training part, or that of the settings."""
    fitted = [entry.name for entry in entries if entry.kind in FITTED]
    if not fitted:
        return None
    if config.split == "train" or (config.split == "all" and not runs):
        raise ConfigError(
            f"{fitted[0]} is fitted on the training part, and split is {config.split}: it would be scored on what it "
            "was fitted on; leave it out, or score another part"
        )
    whose = f"{next(iter(runs))}'s" if runs else "data.*"
    where: list[tuple[Storage, Index]] = [(storage, index)]
    if runs:
        run = next(iter(runs.values()))
        own = run.config.data
        if index.fingerprint != run.data.get("fingerprint") and (Path(own.shards).is_dir() or "://" in own.shards):
            # Archives that are gone are named below, with all that was looked at.
            with suppress(DataError):
                place, held = open_archive(ArchiveConfig(shards=own.shards), 1)
                # Of a mix, what is scored; or what the run learned from.
                source = index.source if index.source in held.sources else own.source
                if held.fingerprint == run.data.get("fingerprint"):
                    where.insert(0, (place, held if source is None else of_source(held, source)))
    for place, held in where:
        try:
            table = select_windows(held, config.data.selection(window, parts["train"]))
        except DataError as error:
            cause = error
            continue
        return TrainingPart(storage=place, index=held, table=table, whose=f"{whose}, {listed(parts['train'])}")
    raise DataError(
        f"{fitted[0]} is fitted on the training part ({whose}, {listed(parts['train'])}), which has no window in "
        f"{', '.join(place.url for place, _ in where)} ({cause}); leave it out, or bring back the run's own shards, "
        "as its config.yaml names them"
    )
