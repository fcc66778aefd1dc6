"""What an evaluation leaves: scores, rows, pictures, the page; and what it reports at the end."""

import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np

from ...data.errors import ConfigError
from ...data.store.storage import open_storage
from ..comparison.scored import rain_rows
from ..comparison.tables import section_markdown
from ..contestants.entries import FITTED
from ..pictures.animation import write_animation
from ..pictures.forecasts import Case, forecast_beside_radar
from ..settings.evaluation import EvaluateConfig
from ..verification.ensemble import EnsembleRows
from ..verification.rows import Rows
from .cases import Chosen
from .drawing import Picture, field_pictures
from .drawing_ensembles import ensemble_pictures
from .files import CSV_NAME, JSON_NAME, MARKDOWN_NAME, scores_csv, scores_json
from .page import write_page
from .result import Evaluation
from .tables import ScoreTables, build_tables

ROWS_FOLDER: Final = "rows"
PICTURES_FOLDER: Final = "pictures"
_NUM_SHOWN_LEADS: Final = 4
_OWN_FILE: Final = re.compile(rf"{ROWS_FOLDER}/[^/\\]+\.npz|{PICTURES_FOLDER}/[^/\\]+\.(png|gif)")
"""Whoever wrote the scores in a folder, nothing else is removed on their word."""


def check_folders(config: EvaluateConfig) -> None:
    """Refuse folders that cannot be written to before anything is computed.

    Raises:
        ConfigError: A file stands where a folder is wanted, or it may not be written to.
    """
    folders = {"out": config.out} | ({} if config.report is None else {"report": config.report})
    for option, folder in folders.items():
        # The nearest folder that exists is where the first new one would be made.
        path = Path(folder).absolute()
        nearest = next(parent for parent in (path, *path.parents) if parent.exists())
        if not nearest.is_dir():
            raise ConfigError(f"{option} {folder}: {nearest} is a file; expected a folder to write to: choose another")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise ConfigError(f"{option} {folder}: {nearest} cannot be written to; check its permissions")


def write_outputs(evaluation: Evaluation, draw: Callable[[Chosen], Case]) -> str:
    """Write everything, scores first, and remove what an earlier evaluation in the folder left besides.

    Args:
        evaluation: The scores.
        draw: Forecasts a chosen window for its picture.

    Returns:
        What to report to the user: a table, and where the files are.
    """
    config, out = evaluation.config, Path(evaluation.config.out)
    storage = open_storage(out)
    # What an earlier evaluation wrote is read before its scores are replaced, and removed at the end.
    earlier = _written_before(out)
    pictures = {
        "Skill at a glance": field_pictures(evaluation),
        "Probabilities at a glance": ensemble_pictures(evaluation),
    }
    files = _file_names(evaluation, chain.from_iterable(pictures.values()))
    for name, rows in _rows_by_file(evaluation).items():
        rows.save(out / ROWS_FOLDER / name)

    # Tables are built once: Markdown, the page and the last words show the same ones.
    tables = build_tables(evaluation)
    texts = {
        JSON_NAME: scores_json(evaluation, _about(evaluation, files)),
        CSV_NAME: scores_csv(evaluation.scored, evaluation.ensembles),
        MARKDOWN_NAME: tables.markdown(),
    }
    for name, text in texts.items():
        # A path may hold bytes that are no text: they are shown as question marks.
        storage.write(name, text.encode("utf-8", errors="replace"))

    for picture in chain.from_iterable(pictures.values()):
        storage.write(f"{PICTURES_FOLDER}/{picture.name}.png", picture.png())
    _draw_cases(evaluation, draw)
    for name in sorted(earlier - set(files)):
        storage.delete(name)
    page = None
    if config.report is not None:
        page = write_page(Path(config.report), evaluation, tables, pictures, open_storage(out / PICTURES_FOLDER))
    return _last_words(evaluation, tables, page)


