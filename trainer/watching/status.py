"""The status page of a watch: status.json for programs, status.html for people, each replaced in one step."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, StrictUndefined

from ...data.frames import printable
from ...data.whole_file import write_whole

PAGE: Final = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="30"><title>Forecasts</title>
<style>
body { font: 15px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse } td, th { padding: .1em 1em .1em 0; text-align: left; vertical-align: top }
.bad { color: #b00 } img { max-width: 100% }
</style></head><body>
<h1>Forecasts</h1>
<p>Written {{ written }}. A page that is not renewed every few minutes is of a watch that has ended.</p>
{% for radar in radars %}
<h2>{{ radar.radar }}</h2>
{% if radar.latest is none %}<p class="bad">Nothing is published yet.</p>
{% elif radar.is_stale %}<p class="bad">The latest forecast is old: it starts from {{ radar.latest }},
{{ radar.age_min }} minutes ago (expected: less than {{ "%g" % radar.stale_after_min }}).</p>
{% else %}<p>The latest forecast starts from {{ radar.latest }}, {{ radar.age_min }} minutes ago.</p>
{% endif %}
{% if radar.picture %}<p><img src="{{ radar.picture }}?{{ radar.latest }}" alt="How likely rain is"></p>{% endif %}
{% for title, lines in (("Missing", radar.missing), ("Damaged, or not of this radar", radar.damaged),
  ("Of the future", radar.future), ("Several files of one time", radar.several_of_one_time),
  ("Not read", radar.not_read)) if lines %}
<h3>{{ title }}</h3><ul>{% for line in lines %}<li>{{ line | short }}</li>{% endfor %}</ul>
{% endfor %}
{% if radar.not_published %}
<h3>Not published</h3>
<table>{% for cycle in radar.not_published %}
<tr><td>{{ cycle.reference_time }}</td><td>{{ cycle.why | short }}</td></tr>
{% endfor %}</table>
{% endif %}
<h3>Published</h3>
<table><tr><th>from</th><th>published</th><th></th></tr>
{% for cycle in radar.cycles %}
<tr><td>{{ cycle.reference_time }}</td><td>{{ cycle.published }}</td><td>{{ cycle.note }}</td></tr>
{% endfor %}</table>
{% if radar.scores.cycles %}
<h3>Scores of the last day's {{ radar.scores.cycles }} forecasts against the radar that came</h3>
<table><tr><th></th>{% for name in radar.scores.models %}<th>{{ name }}</th>{% endfor %}</tr>
{% for score in (radar.scores.models.values() | first) %}<tr><td>{{ score }}</td>
{% for model in radar.scores.models.values() %}<td>{{ model[score] | number }}</td>{% endfor %}</tr>
{% endfor %}</table>
<p>Pixels that extrapolation cannot know are left out for both.</p>
{% endif %}
{% endfor %}
</body></html>
"""


MOST_LETTERS: Final = 500
"""Letters of one line: a path, what was found, and what to do."""


def _short(text: str) -> str:
    return printable(text)[:MOST_LETTERS]


def write_status(folder: Path, radars: Sequence[dict[str, Any]], written: str) -> None:
    """Write status.json and status.html; a disk that is full for a moment ends no watch."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"short": _short, "number": lambda value: "-" if value is None else f"{value:.3f}"}
    # NaN is no JSON: a score that does not exist is null.
    plain = json.loads(json.dumps(list(radars)), parse_constant=lambda _: None)
    page = environment.from_string(PAGE).render(radars=plain, written=written)
    content = {"written": written, "radars": plain}
    try:
        write_whole(folder / "status.json", json.dumps(content, indent=2).encode(), durable=False)
        write_whole(folder / "status.html", page.encode(), durable=False)
    except OSError:
        return
