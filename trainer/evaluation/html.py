"""An evaluation as one self-contained HTML page: no request leaves it, no script runs in it."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Final

from ...data.errors import DataError
from ...data.store.storage import open_storage

PAGE_NAME: Final = "report.html"

SCORE_NOTES: Final[Mapping[str, str]] = {
    "CSI": (
        "Critical success index: hits / (hits + misses + false alarms). Of all places where it rained or was forecast "
        "to, the share where both agree. 1 is best. Forecasting rain everywhere can beat persistence here: read it "
        "together with the bias."
    ),
    "Bias": (
        "Frequency bias: pixels forecast above the threshold over pixels observed above it. 1 is unbiased, 2 forecasts "
        "twice as much area, 0.5 half of it."
    ),
    "POD": "Probability of detection (recall): the share of the observed rain that was forecast. 1 is best.",
    "FAR": "False alarm ratio: the share of the forecast rain that did not come. 0 is best.",
    "Precision": "The share of the forecast rain that came: 1 - FAR. 1 is best.",
    "F1": "The harmonic mean of precision and recall; it ranks models as CSI does.",
    "Accuracy": "The share of pixels that are right, dry ones included: high wherever it seldom rains.",
    "HSS": (
        "Heidke skill score: the share right beyond what chance would give. 1 is perfect, 0 is chance, less is worse."
    ),
    "FSS": (
        "Fractions skill score: compares the share of rainy pixels inside windows of a given size, so that a shower a "
        "few kilometres off still counts. 0 to 1; 1 is best."
    ),
    "MSE": (
        "Mean squared error of the rain rate, (mm/h)². 0 is best. A blurred forecast scores well here and is no use to "
        "a forecaster: it counts as skill only below the training mean's error and damped extrapolation's."
    ),
    "pMSE": "The mean squared error per pixel.",
    "MAE": "Mean absolute error of the rain rate, mm/h. 0 is best.",
    "Share of pixels": (
        "How often each rain rate is reached, forecast beside radar. A line below the radar's at high rates means that "
        "heavy rain is smoothed away."
    ),
}
"""What each score means, in plain words; Wilks (2011), Statistical methods in the atmospheric sciences, chapter 8."""

_IMAGE_TYPES: Final = {b"\x89PNG\r\n\x1a\n": "image/png", b"GIF87a": "image/gif", b"GIF89a": "image/gif"}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG or GIF.

    Attributes:
        image: Its bytes, or the file that holds them.
        alt: What it shows, for those who cannot see it.
        caption: The line below it.
        wide: Several panels across: on a phone it keeps a readable size and scrolls inside its card.
    """

    image: bytes | Path
    alt: str
    caption: str = ""
    wide: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table; the first cell of each row names it.

    Attributes:
        head: Column names.
        rows: Cells as they are shown.
        caption: The line above it.
        best: (row, column) of cells that are set bold.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    best: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and what stands below it: plain text is a paragraph.

    Attributes:
        heading: Of the section.
        blocks: In order. Pictures that follow each other stand side by side where there is room.
    """

    heading: str
    blocks: Sequence[str | Table | Picture]


def write_report(
    folder: Path,
    *,
    title: str,
    summary: str,
    data: Mapping[str, str],
    sections: Sequence[Section],
    scores: Iterable[str] = tuple(SCORE_NOTES),
    caveats: Sequence[str] = (),
    command: str,
    versions: Mapping[str, str],
    name: str = PAGE_NAME,
) -> Path:
    """Write the page; it appears whole or not at all.

    Args:
        folder: Where to; made if need be.
        title: Of the page.
        summary: The outcome in one or two plain sentences.
        data: What was scored (source, split, times, grid, number of windows, thresholds), by what it is called.
        sections: Tables and pictures.
        scores: Names of the scores that are explained; see `SCORE_NOTES`.
        caveats: What a reader must know before trusting a figure, such as "a single day: no intervals".
        command: How it was made.
        versions: Of Rainspark and the packages below it.
        name: Of the file.

    Returns:
        The page's path.

    Raises:
        ValueError: A score that has no note, an image that is neither PNG nor GIF, or a table row of another length.
        DataError: An image cannot be read, or the page cannot be written.
    """
    unknown = [score for score in scores if score not in SCORE_NOTES]
    if unknown:
        raise ValueError(f"no note for the score {unknown[0]!r}; expected one of {', '.join(SCORE_NOTES)}")
    parts = [
        f"<header><h1>{escape(title)}</h1><p class=summary>{escape(summary)}</p></header>",
        _caveats(caveats),
        _section("What was scored", _definitions(data)),
        *(_section(section.heading, _blocks(section.blocks)) for section in sections),
        _section("What the scores mean", _definitions({score: SCORE_NOTES[score] for score in scores})),
        _section("How this page was made", f"<pre><code>{escape(command)}</code></pre>{_definitions(versions)}"),
    ]
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Whatever a name might smuggle in: nothing is fetched and nothing runs.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f'<meta name="color-scheme" content="light dark">\n<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n'
        "</head>\n<body>\n<main>\n" + "\n".join(part for part in parts if part) + "\n</main>\n</body>\n</html>\n"
    )
    # A path may hold bytes that are no text: they are shown as question marks.
    open_storage(folder).write(name, page.encode("utf-8", errors="replace"))
    return folder / name


def _name(text: str) -> str:
    """Escape a name that may break after an underscore, before it breaks inside a word."""
    return escape(text).replace("_", "_<wbr>")


def _section(heading: str, inner: str) -> str:
    return f"<section>\n<h2>{_name(heading)}</h2>\n{inner}\n</section>"


def _caveats(caveats: Sequence[str]) -> str:
    if not caveats:
        return ""
    items = "".join(f"<li>{escape(caveat)}</li>" for caveat in caveats)
    return f"<section class=caveats>\n<h2>Read this first</h2>\n<ul>{items}</ul>\n</section>"


def _definitions(values: Mapping[str, str]) -> str:
    rows = "".join(f"<div><dt>{_name(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in values.items())
    return f"<dl>{rows}</dl>"


def _blocks(blocks: Sequence[str | Table | Picture]) -> str:
    """Write blocks in order; neighbouring pictures share a row."""
    parts: list[str] = []
    in_row = False
    for block in blocks:
        goes_in_row = isinstance(block, Picture) and not block.wide
        if goes_in_row != in_row:
            parts.append("<div class=row>" if goes_in_row else "</div>")
            in_row = goes_in_row
        if isinstance(block, str):
            parts.append(f"<p>{escape(block)}</p>")
        elif isinstance(block, Table):
            parts.append(_table(block))
        else:
            parts.append(_picture(block))
    if in_row:
        parts.append("</div>")
    return "\n".join(parts)


def _table(table: Table) -> str:
    head = "".join(f"<th scope=col>{_name(name)}</th>" for name in table.head)
    lines = []
    for row, cells in enumerate(table.rows):
        if len(cells) != len(table.head):
            raise ValueError(f"row {row} of {table.caption!r} has {len(cells)} cells; expected {len(table.head)}")
        line = f"<th scope=row>{_name(cells[0])}</th>"
        for column, cell in enumerate(cells[1:], start=1):
            text = escape(cell)
            line += f"<td><b>{text}</b></td>" if (row, column) in table.best else f"<td>{text}</td>"
        lines.append(f"<tr>{line}</tr>")
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    label = escape(table.caption or "table")
    whole = f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    # Focusable, so that the keyboard can scroll it.
    return f'<div class=scroll role=region tabindex=0 aria-label="{label}">\n{whole}\n</div>'


def _picture(picture: Picture) -> str:
    image = picture.image
    if isinstance(image, Path):
        path = image
        try:
            image = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: could not read the picture: {error.strerror or error}") from error
    kind = next((kind for start, kind in _IMAGE_TYPES.items() if image.startswith(start)), None)
    if kind is None:
        raise ValueError(f"the picture {picture.alt!r} is neither PNG nor GIF (it begins with {image[:8]!r})")
    source = f"data:{kind};base64,{base64.b64encode(image).decode('ascii')}"
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption else ""
    style = " class=wide" if picture.wide else ""
    return f'<figure{style}><div class=card><img src="{source}" alt="{escape(picture.alt)}"></div>{caption}</figure>'


_STYLE: Final = """
:root{--ink:#1d2530;--soft:#56606e;--paper:#f4f6f8;--card:#fff;--line:#dbe0e6;--accent:#0b5cad;--warn:#fff6dd;--edge:#d99a1c}
@media(prefers-color-scheme:dark){:root{--ink:#e8ebef;--soft:#a6afbb;--paper:#14181d;--card:#1d232b;--line:#343d48;
--accent:#79b4f2;--warn:#2e2817;--edge:#b98a2b}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1060px;margin:0 auto;padding:24px 20px 64px}
h1{font-size:1.75rem;line-height:1.2;margin:.4em 0 .3em;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:0 0 .7em;overflow-wrap:anywhere}
.summary{font-size:1.12rem;margin:.2em 0 1.2em;max-width:48em;overflow-wrap:anywhere}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:20px;margin:18px 0}
.caveats{background:var(--warn);border-left:5px solid var(--edge)}
.caveats ul{margin:0;padding-left:1.2em}
p,li,dd{overflow-wrap:anywhere}
p{max-width:48em}
dl{margin:0;display:grid;gap:0}
dl>div{display:grid;grid-template-columns:11em 1fr;gap:4px 18px;padding:7px 0;border-top:1px solid var(--line)}
dl>div:first-child{border-top:0}
dt{font-weight:600;overflow-wrap:anywhere}
dd{margin:0}
.scroll{overflow-x:auto;margin:0 0 18px;border:1px solid var(--line);border-radius:8px}
.scroll:focus-visible{outline:3px solid var(--accent)}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
caption{caption-side:top;text-align:left;padding:10px 9px;font-weight:600;white-space:normal}
th,td{padding:7px 9px;border-top:1px solid var(--line);text-align:right;white-space:nowrap}
thead th{color:var(--soft);font-weight:600}
th:first-child{text-align:left;position:sticky;left:0;background:var(--card);white-space:normal;
overflow-wrap:anywhere;min-width:11em}
td b{color:var(--accent)}
.row{display:flex;flex-wrap:wrap;gap:18px;align-items:flex-start;margin:0 0 18px}
.row figure{flex:0 1 480px;min-width:min(100%,300px);margin:0}
figure{margin:0 0 18px}
.card{background:#fff;border:1px solid var(--line);border-radius:8px;padding:8px;overflow-x:auto}
img{display:block;max-width:100%;height:auto;margin:0 auto}
.wide img{min-width:560px}
figcaption{color:var(--soft);font-size:.92rem;margin-top:6px;overflow-wrap:anywhere}
pre{overflow-x:auto;background:var(--paper);border:1px solid var(--line);border-radius:8px;padding:12px;
font-size:.88rem}
@media(max-width:560px){main{padding:12px 10px 40px}section{padding:14px 12px}h1{font-size:1.4rem}
table{font-size:.9rem}th,td{padding:6px 8px}th:first-child{min-width:9em;max-width:9.5em}
dl>div{grid-template-columns:1fr}.card{padding:4px}}
@media print{section{break-inside:avoid}}
"""
