"""Score runs and baselines: `python trainer/evaluate.py --data.shards S --models RUN persistence --out DIR`."""

import logging
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import reduce

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ...data.errors import ConfigError
from ...data.exit_codes import ExitCode
from ...data.stream.stream import evaluation_batches
from ...models.nowcasting.forecasts import Forecaster
from ..comparison.scored import score_models
from ..engine.engine import Engine
from ..forecasting.forecaster import RunForecaster, load_forecaster
from ..pictures.forecasts import Case, radar_credit
from ..processes.agreement import on_all_ranks, settle
from ..processes.entry import set_up_logging, start_other_processes
from ..settings.engine import EngineConfig
from ..settings.evaluation import EvaluateConfig
from ..training.nowcast_held_out import case_of
from ..verification.rows import Rows, merge, score_window
from .cases import Chosen, choose_cases
from .contestants import (
    Entry,
    WindowRain,
    build_baseline,
    describe,
    fit_baselines,
    read_entries,
    windows_of,
)
from .output import check_folders, write_outputs
from .plan import Plan, make_plan
from .result import Evaluation
from .unknown import Unknown, count_unknown, unknown_by_any

LOG = logging.getLogger(__name__)
MICRO_A_PROCESS = 4
LOG_EVERY_S = 15.0


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
        self.runs = on_all_ranks(engine, self._load_runs)
        self.plan: Plan = on_all_ranks(engine, lambda: make_plan(config, self.entries, self.runs))
        self.cases = on_all_ranks(engine, lambda: choose_cases(self.plan, config))
        self.forecasters = on_all_ranks(engine, self._build)

    def _read_entries(self) -> list[Entry]:
        config = self.config
        check_folders(config)
        entries = read_entries(config.models)
        names = [entry.name for entry in entries]
        if config.compare_to is not None and config.compare_to not in names:
            raise ConfigError(f"compare_to is {config.compare_to!r}; the models are {', '.join(names)}")
        return entries

    def _load_runs(self) -> dict[str, RunForecaster]:
        device = str(self.engine.device)
        runs = {entry.name: entry.folder for entry in self.entries if entry.folder is not None}
        return {name: load_forecaster(folder, name=name, device=device) for name, folder in runs.items()}

    def _build(self) -> dict[str, Forecaster]:
        """Build the models in the user's order; every rank fits what is fitted for itself, to the same numbers."""
        plan, entries = self.plan, self.entries
        # Runs are loaded; then what is fitted; the rest learns nothing.
        built: dict[str, Forecaster] = dict(self.runs)
        if plan.training is not None:
            num = min(self.config.fit_windows, len(plan.training.table))
            LOG.info("fitting baselines on %d training windows (%s)", num, plan.training.whose)
            built |= fit_baselines(entries, plan.training, (plan.frames_in, plan.frames_out), self.config)
        return {entry.name: built.get(entry.name) or build_baseline(entry.kind, entry.name) for entry in entries}

    def run(self) -> ExitCode:
        """Score all windows, put the ranks' rows together, and write everything."""
        engine = self.engine
        work = f"{len(self.plan.row_n)} windows of {self.plan.frames_in} + {self.plan.frames_out} frames"
        ranks = f"{len(self.entries)} model(s), {engine.device}, {engine.world_size} process(es)"
        LOG.info("%s, %s; writing to %s", work, ranks, self.config.out)

        # Each rank scores its own windows; the main one unites their rows and writes. They travel a model at a time, so
        # that the other ranks never hold those of more than one.
        own, own_unknown = on_all_ranks(engine, self._score)
        counts = engine.gather_objects(own_unknown)
        models: dict[str, Rows] = {}
        for name in self.forecasters:
            rows = engine.gather_objects(own[name])
            if engine.is_main:
                models[name] = merge(*(piece for piece in rows if piece is not None))
        unknown = reduce(Unknown.plus, counts) if engine.is_main else Unknown()
        on_all_ranks(engine, lambda: self._write(models, unknown) if engine.is_main else None)
        return ExitCode.DONE

    def _score(self) -> tuple[dict[str, Rows | None], Unknown]:
        """Forecast and score this rank's windows, one at a time: a forecast depends on no other window."""
        config, engine, plan = self.config, self.engine, self.plan
        scored: dict[str, list[Rows]] = {name: [] for name in self.forecasters}
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
            for window in _shown(windows_of(batches, plan.frames_in), num_own, config.progress, engine.is_main):
                window_id = plan.window_id(window.row)
                observed_thw = window.future_mmh_bthw[0].numpy()
                valid = window.future_valid_bthw
                valid_thw = None if valid is None else valid[0].numpy()
                forecasts, unknown_thw = self._forecasts(window)

                # What one model cannot know is left out for all, or dry for that one.
                unknown = unknown.plus(count_unknown(unknown_thw, valid_thw, observed_thw.size))
                any_thw = unknown_by_any(unknown_thw) if config.unknown == "leave_out" else None
                if any_thw is not None:
                    valid_thw = ~any_thw if valid_thw is None else valid_thw & ~any_thw
                for name, forecast_thw in forecasts.items():
                    scored[name].append(score_window(plan.settings, window_id, forecast_thw, observed_thw, valid_thw))
        return {name: merge(*rows) if rows else None for name, rows in scored.items()}, unknown

    def _forecasts(
        self, window: WindowRain
    ) -> tuple[dict[str, npt.NDArray[np.float32]], dict[str, npt.NDArray[np.bool_]]]:
        """Let all models forecast one window: rain in mm/h, (lead times, rows, cols), and what some cannot know."""
        device = self.engine.device
        past = window.past_mmh_bthw.to(device)
        valid = None if window.past_valid_bthw is None else window.past_valid_bthw.to(device)
        forecasts, unknown_thw = {}, {}
        for name, forecaster in self.forecasters.items():
            # Each model gets the past frames that it takes, the newest ones.
            last = slice(-forecaster.frames_in, None)
            last_valid = None if valid is None else valid[:, last]
            with torch.no_grad():
                rain_bthw = forecaster.forecast(past[:, last], last_valid, self.plan.frames_out)
            forecast_thw = rain_bthw[0].float().cpu().numpy()
            if getattr(forecaster, "marks_unknown", False):
                unknown_thw[name] = np.isnan(forecast_thw)
                forecast_thw = np.where(unknown_thw[name], np.float32(0), forecast_thw)
            forecasts[name] = forecast_thw
        return forecasts, unknown_thw

    def _write(self, models: Mapping[str, Rows], unknown: Unknown) -> None:
        """Compute everything once from all windows' rows, and write it."""
        config = self.config
        kinds = {entry.name: entry.kind for entry in self.entries}
        evaluation = Evaluation(
            config=config,
            plan=self.plan,
            scored=score_models(models, compare_to=config.compare_to, seed=config.seed),
            kinds=kinds,
            about={name: describe(kinds[name], forecaster) for name, forecaster in self.forecasters.items()},
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

        # One mean everywhere is worth no panel, unless nothing else is there.
        forecasts, unknown_thw = self._forecasts(window)
        shown = [entry.name for entry in self.entries if entry.kind != "training_mean"] or list(forecasts)
        return case_of(
            window,
            {name: forecasts[name] for name in shown},
            unknown_thw=unknown_thw,
            reference_time_s=chosen.issue_s,
            cadence_s=plan.index.cadence_s,
            grid=plan.index.grid.cropped(plan.index.crop),
            credit=radar_credit(plan.index.source, plan.index.licence),
        )


def _shown(windows: Iterator[WindowRain], total: int, form: str, is_shown: bool) -> Iterator[WindowRain]:
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
    start_other_processes(os.environ)
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
