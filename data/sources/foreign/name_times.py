"""Read the time of a frame from the name of its file, by patterns that are complete and have one meaning."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Final

from ...errors import ConfigError, DataError

# One digit stands for itself only where no other digit touches it: 2020115 has two readings.
_TWO_DIGITS: Final = r"(?:{}|(?<!\d)[1-9](?!\d))"
DIRECTIVES: Final[Mapping[str, str]] = {
    "Y": r"(?:19|20|21)\d\d",
    "y": r"\d\d",
    "m": _TWO_DIGITS.format(r"0[1-9]|1[0-2]"),
    "b": r"[^\W\d_]+",
    "B": r"[^\W\d_]+",
    "d": _TWO_DIGITS.format(r"0[1-9]|[12]\d|3[01]"),
    "j": r"(?:[0-2]\d\d|3[0-5]\d|36[0-6])",
    "H": r"(?:[01]\d|2[0-3]|(?<!\d)\d(?!\d))",
    "I": _TWO_DIGITS.format(r"0[1-9]|1[0-2]"),
    "p": r"(?:AM|PM)",
    "M": r"[0-5]\d",
    "S": r"[0-5]\d",
    "z": r"(?:Z|[+-]\d\d(?::?[0-5]\d)?)",
}
"""What each directive of strftime that a pattern may hold looks like in a name."""
WILDCARDS: Final = ("*", "?")
REFUSED: Final[Mapping[str, str]] = {
    "Z": "names of zones have several meanings: write %z where the name holds an offset such as +0200",
    "f": "times are whole seconds: write a wildcard for fractions",
    "s": "write %Y, %m, %d, %H and %M",
    **dict.fromkeys("aAwuUWVG", "weekdays and weeks name no day: write %m and %d or %j, and a wildcard for the rest"),
    **dict.fromkeys("cxX", "it depends on the machine's language: write out what the name holds"),
}
ZONE: Final = re.compile(
    r"[^A-Za-z\d+-]?(?:UTC|GMT|Z(?=[+-]))?(\+(?:0\d|1[0-4])(?::?(?:00|15|30|45))?(?!\d)|"
    r"-(?:0\d|1[0-2]):?(?:00|30)(?!\d)|\+[1-9](?!\d)|(?<=UTC|GMT)[+-](?:0?[1-9]|1[0-4])(?!\d)|"
    r"(?:LOCAL|[Ll]ocal|MESZ|MEZ|AE[SD]T|AC[SD]T|AWST|NZ[SD]T|CES?T|EES?T|WES?T|[ECMP][SD]T|BST|JST|KST|IST|MSK)"
    r"(?![A-Za-z]))"
)
"""An offset from UTC as ISO 8601 writes it or in hours, or the name of a zone, after what may part it from the
time."""
NEEDED: Final = "expected the pattern of the files' names, with %Y, %m, %d, %H and %M (or %j for %m%d)"


@dataclass(frozen=True, kw_only=True)
class NameTimes:
    """Patterns of names: text, strftime's directives for the end time, and the wildcards * and ?.

    Times without a zone (%z) are UTC.

    Attributes:
        patterns: The patterns; a name may fit several of them if they agree on its time.
    """

    patterns: tuple[str, ...]

    def check(self) -> None:
        """Raise ConfigError for a pattern that names no full time, or one that has several meanings."""
        if not self.patterns:
            raise ConfigError(f"--time-pattern is missing; {NEEDED}")
        for pattern in self.patterns:
            try:
                _check_pattern(pattern)
            except ConfigError as error:
                raise ConfigError(f"--time-pattern {pattern!r}: {error}") from error

    def time_of(self, name: str) -> int | None:
        """Read a name's time, epoch seconds UTC; None where no pattern fits.

        Raises:
            DataError: The name has several times, or a zone that the pattern leaves out.
        """
        times_s: dict[int, str] = {}
        for pattern, lazy, greedy in self._compiled:
            # Wildcards that take as little, and as much as they can: the time must not depend on it.
            for expression in (lazy, greedy):
                match = expression.fullmatch(name)
                if match is not None and (time_s := _time_of(match)) is not None:
                    _check_zone(name, pattern, match)
                    times_s[time_s] = pattern

        if len(times_s) > 1:
            readings = ", ".join(f"{datetime.fromtimestamp(time_s, UTC):%Y-%m-%dT%H:%M:%SZ}" for time_s in times_s)
            raise DataError(
                f"{name} has several times by --time-pattern {' and '.join(dict.fromkeys(times_s.values()))}: "
                f"{readings}; expected one: write out more of the name, with fewer wildcards"
            )
        return next(iter(times_s), None)

    @cached_property
    def _compiled(self) -> list[tuple[str, re.Pattern[str], re.Pattern[str]]]:
        flags = re.IGNORECASE | re.DOTALL
        return [
            (pattern, re.compile(_expression(pattern, lazy=True), flags), re.compile(_expression(pattern), flags))
            for pattern in self.patterns
        ]


def _tokens(pattern: str) -> list[str]:
    """Split a pattern into directives, wildcards and single characters."""
    return re.findall(r"%.|.", pattern, re.DOTALL)


def _is_directive(token: str) -> bool:
    return len(token) == 2 and token != "%%"


def _expression(pattern: str, *, lazy: bool = False) -> str:
    """Turn a pattern into a regular expression with a group a directive."""
    tokens = _tokens(pattern)
    pieces = []
    for before, token, after in zip(["", *tokens], tokens, [*tokens[1:], ""], strict=False):
        if _is_directive(token):
            pieces.append(f"(?P<{token[1]}>{DIRECTIVES[token[1]]})")
        elif token == "*":
            # Beside a directive it takes no digit: that could be one of the time's.
            head = r"(?!\d)" if _is_directive(before) else ""
            tail = r"(?<!\d)" if _is_directive(after) else ""
            pieces.append(f"{head}{'.*?' if lazy else '.*'}{tail}")
        elif token == "?":
            pieces.append(".")
        else:
            pieces.append(re.escape(token[-1]))
    return "".join(pieces)


def _check_pattern(pattern: str) -> None:
    tokens = _tokens(pattern)
    names = [token[1] for token in tokens if _is_directive(token)]
    if tokens and tokens[-1] == "%":
        raise ConfigError("it ends in %; expected a directive such as %Y after it, or %% for the character")
    for name in names:
        if name not in DIRECTIVES:
            advice = REFUSED.get(name, f"expected {', '.join(f'%{known}' for known in DIRECTIVES)} or %%")
            raise ConfigError(f"%{name} cannot be read; {advice}")
        if names.count(name) > 1:
            raise ConfigError(f"%{name} stands in it twice; write ? for the characters that repeat the time")

    # The date, the hour and the minute, each of them once.
    held = set(names)
    kinds = {
        "year": sum(name in held for name in "Yy"),
        "month": sum(name in held for name in "mbBj"),
        "day": sum(name in held for name in "dj"),
        "hour": sum(name in held for name in "HI"),
    }
    for kind, count in kinds.items():
        if count != 1:
            raise ConfigError(f"it has {'no' if not count else 'more than one'} {kind}; {NEEDED}")
    if ("I" in held) != ("p" in held):
        raise ConfigError("%I (1 to 12) and %p (AM, PM) make an hour together; expected both, or %H")

    if "M" not in held:
        _check_full_hour(tokens, seconds="S" in held)
    if "z" not in held and _is_zone(ZONE.match("".join(tokens[_last_time(tokens) + 1 :]))):
        raise ConfigError(
            "a zone stands in it as text; write %z in place of an offset, so that times become UTC (files with times "
            "of a named zone have to be renamed)"
        )


def _check_full_hour(tokens: Sequence[str], *, seconds: bool) -> None:
    """Refuse a pattern without minutes unless nothing in it may stand for them."""
    after = tokens[_last_time(tokens) + 1 : _last_time(tokens) + 2]
    if seconds or (after and (after[0] in WILDCARDS or after[0].isdigit())):
        raise ConfigError(f"it has no minutes, and what follows the hour may be them; {NEEDED}")


def _last_time(tokens: Sequence[str]) -> int:
    """Find the last directive that tells the time of a day."""
    return max(at for at, token in enumerate(tokens) if token in ("%H", "%I", "%p", "%M", "%S"))


def _time_of(match: re.Match[str]) -> int | None:
    """Compute the time of a name's directives; None where there is no such day."""
    texts = {name: text.upper() for name, text in match.groupdict().items()}
    # An offset in hours alone is none that strptime reads.
    if len(texts.get("z", "")) == 3:
        texts["z"] += "00"
    try:
        time = datetime.strptime(" ".join(texts.values()), " ".join(f"%{name}" for name in texts))
    except ValueError:
        return None
    return int((time if time.tzinfo is not None else time.replace(tzinfo=UTC)).timestamp())


def _is_zone(match: re.Match[str] | None) -> bool:
    """Tell a zone that moves times from none, and from UTC's own."""
    return match is not None and bool(match[1][1:].strip("0:"))


def _check_zone(name: str, pattern: str, match: re.Match[str]) -> None:
    """Refuse a wildcard that hides the zone of a time."""
    last = max((match.end(group) for group in match.groupdict() if group in "HIpMS"), default=0)
    zone = ZONE.match(name, last)
    if "z" not in match.groupdict() and zone is not None and _is_zone(zone):
        raise DataError(
            f"{name}: after the time stands {zone[1]}, which --time-pattern {pattern!r} leaves to a wildcard; expected "
            "%z in place of an offset, so that times become UTC (or the directives of a later time; files with times "
            "of a named zone have to be renamed)"
        )
