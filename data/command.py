"""Run a command and turn the errors that its user can mend into one line and an exit code."""

import argparse
import io
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NoReturn

from .credentials import redact
from .errors import ConfigError, DataError
from .exit_codes import ExitCode
from .frames import printable
from .json_checks import shown

MOST_NUMBER: Final = 10**9
"""Numbers on command lines and in settings lie within this of 0: seconds, bytes and products of them stay exact, and
no library overflows. The largest that means anything is a time of 31 years in seconds."""
MOST_SEED: Final = 2**63
"""Seeds are no amounts: any that 64 bits hold."""

TYPE_WORDS: Final[dict[Any, str]] = {int: "INT", float: "FLOAT", Path: "PATH"}
GOES_ON: Final = "; the same command goes on where it stopped"


def run_command(work: Callable[[], int], *, interrupted: str = "") -> int:
    """Run a command and turn its errors into a line on standard error and an exit code.

    Args:
        work: The command; returns its exit code.
        interrupted: What an interruption means for the user; printed after "interrupted".

    Returns:
        The command's own code, 3 for a ConfigError, 4 for a DataError or an output that cannot be written, 130 for an
        interruption.
    """
    open_output()

    try:
        try:
            return work()
        finally:
            # Here, not at the end of the process: a full disk has to change the exit code.
            sys.stdout.flush()

    # Settings may quote an address with a password.
    except ConfigError as error:
        sys.stderr.write(printable(redact(f"settings: {error}\n")))
        return ExitCode.CONFIG
    except DataError as error:
        sys.stderr.write(printable(f"error: {error}\n"))
        return ExitCode.DATA
    except KeyboardInterrupt:
        sys.stderr.write(f"interrupted{interrupted}\n")
        return ExitCode.INTERRUPTED

    # A reader that has gone or a full disk is the user's; any other failure shows where it came from.
    except OSError as error:
        if sys.stdout is not sys.__stdout__ or not _cannot_write():
            raise
        sys.stderr.write(f"error: standard output cannot be written: {error.strerror}\n")
        return ExitCode.DATA


class _Output(io.TextIOWrapper):
    """A standard stream whose reader may go (`| head -1`): what it does not read is dropped, and nothing else ends.

    Bytes are written by the library below: an interruption between writing and counting them would write them twice.
    """

    def write(self, text: str, /) -> int:
        """Write text, or drop it."""
        try:
            return super().write(text)
        except BrokenPipeError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        """Write what is held, or drop it."""
        try:
            super().flush()
        except BrokenPipeError:
            self._drop()

    def _drop(self) -> None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())
        os.close(null)
        super().flush()


