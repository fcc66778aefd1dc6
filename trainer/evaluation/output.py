"""What an evaluation leaves: scores, rows, pictures, the page; and what it says at the end."""

import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...data.errors import ConfigError
from ...data.store.storage import open_storage
from ..pictures.animation import write_animation
from ..pictures.forecasts import Case, forecast_beside_radar
from ..pictures.scores import (
    bias_against_lead,
    error_against_lead,
    fss_against_scale,
    png_bytes,
    rain_rate_distribution,
    skill_against_lead,
)
from ..settings.evaluation import EvaluateConfig
from ..verification.contingency import RAIN_EDGES_MMH
from ..verification.intervals import Interval, bootstrap
from ..verification.rows import Scores, compute
from .contestants import FITTED
from .files import CSV_NAME, JSON_NAME, MARKDOWN_NAME, write_scores
from .page import read_markdown, write_page
from .result import Evaluation, main_threshold

ROWS_FOLDER: Final = "rows"
PICTURES_FOLDER: Final = "pictures"
SCORE_PICTURES: Final = ("csi", "fss", "bias", "mse", "rain_rates")
_NUM_SHOWN_LEADS: Final = 4
_OWN_FILE: Final = re.compile(rf"{ROWS_FOLDER}/[^/\\]+\.npz|{PICTURES_FOLDER}/[^/\\]+\.(png|gif)")
"""Whoever wrote the scores in a folder, nothing else is removed on their word."""


def check_folders(config: EvaluateConfig) -> None:
    """Refuse folders that cannot be written to before anything is computed.

    Raises:
        ConfigError: A file stands where a folder is wanted, or it may not be written to.
    """
    for option, folder in (("out", config.out), ("report", config.report)):
        if folder is None:
            continue
        path = Path(folder).absolute()
        nearest = next(place for place in (path, *path.parents) if place.exists())
        if not nearest.is_dir():
            raise ConfigError(f"{option} {folder}: {nearest} is a file; expected a folder to write to: choose another")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise ConfigError(f"{option} {folder}: {nearest} cannot be written to; check its permissions")


def write_outputs(evaluation: Evaluation, draw: Callable[[int], Case]) -> str:
    """Write everything, scores first, and remove what an earlier evaluation in the folder left besides.

    Args:
        evaluation: What was found.
        draw: Gives the case of a number in `cases`.

    Returns:
        What to tell the user: a table, and where things are.
    """
    config, out = evaluation.config, Path(evaluation.config.out)
    earlier = _written_before(out)
    files = _file_names(evaluation)
    for name, rows in evaluation.models.items():
        rows.save(out / ROWS_FOLDER / f"{name}.npz")
    write_scores(
        out,
        evaluation.models,
        about=_about(evaluation, files),
        compare_to=config.compare_to,
        references=evaluation.references,
        seed=config.seed,
    )
    scores = {name: compute(rows) for name, rows in evaluation.models.items()}
    _draw_scores(evaluation, scores)
    cases = [draw(number) for number in range(len(evaluation.cases))]
    _draw_cases(evaluation, cases)
    storage = open_storage(out)
    for name in sorted(earlier - set(files)):
        storage.delete(name)
    markdown = (out / MARKDOWN_NAME).read_text(encoding="utf-8")
    page = None if config.report is None else write_page(Path(config.report), evaluation, scores, markdown)
    return _last_words(evaluation, markdown, page)


def _file_names(evaluation: Evaluation) -> list[str]:
    """Name the files that an evaluation of these models leaves beside its scores."""
    pictures = [f"{name}.png" for name in SCORE_PICTURES] + [f"{case.stem}.png" for case in evaluation.cases]
    pictures += [f"{case.stem}.gif" for case in evaluation.cases[:1]]
    return [
        *(f"{ROWS_FOLDER}/{name}.npz" for name in evaluation.models),
        *(f"{PICTURES_FOLDER}/{name}" for name in pictures),
    ]


