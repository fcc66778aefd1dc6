"""The page of an evaluation: one self-contained HTML file, rendered from `report.html.j2`."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ...data.frames import iso_time
from ...data.store.storage import Storage, open_storage
from ..checkpoint.state import installed_versions
from .drawing import Picture
from .result import Evaluation
from .tables import ScoreTables

PAGE_NAME: Final = "report.html"
_METHODS: Final = {
    "sprog": "pysteps' S-PROG: extrapolation whose scales fade as fast as they change",
    "anvil": "pysteps' ANVIL: extrapolation, growth and decay",
    "linda": "pysteps' LINDA: extrapolation, growth and decay of cells",
    "steps": "pysteps' STEPS: S-PROG with noise of the rain's structure",
    "lagrangian_probability": "pysteps' probabilities: extrapolation in a neighbourhood that grows with lead time",
}
"""Methods of pysteps in a few words."""

_TEMPLATE: Final = "report.html.j2"


def write_page(
    folder: Path,
    evaluation: Evaluation,
    tables: ScoreTables,
    pictures: Mapping[str, Sequence[Picture]],
    drawn: Storage,
) -> Path:
    """Write the page; it appears whole or not at all.

    Args:
        folder: Where to; made if need be.
        evaluation: The scores.
        tables: Of the scores.
        pictures: Of the scores, by the headings that they stand under.
        drawn: Where all pictures lie.

    Returns:
        The page's path.

    Raises:
        DataError: A picture cannot be read, or the page cannot be written.
    """
    details = [*tables.by_threshold.values(), *tables.probabilities, tables.squared_error]
    if evaluation.config.protocol == "published":
        details.append(tables.published)

    # A picture stands in the page itself: the page is one file that can be sent.
    def embedded(name: str) -> str:
        content = base64.b64encode(drawn.read(name)).decode("ascii")
        return f"data:image/{Path(name).suffix[1:]};base64,{content}"

    # All text is escaped, and a name that the template misspells is an error.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"embedded": embedded, "time": iso_time}
    page = environment.get_template(_TEMPLATE).render(
        evaluation=evaluation,
        plan=evaluation.plan,
        index=evaluation.plan.index,
        rows=evaluation.scored[0].rows,
        first=[*tables.certainty, *tables.amounts],
        details=details,
        pictures=pictures,
        versions=installed_versions(),
        pysteps_methods=_METHODS,
    )
    # A path may hold bytes that are no text: they are shown as question marks.
    open_storage(folder).write(PAGE_NAME, page.encode("utf-8", errors="replace"))
    return folder / PAGE_NAME
