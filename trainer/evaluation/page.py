"""The page of an evaluation: its tables from scores.md, its pictures, and what they say in a sentence."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...data.frames import iso_time
from ..checkpoint.state import installed_versions
from ..pictures.scores import USEFUL_BIAS
from ..verification.rows import Scores
from .html import Picture, Section, Table, write_report
from .result import Evaluation, main_threshold
from .tables import mse_comparison

_CELL_END: Final = re.compile(r"(?<!\\)\|")
_NUMBER: Final = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?")
_FIRST_COLUMNS: Final = ("Model", "Lead time", "CSI", "Bias", "FSS", "HSS", "POD", "FAR")
_PICTURE_WORDS: Final = {
    "csi": ("Critical success index against lead time", "CSI against lead time, a panel for each rain threshold."),
    "bias": ("Frequency bias against lead time", "Frequency bias; between the shaded limits it is of use."),
    "mse": ("Mean squared error against lead time", "Mean squared error: blur alone lowers it."),
    "rain_rates": ("Share of pixels with at least a rain rate", "How often each rain rate is reached."),
    "fss": ("Fractions skill score against window size", "FSS: how large a neighbourhood has to be for skill."),
}


@dataclass(frozen=True, kw_only=True)
class MarkdownSection:
    """What stands below a heading of second order.

    Attributes:
        heading: Without its marks.
        text: As it is, up to the next such heading.
    """

    heading: str
    text: str

    def blocks(self) -> list[str | Table]:
        """Give paragraphs and tables; a heading of third order is the next table's caption."""
        blocks: list[str | Table] = []
        caption = ""
        for part in re.split(r"\n\s*\n", self.text.strip()):
            lines = part.strip().splitlines()
            if lines and lines[0].startswith("### "):
                caption = lines.pop(0).removeprefix("### ")
            if not lines:
                continue
            if lines[0].startswith("|"):
                blocks.append(_table(lines, caption))
                caption = ""
            else:
                blocks.append(" ".join(lines))
        return blocks


def read_markdown(markdown: str) -> list[MarkdownSection]:
    """Cut Markdown at its headings of second order; what is before them is left."""
    parts = re.split(r"^## ", markdown, flags=re.MULTILINE)[1:]
    return [MarkdownSection(heading=part.partition("\n")[0], text=part.partition("\n")[2]) for part in parts]


def _table(lines: Sequence[str], caption: str) -> Table:
    head, _, *rows = ([cell.strip().replace("\\|", "|") for cell in _CELL_END.split(line)[1:-1]] for line in lines)
    # Where lead times stand below each other the best of a column is but the shortest one.
    marked = [] if "Lead time" in head else list(enumerate(head))
    best = {place for column, title in marked for place in _best(title, column, rows)}
    return Table(head=head, rows=rows, caption=caption, best=frozenset(best))


def _best(title: str, column: int, rows: Sequence[Sequence[str]]) -> list[tuple[int, int]]:
    """Find the best cells of a column by the arrow of its title: higher, lower, or nearest to 1."""
    values = [float(row[column]) if _NUMBER.fullmatch(row[column]) else math.nan for row in rows]
    if title.endswith("↑"):
        worth = values
    elif title.endswith("↓"):
        worth = [-value for value in values]
    elif title.endswith("→1"):
        worth = [-abs(math.log(max(value, 1e-9))) for value in values]
    else:
        return []
    known = [value for value in worth if not math.isnan(value)]
    if len(rows) < 2 or not known:
        return []
    return [(row, column) for row, value in enumerate(worth) if value == max(known)]


def _telling_first(blocks: Sequence[str | Table]) -> list[str | Table]:
    """Put the columns that are read first to the left: a phone shows two or three."""
    return [_reordered(block) if isinstance(block, Table) else block for block in blocks]


def _reordered(table: Table) -> Table:
    def worth(column: int) -> int:
        first = [place for place, name in enumerate(_FIRST_COLUMNS) if table.head[column].startswith(name)]
        return first[0] if first else len(_FIRST_COLUMNS)

    order = sorted(range(len(table.head)), key=worth)
    return Table(
        head=[table.head[column] for column in order],
        rows=[[row[column] for column in order] for row in table.rows],
        caption=table.caption,
        best=frozenset((row, order.index(column)) for row, column in table.best),
    )


def summary_of(evaluation: Evaluation, scores: Mapping[str, Scores]) -> str:
    """Say the outcome in two sentences: who hits the rain best, and whose squared error is skill."""
    threshold = main_threshold(evaluation.config.thresholds)
    skills = {name: one.at("csi", threshold_mmh=threshold) for name, one in scores.items()}
    known = {name: value for name, value in skills.items() if not math.isnan(value)}
    biases = {name: scores[name].at("bias", threshold_mmh=threshold) for name in known}
    if not known:
        return (
            f"No rain above {threshold:g} mm/h was observed or forecast: nothing can be said of who forecasts it best."
        )
    # Rain everywhere has a high CSI too, and is no forecast.
    usable = [name for name, bias in biases.items() if USEFUL_BIAS[0] <= bias <= USEFUL_BIAS[1]]
    limits = f"{USEFUL_BIAS[0]:g} to {USEFUL_BIAS[1]:g}"
    if not usable:
        return (
            f"No model's frequency bias for rain above {threshold:g} mm/h lies within {limits}: none rains about as "
            "often as the radar, and none of their CSI says who forecasts it best." + _skilled(evaluation, scores)
        )
    best = max(usable, key=lambda name: known[name])
    figures = [f"frequency bias {biases[best]:.2f}"]
    figures += [
        f"{name} {known[name]:.3f}, but with a frequency bias of {biases[name]:.2f}, outside {limits}"
        for name in known
        if name not in usable and known[name] > known[best]
    ]
    # The next best stands beside the best: a lead is worth what it is over the second, not over the last.
    others = sorted((name for name in usable if name != best), key=lambda name: -known[name])
    figures += [
        f"{name} {known[name]:.3f}" for name in others if name == others[0] or evaluation.kinds[name] == "persistence"
    ]
    return (
        f"Of {len(scores)} model(s), {best} forecasts rain above {threshold:g} mm/h best over all lead times: CSI "
        f"{known[best]:.3f} ({'; '.join(figures)})." + _skilled(evaluation, scores)
    )


