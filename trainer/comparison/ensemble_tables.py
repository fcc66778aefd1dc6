"""The scores of ensembles and of probabilities as tables; single fields stand beside them in the CRPS."""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from ..verification.crps import POOLS_PX
from .marks import Figure
from .score_tables import event_note, events
from .scored import EnsembleModel, ModelScores, Scored
from .tables import Column, Section, Table, figure_cell, lead_text, score_column, text_column

_PARTS: Final = ("reliability", "resolution", "uncertainty")
_PROBABILITY_COLUMNS: Final = ("brier_fair", "brier_skill", "roc_area", "fss_probability", *_PARTS)
"""What is read first stands at the left: a phone shows two or three columns."""


def crps_figure(model: Scored, lead_min: float | None = None, pool_px: int = 1) -> Figure:
    """Give the fair CRPS, mm/h; of a single field its absolute error, which is scored pixel by pixel alone."""
    if isinstance(model, EnsembleModel):
        return model.figure("crps_fair", lead_min=lead_min, pool_px=pool_px)
    return model.figure("mae", lead_min=lead_min) if pool_px == 1 else Figure(value=math.nan)


def crps_sections(
    contestants: Sequence[Scored], references: Sequence[Scored], leads: Sequence[float | None], note: str
) -> list[Section]:
    """Show the CRPS by lead time and by pooling, and the skill over references.

    Args:
        contestants: Ensembles and single fields.
        references: Those of them that skill is over.
        leads: Lead times in minutes; None: all of them pooled.
        note: On how much rain they rest.
    """
    # Probabilities alone know no rain rate.
    shown = [model for model in contestants if not isinstance(model, EnsembleModel) or model.rows.members]
    by_lead = [_Place(lead_text(lead_min), lead_min, 1) for lead_min in leads]
    by_pool = [_Place(f"{pool_px} x {pool_px} px", None, pool_px) for pool_px in POOLS_PX]
    text = (
        "Continuous ranked probability score, mm/h, fair: as of an ensemble of unlimited size. Of a single field it is "
        "the absolute error. Averaged over blocks of pixels it is about amounts in an area."
    )
    tables = [
        _crps_table(shown, by_lead, "By lead time", note),
        _crps_table(shown, by_pool, "All lead times, averaged over blocks", note),
    ]
    return [
        Section(heading="CRPS: probabilities of rain amounts", text=text, tables=tables),
        *(_skill_section(shown, reference, [*by_lead, *by_pool[1:]], note) for reference in references),
    ]


class _Place(NamedTuple):
    """Where a CRPS is looked up, and the head of its column."""

    title: str
    lead_min: float | None
    pool_px: int


def _crps_table(shown: Sequence[Scored], places: Sequence[_Place], caption: str, note: str) -> Table:
    columns = [_names(shown)]
    for title, lead_min, pool_px in places:
        figures = [crps_figure(model, lead_min, pool_px) for model in shown]
        columns.append(score_column("crps_fair", figures, title, with_intervals=True))
    return Table(columns=columns, caption=caption, note=note)


def _skill_section(shown: Sequence[Scored], reference: Scored, places: Sequence[_Place], note: str) -> Section:
    """Show 1 - CRPS / the reference's."""
    others = [model for model in shown if model.name != reference.name]
    columns = [_names(others)]
    for title, lead_min, pool_px in places:
        baseline = crps_figure(reference, lead_min, pool_px)
        # A single field has none of blocks.
        if math.isnan(baseline.value):
            continue
        skill = [crps_figure(model, lead_min, pool_px).skill(baseline) for model in others]
        cells = [figure_cell("crps_skill", figure, with_share=True) for figure in skill]
        columns.append(Column(title=title, cells=cells))
    text = "1 - CRPS / its CRPS: above 0 is better than it. After the interval the share of draws above 0."
    heading = f"CRPS skill over {reference.name}"
    return Section(heading=heading, text=text, tables=[Table(columns=columns, note=note)])


