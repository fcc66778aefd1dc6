"""Score runs and baselines: `python trainer/evaluate.py --data.shards S --models RUN persistence --out DIR`."""

import logging
import shlex
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import reduce
from typing import Final, TypeVar

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ...data.errors import ConfigError
from ...data.exit_codes import ExitCode
from ...data.stream.stream import evaluation_batches
from ...models.nowcasting.forecasts import Forecaster
from ..comparison.products import MEAN, product_name
from ..comparison.scored import score_ensembles, score_models
from ..contestants.build import Builder, Loaded, load_entries, open_kept, start_workers
from ..contestants.contestant import Contestant, FloatArray
from ..contestants.entries import Entry, read_entries
from ..contestants.fitted import fit_baselines
from ..contestants.windows import WindowRain, windows_of
from ..engine.engine import Engine
from ..pictures.forecasts import Case, radar_credit
from ..processes.agreement import on_all_ranks, settle
from ..processes.entry import set_up_logging
from ..settings.engine import EngineConfig
from ..settings.evaluation import EvaluateConfig
from ..training.nowcast_held_out import case_of
from ..verification import ensemble as ensemble_rows
from ..verification.ensemble import EnsembleRows
from ..verification.rows import Rows, merge
from .cases import Chosen, choose_cases
from .output import check_folders, write_outputs
from .plan import Plan, make_plan
from .result import Evaluation
from .scoring import Forecast, field_names, score_forecasts
from .scoring import settle as settle_unknown
from .unknown import Unknown

LOG = logging.getLogger(__name__)
MICRO_A_PROCESS: Final = 4
LOG_EVERY_S: Final = 15.0
AHEAD: Final = 1
"""Windows that are forecast by other processes beyond one each, while one is scored."""

Item = TypeVar("Item")
Started = tuple[WindowRain, Mapping[str, Callable[[], FloatArray]]]