def _file_names(evaluation: Evaluation, pictures: Iterable[Picture]) -> list[str]:
    """Name the files that an evaluation of these models leaves beside its scores."""
    names = [f"{picture.name}.png" for picture in pictures] + [f"{case.stem}.png" for case in evaluation.cases]
    names += [f"{case.stem}.gif" for case in evaluation.cases[:1]]
    return [
        *(f"{ROWS_FOLDER}/{name}" for name in _rows_by_file(evaluation)),
        *(f"{PICTURES_FOLDER}/{name}" for name in names),
    ]


def _rows_by_file(evaluation: Evaluation) -> dict[str, Rows | EnsembleRows]:
    """Give all rows by their files' names; those of events stand in their ensemble's."""
    files: dict[str, Rows | EnsembleRows] = {f"{name}.npz": rows for name, rows in rain_rows(evaluation.scored).items()}
    return files | {f"{model.name}.ensemble.npz": model.rows for model in evaluation.ensembles}


def _written_before(out: Path) -> set[str]:
    """Read from the scores in the folder which files were written beside them."""
    try:
        files = list(json.loads((out / JSON_NAME).read_text(encoding="utf-8"))["about"]["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    return {name for name in files if isinstance(name, str) and _OWN_FILE.fullmatch(name) and name.isprintable()}


def _about(evaluation: Evaluation, files: Sequence[str]) -> dict[str, Any]:
    plan, config, index = evaluation.plan, evaluation.config, evaluation.plan.index
    selection = plan.table.selection

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
        "min_rain_fraction": selection.min_rain_fraction,
        "target_frame": selection.target_frame,
        "select_rule": selection.rule,
        "frames_in": plan.frames_in,
        "frames_out": plan.frames_out,
        "limit": config.limit,
        "seed": config.seed,
        "models": {name: dict(model) for name, model in evaluation.about.items()},
        "unknown": {"rule": config.unknown, **asdict(evaluation.unknown)},
        "caveats": evaluation.caveats,
        "cases": [{"time_s": case.issue_s, "why": case.why} for case in evaluation.cases],
        "files": list(files),
    }


def _draw_cases(evaluation: Evaluation, draw: Callable[[Chosen], Case]) -> None:
    """Draw the cases at a few lead times, and the first one moving."""
    folder = Path(evaluation.config.out) / PICTURES_FOLDER
    source = evaluation.plan.index.source
    for number, chosen in enumerate(evaluation.cases):
        case = draw(chosen)
        # Lead times evenly spread, the last one among them.
        spread = np.linspace(case.num_leads / _NUM_SHOWN_LEADS, case.num_leads, _NUM_SHOWN_LEADS)
        leads = np.unique(spread.round().clip(min=1).astype(int)).tolist()
        title = f"{source}\nforecasts from {case.clock(0)}: {chosen.why}"
        forecast_beside_radar(folder / f"{chosen.stem}.png", case, leads=leads, title=title)
        if number == 0:
            write_animation(folder / f"{chosen.stem}.gif", case, f"{source}, forecasts from {case.clock(0)}")


def _last_words(evaluation: Evaluation, tables: ScoreTables, page: Path | None) -> str:
    """Write the tables of one threshold, the caveats, and where everything is."""
    config, out = evaluation.config, evaluation.config.out
    sections = [tables.by_threshold[evaluation.main_threshold]]
    if set(FITTED) & set(evaluation.kinds.values()):
        sections.append(tables.squared_error)
    if config.protocol == "published":
        sections.append(tables.published)
    lines = [f"{section_markdown(section)}\n" for section in sections]
    lines += [f"note: {line}" for line in evaluation.caveats]

    written = {
        "all tables": f"{out}/{MARKDOWN_NAME}",
        "scores": f"{out}/{JSON_NAME}, {out}/{CSV_NAME}",
        "rows": f"{out}/{ROWS_FOLDER}",
        "pictures": f"{out}/{PICTURES_FOLDER}",
    }
    if page is not None:
        written["report"] = str(page)
    lines.append(f"done: {len(evaluation.scored[0].rows)} windows")
    return "\n".join([*lines, *(f"  {name:<12} {path}" for name, path in written.items())]) + "\n"
