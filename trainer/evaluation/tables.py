"""All tables of an evaluation, in the order in which they are read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ..comparison.ensemble_tables import amount_sections, crps_sections, probability_section
from ..comparison.marks import RULE
from ..comparison.score_tables import (
    certainty_sections,
    published_section,
    rain_note,
    sample_text,
    squared_error_section,
    threshold_section,
)
from ..comparison.scored import rain_rows
from ..comparison.tables import Section, document
from ..verification.intervals import day_text
from .result import Evaluation

SHOWN_LEADS_MIN: Final = (30, 60)
"""Lead times with tables of their own, where they exist: the published half hour, and the hour."""

_RULES: Final = (
    "An event is rain above the threshold. Pixels without radar are left out; a pixel without a finite forecast counts "
    "as a failed one: a miss or a false alarm. -: the score does not exist (0/0, or a forecast that is not finite). "
    "↑ ↓: higher or lower is better; →1: 1 is best. FSS by the side of the neighbourhood in pixels."
)


@dataclass(frozen=True, kw_only=True)
class ScoreTables:
    """All tables of an evaluation.

    Attributes:
        introduction: What was scored and by which rules.
        by_threshold: All scores of single fields, by the rain threshold in mm/h.
        certainty: The CSI with its intervals, and its difference to the models that all are compared with.
        ensembles: CRPS and skill, spread and error, and probabilities; none without an ensemble.
        squared_error: The mean squared error beside that of the references.
        published: The scores of the published protocol.
    """

    introduction: Sequence[str]
    by_threshold: dict[float, Section]
    certainty: Sequence[Section]
    ensembles: Sequence[Section]
    squared_error: Section
    published: Section

    @property
    def sections(self) -> list[Section]:
        """List all sections."""
        return [*self.by_threshold.values(), *self.certainty, *self.ensembles, self.squared_error, self.published]

    def markdown(self) -> str:
        """Write all tables as Markdown."""
        return document(self.introduction, self.sections)


def build_tables(evaluation: Evaluation) -> ScoreTables:
    """Build all tables of an evaluation."""
    scored = evaluation.scored
    sample = sample_text(scored[0])
    rows, settings = scored[0].rows, scored[0].rows.settings
    # The introduction: how much was scored, and forecasts that failed.
    days = [day_text(day) for day in np.unique(rows.day)]
    period = f" ({days[0]} to {days[-1]})" if days else ""
    failed = [
        f"**{name}: {num} of {int(each.num_valid.sum())} forecast values are not finite.**"
        for name, each in rain_rows(scored).items()
        if (num := int(each.num_nonfinite.sum()))
    ]
    unknown = [f"**{line}**" for line in evaluation.unknown.lines(evaluation.config.unknown)]

    # None stands for all lead times pooled.
    shown: list[float | None] = [None, *(lead for lead in SHOWN_LEADS_MIN if lead in settings.leads_min)]
    names = [model.name for model in scored]
    absent = [name for name in evaluation.references.values() if name not in names]
    return ScoreTables(
        introduction=[f"Windows: {len(rows)}, days: {len(days)}{period}. {_RULES} {RULE}", *failed, *unknown],
        by_threshold={
            threshold_mmh: threshold_section(scored, threshold_mmh, shown, sample)
            for threshold_mmh in settings.thresholds_mmh
        },
        certainty=certainty_sections(scored, evaluation.compared_to, sample),
        ensembles=_ensemble_sections(evaluation, shown, sample),
        squared_error=squared_error_section(evaluation.squared_errors, shown, absent, rain_note(scored[0], sample)),
        published=published_section(scored, sample),
    )


def _ensemble_sections(evaluation: Evaluation, shown: Sequence[float | None], sample: str) -> list[Section]:
    """Show what is known of ensembles and probabilities, where there are such."""
    scored, ensembles = evaluation.scored, evaluation.ensembles
    if not ensembles:
        return []
    note = rain_note(scored[0], sample)
    sections = crps_sections(evaluation.contestants, evaluation.skill_over, shown, note)
    if members := [model for model in ensembles if model.rows.members > 1]:
        sections += amount_sections(members, shown, note)
    return [*sections, probability_section(scored, ensembles, sample)]
