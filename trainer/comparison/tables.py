"""What a table is, whatever it shows, how figures are written, and how Markdown writes tables."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from .marks import Aim, Figure, Mark, marks_of

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
    "crps_fair": "",
    "twcrps_fair": "",
    "spread": "Spread, mm/h",
    "mean_rmse": "Error of the mean, mm/h",
    "spread_skill": "",
    "rank_distance": "Rank distance",
    "rank_distance_wet": "Rank distance, wet",
    "brier_fair": "Brier",
    "brier": "Brier, plain",
    "brier_skill": "Brier skill",
    "reliability": "Reliability",
    "resolution": "Resolution",
    "uncertainty": "Uncertainty",
    "roc_area": "ROC area",
    "fss_probability": "FSS",
}
"""Scores by their names in files; those without one here are called by what their tables are about."""

_AIMS: Final[dict[str, Aim | None]] = {
    **dict.fromkeys(("mse", "pmse", "far", "crps_fair", "twcrps_fair", "mean_rmse"), "↓"),
    **dict.fromkeys(("rank_distance", "rank_distance_wet", "brier_fair", "brier", "reliability"), "↓"),
    **dict.fromkeys(("bias", "spread_skill"), "→1"),
    **dict.fromkeys(("spread", "uncertainty"), None),
}
"""What is better, where that is not "↑", more; None: neither is."""

_DIGITS: Final = {
    **dict.fromkeys(("mse", "pmse"), 4),
    **dict.fromkeys(("crps_fair", "twcrps_fair", "spread", "mean_rmse"), 3),
    **dict.fromkeys(("brier_fair", "brier", "reliability", "resolution", "uncertainty"), 3),
}
"""Scores without a scale of their own: written with a number of digits, whatever their size."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a table: its text, what stands smaller below it, and what it may be called in its column."""

    text: str
    details: Sequence[str] = ()
    mark: Mark | None = None


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table."""

    title: str
    cells: Sequence[Cell]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table; the cells of its first column name the rows, and the caption is the line above it.

    Attributes:
        columns: The first one names the rows.
        caption: The line above.
        note: What stands smaller below the caption: on how much the figures rest.
    """

    columns: Sequence[Column]
    caption: str = ""
    note: str = ""

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


def text_column(title: str, texts: Iterable[str]) -> Column:
    """Make a column of plain texts."""
    return Column(title=title, cells=[Cell(text=text) for text in texts])


def score_column(score: str, figures: Sequence[Figure], detail: str = "", *, with_intervals: bool = False) -> Column:
    """Write the values of a score, with what each may be called.

    Args:
        score: By its name in files.
        figures: A row each.
        detail: What the head of the column says besides.
        with_intervals: Write the interval below each.
    """
    # Where neither more nor less is better, nothing can be the best.
    aim = _AIMS.get(score, "↑")
    marks = [None] * len(figures) if aim is None else marks_of(figures, aim)
    cells = [
        figure_cell(score, figure, mark=mark)
        if with_intervals
        else Cell(text=number_text(score, figure.value), mark=mark)
        for figure, mark in zip(figures, marks, strict=True)
    ]
    return Column(title=" ".join(filter(None, (_NAMES[score], detail, aim))), cells=cells)


def number_text(score: str, value: float) -> str:
    """Write one number."""
    if not math.isfinite(value):
        return NOTHING
    return f"{value:#.{_DIGITS[score]}g}" if score in _DIGITS else f"{value:z.3f}"


def figure_cell(
    score: str, figure: Figure, details: Sequence[str] = (), *, with_share: bool = False, mark: Mark | None = None
) -> Cell:
    """Write a figure with its interval, where there is one, and the share of draws above 0.

    Args:
        score: That it is of.
        figure: With its draws.
        details: What stands below it besides.
        with_share: Write the share.
        mark: What it may be called.
    """
    # Without an interval the share of draws means nothing either.
    low, high, above_zero = figure.interval()
    interval = [] if math.isnan(low) else [f"[{number_text(score, low)}, {number_text(score, high)}]"]
    share = [f"{above_zero:.0%}"] if with_share and interval else []
    return Cell(text=number_text(score, figure.value), details=[*interval, *share, *details], mark=mark)


def lead_text(lead_min: float | str | None) -> str:
    """Name a lead time."""
    return "All lead times" if lead_min in (None, "all") else f"{lead_min:g} min"


def sentence(text: str) -> str:
    """Make a sentence of a note."""
    return f"{text[:1].upper()}{text[1:]}."


def document(introduction: Sequence[str], sections: Iterable[Section]) -> str:
    """Write all tables as Markdown."""
    return "\n\n".join(["# Scores", *introduction, *map(section_markdown, sections)]) + "\n"


def section_markdown(section: Section) -> str:
    """Write one section as Markdown."""
    parts = [f"## {_escaped(section.heading)}"]
    if section.text:
        parts.append(section.text)
    for table in section.tables:
        if table.caption:
            parts.append(f"### {table.caption}")
        if table.note:
            parts.append(table.note)
        # The first column names the models; figures stand at the right.
        titles = [column.title for column in table.columns]
        ruler = ["---", *["---:"] * (len(titles) - 1)]
        rows = [[_cell_markdown(cell) for cell in row] for row in table.rows]
        lines = [[*map(_escaped, titles)], ruler, *rows]
        parts.append("\n".join(f"| {' | '.join(cells)} |" for cells in lines))
    return "\n\n".join(parts)


def _cell_markdown(cell: Cell) -> str:
    marked = {Mark.BEST: f"**{cell.text}**", Mark.LEADING: f"{cell.text} ≈", None: _escaped(cell.text)}[cell.mark]
    return " ".join([marked, *map(_escaped, cell.details)])


def _escaped(text: str) -> str:
    """Escape what ends a cell."""
    return text.replace("|", "\\|").replace("\n", " ")