class Evaluating:
    """One evaluation, built from its configuration; every rank has one.

    Args:
        config: The evaluation.
        engine: Started processes.
        command: How it was started, for the report.
    """

    def __init__(self, config: EvaluateConfig, engine: Engine, command: str) -> None:
        self.config = config
        self.engine = engine
        self.command = command
        self.is_writing = False
        # What one rank finds wrong ends all of them, before anything is computed.
        self.entries: list[Entry] = on_all_ranks(engine, self._read_entries)
        self.loaded: Loaded = on_all_ranks(engine, lambda: load_entries(self.entries, config, str(engine.device)))
        self.plan: Plan = on_all_ranks(engine, lambda: make_plan(config, self.entries, self.loaded))
        self.cases = on_all_ranks(engine, lambda: choose_cases(self.plan, config))
        self.workers = start_workers(config, engine.world_size)
        self.kept = open_kept(config)
        self.contestants: dict[str, Contestant] = on_all_ranks(engine, self._build)

    def _read_entries(self) -> list[Entry]:
        config = self.config
        check_folders(config)
        entries = read_entries(config.models)
        names = [entry.name for entry in entries]
        if config.compare_to is not None and config.compare_to not in names:
            raise ConfigError(f"compare_to is {config.compare_to!r}; the models are {', '.join(names)}")
        return entries

    def _build(self) -> dict[str, Contestant]:
        """Build the models in the user's order; every rank fits what is fitted for itself, to the same numbers."""
        plan, entries = self.plan, self.entries
        fitted: dict[str, Forecaster] = {}
        if plan.training is not None:
            num = min(self.config.fit_windows, len(plan.training.table))
            LOG.info("fitting baselines on %d training windows (%s)", num, plan.training.whose)
            fitted = fit_baselines(entries, plan.training, (plan.frames_in, plan.frames_out), self.config)

        builder = Builder(
            config=self.config,
            index=plan.index,
            frames_out=plan.frames_out,
            device=self.engine.device,
            workers=self.workers,
            kept=self.kept,
        )
        built = builder.build(entries, self.loaded, fitted)

        # Tables begin with what a field hits and misses, and say from it how much it rained.
        if not field_names(built):
            raise ConfigError(
                f"models: {', '.join(built)} forecast no rain but probabilities; add one of rain, such as persistence"
            )
        return built

    def run(self) -> ExitCode:
        """Score all windows, put the ranks' rows together, and write everything."""
        engine = self.engine
        work = f"{len(self.plan.row_n)} windows of {self.plan.frames_in} + {self.plan.frames_out} frames"
        ranks = f"{len(self.entries)} model(s), {engine.device}, {engine.world_size} process(es)"
        LOG.info("%s, %s; writing to %s", work, ranks, self.config.out)

        with closing(self.workers):
            own, own_ensembles, own_unknown = on_all_ranks(engine, self._score)
            # Each rank has scored its own windows; the main one unites their rows and writes.
            counts = engine.gather_objects(own_unknown)
            models = self._united(own, merge)
            ensembles = self._united(own_ensembles, ensemble_rows.merge)
            unknown = reduce(Unknown.plus, counts) if engine.is_main else Unknown()
            on_all_ranks(engine, lambda: self._write(models, ensembles, unknown) if engine.is_main else None)
        if engine.is_main:
            self.kept.report()
        return ExitCode.DONE

    def _united(self, own: Mapping[str, Sequence[Item]], merged: Callable[..., Item]) -> dict[str, Item]:
        """Unite the ranks' rows on the main one.

        They travel a model at a time, so that the other ranks never hold those of more than one.
        """
        united: dict[str, Item] = {}
        for name, rows in own.items():
            pieces = self.engine.gather_objects(merged(*rows) if rows else None)
            if self.engine.is_main:
                united[name] = merged(*(piece for piece in pieces if piece is not None))
        return united

    def _score(self) -> tuple[dict[str, list[Rows]], dict[str, list[EnsembleRows]], Unknown]:
        """Forecast and score this rank's windows, one at a time: a forecast depends on no other window."""
        config, engine, plan = self.config, self.engine, self.plan
        rows: dict[str, list[Rows]] = {name: [] for name in field_names(self.contestants)}
        ensembles: dict[str, list[EnsembleRows]] = {
            name: [] for name, contestant in self.contestants.items() if contestant.gives != "field"
        }
        unknown = Unknown()
        batches = evaluation_batches(
            plan.storage,
            plan.index,
            plan.table,
            micro_batch=MICRO_A_PROCESS * engine.world_size,
            rank=engine.rank,
            world_size=engine.world_size,
            limit=config.limit,
            options=config.data.one_pass,
        )
        # The last windows of some ranks are padding.
        num_own = -(-len(self.plan.row_n) // engine.world_size)

        with closing(batches):
            started = self._started(windows_of(batches, plan.frames_in))
            for window, waiting in _shown(started, num_own, config.progress, engine.is_main):
                forecasts = self._settled(waiting)
                window_id = plan.window_id(window.row)
                scores = score_forecasts(plan.settings, window_id, window, forecasts, config.unknown)
                unknown = unknown.plus(scores.unknown)
                for name, piece in scores.rows.items():
                    rows[name].append(piece)
                for name, counted in scores.ensembles.items():
                    ensembles[name].append(counted)
        return rows, ensembles, unknown

    def _started(self, windows: Iterator[WindowRain]) -> Iterator[Started]:
        """Begin the forecasts of a few windows ahead, for the processes beside this one; the order stays."""
        num_ahead = self.workers.num + AHEAD if self.workers.num > 1 else 0
        waiting: deque[Started] = deque()
        for window in windows:
            waiting.append((window, self._start(window)))
            if len(waiting) > num_ahead:
                yield waiting.popleft()
        yield from waiting

    def _start(self, window: WindowRain) -> Mapping[str, Callable[[], FloatArray]]:
        """Let all models begin to forecast one window."""
        issue_s = int(self.plan.issue_s[window.row])
        return {name: contestant.start(window, issue_s) for name, contestant in self.contestants.items()}

    def _settled(self, waiting: Mapping[str, Callable[[], FloatArray]]) -> dict[str, Forecast]:
        """Wait for all forecasts of a window."""
        return {name: settle_unknown(self.contestants[name], wait()) for name, wait in waiting.items()}

    def _write(self, models: Mapping[str, Rows], ensembles: Mapping[str, EnsembleRows], unknown: Unknown) -> None:
        """Compute everything once from all windows' rows, and write it."""
        config = self.config
        kinds = {entry.name: entry.kind for entry in self.entries}
        evaluation = Evaluation(
            config=config,
            plan=self.plan,
            scored=score_models(models, ensembles, compare_to=config.compare_to, seed=config.seed),
            ensembles=score_ensembles(ensembles, seed=config.seed),
            kinds=kinds,
            about={name: contestant.about for name, contestant in self.contestants.items()},
            cases=self.cases,
            command=self.command,
            unknown=unknown,
        )
        self.is_writing = True
        text = write_outputs(evaluation, self._draw)
        # A path or a name may hold what the terminal's encoding does not: that is no reason to fail after the work.
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(text.encode(encoding, errors="replace").decode(encoding))

    def _draw(self, chosen: Chosen) -> Case:
        """Forecast a chosen window again, for its picture."""
        plan = self.plan
        row = slice(chosen.row, chosen.row + 1)
        table = replace(plan.table, sequence=plan.table.sequence[row], start=plan.table.start[row])
        batches = evaluation_batches(plan.storage, plan.index, table, micro_batch=1)
        (window,) = windows_of(batches, plan.frames_in)

        # One mean everywhere is worth no panel, unless nothing else is there; of ensembles their means are drawn.
        waiting = self._start(replace(window, row=chosen.row))
        forecasts = {
            product_name(name, MEAN) if each.gives == "members" else name: each
            for name, each in self._settled(waiting).items()
        }
        fields = {name: field for name, each in forecasts.items() if (field := each.field_mmh_thw) is not None}
        flat = [entry.name for entry in self.entries if entry.kind == "training_mean"]
        shown = [name for name in fields if name not in flat]
        return case_of(
            window,
            {name: fields[name] for name in shown or fields},
            unknown_thw={name: each.unknown_thw for name, each in forecasts.items() if each.unknown_thw is not None},
            reference_time_s=chosen.issue_s,
            cadence_s=plan.index.cadence_s,
            grid=plan.index.grid.cropped(plan.index.crop),
            credit=radar_credit(plan.index.source, plan.index.licence),
        )


def _shown(windows: Iterator[Item], total: int, form: str, is_shown: bool) -> Iterator[Item]:
    """Pass windows on and show the progress: a bar in a terminal, lines in a log."""
    has_bar = is_shown and (form == "bar" or (form == "auto" and sys.stderr.isatty()))
    started = last = time.perf_counter()
    with (
        logging_redirect_tqdm() if has_bar else nullcontext(),
        tqdm(windows, total=total, unit="window", dynamic_ncols=True, disable=not has_bar) as bar,
    ):
        for number, window in enumerate(bar, start=1):
            yield window
            # In a log: now and then, and at the end.
            now = time.perf_counter()
            if is_shown and not has_bar and (now - last >= LOG_EVERY_S or number == total):
                rate = number / (now - started)
                left_s = (total - number) / rate
                LOG.info("scored %d of %d windows, %.1f a second, %.0f s left", number, total, rate, left_s)
                last = now


def run(config: EvaluateConfig, argv: Sequence[str]) -> ExitCode:
    """Score and write as the settings say.

    Args:
        config: The evaluation.
        argv: The command line, for the report.
    """
    engine = Engine(EngineConfig(device=config.device))
    clean = False
    evaluating = None

    try:
        set_up_logging(engine.rank)
        command = shlex.join(["rainspark", "evaluate", *argv])
        evaluating = Evaluating(config, engine, command)
        code = evaluating.run()
        clean = True
        return code
    except KeyboardInterrupt:
        left = f"nothing was written, and what {config.out} held before is unchanged"
        if evaluating is not None and evaluating.is_writing:
            left = (
                f"the scoring was done, but not all of it was written: do not mix what {config.out} holds; start again"
            )
        if engine.is_main:
            sys.stderr.write(f"interrupted: {left}\n")
        raise SystemExit(ExitCode.INTERRUPTED) from None
    except Exception as error:
        settle(engine, error)
        raise
    finally:
        engine.shutdown(clean=clean)