def _skilled(evaluation: Evaluation, scores: Mapping[str, Scores]) -> str:
    """Say whose squared error is skill; nothing where that is not known."""
    pooled = [one for one in mse_comparison(scores, evaluation.references) if one["lead_min"] == "all"]
    if all(one["skill"] is None for one in pooled):
        return ""
    skilled = [str(one["model"]) for one in pooled if one["skill"]]
    return (
        " Squared errors below both the training mean's and damped extrapolation's, which is what counts as skill: "
        f"{', '.join(skilled) if skilled else 'none'}."
    )


def write_page(folder: Path, evaluation: Evaluation, scores: Mapping[str, Scores], markdown: str) -> Path:
    """Write the page.

    Args:
        folder: Where to.
        evaluation: What was found; its pictures lie in its folder.
        scores: Of all models.
        markdown: Contents of scores.md.

    Returns:
        The page's path.
    """
    tables = read_markdown(markdown)
    if evaluation.config.protocol != "published":
        tables = [section for section in tables if section.heading != "By the published protocol"]
    pictures = Path(evaluation.config.out) / "pictures"
    leads = [
        Picture(image=pictures / f"{name}.png", alt=alt, caption=text) for name, (alt, text) in _PICTURE_WORDS.items()
    ]
    cases: list[str | Table | Picture] = []
    for number, case in enumerate(evaluation.cases):
        time = iso_time(case.issue_s)
        caption = f"From {time}: {case.why}. Radar above, the models below it."
        cases.append(
            Picture(image=pictures / f"{case.stem}.png", alt=f"Forecasts from {time}", caption=caption, wide=True)
        )
        if number == 0:
            moving = f"From {time}, moving: radar, then the forecasts."
            cases.append(
                Picture(image=pictures / f"{case.stem}.gif", alt=f"Animation from {time}", caption=moving, wide=True)
            )
    written = [Section(heading=section.heading, blocks=_telling_first(section.blocks())) for section in tables]
    sections = [
        *(section for section in written if section.heading.startswith("CSI")),
        Section(heading="Skill at a glance", blocks=leads),
        Section(heading="Forecasts beside the radar", blocks=cases),
        *(section for section in written if not section.heading.startswith("CSI")),
    ]
    plan = evaluation.plan
    names = ", ".join(evaluation.models)
    return write_report(
        folder,
        title=f"Forecasts of {plan.index.source}, scored",
        summary=summary_of(evaluation, scores),
        data=_data(evaluation),
        sections=sections,
        caveats=evaluation.caveats,
        command=evaluation.command,
        versions=installed_versions() | {"models": names},
    )


def _data(evaluation: Evaluation) -> dict[str, str]:
    plan, config, index = evaluation.plan, evaluation.config, evaluation.plan.index
    rows = next(iter(evaluation.models.values()))
    grid = index.grid.cropped(index.crop)
    thresholds = ", ".join(f"{one:g}" for one in plan.settings.thresholds_mmh)
    data = {
        "Radar": f"{index.source} ({index.licence})",
        "Split": f"{config.split} ({', '.join(map(str, plan.spans)) or 'all times'})",
        "Forecasts": (
            f"{len(rows)}, issued from {iso_time(int(rows.issue_s.min()))} to {iso_time(int(rows.issue_s.max()))}"
        ),
        "Window": (f"{plan.frames_in} frames in, {plan.frames_out} out, {index.cadence_s / 60:g} min apart"),
        "Grid": f"{grid.rows} x {grid.cols} pixels of {grid.pixel_km:g} km",
        "Rain": f"above {thresholds} mm/h",
    }
    for name, about in evaluation.about.items():
        data[name] = _model_words(about)
    return data


def _model_words(about: Mapping[str, object]) -> str:
    match about["kind"]:
        case "run":
            return f"{about['model']}, step {about['step']}, trained on {about['source']} ({about['checkpoint']})"
        case "training_mean":
            return f"{about['mean_mmh']:.4g} mm/h everywhere: the training part's mean"
        case "damped_extrapolation":
            factors: Sequence[float] = about["factors"]  # type: ignore[assignment]
            listed = ", ".join(f"{factor:.2f}" for factor in factors)
            return f"extrapolation fading into the training part's mean, {about['mean_mmh']:.4g} mm/h, by {listed}"
        case "extrapolation":
            return "pysteps: Lucas-Kanade optical flow, semi-Lagrangian, nothing flows in"
        case "advection":
            return "the last frame carried on with the motion of the last three (models.motion), rain flows in"
        case _:
            return "the last frame, unchanged"