def amount_sections(ensembles: Sequence[EnsembleModel], leads: Sequence[float | None], note: str) -> list[Section]:
    """Show what only members have: the threshold-weighted CRPS, spread beside error, and how flat the ranks are.

    Args:
        ensembles: Ensembles of two members or more.
        leads: Lead times in minutes; None: all of them pooled.
        note: On how much rain they rest.
    """
    weighted = [_names(ensembles)]
    for threshold_mmh in ensembles[0].rows.settings.thresholds_mmh:
        figures = [model.figure("twcrps_fair", threshold_mmh=threshold_mmh) for model in ensembles]
        weighted.append(score_column("twcrps_fair", figures, f"> {threshold_mmh:g} mm/h", with_intervals=True))

    by_lead = [_names(ensembles)]
    for lead_min in leads:
        ratios = [model.figure("spread_skill", lead_min=lead_min) for model in ensembles]
        by_lead.append(score_column("spread_skill", ratios, lead_text(lead_min), with_intervals=True))
    # Of blocks the ratio tells whether the members differ in areas too, or in noise from pixel to pixel alone.
    pooled = [_names(ensembles)]
    for pool_px in POOLS_PX:
        ratios = [model.figure("spread_skill", pool_px=pool_px) for model in ensembles]
        pooled.append(score_column("spread_skill", ratios, f"{pool_px} x {pool_px} px"))
    for score in ("spread", "mean_rmse", "rank_distance", "rank_distance_wet"):
        pooled.append(score_column(score, [model.figure(score) for model in ensembles]))
    return [
        Section(
            heading="CRPS above thresholds",
            text="Threshold-weighted CRPS, mm/h, fair, all lead times: of max(rain, threshold), so of heavy rain.",
            tables=[Table(columns=weighted, note=note)],
        ),
        Section(
            heading="Spread and error",
            text=(
                "Spread / error: 1 where members differ from each other as they do from the radar; less is too sure. "
                "Rank distance: 0 for a flat rank histogram, up to 2."
            ),
            tables=[
                Table(columns=by_lead, caption="Spread / error, by lead time", note=note),
                Table(columns=pooled, caption="Spread / error of blocks, and more; all lead times", note=note),
            ],
        ),
    ]


def probability_section(scored: Sequence[ModelScores], ensembles: Sequence[EnsembleModel], sample: str) -> Section:
    """Show the scores of probabilities, a table a threshold.

    Args:
        scored: Single fields, which know how often it rained.
        ensembles: Ensembles and probabilities alone.
        sample: How many windows, and of how many days or blocks.
    """
    settings = scored[0].rows.settings
    tables = []

    for threshold_mmh in settings.thresholds_mmh:
        # Of rain that never came probabilities can be wrong and nothing else.
        if not events(scored[0].rows, threshold_mmh)[0]:
            continue

        # A column a score; FSS has one a scale.
        columns = [_names(ensembles)]
        for score in _PROBABILITY_COLUMNS:
            # FSS at one pixel is little more than the Brier score.
            for scale_px in [px for px in settings.scales_px if px > 1] if score == "fss_probability" else (None,):
                figures = [_probability_figure(model, score, threshold_mmh, scale_px) for model in ensembles]
                columns.append(score_column(score, figures, "" if scale_px is None else f"{scale_px} px"))

        rests_on = event_note(scored[0].rows, threshold_mmh, None, sample)
        tables.append(Table(columns=columns, caption=f"Rain above {threshold_mmh:g} mm/h", note=rests_on))

    text = (
        "All lead times. Brier: mean squared error of the probability, of an ensemble the fair one; the plain one is "
        "reliability - resolution + uncertainty. Brier skill: over always stating how often it rains. ROC area: 0.5 is "
        "no skill. FSS: of the share of members and pixels, by the side of the neighbourhood."
    )
    return Section(heading="Probabilities of rain", text=text, tables=tables)


def _probability_figure(model: EnsembleModel, score: str, threshold_mmh: float, scale_px: int | None) -> Figure:
    """Give a score of probabilities; the Brier score of probabilities alone is fair as it is."""
    if score == "brier_skill":
        uncertainty = model.figure("uncertainty", threshold_mmh=threshold_mmh)
        return _probability_figure(model, "brier_fair", threshold_mmh, None).skill(uncertainty)
    if score == "brier_fair" and score not in model.scores.values:
        score = "brier"
    return model.figure(score, threshold_mmh=threshold_mmh, scale_px=scale_px)


def _names(models: Sequence[Scored]) -> Column:
    return text_column("Model", [model.name for model in models])
