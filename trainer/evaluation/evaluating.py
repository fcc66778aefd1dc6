"""Score runs and baselines: `python trainer/evaluate.py --data.shards S --models RUN persistence --out DIR`."""

import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ...data.errors import ConfigError, DataError
from ...data.exit_codes import ExitCode
from ...data.stream.stream import evaluation_batches
from ...models.nowcasting.baselines import Forecaster
from ..engine.engine import Engine, EngineConfig
from ..pictures.forecasts import Case
from ..processes.agreement import on_all_ranks, settle
from ..processes.entry import set_up_logging, start_other_processes
from ..settings.evaluation import EvaluateConfig, parse_evaluation
from ..verification.rows import Rows, merge, score_window
from .cases import case_of, choose_cases
from .contestants import (
    Entry,
    WindowRain,
    build_baseline,
    described,
    fit_baselines,
    frames_of,
    load_runs,
    read_entries,
    windows_of,
)
from .output import check_folders, write_outputs
from .plan import Plan, make_plan
from .result import Evaluation

LOG = logging.getLogger(__name__)
INTERRUPTED = 128 + signal.SIGINT
"""Exit code after Ctrl-C, as shells give it."""

PARTS_FOLDER = "parts"
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
        self.config, self.engine, self.command = config, engine, command
        self.out = Path(config.out)
        self.is_writing = False
        self.entries: list[Entry] = on_all_ranks(engine, self._read_entries)
        self.runs = on_all_ranks(engine, lambda: load_runs(self.entries, str(engine.device)))
        self.plan: Plan = on_all_ranks(engine, self._make_plan)
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

    def _make_plan(self) -> Plan:
        return make_plan(self.config, self.entries, self.runs, frames_of(self.entries, self.runs, self.config))

    def _build(self) -> dict[str, Forecaster]:
        """Build the models in the user's order; every rank fits what is fitted for itself, to the same numbers."""
        plan, config = self.plan, self.config
        built: dict[str, Forecaster] = dict(self.runs)
        if plan.training is not None:
            num = min(config.fit_windows, len(plan.training.table))
            LOG.info("fitting baselines on %d training windows (%s)", num, plan.training.whose)
            built |= fit_baselines(
                self.entries, plan.training, frames_in=plan.frames_in, frames_out=plan.frames_out, config=config
            )
        for entry in self.entries:
            if entry.name not in built:
                built[entry.name] = build_baseline(entry)
        return {entry.name: built[entry.name] for entry in self.entries}

    @property
    def num_windows(self) -> int:
        """Count the windows that are scored."""
        return len(self.plan.rows(self.config.limit))

    def run(self) -> ExitCode:
        """Score all windows, put the ranks' rows together, and write everything."""
        engine = self.engine
        num_windows = self.num_windows
        LOG.info(
            "%d windows of %d + %d frames, %d model(s), %s, %d process(es); writing to %s",
            num_windows, self.plan.frames_in, self.plan.frames_out, len(self.forecasters), engine.device,
            engine.world_size, self.out,
        )  # fmt: skip
        on_all_ranks(engine, lambda: self._clear_parts() if engine.is_main else None)
        rows = on_all_ranks(engine, lambda: self._score(num_windows))
        on_all_ranks(engine, lambda: self._save_parts(rows))
        on_all_ranks(engine, lambda: self._write(rows) if engine.is_main else None)
        return ExitCode.DONE

    def _score(self, num_windows: int) -> dict[str, Rows | None]:
        """Forecast and score this rank's windows, one at a time: a forecast that depends on no other window."""
        config, engine, plan = self.config, self.engine, self.plan
        parts: dict[str, list[Rows]] = {name: [] for name in self.forecasters}
        batches = evaluation_batches(
            plan.storage,
            plan.index,
            plan.table,
            micro_batch=config.micro_batch or MICRO_A_PROCESS * engine.world_size,
            rank=engine.rank,
            world_size=engine.world_size,
            limit=config.limit,
            options=config.data.one_pass,
        )
        own = -(-num_windows // engine.world_size)
        with closing(batches):
            for window in _shown(windows_of(batches, plan.frames_in), own, config.progress, engine.is_main):
                observed_thw = window.future_mmh_bthw[0].numpy()
                valid = window.future_valid_bthw
                valid_thw = None if valid is None else valid[0].numpy()
                for name, forecast_thw in self._forecasts(window).items():
                    window_id = plan.window_id(window.row)
                    parts[name].append(score_window(plan.settings, window_id, forecast_thw, observed_thw, valid_thw))
        return {name: merge(*some) if some else None for name, some in parts.items()}

    def _forecasts(self, window: WindowRain) -> dict[str, npt.NDArray[np.float32]]:
        """Let all models forecast one window: mm/h, (lead times, rows, cols)."""
        device = self.engine.device
        past = window.past_mmh_bthw.to(device)
        valid = None if window.past_valid_bthw is None else window.past_valid_bthw.to(device)
        forecasts = {}
        for name, forecaster in self.forecasters.items():
            taken = slice(-forecaster.frames_in, None)
            some_valid = None if valid is None else valid[:, taken]
            with torch.no_grad():
                rain_bthw = forecaster.forecast(past[:, taken], some_valid, self.plan.frames_out)
            forecasts[name] = rain_bthw[0].float().cpu().numpy()
        return forecasts

    def _part(self, name: str, rank: int) -> Path:
        """Name the file that hands a rank's rows to the main one; the folder is one that all ranks see."""
        return self.out / PARTS_FOLDER / str(rank) / f"{name}.npz"

    def _clear_parts(self) -> None:
        """Remove the ranks' rows, also those that a killed evaluation of the same models left."""
        for rank in range(1, self.engine.world_size):
            for name in self.forecasters:
                self._part(name, rank).unlink(missing_ok=True)
            with suppress(OSError):
                (self.out / PARTS_FOLDER / str(rank)).rmdir()
        with suppress(OSError):
            (self.out / PARTS_FOLDER).rmdir()

    def _save_parts(self, rows: Mapping[str, Rows | None]) -> None:
        if self.engine.is_main:
            return
        for name, part in rows.items():
            if part is not None:
                part.save(self._part(name, self.engine.rank))

    def _write(self, rows: Mapping[str, Rows | None]) -> None:
        """Unite the ranks' rows and write everything."""
        models: dict[str, Rows] = {}
        for name, own in rows.items():
            parts = [] if own is None else [own]
            places = [self._part(name, rank) for rank in range(1, self.engine.world_size)]
            models[name] = merge(*parts, *(Rows.load(place) for place in places if place.exists()))
            if (num := len(models[name])) != self.num_windows:
                raise DataError(
                    f"{self.out}: {num} of {self.num_windows} windows of {name} have come together from "
                    f"{self.engine.world_size} processes; `out` must be a folder that all of them see"
                )
        evaluation = Evaluation(
            config=self.config,
            plan=self.plan,
            models=models,
            kinds={entry.name: entry.kind for entry in self.entries},
            about={name: described(forecaster) for name, forecaster in self.forecasters.items()},
            cases=self.cases,
            command=self.command,
        )
        self.is_writing = True
        text = write_outputs(evaluation, self._drawn)
        self._clear_parts()
        # A path or a name may hold what the terminal's encoding does not: that is no reason to fail after the work.
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(text.encode(encoding, errors="replace").decode(encoding))

    def interrupted(self) -> str:
        """Say what Ctrl-C has left behind."""
        if self.is_writing:
            return f"the scoring was done, but not all of it was written: do not mix what {self.out} holds; start again"
        self._clear_parts()
        return f"nothing was written, and what {self.out} held before is unchanged"

    def _drawn(self, number: int) -> Case:
        """Forecast a chosen window again, for its picture; one mean everywhere is none worth a panel."""
        plan, chosen = self.plan, self.cases[number]
        row = slice(chosen.row, chosen.row + 1)
        table = replace(plan.table, sequence=plan.table.sequence[row], start=plan.table.start[row])
        batches = evaluation_batches(plan.storage, plan.index, table, micro_batch=1)
        (window,) = windows_of(batches, plan.frames_in)
        kinds = {entry.name: entry.kind for entry in self.entries}
        shown = {name: kind for name, kind in kinds.items() if kind != "training_mean"} or kinds
        forecasts = self._forecasts(window)
        return case_of(plan, chosen, window, {name: forecasts[name] for name in shown})


def _shown(windows: Iterator[WindowRain], total: int, form: str, enabled: bool) -> Iterator[WindowRain]:
    """Pass windows through and show how far they are: a bar in a terminal, lines in a log."""
    if not enabled:
        yield from windows
        return
    if form == "bar" or (form == "auto" and sys.stderr.isatty()):
        with logging_redirect_tqdm(), tqdm(total=total, unit="window", dynamic_ncols=True) as bar:
            for window in windows:
                yield window
                bar.update()
        return
    started = last = time.perf_counter()
    for number, window in enumerate(windows, start=1):
        yield window
        now = time.perf_counter()
        if now - last >= LOG_EVERY_S or number == total:
            left_s = (now - started) / number * (total - number)
            LOG.info(
                "scored %d of %d windows, %.1f a second, %.0f s left", number, total, number / (now - started), left_s
            )
            last = now


def main(argv: Sequence[str]) -> ExitCode:
    """Read the settings of a command line, score, write.

    Args:
        argv: Command line without the program's name.
    """
    return run(parse_evaluation(argv), argv)


def run(config: EvaluateConfig, argv: Sequence[str]) -> ExitCode:
    """Score and write as the settings say.

    Args:
        config: The evaluation.
        argv: The command line, for the report.
    """
    start_other_processes(os.environ)
    engine = Engine(EngineConfig(device=config.device))
    clean, evaluating = False, None
    try:
        set_up_logging(engine.rank)
        command = shlex.join(["rainspark", "evaluate", *argv])
        evaluating = Evaluating(config, engine, command)
        code = evaluating.run()
        clean = True
        return code
    except KeyboardInterrupt:
        left = f"nothing was written to {config.out}" if evaluating is None else evaluating.interrupted()
        if engine.is_main:
            sys.stderr.write(f"interrupted: {left}\n")
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        settle(engine, error)
        raise
    finally:
        engine.shutdown(clean=clean)
