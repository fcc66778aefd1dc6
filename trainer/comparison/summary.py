"""The outcome in a few sentences: who forecasts the rain best, where that can be told, and whose errors are skill."""

import math
from collections.abc import Collection, Sequence

from ..pictures.scores import USEFUL_BIAS
from ..verification.intervals import LEVEL, MIN_BLOCKS
from .ensemble_tables import crps_figure
from .marks import Figure, Mark, marks_of
from .scored import ModelScores, Scored, SquaredError
from .tables import figure_cell, number_text


def hits_sentence(scored: Sequence[ModelScores], threshold_mmh: float, beside: Collection[str]) -> str:
    """Report who forecasts rain above a threshold best, over all lead times.

    Args:
        scored: All single fields; of those that are not shown at the threshold nothing is reported.
        threshold_mmh: In mm/h.
        beside: Models whose figures are named whatever they are.
    """
    models = {model.name: model for model in scored if threshold_mmh in model.shown_at}
    csi = {name: model.figure("csi", threshold_mmh=threshold_mmh) for name, model in models.items()}
    bias = {name: model.figure("bias", threshold_mmh=threshold_mmh).value for name, model in models.items()}
    known = [name for name, figure in csi.items() if not math.isnan(figure.value)]
    rain, limits = f"rain above {threshold_mmh:g} mm/h", f"{USEFUL_BIAS[0]:g} to {USEFUL_BIAS[1]:g}"
    if not known:
        return f"No {rain} was observed or forecast: nothing can be said of who forecasts it best."

    # Rain everywhere has a high CSI too, and is no forecast.
    usable = [name for name in known if USEFUL_BIAS[0] <= bias[name] <= USEFUL_BIAS[1]]
    if not usable:
        return (
            f"No model's frequency bias for {rain} lies within {limits}: none rains about as often as the radar, "
            "and none of their CSI says who forecasts it best."
        )

    first, *others = sorted(usable, key=lambda name: -csi[name].value)
    # The figures that the claim rests on: its bias, and who seems better but rains too much or too little.
    figures = [f"frequency bias {bias[first]:.2f}"]
    figures += [
        f"{name}: {csi[name].value:.3f}, but with a frequency bias of {bias[name]:.2f}, outside {limits}"
        for name in known
        if name not in usable and csi[name].value > csi[first].value
    ]
    # The next best stands beside the best: a lead is worth what it is over the second, not over the last.
    figures += [f"{name}: {csi[name].value:.3f}" for name in others if name == others[0] or name in beside]
    value, rests_on = f"CSI {csi[first].value:.3f}", f"({'; '.join(figures)})"
    over = f"{rain} over all lead times"
    if not others:
        alone = "there is none to compare it with" if len(known) == 1 else f"no other one's bias lies within {limits}"
        return f"{first} forecasts {over} with {value} {rests_on}; {alone}."

    marks = dict(zip(usable, marks_of([csi[name] for name in usable], "↑"), strict=True))
    among = f"Of {len(models)} forecasts, "
    if marks[first] is Mark.BEST:
        why = f"at {LEVEL:.0%} its paired difference to every other one is above 0"
        return f"{among}{first} forecasts {rain} best over all lead times: {value} {rests_on}; {why}."
    if marks[first] is Mark.LEADING:
        *leading, last = [name for name in (first, *others) if marks[name] is Mark.LEADING]
        together = f"{', '.join(leading)} and {last} are not told apart"
        return f"{among}{together} as the best for {over}: {value} for {first} {rests_on}."
    return (
        f"{among}{first} has the highest CSI for {over}, {csi[first].value:.3f} {rests_on}; {_why_not(csi[first])} "
        "none can be called the best."
    )


def amounts_sentence(contestants: Sequence[Scored], references: Sequence[Scored]) -> str:
    """Report whose CRPS is lowest over all lead times, and its skill over references.

    Args:
        contestants: Ensembles and single fields.
        references: Those of them that skill is over.
    """
    crps = {model.name: crps_figure(model) for model in contestants}
    known = {name: figure for name, figure in crps.items() if not math.isnan(figure.value)}
    if len(known) < 2:
        return ""

    # Lowest is not best where chance may have made it so.
    marks = dict(zip(known, marks_of(list(known.values()), "↓"), strict=True))
    first = min(known, key=lambda name: known[name].value)
    value = f"{number_text('crps_fair', known[first].value)} mm/h"
    if marks[first] is Mark.LEADING:
        close = [name for name, mark in marks.items() if mark is Mark.LEADING and name != first]
        claim = f"The CRPS is lowest for {first}, {value}, not told apart from {', '.join(close)}"
    elif marks[first] is Mark.BEST:
        claim = f"The CRPS of {first}, {value}, is the lowest, told apart from every other one"
    else:
        claim = f"The CRPS is lowest for {first}, {value}, which {_why_not(known[first])} cannot be called the best"

    skills = []
    for reference in references:
        if reference.name != first and reference.name in known:
            cell = figure_cell("crps_skill", known[first].skill(known[reference.name]))
            skills.append(f"skill over {reference.name} {' '.join([cell.text, *cell.details])}")
    return f"{claim} ({'; '.join(skills)})." if skills else f"{claim}."


def _why_not(figure: Figure) -> str:
    """Explain why nothing is marked."""
    return "without an interval" if figure.draws is None else f"of fewer than {MIN_BLOCKS} days or blocks"


def skill_sentence(errors: Sequence[SquaredError]) -> str:
    """Report whose squared error is skill; nothing where that is not known."""
    # All lead times pooled decide: one lead time may be luck.
    pooled = [error for error in errors if error.lead_min == "all"]
    if all(error.skill is None for error in pooled):
        return ""
    skilled = ", ".join(error.model for error in pooled if error.skill)
    return (
        "Squared errors below both the training mean's and damped extrapolation's, which is what counts as skill: "
        f"{skilled or 'none'}."
    )
