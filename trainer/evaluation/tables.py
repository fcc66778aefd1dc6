"""The scores of several models as Markdown tables, in the form of the published ones."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ..settings.evaluation import PUBLISHED_THRESHOLD_MMH
from ..verification.contingency import SCORE_AXES
from ..verification.intervals import Interval, bootstrap, day_text, paired_difference
from ..verification.rows import (
    PublishedProtocol,
    Rows,
    Scores,
    compute,
    published_protocol,
)

SHOWN_LEADS_MIN: Final = (30, 60)
"""Lead times with tables of their own, where they exist: the published half hour, and the hour."""
NOTHING: Final = "-"
_TABLE_SCORES: Final = {
    "accuracy": "Accuracy ↑",
    "precision": "Precision ↑",
    "recall": "Recall ↑",
    "f1": "F1 ↑",
    "csi": "CSI ↑",
    "far": "FAR ↓",
}
_COLUMNS: Final = {
    "mse": "pMSE, (mm/h)² ↓",
    **_TABLE_SCORES,
    "hss": "HSS ↑",
    "bias": "Bias →1",
    "pod": "POD ↑",
}
_PUBLISHED_COLUMNS: Final = {"pmse": "pMSE, (mm/5 min)² ↓", **_TABLE_SCORES, "half_hss": "HSS/2 ↑"}
_SQUARES: Final = frozenset({"mse", "pmse"})
_RULES: Final = (
    "An event is rain above the threshold. Pixels without radar are left out; a pixel without a finite forecast counts "
    "as a failed one: a miss or a false alarm. -: the score does not exist (0/0, or a forecast that is not finite). "
    "↑ ↓: higher or lower is better; →1: 1 is best. FSS by the side of the neighbourhood in pixels."
)


@dataclass(frozen=True, kw_only=True)
class References:
    """The two forecasts that a mean squared error has to beat before it is called skill, as models' names.

    Rain that is the same everywhere, and a field blurred towards it, have a small squared error and forecast nothing.

    Args:
        training_mean: The model that forecasts the training split's mean everywhere.
        damped_extrapolation: The one that fades extrapolation into that mean as lead time grows.
    """

    training_mean: str = "training_mean"
    damped_extrapolation: str = "damped_extrapolation"


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelScores:
    """One model's rows and what is made of them.

    Args:
        name: As the user calls it.
        rows: Of the model.
        scores: Of the rows.
        interval: Around the scores.
        published: Scores of the published protocol; None without its threshold.
        difference: Scores less those of the model that all are compared with; None without one, or for itself.
    """

    name: str
    rows: Rows
    scores: Scores
    interval: Interval
    published: PublishedProtocol | None
    difference: Interval | None

    @classmethod
    def of(cls, name: str, rows: Rows, other: Rows | None, *, seed: int, num_draws: int) -> "ModelScores":
        """Compute all of it; `other` is the model to compare with."""
        has_published = PUBLISHED_THRESHOLD_MMH in rows.settings.thresholds_mmh
        compared = None if other is None else paired_difference(rows, other, seed=seed, num_draws=num_draws)
        return cls(
            name=name,
            rows=rows,
            scores=compute(rows),
            interval=bootstrap(rows, seed=seed, num_draws=num_draws),
            published=published_protocol(rows) if has_published else None,
            difference=compared,
        )


def mse_comparison(models: Mapping[str, Scores], references: References) -> list[dict[str, Any]]:
    """Put every model's mean squared error beside the references', for every lead time and all of them pooled.

    Returns:
        Records of model, lead_min (minutes or "all"), mse, training_mean, damped_extrapolation (NaN where there is
        none), and skill: True where the model's is below both, False where not, None where one of the three is NaN.
    """
    records = []
    for name, scores in models.items():
        for place, lead_min in enumerate([*scores.settings.leads_min, "all"]):
            mse, mean, damped = (
                float(models[one].values["mse"][place]) if one in models else math.nan
                for one in (name, references.training_mean, references.damped_extrapolation)
            )
            known = not any(math.isnan(one) for one in (mse, mean, damped))
            record = {"model": name, "lead_min": lead_min, "mse": mse}
            record |= {"training_mean": mean, "damped_extrapolation": damped}
            records.append(record | {"skill": mse < min(mean, damped) if known else None})
    return records


def markdown(models: Sequence[ModelScores], compare_to: str | None, references: References) -> str:
    """Write all tables: per threshold, intervals, the mean squared error, and the published protocol.

    Args:
        models: One or more, of the same windows.
        compare_to: Name of the model that `difference` is to.
        references: What a mean squared error has to beat.
    """
    rows, settings = models[0].rows, models[0].rows.settings
    days = [day_text(day) for day in np.unique(rows.day).tolist()]
    period = f" ({days[0]} to {days[-1]})" if days else ""
    parts = [f"# Scores\n\nWindows: {len(rows)}, days: {len(days)}{period}. {_RULES}\n"]
    for model in models:
        if num_nonfinite := int(model.rows.num_nonfinite.sum()):
            share = f"{num_nonfinite} of {int(model.rows.num_valid.sum())}"
            parts.append(f"**{_cell(model.name)}: {share} forecast values are not finite.**\n")
    shown: list[float | None] = [None, *(lead for lead in SHOWN_LEADS_MIN if lead in settings.leads_min)]
    for threshold_mmh in settings.thresholds_mmh:
        parts.append(f"## Rain above {threshold_mmh:g} mm/h\n")
        for lead_min in shown:
            table = _score_table(models, threshold_mmh, lead_min)
            parts.append(f"### {_lead_text(lead_min)}\n\n{table}")
    parts.append(_interval_section(models, compare_to))
    parts.append(_mse_section(models, shown, references))
    parts.append(_published_section(models))
    return "\n".join(parts)


def _score_table(models: Sequence[ModelScores], threshold_mmh: float, lead_min: float | None) -> str:
    scales = [scale for scale in models[0].rows.settings.scales_px if scale > 1]
    lines = []
    for model in models:
        cells = [_cell(model.name)]
        for score in _COLUMNS:
            threshold = threshold_mmh if "t" in SCORE_AXES[score] else None
            cells.append(_number_text(model.scores.at(score, lead_min=lead_min, threshold_mmh=threshold), score))
        for scale in scales:
            fss = model.scores.at("fss", lead_min=lead_min, threshold_mmh=threshold_mmh, scale_px=scale)
            cells.append(_number_text(fss, "fss"))
        lines.append(cells)
    return _table(["Model", *_COLUMNS.values(), *(f"FSS {scale} px ↑" for scale in scales)], lines)


def _interval_section(models: Sequence[ModelScores], compare_to: str | None) -> str:
    """Show the CSI with its interval, and its difference to the model that all are compared with."""
    thresholds_mmh = models[0].rows.settings.thresholds_mmh
    head = ["Model", *(f"> {threshold:g} mm/h" for threshold in thresholds_mmh)]
    lines = [[_cell(model.name), *_with_bounds(model.interval, share=False)] for model in models]
    parts = [
        f"## CSI and how sure it is, all lead times\n\n{_sentence(models[0].interval.note)}\n\n{_table(head, lines)}"
    ]
    compared = [(model.name, model.difference) for model in models if model.difference is not None]
    if compare_to is not None and compared:
        lines = [[_cell(name), *_with_bounds(difference, share=True)] for name, difference in compared]
        explained = "Above 0: better than it"
        if compared[0][1].above_zero is not None:
            explained += "; after the interval the share of draws above 0"
        title = f"## CSI less that of {_cell(compare_to)}, all lead times"
        parts.append(f"{title}\n\n{explained}. {_sentence(compared[0][1].note)}\n\n{_table(head, lines)}")
    return "\n".join(parts)


def _with_bounds(interval: Interval, *, share: bool) -> list[str]:
    """Write the CSI of every threshold, over all lead times, with its interval and the share of draws above 0."""
    texts = []
    for place, value in enumerate(interval.value["csi"][-1]):
        text = _number_text(value, "csi")
        if interval.low is not None and interval.high is not None and not math.isnan(value):
            low, high = (_number_text(bound["csi"][-1, place], "csi") for bound in (interval.low, interval.high))
            text += f" [{low}, {high}]"
        if share and interval.above_zero is not None and not math.isnan(value):
            text += f" {interval.above_zero['csi'][-1, place]:.0%}"
        texts.append(text)
    return texts


def _mse_section(models: Sequence[ModelScores], shown: Sequence[float | None], references: References) -> str:
    by_name = {model.name: model.scores for model in models}
    lines = []
    for record in mse_comparison(by_name, references):
        lead_min = None if record["lead_min"] == "all" else record["lead_min"]
        if lead_min in shown:
            squares = [_number_text(record[key], "mse") for key in ("mse", "training_mean", "damped_extrapolation")]
            verdict = "skill" if record["skill"] else NOTHING
            lines.append([_cell(record["model"]), _lead_text(lead_min), *squares, verdict])
    head = ["Model", "Lead time", "MSE, (mm/h)² ↓", "training mean's", "damped extrapolation's", "below both"]
    absent = [name for name in (references.training_mean, references.damped_extrapolation) if name not in by_name]
    note = "It is called skill only where it is below both references: blur alone lowers it."
    if absent:
        note += f" Not scored here, so that nothing is: {', '.join(map(_cell, absent))}."
    return f"## Mean squared error\n\n{note}\n\n{_table(head, lines)}"


def _published_section(models: Sequence[ModelScores]) -> str:
    lines, label = [], f"Not computed: {PUBLISHED_THRESHOLD_MMH:g} mm/h is not among the thresholds"
    for model in models:
        if model.published is not None:
            label = model.published.label
            values = [_number_text(model.published.values[name], name) for name in _PUBLISHED_COLUMNS]
            lines.append([_cell(model.name), *values])
    table = _table(["Model", *_PUBLISHED_COLUMNS.values()], lines) if lines else ""
    return f"## By the published protocol\n\n{_sentence(label)}\n\n{table}"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    ruler = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ruler, *lines))


def _number_text(value: float, score: str) -> str:
    if not math.isfinite(value):
        return NOTHING
    return f"{value:#.4g}" if score in _SQUARES else f"{value:.3f}"


def _cell(text: str) -> str:
    """Escape what ends a cell."""
    return text.replace("|", "\\|").replace("\n", " ")


def _lead_text(lead_min: float | None) -> str:
    return "All lead times" if lead_min is None else f"{lead_min:g} min"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
