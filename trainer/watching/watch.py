"""Watch for radar files, and forecast, publish and score every cycle as it comes: `rainspark forecast --watch`."""

import argparse
import logging
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from ...data.errors import ConfigError, DataError
from ...data.exit_codes import ExitCode
from ...data.frames import iso_time, printable
from ...data.pack.places import place_of
from ...data.sequences import TimeSpan
from ...data.sources.files import Place
from ...data.sources.source import Header
from ...data.store.storage import hold_folder
from ..forecasting.content import MAPS_NAME, Forecast
from ..forecasting.forecaster import RunForecaster, load_forecaster
from ..forecasting.latest import LEAST_FRAMES, Area, find_area
from ..forecasting.outputs import check_ensemble, check_options, folder_name, make_forecast, write_outputs
from ..forecasting.readers import Radar, radars_of
from ..processes.entry import set_up_logging
from ..settings.forecast import ensemble_options
from .arrivals import Arrivals
from .publishing import LATEST, Shelf, remove_unfinished, stamp_of
from .scoring import Scoring
from .status import write_status

ALLOW_MISSING: Final = 3
"""Frames that are bridged unless --allow-missing says otherwise: a service does not pause for an hour for one file."""
BACKLOG_S: Final = 3 * 3600
"""Cycles that are older than the newest one by more than this are not made up for."""
RETRY_S: Final = 60.0
"""Seconds after which a cycle that failed is tried again though its files are the same."""
SCORES_KEPT_S: Final = 3 * 86_400
SCORES_FOLDER: Final = "scores"
STALE_CADENCES: Final = 3
LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a cycle is not published, with which files, and when that was found."""

    text: str
    files: tuple[Any, ...]
    tried_s: float


@dataclass(eq=False, kw_only=True)
class RadarWatch:
    """The cycles of one radar.

    Args:
        forecaster: The run, loaded once for all cycles.
        radar: Which of its radars.
        arrivals: Its files.
        shelf: Its published cycles.
        scoring: Their scores.
        options: As `trainer.settings.forecast.make_parser` reads them.
        command: Goes into the files' history.
        clock: Gives the time, epoch seconds UTC.

    Attributes:
        failures: By time, why a cycle is not published.
        unscored: Times of cycles that cannot be scored.
        since_s: Cycles before this time are not asked for.
    """

    forecaster: RunForecaster
    radar: Radar
    arrivals: Arrivals
    shelf: Shelf
    scoring: Scoring
    options: argparse.Namespace
    command: str
    clock: Callable[[], float]
    failures: dict[int, Failure] = field(default_factory=dict)
    unscored: set[int] = field(default_factory=set)
    since_s: int | None = None

    @property
    def cadence_s(self) -> int:
        """Seconds from frame to frame."""
        return self.forecaster.cadence_s

    @property
    def allow_missing(self) -> int:
        """Count the frames that may be bridged."""
        return ALLOW_MISSING if self.options.allow_missing is None else int(self.options.allow_missing)

    def look(self) -> None:
        """Look at the files again."""
        self.arrivals.look()
        if self.since_s is None:
            # At the first start the newest cycle is made, and not all that the folder could give.
            latest_s = self.shelf.latest_s
            whole = (time_s for time_s in self.known_s() if self._is_whole(time_s))
            self.since_s = next(whole, None) if latest_s is None else max(latest_s - BACKLOG_S, min(self.shelf.cycles))

        # What is too old to be made up for is forgotten.
        oldest_s = (self.shelf.latest_s or 0) - BACKLOG_S
        self.failures = {time_s: failure for time_s, failure in self.failures.items() if time_s >= oldest_s}
        self.unscored &= set(self.shelf.cycles)

    def known_s(self) -> list[int]:
        """List the times of frames that have come, newest first, without those of the future."""
        limit_s = self.clock() + self.cadence_s
        return sorted((time_s for time_s in self.arrivals.frames if time_s <= limit_s), reverse=True)

    def future_s(self) -> list[int]:
        """List the times of frames that are not yet."""
        return sorted(set(self.arrivals.frames) - set(self.known_s()))

    def pending_s(self) -> list[int]:
        """List the times of cycles that are to be made, newest first."""
        oldest_s = max(self.since_s or 0, (self.shelf.latest_s or 0) - BACKLOG_S)
        return [time_s for time_s in self.known_s() if time_s >= oldest_s and time_s not in self.shelf.cycles]

    def make_next(self) -> bool:
        """Publish the newest cycle that can be published now; whether there was one."""
        for time_s in self.pending_s():
            files = self._files(time_s)
            failure = self.failures.get(time_s)
            if failure is not None and failure.files == files and time.monotonic() < failure.tried_s + RETRY_S:
                continue
            try:
                is_made = self._make(time_s)
            except Exception as error:
                # Whatever one cycle's files do to us, the next one's are others.
                text = str(error) if isinstance(error, (ValueError, ArithmeticError, OSError)) else repr(error)
                if not isinstance(error, (DataError, ArithmeticError, OSError)):
                    LOG.error("%s", traceback.format_exc())
                self.failures[time_s] = Failure(text=text, files=files, tried_s=time.monotonic())
                continue
            if is_made:
                self.failures.pop(time_s, None)
                return True
        return False

    def _make(self, time_s: int) -> bool:
        """Forecast and publish a cycle; False where its newest frame is not whole yet.

        Raises:
            DataError: It cannot be made of what is there, or not be written.
        """
        newest = self.arrivals.usable(time_s)
        if newest is None:
            if self.arrivals.is_waiting(time_s):
                return False
            damaged = [self.arrivals.damaged.get(arrival.key, "") for arrival in self.arrivals.frames[time_s]]
            raise DataError(f"its newest frame is damaged: {damaged[0]}")
        missing_s = self._missing_s(time_s)
        if len(missing_s) > self.allow_missing:
            raise DataError(
                f"{len(missing_s)} of the {self.forecaster.frames_in} frames are missing or damaged, more than "
                f"{self.allow_missing} (--allow-missing): {', '.join(map(iso_time, missing_s[:3]))}, ..."
            )

        frames = [self.arrivals.usable(when_s) for when_s in self._window_s(time_s)]
        forecast = make_forecast(
            self.forecaster,
            list(dict.fromkeys(frame.place for frame in frames if frame is not None)),
            radar=self.radar,
            area=self.options.crop,
            allow_missing=self.allow_missing,
            before_s=time_s + 1,
            ensemble=ensemble_options(self.options),
        )
        if forecast.reference_time_s != time_s or time_s in forecast.latest.bridged_s:
            raise DataError(f"its newest frame cannot be used: {'; '.join(forecast.latest.problems)}")

        folder = self.shelf.publish(time_s, lambda making: self._write(forecast, making), self._about(forecast))
        sys.stdout.write(printable(f"{iso_time(time_s)}: {folder}{'; ' if forecast.note else ''}{forecast.note}\n"))
        sys.stdout.flush()
        return True

    def _write(self, forecast: Forecast, folder: Path) -> Sequence[Path]:
        # Scores are made of the NetCDF file.
        products = {"netcdf", *self.options.products} - ({"png"} if self.options.no_pictures else set())
        return write_outputs(
            forecast, folder, command=self.command, institution=self.options.institution, products=products
        )

    def _about(self, forecast: Forecast) -> dict[str, Any]:
        return {
            "reference_time": iso_time(forecast.reference_time_s),
            "published": iso_time(int(self.clock())),
            "model": forecast.model,
            "source": forecast.latest.source,
            "licence": forecast.latest.licence,
            "frames": list(forecast.latest.frames),
            "bridged": [iso_time(time_s) for time_s in forecast.latest.bridged_s],
            "note": forecast.note,
            "members": None if forecast.ensemble is None else forecast.ensemble.num_members,
        }

    def score_next(self) -> bool:
        """Score one published cycle whose hour has passed; whether there was one."""
        for time_s in sorted(self.shelf.cycles, reverse=True):
            end_s = time_s + self.forecaster.frames_out * self.cadence_s
            if time_s in self.unscored or self.scoring.is_scored(time_s) or end_s not in self.arrivals.frames:
                continue
            frames = [self.arrivals.usable(when_s) for when_s in self.scoring.times_s(time_s)]
            places = [frame.place for frame in frames if frame is not None]
            if len(places) < len(frames):
                # A frame that is late may come; a day later it does not.
                if time_s < (self.shelf.latest_s or 0) - BACKLOG_S:
                    self.unscored.add(time_s)
                continue
            try:
                self.scoring.score(time_s, self._netcdf(time_s), dict.fromkeys(places))
            except (DataError, OSError, ValueError) as error:
                LOG.warning("%s: not scored: %s", iso_time(time_s), error)
                self.unscored.add(time_s)
            self.scoring.drop_before(time_s - SCORES_KEPT_S)
            return True
        return False

    def _netcdf(self, time_s: int) -> Path:
        return self.shelf.folder / stamp_of(time_s) / f"forecast_{stamp_of(time_s)}.nc"

    def _window_s(self, time_s: int) -> list[int]:
        return [time_s - number * self.cadence_s for number in range(self.forecaster.frames_in)][::-1]

    def _is_whole(self, time_s: int) -> bool:
        most_missing = min(self.allow_missing, self.forecaster.frames_in - LEAST_FRAMES)
        return self.arrivals.usable(time_s) is not None and len(self._missing_s(time_s)) <= most_missing

    def _missing_s(self, time_s: int) -> list[int]:
        return [when_s for when_s in self._window_s(time_s) if self.arrivals.usable(when_s) is None]

    def _files(self, time_s: int) -> tuple[Any, ...]:
        """Give what a cycle's files are like now: a cycle that failed is tried again when they change."""
        return tuple(
            (arrival.signature, arrival.is_settled)
            for when_s in self._window_s(time_s)
            for arrival in self.arrivals.frames.get(when_s, ())
        )

    def report(self) -> dict[str, Any]:
        """Give the state of this radar's cycles, for the status page."""
        now_s = int(self.clock())
        latest_s = self.shelf.latest_s
        age_s = None if latest_s is None else now_s - latest_s
        known_s = self.known_s()
        newest_s = known_s[0] if known_s else None
        near_s = [] if newest_s is None else [newest_s - number * self.cadence_s for number in range(36)]
        first_s = min(known_s, default=0)
        picture = self.shelf.folder / LATEST / MAPS_NAME

        return {
            "radar": self.radar.name,
            "picture": picture.relative_to(self.options.out).as_posix() if picture.exists() else None,
            "latest": None if latest_s is None else iso_time(latest_s),
            "age_min": None if age_s is None else round(age_s / 60, 1),
            "is_stale": age_s is None or age_s > STALE_CADENCES * self.cadence_s,
            "stale_after_min": STALE_CADENCES * self.cadence_s / 60,
            "cycles": [
                {name: about.get(name) for name in ("reference_time", "published", "note")}
                for _, about in sorted(self.shelf.cycles.items(), reverse=True)[:24]
            ],
            "not_published": [
                {"reference_time": iso_time(time_s), "why": self.failures[time_s].text}
                for time_s in self.pending_s()
                if time_s in self.failures
            ][:24],
            "missing": [iso_time(time_s) for time_s in near_s if time_s >= first_s and time_s not in known_s],
            "damaged": sorted(self.arrivals.damaged.values())[:24],
            "future": [str(self.arrivals.frames[time_s][0].ref) for time_s in self.future_s()][:24],
            "several_of_one_time": [
                ", ".join(str(arrival.ref) for arrival in self.arrivals.frames[time_s])
                for time_s in known_s[:36]
                if len(self.arrivals.frames[time_s]) > 1
            ],
            "not_read": [f"{name}: {text}" for name, text in sorted(self.arrivals.problems.items())][:24],
            "scores": self.scoring.summarise(now_s),
        }