def _written_before(out: Path) -> set[str]:
    """Read from the scores that stand in the folder which files were written beside them."""
    try:
        files = list(json.loads((out / JSON_NAME).read_text(encoding="utf-8"))["about"]["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    return {name for name in files if isinstance(name, str) and _OWN_FILE.fullmatch(name) and name.isprintable()}


def _about(evaluation: Evaluation, files: Sequence[str]) -> dict[str, Any]:
    plan, config, index = evaluation.plan, evaluation.config, evaluation.plan.index
    return {
        "archive": {
            "shards": config.data.shards,
            "source": index.source,
            "licence": index.licence,
            "fingerprint": index.fingerprint,
            "cadence_s": index.cadence_s,
            "grid": index.grid.cropped(index.crop).to_json(),
        },
        "split": config.split,
        "spans": [asdict(span) for span in plan.spans],
        "min_rain_fraction": plan.table.selection.min_rain_fraction,
        "target_frame": plan.table.selection.target_frame,
        "select_rule": plan.table.selection.rule,
        "frames_in": plan.frames_in,
        "frames_out": plan.frames_out,
        "limit": config.limit,
        "seed": config.seed,
        "models": {name: dict(one) for name, one in evaluation.about.items()},
        "caveats": evaluation.caveats,
        "cases": [{"time_s": case.issue_s, "why": case.why} for case in evaluation.cases],
        "files": list(files),
    }


def _draw_scores(evaluation: Evaluation, scores: Mapping[str, Scores]) -> None:
    settings = evaluation.plan.settings
    leads, thresholds = settings.leads_min, settings.thresholds_mmh
    intervals = {name: bootstrap(rows, seed=evaluation.config.seed) for name, rows in evaluation.models.items()}
    grey = evaluation.grey

    def curves(score: str) -> dict[str, npt.NDArray[np.floating]]:
        return {name: one.values[score][:-1] for name, one in scores.items()}

    pixel_km = evaluation.plan.index.grid.pixel_km
    pooled = {name: one.values["fss"][-1].T for name, one in scores.items()}
    radar = _exceeded(next(iter(evaluation.models.values())).observed_histogram)
    rates = {name: _exceeded(rows.forecast_histogram) for name, rows in evaluation.models.items()}
    figures = {
        "csi": skill_against_lead(
            curves("csi"), lead_min=leads, thresholds_mmh=thresholds, bands=_bands(intervals, "csi"), baselines=grey
        ),
        "bias": bias_against_lead(
            curves("bias"), lead_min=leads, thresholds_mmh=thresholds, bands=_bands(intervals, "bias"), baselines=grey
        ),
        "fss": fss_against_scale(
            pooled,
            scales_km=[scale * pixel_km for scale in settings.scales_px],
            thresholds_mmh=thresholds,
            baselines=grey,
            note="all lead times",
        ),
        "mse": error_against_lead(curves("mse"), lead_min=leads, bands=_bands(intervals, "mse"), baselines=grey),
        "rain_rates": rain_rate_distribution(
            radar, rates, levels_mmh=RAIN_EDGES_MMH, baselines=grey, note="all lead times"
        ),
    }
    storage = open_storage(Path(evaluation.config.out) / PICTURES_FOLDER)
    for name, figure in figures.items():
        storage.write(f"{name}.png", png_bytes(figure))


def _bands(
    intervals: Mapping[str, Interval], score: str
) -> dict[str, tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]]:
    return {
        name: (one.low[score][:-1], one.high[score][:-1])
        for name, one in intervals.items()
        if one.low is not None and one.high is not None
    }


def _exceeded(histogram: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Give the share of pixels above each of RAIN_EDGES_MMH, over all windows and lead times."""
    counts = histogram.sum(axis=(0, 1))
    above = counts[::-1].cumsum()[::-1][1:]
    return above / counts.sum() if counts.sum() else np.full(len(above), math.nan)


def _draw_cases(evaluation: Evaluation, cases: Sequence[Case]) -> None:
    folder = Path(evaluation.config.out) / PICTURES_FOLDER
    source = evaluation.plan.index.source
    for number, (chosen, case) in enumerate(zip(evaluation.cases, cases, strict=True)):
        leads = np.unique(
            np.linspace(case.num_leads / _NUM_SHOWN_LEADS, case.num_leads, _NUM_SHOWN_LEADS)
            .round()
            .clip(min=1)
            .astype(int)
        ).tolist()
        title = f"{source}\nforecasts from {case.clock(0)}: {chosen.why}"
        forecast_beside_radar(folder / f"{chosen.stem}.png", case, leads=leads, title=title)
        if number == 0:
            write_animation(folder / f"{chosen.stem}.gif", case, f"{source}, forecasts from {case.clock(0)}")


def _last_words(evaluation: Evaluation, markdown: str, page: Path | None) -> str:
    """Tell the table of one threshold and where everything is."""
    config, out = evaluation.config, evaluation.config.out
    sections = {section.heading: section.text for section in read_markdown(markdown)}
    threshold = main_threshold(config.thresholds)
    wanted = [f"Rain above {threshold:g} mm/h"]
    if set(FITTED) & set(evaluation.kinds.values()):
        wanted.append("Mean squared error")
    if config.protocol == "published":
        wanted.append("By the published protocol")
    lines = [f"## {heading}\n\n{sections[heading].strip()}\n" for heading in wanted if heading in sections]
    lines += [f"note: {line}" for line in evaluation.caveats]
    places = {
        "all tables": f"{out}/{MARKDOWN_NAME}",
        "scores": f"{out}/{JSON_NAME}, {out}/{CSV_NAME}",
        "rows": f"{out}/{ROWS_FOLDER}",
        "pictures": f"{out}/{PICTURES_FOLDER}",
    }
    if page is not None:
        places["report"] = str(page)
    lines.append(f"done: {len(next(iter(evaluation.models.values())))} windows")
    return "\n".join([*lines, *(f"  {name:<12} {place}" for name, place in places.items())]) + "\n"
