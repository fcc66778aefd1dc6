"""The scores of single fields as tables: all of them by threshold and lead time, the CSI with intervals, errors."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from ..settings.evaluation import PUBLISHED_THRESHOLD_MMH
from ..verification.contingency import SCORE_AXES
from ..verification.intervals import block_text
from ..verification.rows import DAY_S, Rows
from .marks import RULE, marks_of
from .products import EVENT_COUNTS, MEAN, EventRows
from .scored import BEST_PRODUCT, ModelScores, SquaredError, shown_lines
from .tables import (
    NOTHING,
    Cell,
    Column,
    Section,
    Table,
    figure_cell,
    lead_text,
    number_text,
    score_column,
    sentence,
    text_column,
)

_COLUMNS: Final = ("csi", "bias", "fss", "hss", "pod", "far", "mse", "accuracy", "precision", "recall", "f1")
"""What is read first stands at the left: a phone shows two or three columns."""

_SAME: Final = ("accuracy", "precision", "recall", "f1", "csi", "far")
_PUBLISHED_COLUMNS: Final = {"pmse": "mse", **dict(zip(_SAME, _SAME, strict=True)), "half_hss": "hss"}
"""Scores of the published protocol, and the standard one that each is a multiple of."""

CHOSEN_NOTE: Final = (
    "Of each ensemble's thresholds of probability, p>0.1 to p>0.9, the one with the highest CSI of all lead times is "
    f"shown ('{BEST_PRODUCT}'): chosen on these windows, and so flattered a little. scores.csv holds all of them."
)
"""What a reader has to know of a product that is chosen by its score."""


def threshold_section(
    scored: Sequence[ModelScores], threshold_mmh: float, shown_leads: Sequence[float | None], sample: str
) -> Section:
    """Show all scores above one threshold: a table a lead time.

    Args:
        scored: All single fields.
        threshold_mmh: In mm/h.
        shown_leads: Lead times in minutes; None: all of them pooled.
        sample: How many windows, and of how many days or blocks.
    """
    shown = [model for model in scored if threshold_mmh in model.shown_at]
    has_chosen = any(model.ensemble is not None for model in shown)
    return Section(
        heading=f"Rain above {threshold_mmh:g} mm/h",
        text=CHOSEN_NOTE if has_chosen else "",
        tables=[_score_table(shown, threshold_mmh, lead_min, sample) for lead_min in shown_leads],
    )


def _score_table(scored: Sequence[ModelScores], threshold_mmh: float, lead_min: float | None, sample: str) -> Table:
    columns = [text_column("Model", [model.name for model in scored])]
    for score in _COLUMNS:
        # A column a score; FSS has one a scale, and the squared error knows no threshold.
        axes = SCORE_AXES[score]
        for scale in scored[0].rows.settings.scales_px if "s" in axes else (None,):
            # FSS at one pixel is a count of misses and false alarms, which other scores show better.
            if scale == 1:
                continue
            threshold = threshold_mmh if "t" in axes else None
            figures = [
                model.figure(score, lead_min=lead_min, threshold_mmh=threshold, scale_px=scale) for model in scored
            ]
            columns.append(score_column(score, figures, "" if scale is None else f"{scale} px"))
    note = event_note(scored[0].rows, threshold_mmh, lead_min, sample)
    return Table(columns=columns, caption=lead_text(lead_min), note=note)


def events(rows: Rows | EventRows, threshold_mmh: float, lead_min: float | None = None) -> tuple[int, int]:
    """Count the radar's pixels above a threshold, and all that it measured; what the radar saw is the same for all."""
    settings = rows.settings
    leads = slice(None) if lead_min is None else settings.leads_min.index(lead_min)
    column = settings.thresholds_mmh.index(threshold_mmh)
    totals = {name: int(rows.numbers[name][:, leads, column].sum()) for name in EVENT_COUNTS}
    return totals["hits"] + totals["misses"], sum(totals.values())


def _share_text(num_events: int, num_pixels: int) -> str:
    return f"{num_events / num_pixels:.2%}" if num_pixels else NOTHING


def sample_text(model: ModelScores) -> str:
    """Report how much was scored: the windows, the days, and the blocks of hours where those are drawn."""
    num_windows, interval = len(model.rows), model.interval
    length = block_text(interval.block_s)
    blocks = "" if interval.block_s == DAY_S else f" in {_number(interval.num_blocks, 'block')} of {length}"
    return f"{_number(num_windows, 'window')} of {_number(interval.num_days, 'day')}{blocks}"


