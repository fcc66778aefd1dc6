"""The scores of several models as tables, and how Markdown writes them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ..settings.evaluation import PUBLISHED_THRESHOLD_MMH
from ..verification.contingency import SCORE_AXES
from ..verification.intervals import Interval, day_text
from .result import Evaluation, ModelScores

SHOWN_LEADS_MIN: Final = (30, 60)
"""Lead times with tables of their own, where they exist: the published half hour, and the hour."""
NOTHING: Final = "-"
_NAMES: Final = {
    "mse": "pMSE, (mm/h)²",
    "pmse": "pMSE, (mm/5 min)²",
    "accuracy": "Accuracy",
    "precision": "Precision",
    "recall": "Recall",
    "f1": "F1",
    "csi": "CSI",
    "far": "FAR",
    "hss": "HSS",
    "half_hss": "HSS/2",
    "bias": "Bias",
    "pod": "POD",
    "fss": "FSS",
}
_AIMS: Final = {"mse": "↓", "pmse": "↓", "far": "↓", "bias": "→1"}
"""What is better, where that is not "↑", more."""

_COLUMNS: Final = ("csi", "bias", "fss", "hss", "pod", "far", "mse", "accuracy", "precision", "recall", "f1")
"""What is read first stands at the left: a phone shows two or three columns."""

_PUBLISHED_COLUMNS: Final = ("pmse", "accuracy", "precision", "recall", "f1", "csi", "far", "half_hss")
_RULES: Final = (
    "An event is rain above the threshold. Pixels without radar are left out; a pixel without a finite forecast counts "
    "as a failed one: a miss or a false alarm. -: the score does not exist (0/0, or a forecast that is not finite). "
    "↑ ↓: higher or lower is better; →1: 1 is best. FSS by the side of the neighbourhood in pixels."
)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a table: its text, what stands smaller below it, and whether it is the best of its column."""

    text: str
    details: Sequence[str] = ()
    is_best: bool = False


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table."""

    title: str
    cells: Sequence[Cell]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table; the cells of its first column name the rows, and the caption is the line above it."""

    columns: Sequence[Column]
    caption: str = ""

    @property
    def rows(self) -> list[tuple[Cell, ...]]:
        """List the rows."""
        return list(zip(*(column.cells for column in self.columns), strict=True))


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading, a paragraph and tables."""

    heading: str
    text: str = ""
    tables: Sequence[Table] = ()


@dataclass(frozen=True, kw_only=True)
class ScoreTables:
    """All tables of an evaluation.

    Attributes:
        introduction: What was scored and by which rules.
        by_threshold: All scores, by the rain threshold in mm/h.
        certainty: The CSI with its intervals, and its difference to the model that all are compared with.
        squared_error: The mean squared error beside that of the references.
        published: The scores of the published protocol.
    """

    introduction: Sequence[str]
    by_threshold: dict[float, Section]
    certainty: Sequence[Section]
    squared_error: Section
    published: Section

    @property
    def sections(self) -> list[Section]:
        """List all sections."""
        return [*self.by_threshold.values(), *self.certainty, self.squared_error, self.published]


def build_tables(evaluation: Evaluation) -> ScoreTables:
    """Build all tables of an evaluation."""
    scored = evaluation.scored
    rows, settings = scored[0].rows, scored[0].rows.settings
    # The introduction: how much was scored, and forecasts that failed.
    days = [day_text(day) for day in np.unique(rows.day)]
    period = f" ({days[0]} to {days[-1]})" if days else ""
    failed = [
        f"**{model.name}: {num} of {int(model.rows.num_valid.sum())} forecast values are not finite.**"
        for model in scored
        if (num := int(model.rows.num_nonfinite.sum()))
    ]

    unknown = [f"**{line}**" for line in evaluation.unknown.lines(evaluation.config.unknown)]

    # None stands for all lead times pooled.
    shown: list[float | None] = [None, *(lead for lead in SHOWN_LEADS_MIN if lead in settings.leads_min)]
    return ScoreTables(
        introduction=[f"Windows: {len(rows)}, days: {len(days)}{period}. {_RULES}", *failed, *unknown],
        by_threshold={
            threshold_mmh: Section(
                heading=f"Rain above {threshold_mmh:g} mm/h",
                tables=[_score_table(scored, threshold_mmh, lead_min) for lead_min in shown],
            )
            for threshold_mmh in settings.thresholds_mmh
        },
        certainty=_certainty_sections(scored, evaluation.config.compare_to),
        squared_error=_squared_error_section(evaluation, shown),
        published=_published_section(scored),
    )


def _score_table(scored: Sequence[ModelScores], threshold_mmh: float, lead_min: float | None) -> Table:
    columns = [_text_column("Model", [model.name for model in scored])]
    for score in _COLUMNS:
        # A column a score; FSS has one a scale, and the squared error knows no threshold.
        axes = SCORE_AXES[score]
        for scale in scored[0].rows.settings.scales_px if "s" in axes else (None,):
            # FSS at one pixel is a count of misses and false alarms, which other scores show better.
            if scale == 1:
                continue
            threshold = threshold_mmh if "t" in axes else None
            values = [
                model.scores.at(score, lead_min=lead_min, threshold_mmh=threshold, scale_px=scale) for model in scored
            ]
            columns.append(_score_column(score, values, "" if scale is None else f" {scale} px"))
    return Table(columns=columns, caption=_lead_text(lead_min))


def _certainty_sections(scored: Sequence[ModelScores], compare_to: str | None) -> list[Section]:
    """Show the CSI of all lead times with its interval, and its difference to the model that all are compared with."""
    interval, thresholds_mmh = scored[0].interval, scored[0].rows.settings.thresholds_mmh
    note = _sentence(interval.note)
    table = _interval_table(thresholds_mmh, {model.name: model.interval for model in scored}, with_share=False)
    sections = [Section(heading="CSI and how sure it is, all lead times", text=note, tables=[table])]
    if differences := {model.name: model.difference for model in scored if model.difference is not None}:
        explained = "Above 0: better than it"
        if interval.num_draws:
            explained += "; after the interval the share of draws above 0"
        table = _interval_table(thresholds_mmh, differences, with_share=True)
        heading = f"CSI less that of {compare_to}, all lead times"
        sections.append(Section(heading=heading, text=f"{explained}. {note}", tables=[table]))
    return sections


def _interval_table(thresholds_mmh: Sequence[float], intervals: Mapping[str, Interval], *, with_share: bool) -> Table:
    # Computed a model, shown a threshold a column.
    rows = [_interval_cells(interval, with_share=with_share) for interval in intervals.values()]
    columns = [
        Column(title=f"> {threshold:g} mm/h", cells=cells)
        for threshold, cells in zip(thresholds_mmh, zip(*rows, strict=True), strict=True)
    ]
    return Table(columns=[_text_column("Model", intervals), *columns])


def _interval_cells(interval: Interval, *, with_share: bool) -> list[Cell]:
    """Write the CSI of every threshold, over all lead times, with its interval and the share of draws above 0."""
    # The last place of the first axis is all lead times.
    figures = (interval.value, interval.low, interval.high, interval.above_zero)
    cells = []
    for value, low, high, above_zero in zip(*(figure["csi"][-1].tolist() for figure in figures), strict=True):
        details = [] if math.isnan(low) else [f"[{_number_text('csi', low)}, {_number_text('csi', high)}]"]
        if with_share and not math.isnan(above_zero):
            details.append(f"{above_zero:.0%}")
        cells.append(Cell(text=_number_text("csi", value), details=details))
    return cells


def _squared_error_section(evaluation: Evaluation, shown: Sequence[float | None]) -> Section:
    titles = ("Model", "Lead time", "MSE, (mm/h)² ↓", "training mean's", "damped extrapolation's", "below both")
    rows = [
        (
            error.model,
            _lead_text(error.lead_min),
            *(_number_text("mse", mse) for mse in (error.mse, error.training_mean, error.damped_extrapolation)),
            "skill" if error.skill else NOTHING,
        )
        for error in evaluation.squared_errors
        if error.lead_min in shown or error.lead_min == "all"
    ]
    # No figure is marked as the best: the lowest one may be no skill.
    columns = [_text_column(title, texts) for title, texts in zip(titles, zip(*rows, strict=True), strict=True)]
    text = "It is called skill only where it is below both references: blur alone lowers it."
    names = [model.name for model in evaluation.scored]
    if absent := [name for name in evaluation.references.values() if name not in names]:
        text += f" Not scored here, so that nothing is: {', '.join(absent)}."
    return Section(heading="Mean squared error", text=text, tables=[Table(columns=columns)])


def _published_section(scored: Sequence[ModelScores]) -> Section:
    heading = "By the published protocol"
    published = {model.name: model.published for model in scored if model.published is not None}
    if not published:
        text = f"Not computed: {PUBLISHED_THRESHOLD_MMH:g} mm/h is not among the thresholds."
        return Section(heading=heading, text=text)
    columns = [
        _score_column(score, [protocol.values[score] for protocol in published.values()])
        for score in _PUBLISHED_COLUMNS
    ]
    text = _sentence(next(iter(published.values())).label)
    return Section(heading=heading, text=text, tables=[Table(columns=[_text_column("Model", published), *columns])])


def _text_column(title: str, texts: Iterable[str]) -> Column:
    return Column(title=title, cells=[Cell(text=text) for text in texts])


def _score_column(score: str, values: Sequence[float], detail: str = "") -> Column:
    """Write the values of a score, those that are shown like the best one marked."""
    aim = _AIMS.get(score, "↑")
    # Values that are shown alike are equally good: all of them are marked.
    texts = [_number_text(score, value) for value in values]
    known = [number for number, value in enumerate(values) if math.isfinite(value)]
    best = None
    if known and len(values) > 1:
        best = texts[max(known, key=lambda number: _worth(values[number], aim))]
    cells = [Cell(text=text, is_best=text == best) for text in texts]
    return Column(title=f"{_NAMES[score]}{detail} {aim}", cells=cells)


def _worth(value: float, aim: str) -> float:
    """Give a number that is higher for a better value."""
    if aim == "→1":
        # Half and double are equally far from 1.
        return -abs(math.log(max(value, 1e-9)))
    return value if aim == "↑" else -value


def _number_text(score: str, value: float) -> str:
    if not math.isfinite(value):
        return NOTHING
    return f"{value:#.4g}" if score in ("mse", "pmse") else f"{value:z.3f}"


def _lead_text(lead_min: float | str | None) -> str:
    return "All lead times" if lead_min in (None, "all") else f"{lead_min:g} min"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def markdown(tables: ScoreTables) -> str:
    """Write all tables as Markdown."""
    return "\n\n".join(["# Scores", *tables.introduction, *map(section_markdown, tables.sections)]) + "\n"


def section_markdown(section: Section) -> str:
    """Write one section as Markdown."""
    parts = [f"## {_escaped(section.heading)}"]
    if section.text:
        parts.append(section.text)
    for table in section.tables:
        if table.caption:
            parts.append(f"### {table.caption}")
        # The first column names the models; figures stand at the right.
        titles = [column.title for column in table.columns]
        ruler = ["---", *["---:"] * (len(titles) - 1)]
        rows = [[" ".join([cell.text, *cell.details]) for cell in row] for row in table.rows]
        parts.append("\n".join(f"| {' | '.join(map(_escaped, cells))} |" for cells in (titles, ruler, *rows)))
    return "\n\n".join(parts)


def _escaped(text: str) -> str:
    """Escape what ends a cell."""
    return text.replace("|", "\\|").replace("\n", " ")
