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
        amounts: The CRPS and the skill over references; none without an ensemble.
        probabilities: What else is known of ensembles and probabilities; likewise.
        squared_error: The mean squared error beside that of the references.
        published: The scores of the published protocol.
    """

    introduction: Sequence[str]
    by_threshold: dict[float, Section]
    certainty: Sequence[Section]
    amounts: Sequence[Section]
    probabilities: Sequence[Section]
    squared_error: Section
    published: Section

    @property
    def sections(self) -> list[Section]:
        """List all sections."""
        fields = [*self.by_threshold.values(), *self.certainty]
        return [*fields, *self.amounts, *self.probabilities, self.squared_error, self.published]

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
    note = rain_note(scored[0], sample)
    names = [model.name for model in scored]
    absent = [name for name in evaluation.references.values() if name not in names]
    return ScoreTables(
        introduction=[f"Windows: {len(rows)}, days: {len(days)}{period}. {_RULES} {RULE}", *failed, *unknown],
        by_threshold={
            threshold_mmh: threshold_section(scored, threshold_mmh, shown, sample)
            for threshold_mmh in settings.thresholds_mmh
        },
        certainty=certainty_sections(scored, evaluation.compared_to, sample),
        amounts=_amount_sections(evaluation, note),
        probabilities=_probability_sections(evaluation, note, sample),
        squared_error=squared_error_section(evaluation.squared_errors, shown, absent, note),
        published=published_section(scored, sample),
    )


def _amount_sections(evaluation: Evaluation, note: str) -> list[Section]:
    """Show the CRPS, where there are ensembles."""
    if not any(model.rows.members for model in evaluation.ensembles):
        return []
    return crps_sections(evaluation.contestants, evaluation.skill_over, _amount_leads(evaluation), note)


def _probability_sections(evaluation: Evaluation, note: str, sample: str) -> list[Section]:
    """Show what else is known of ensembles and probabilities, where there are such."""
    if not evaluation.ensembles:
        return []
    members = [model for model in evaluation.ensembles if model.rows.members > 1]
    sections = amount_sections(members, _amount_leads(evaluation), note) if members else []
    return [*sections, probability_section(evaluation.scored, evaluation.ensembles, sample)]


def _amount_leads(evaluation: Evaluation) -> list[float | None]:
    """Choose the lead times of the tables of rain amounts; the last one is all of them."""
    leads_min = evaluation.scored[0].rows.settings.leads_min
    return [*(lead for lead in (15, *SHOWN_LEADS_MIN) if lead in leads_min), None]
