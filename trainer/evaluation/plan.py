"""Which windows an evaluation scores: the split that the runs recorded, held against what the runs have seen."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...data.errors import ConfigError, DataError
from ...data.frames import Grid
from ...data.sequences import TimeSpan
from ...data.shards.index import Index, of_source
from ...data.sources.source import SYNTHETIC
from ...data.store.storage import Storage
from ...data.windows.plan import evaluation_plan
from ...data.windows.selection import WindowTable, lost_to_gaps, select_windows
from ...models.nowcasting.motion import LEVELS
from ..checkpoint.seen import Spans, listed
from ..contestants.build import Loaded, frames_of
from ..contestants.entries import FITTED, Entry
from ..contestants.external import ForecastFolder
from ..contestants.fitted import TrainingPart
from ..forecasting.forecaster import RunForecaster
from ..settings.data import ArchiveConfig
from ..settings.evaluation import EvaluateConfig
from ..training.windows import open_archive, split_archive, window_times
from ..verification.rows import Settings, WindowId
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
        row_n: Rows of the table that are scored, in order.
        issue_s: End times of all windows' last past frames, epoch seconds.
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
    row_n: npt.NDArray[np.int64]
    issue_s: npt.NDArray[np.int64]
    frames_in: int
    frames_out: int
    settings: Settings
    spans: tuple[TimeSpan, ...]
    training: TrainingPart | None
    caveats: tuple[str, ...] = ()

    def window_id(self, row: int) -> WindowId:
        """Name a window by the time that its forecast could be issued, and its place in the archive."""
        return WindowId(int(self.issue_s[row]), self.table.name(row, self.index))


def make_plan(config: EvaluateConfig, entries: Sequence[Entry], loaded: Loaded) -> Plan:
    """Choose the windows and refuse those that a run has seen.

    Args:
        config: The evaluation.
        entries: All models.
        loaded: Runs, forecasts made elsewhere and classes among them.

    Raises:
        ConfigError: A split that contradicts the runs', that there is none of, or windows that a run was trained on.
        DataError: The archive does not verify, does not fit a run or forecasts made elsewhere, or has no window in the
            split.
    """
    runs = loaded.runs
    storage, index = open_archive(config.data, config.data.threads + 1)
    _check_one_place(storage, index)
    frames_in, frames_out = frames_of(entries, loaded, config, index.cadence_s)

    # The windows of the split that the runs recorded, or that the settings state.
    parts = _split(config, index, runs)
    spans = () if config.split == "all" else parts[config.split]
    window = frames_in + frames_out
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

    # Windows without a forecast that was made elsewhere are nobody's.
    caveats = []
    past_s = (frames_in - 1) * index.cadence_s
    for folder in loaded.folders.values():
        table, lines = _with_forecast(folder, index, table, past_s)
        caveats += lines

    # What each run has learned from, held against what is scored: refused, or a caveat.
    for run in runs.values():
        caveats += _grid_caveats(config, run, index)
        if run.frames_out != frames_out:
            caveats.append(f"{run.name} forecasts {run.frames_out} frames; the first {frames_out} are scored.")
    times = window_times(index, table)
    for run in runs.values():
        caveats += check_overlaps(config, run, times, index.source)
    caveats += _rule_caveats(config, runs, index, table)
    for line in caveats:
        LOG.warning("%s", line)

    # A frame is named by its end: the first lead time is one cadence after the last past frame.
    leads_min = tuple(index.cadence_s * (lead + 1) / 60 for lead in range(frames_out))
    return Plan(
        storage=storage,
        index=index,
        table=table,
        row_n=evaluation_plan(table, 1, config.limit).ravel(),
        issue_s=times.first_s + past_s,
        frames_in=frames_in,
        frames_out=frames_out,
        settings=Settings(leads_min=leads_min, thresholds_mmh=config.thresholds, scales_px=config.scales),
        spans=spans,
        training=_training_part(config, entries, runs, parts, window, storage, index),
        caveats=tuple(caveats),
    )


def _with_forecast(
    folder: ForecastFolder, index: Index, table: WindowTable, past_s: int
) -> tuple[WindowTable, list[str]]:
    """Leave out the windows that have no forecast in a folder, and count them."""
    folder.check_grid(index.grid.cropped(index.crop))
    has = folder.has_any(window_times(index, table).first_s + past_s)
    if has.all():
        return table, []
    line = (
        f"{folder.name}: {int((~has).sum())} of {len(has)} windows have no forecast in {folder.folder}: they are left "
        "out for every model alike."
    )
    return replace(table, sequence=table.sequence[has], start=table.start[has]), [line]


def _rule_caveats(
    config: EvaluateConfig, runs: Mapping[str, RunForecaster], index: Index, table: WindowTable
) -> Iterator[str]:
    """List what the split, the thresholds and the selection of windows do to the scores."""
    if config.split == "validation" and runs:
        yield "The runs' best checkpoints were chosen on this very part: their scores are a little too good."
    # Rain comes in whole counts: a threshold between two of them is the same for all readers.
    counts = [(threshold, threshold / index.scale_mmh) for threshold in config.thresholds]
    on_step = [f"{threshold:g}" for threshold, count in counts if abs(count - round(count)) < 1e-6]
    if on_step:
        yield (
            f"The thresholds {', '.join(on_step)} mm/h lie on steps of the radar's rain ({index.scale_mmh:g} mm/h a "
            "count): rounding decides whether that very step is above them."
        )
    if table.selection.rule == "smaat_compat":
        lost = sum(lost_to_gaps(index, table.selection).values())
        yield f"{lost} windows of the published rule lie across gaps in time, and are not there to be scored."


def _split(config: EvaluateConfig, index: Index, runs: Mapping[str, RunForecaster]) -> Spans:
    """Give the spans of the parts: the runs' own, or those of the settings."""
    split = config.split
    if not runs:
        parts = {} if split == "all" else split_archive(index, config.data)
        if split != "all" and not parts[split]:
            key = f"data.{split}_share"
            raise ConfigError(f"split is {split}, and there is no such part; set {key} or data.train_times too")
        return parts
    if stated := config.data.stated_split:
        raise ConfigError(
            f"data.{stated[0]} is set, but the runs' records say how the archive is split; leave out "
            f"{', '.join(f'data.{name}' for name in stated)}"
        )

    # All runs must have held out the same part: else one is scored on what another learned from.
    spans = {name: frames_seen(run).spans for name, run in runs.items()}
    first = next(iter(spans))
    for name, own in spans.items():
        if split != "all" and not own[split]:
            raise ConfigError(
                f"{name} was trained without a {split} part ({runs[name].path}); score another split, or `all` of an "
                "archive that it was not trained on"
            )
        if split != "all" and own[split] != spans[first][split]:
            raise ConfigError(
                f"{first} and {name} were trained with different {split} parts: {listed(spans[first][split])} and "
                f"{listed(own[split])}; score them one by one, or with --split all on an archive that neither was "
                "trained on"
            )
    return spans[first]