def open_output() -> None:
    """Make the standard streams take any text and any end: other encodings, readers that go, streams that are closed.

    A character that the terminal's encoding lacks is written as an escape. The exit code stays the command's own.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            # Held open, so that no file of ours gets the number on which a library prints.
            null = os.open(os.devnull, os.O_WRONLY)
            if null != number:
                os.dup2(null, number)
                os.close(null)
        # Once a process, and never what a caller has put in a stream's place.
        elif stream is not getattr(sys, f"__{name}__") or isinstance(stream, _Output):
            continue
        binary = io.BufferedWriter(io.FileIO(number, "w", closefd=False))
        encoding = "utf-8" if stream is None else stream.encoding
        is_line_buffered = stream is not None and stream.line_buffering
        text = _Output(binary, encoding, "backslashreplace", line_buffering=is_line_buffered)
        setattr(sys, name, text)
        setattr(sys, f"__{name}__", text)


def _cannot_write() -> bool:
    """Find out whether standard output refuses what it holds; drop that, so that the end of the process succeeds."""
    try:
        sys.stdout.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)
        return True
    return False


def expand_home(path: str) -> str:
    """Put a home folder in the place of a leading `~` or `~user`, as a shell does; other texts stay as they are.

    Raises:
        ConfigError: There is no such user.
    """
    if not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        raise ConfigError(
            f"{shown(path)}: there is no user or home folder of that name; write the folder out, or ./ before a name "
            "that begins with ~"
        ) from None


def read_variable(
    environment: Mapping[str, str], name: str, *, least: int = 0, most: int = MOST_NUMBER, default: int | None = None
) -> int:
    """Read a whole number from an environment variable.

    Args:
        environment: Where it stands.
        name: Its name.
        least: The smallest that is sound.
        most: The largest.
        default: What a variable that is not set or empty means; None: an error.

    Raises:
        ConfigError: It is no whole number, or out of range; the variable is named.
    """
    text = environment.get(name, "").strip()
    if not text and default is not None:
        return default
    try:
        return whole_number(least, most)(text)
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f"the environment variable {name}: {error}; set it right, or unset it") from None


class CommandParser(argparse.ArgumentParser):
    """Parse a command line inside `run_command`; the help has one line of usage and names types in words.

    Abbreviations are refused: one that is taken today is ambiguous when the next option comes. Numbers are finite and
    within MOST_NUMBER of 0, and a leading ~ of a path is the home folder.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": _HelpLines, "allow_abbrev": False, **options})
        # One rule for every option of these types.
        self.register("type", int, whole_number(-MOST_NUMBER))
        self.register("type", float, _finite_number)
        self.register("type", Path, _path)

    def format_usage(self) -> str:
        """Write the usage in one line."""
        self._shorten_usage()
        return super().format_usage()

    def format_help(self) -> str:
        """Write usage, description and the list of options."""
        self._shorten_usage()
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        """Refuse the command line as settings are refused: argparse's own exit code, 2, stands in no table of ours."""
        raise ConfigError(f"{message}; --help lists the options")

    def _shorten_usage(self) -> None:
        """Name what must be given, and leave the options to the list below."""
        # argparse formats the usage for every help and every error: once is enough.
        if self.usage is not None:
            return
        words = ["%(prog)s"]
        for action in self._actions:
            if not action.option_strings:
                words.append(f"{action.metavar or action.dest}{' ...' if action.nargs in ('+', '*', 'A...') else ''}")
            elif action.required:
                words.append(f"{action.option_strings[-1]} {_words_of(action)}")
        self.usage = " ".join([*words, "[options]"])


def whole_number(least: int, most: int = MOST_NUMBER) -> Callable[[str], int]:
    """Make the type of an option that takes whole numbers from `least` to `most`."""

    def read(text: str) -> int:
        # Twenty digits hold every bound, and no number that takes long to read.
        text = text.strip()
        if re.fullmatch(r"[+-]?[0-9]{1,20}", text) and least <= int(text) <= most:
            return int(text)
        raise argparse.ArgumentTypeError(f"{shown(text)!r} is no whole number of {least} or more, up to {most}")

    return read


def first_time(text: str) -> int:
    """Read the first day or time of a span, UTC, as epoch seconds."""
    for form in ("%Y-%m-%d", "%Y-%m-%dT%H:%M"):
        with suppress(ValueError, OverflowError):
            return int(datetime.strptime(text, form).replace(tzinfo=UTC).timestamp())
    raise argparse.ArgumentTypeError(f"{shown(text)!r}; expected a day, 2019-01-31, or a time, 2019-01-31T12:00 (UTC)")


def last_time(text: str) -> int:
    """Read the last day, which is wanted whole, or time of a span; gives the second behind it."""
    # A time is wanted itself; a day up to where the next one begins.
    return first_time(text) + (1 if "T" in text else 86_400)


def _path(text: str) -> Path:
    """Read a path of an option."""
    try:
        return Path(expand_home(text))
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _finite_number(text: str) -> float:
    """Read a number of an option."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    # A comparison with NaN is false.
    if not abs(value) <= MOST_NUMBER:
        raise argparse.ArgumentTypeError(f"{shown(text)!r} is no number from {-MOST_NUMBER} to {MOST_NUMBER}")
    return value


class _HelpLines(argparse.HelpFormatter):
    """Lay out help in lines of 100 characters, and descriptions in their paragraphs."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=100)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        # argparse fills all paragraphs into one.
        filled = [super(_HelpLines, self)._fill_text(paragraph, width, indent) for paragraph in text.split("\n\n")]
        return "\n\n".join(filled)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return _words_of(action)

    def _get_default_metavar_for_positional(self, action: argparse.Action) -> str:
        return action.dest.upper()


def _words_of(action: argparse.Action) -> str:
    """Name the type of an option's value in a word, or its choices."""
    if action.metavar is not None:
        return action.metavar if isinstance(action.metavar, str) else " ".join(action.metavar)
    if action.choices is not None:
        return "|".join(str(choice) for choice in action.choices)
    return TYPE_WORDS.get(action.type, "TEXT") if action.option_strings else action.dest.upper()