def watch(
    options: argparse.Namespace,
    argv: Sequence[str],
    *,
    clock: Callable[[], float] = time.time,
    stop: threading.Event | None = None,
) -> ExitCode:
    """Forecast every new cycle until this process is asked to end.

    Args:
        options: As `trainer.settings.forecast.make_parser` reads them.
        argv: The command line, for the files' history.
        clock: Gives the time, epoch seconds UTC.
        stop: Ends the watch when it is set; None: SIGTERM and SIGINT set it.
    """
    set_up_logging(0, logging.WARNING)
    ensemble = check_options(options)
    if options.at is not None:
        raise ConfigError("--at has no effect beside --watch, which forecasts from what comes; leave it out")
    forecaster = load_forecaster(options.run, name=options.name, device=options.device)
    check_ensemble(forecaster, ensemble)
    if stop is None:
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())

    with ExitStack() as stack:
        stack.enter_context(hold_folder(options.out, "another watch publishes there; end it, or choose another --out"))
        remove_unfinished(options.out)
        watches = start_watches(options, argv, forecaster, clock)
        while not stop.is_set():
            for radar_watch in watches:
                radar_watch.look()
            # One cycle at a time, so that a newer one that comes meanwhile goes first.
            is_busy = sum(radar_watch.make_next() for radar_watch in watches) > 0
            if not is_busy:
                # Scores wait until nothing is left to publish.
                is_busy = sum(radar_watch.score_next() for radar_watch in watches) > 0
            write_status(options.out, [radar_watch.report() for radar_watch in watches], iso_time(int(clock())))
            stop.wait(0 if is_busy else options.poll_s)
    return ExitCode.DONE