def _number(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def event_note(rows: Rows | EventRows, threshold_mmh: float, lead_min: float | None, sample: str) -> str:
    """Report on how many events the figures of a table rest."""
    num_events, num_pixels = events(rows, threshold_mmh, lead_min)
    share = _share_text(num_events, num_pixels)
    return f"Radar above {threshold_mmh:g} mm/h: {share} of the pixels ({num_events:,} of {num_pixels:,}); {sample}."


def rain_note(model: ModelScores, sample: str) -> str:
    """Report how much rain the radar saw, over all lead times."""
    threshold_mmh = model.rows.settings.thresholds_mmh[0]
    share = _share_text(*events(model.rows, threshold_mmh))
    mean = f"{model.figure('mean_observed').value:.3g} mm/h in the mean"
    return f"Radar: {mean}, {share} of the pixels above {threshold_mmh:g} mm/h; {sample}."


def certainty_sections(scored: Sequence[ModelScores], references: Sequence[str], sample: str) -> list[Section]:
    """Show the CSI of all lead times with its interval, and its difference to models that all are compared with.

    Args:
        scored: All single fields.
        references: Those that all are compared with.
        sample: How many windows, and of how many days or blocks.
    """
    lines, interval = shown_lines(scored), scored[0].interval
    text = [sentence(interval.note), *([RULE] if interval.num_draws else [])]
    text += [CHOSEN_NOTE] if any(model.ensemble is not None for model in scored) else []
    table = _csi_table(lines, sample, None)
    sections = [Section(heading="CSI and how sure it is, all lead times", text=" ".join(text), tables=[table])]

    # A table a model that all others are compared with.
    explained = "Above 0: better than it"
    explained += (
        "; after the interval the share of draws above 0." if interval.num_draws else f". {sentence(interval.note)}"
    )
    for reference in references:
        table = _csi_table(lines, sample, reference)
        heading = f"CSI less that of {reference}, all lead times"
        sections.append(Section(heading=heading, text=explained, tables=[table]))
    return sections


def _csi_table(lines: Mapping[str, Mapping[float, ModelScores]], sample: str, reference: str | None) -> Table:
    """Write the CSI of all lead times, or its difference to a reference's, a threshold a column."""
    shown = [name for name in lines if name != reference]
    columns = [text_column("Model", [*shown, "radar: pixels above it"])]
    rows = next(iter(lines.values()))
    for threshold_mmh, model in rows.items():
        figures = {name: lines[name][threshold_mmh].figure("csi", threshold_mmh=threshold_mmh) for name in lines}
        # What a difference is compared with is zero, and not the others.
        marks = marks_of([figures[name] for name in shown], "↑") if reference is None else [None] * len(shown)
        cells = []
        for name, may_be in zip(shown, marks, strict=True):
            figure = figures[name] if reference is None else figures[name].less(figures[reference])
            product = lines[name][threshold_mmh].product
            is_named = product not in (None, MEAN) and not math.isnan(figure.value)
            details = [str(product)] if is_named else []
            cells.append(figure_cell("csi", figure, details, with_share=reference is not None, mark=may_be))
        num_events, num_pixels = events(model.rows, threshold_mmh)
        cells.append(Cell(text=_share_text(num_events, num_pixels), details=[f"{num_events:,}"]))
        columns.append(Column(title=f"> {threshold_mmh:g} mm/h", cells=cells))
    return Table(columns=columns, note=sentence(sample))


def squared_error_section(
    errors: Sequence[SquaredError], shown_leads: Sequence[float | None], absent: Sequence[str], note: str
) -> Section:
    """Show mean squared errors beside those of the references; no figure is the best: the lowest may be no skill.

    Args:
        errors: Of all models and lead times.
        shown_leads: Lead times in minutes; "all" is shown always.
        absent: References that were not scored.
        note: On how much rain they rest.
    """
    titles = ("Model", "Lead time", "MSE, (mm/h)² ↓", "training mean's", "damped extrapolation's", "below both")
    rows = [
        (
            error.model,
            lead_text(error.lead_min),
            *(number_text("mse", mse) for mse in (error.mse, error.training_mean, error.damped_extrapolation)),
            "skill" if error.skill else NOTHING,
        )
        for error in errors
        if error.lead_min in shown_leads or error.lead_min == "all"
    ]
    columns = [text_column(title, texts) for title, texts in zip(titles, zip(*rows, strict=True), strict=True)]
    text = "It is called skill only where it is below both references: blur alone lowers it."
    if absent:
        text += f" Not scored here, so that nothing is: {', '.join(absent)}."
    return Section(heading="Mean squared error", text=text, tables=[Table(columns=columns, note=note)])


def published_section(scored: Sequence[ModelScores], sample: str) -> Section:
    """Show the scores of the published protocol."""
    heading = "By the published protocol"
    models = [model for model in scored if model.published and PUBLISHED_THRESHOLD_MMH in model.shown_at]
    if not models:
        text = f"Not computed: {PUBLISHED_THRESHOLD_MMH:g} mm/h is not among the thresholds."
        return Section(heading=heading, text=text)
    protocols = [model.published for model in models if model.published is not None]
    columns = [text_column("Model", [model.name for model in models])]
    for score, standard in _PUBLISHED_COLUMNS.items():
        # What the protocol makes of a score is that score times a number: what is told apart stays so.
        standards = [
            model.figure(standard, lead_min=protocols[0].lead_min, threshold_mmh=PUBLISHED_THRESHOLD_MMH)
            for model in models
        ]
        values = [protocol.values[score] for protocol in protocols]
        figures = [replace(figure, value=value) for figure, value in zip(standards, values, strict=True)]
        columns.append(score_column(score, figures))
    note = event_note(models[0].rows, PUBLISHED_THRESHOLD_MMH, protocols[0].lead_min, sample)
    return Section(heading=heading, text=sentence(protocols[0].label), tables=[Table(columns=columns, note=note)])