def _check_one_place(storage: Storage, index: Index) -> None:
    """Refuse a mix of radars or places: scores of several have no one grid, scale and step of rain."""
    try:
        _ = index.grid, index.crop, index.scale_mmh
    except DataError as error:
        raise DataError(f"{storage.url}: scores are made of one radar and place; {error}") from error


def _grid_caveats(config: EvaluateConfig, run: RunForecaster, index: Index) -> list[str]:
    """Refuse another pixel size or cadence unless allowed; report where the run learned another place or product."""
    cadence_s, source = run.data.get("cadence_s"), run.data.get("source")
    own = None if run.data.get("grid", "") is None else run.grid
    scored = index.grid.cropped(index.crop)
    # Rain moves so many pixels a frame: another pixel size or cadence is another task. Files state the first inexactly.
    # Older runs on several grids do not say which.
    readers = {} if own is not None else run.data.get("readers", {})
    grids = [Grid.from_json(values["grid"]) for values in readers.values()] or [own or scored]
    sizes_km = sorted({f"{grid.pixel_km:g}" for grid in grids})
    learned = f"pixels of {' and '.join(sizes_km)} km every {cadence_s} s"
    held = f"pixels of {scored.pixel_km:g} km every {index.cadence_s} s"
    caveats = []
    if f"{scored.pixel_km:g}" not in sizes_km or cadence_s != index.cadence_s:
        if not config.allow_other_grid:
            raise DataError(
                f"{run.name} was trained on {learned}, and the shards hold {held}; score it on an archive like the one "
                "that it was trained on, or all the same with --allow_other_grid true"
            )
        caveats.append(f"{run.name} was trained on {learned}, and this is {held}: its motion and scales are others.")

    # A run of several grids is bound to no place; others are compared by place and product.
    if own is None:
        several = f"{run.name} was trained on several radars or parts of a grid ({source}), and this is {index.source}."
        return [*caveats, several]
    if source != index.source:
        caveats.append(f"{run.name} was trained on {source}, and this is {index.source}.")
    # Made-up rain has a map of its own.
    if (source == SYNTHETIC) == (index.source == SYNTHETIC):
        caveats += _place_caveats(run.name, own, scored)
    return caveats


def _place_caveats(name: str, own: Grid, scored: Grid) -> list[str]:
    """Report where a run's part of the map lies, and where the archive's."""
    if own.projection != scored.projection:
        return [f"{name} was trained on another map projection: {own.projection}."]
    corners = [_corners_km(grid) for grid in (own, scored)]
    if corners[0] == corners[1]:
        return []
    return [
        f"{name} was trained on another part of the map: {own.rows} x {own.cols} pixels, {corners[0]}; this is "
        f"{scored.rows} x {scored.cols} pixels, {corners[1]}."
    ]


def _corners_km(grid: Grid) -> str:
    x1_km = grid.x0_km + grid.cols * grid.pixel_km
    y1_km = grid.y0_km - grid.rows * grid.pixel_km
    return f"x {grid.x0_km:g} to {x1_km:g} km, y {y1_km:g} to {grid.y0_km:g} km"


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

    # The first run's part stands for all: their splits are the same.
    whose = f"{next(iter(runs))}'s" if runs else "data.*"
    # The run may have learned from another archive than the one that is scored.
    own = _archive_of(next(iter(runs.values())), index) if runs else None
    source, held = own or (storage, index)
    try:
        table = select_windows(held, config.data.selection(window, parts["train"]))
    except DataError as error:
        raise DataError(
            f"{fitted[0]} is fitted on the training part ({whose}, {listed(parts['train'])}), which has no window in "
            f"{source.url} ({error}); leave it out, or bring back the run's own shards, as its config.yaml names them"
        ) from error
    return TrainingPart(storage=source, index=held, table=table, whose=f"{whose}, {listed(parts['train'])}")


def _archive_of(run: RunForecaster, scored: Index) -> tuple[Storage, Index] | None:
    """Open the archive that a run was trained on; None where that is the scored one, or gone."""
    own, fingerprint = run.config.data, run.data.get("fingerprint")
    if scored.fingerprint == fingerprint or not (Path(own.shards).is_dir() or "://" in own.shards):
        return None
    with suppress(DataError):
        storage, index = open_archive(ArchiveConfig(shards=own.shards), 1)
        # Of a mix, what is scored; or what the run learned from.
        source = scored.source if scored.source in index.sources else own.source
        if index.fingerprint == fingerprint:
            return storage, index if source is None else of_source(index, source)
    return None