def start_watches(
    options: argparse.Namespace, argv: Sequence[str], forecaster: RunForecaster, clock: Callable[[], float]
) -> list[RadarWatch]:
    """Start the watch of each of a run's radars; what a killed one has left is put right."""
    radars = radars_of(forecaster, source=options.source, reader=options.reader)
    watches = []

    # Each radar's cycles lie in a folder of their own, where there are several.
    for radar in radars:
        folder = options.out / folder_name(radar.name) if len(radars) > 1 else options.out
        remove_unfinished(folder / SCORES_FOLDER)
        watches.append(
            RadarWatch(
                forecaster=forecaster,
                radar=radar,
                arrivals=Arrivals(
                    source=radar.source,
                    places=lambda: _places(options.input, clock),
                    check=partial(_check_radar, radar, radars, options.crop),
                    settle_s=float(options.poll_s),
                ),
                shelf=Shelf(folder, options.keep),
                scoring=Scoring(
                    folder=folder / SCORES_FOLDER,
                    radar=radar,
                    cadence_s=forecaster.cadence_s,
                    leads=forecaster.frames_out,
                    area=options.crop,
                    name=forecaster.name,
                ),
                options=options,
                command=shlex.join(["rainspark", "forecast", *argv]),
                clock=clock,
            )
        )
    return watches


def _check_radar(radar: Radar, radars: Sequence[Radar], area: Area, header: Header) -> None:
    """Raise DataError for a frame of another of the run's radars, or of other pixels than the run's."""
    if header.source in {other.name for other in radars} - {radar.name}:
        raise DataError(f"a frame of {header.source}")
    find_area(area, radar, header.grid)


def _places(texts: Sequence[str], clock: Callable[[], float]) -> list[Place]:
    """Give where radar files lie; of buckets by days, the last two."""
    now_s = int(clock())
    return [place_of(text, TimeSpan(start_s=now_s - 2 * 86_400, stop_s=now_s + 86_400)) for text in texts]
