"""Run a command and turn the errors that its user can mend into one line and an exit code."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn

from .credentials import redact
from .errors import ConfigError, DataError
from .exit_codes import ExitCode
from .frames import printable

TYPE_WORDS: Final[dict[Any, str]] = {int: "INT", float: "FLOAT", Path: "PATH"}
GOES_ON: Final = "; the same command goes on where it stopped"


def run_command(work: Callable[[], int], *, interrupted: str = "") -> int:
    """Run a command and turn its errors into a line on standard error and an exit code.

    Args:
        work: The command; returns its exit code.
        interrupted: What an interruption means for the user; printed after "interrupted".

    Returns:
        The command's own code, 3 for a ConfigError, 4 for a DataError, 130 for an interruption.
    """
    try:
        return work()
    except ConfigError as error:
        sys.stderr.write(printable(redact(f"settings: {error}\n")))
        return ExitCode.CONFIG
    except DataError as error:
        sys.stderr.write(printable(f"error: {error}\n"))
        return ExitCode.DATA
    except KeyboardInterrupt:
        sys.stderr.write(f"interrupted{interrupted}\n")
        return ExitCode.INTERRUPTED


class CommandParser(argparse.ArgumentParser):
    """Parse a command line inside `run_command`; the help has one line of usage and names types in words.

    Abbreviations are refused: one that is taken today is ambiguous when the next option comes.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": _HelpLines, "allow_abbrev": False, **options})

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


def whole_number(least: int) -> Callable[[str], int]:
    """Make the type of an option that takes whole numbers of so much at least."""

    def read(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of {least} or more")
        return int(text)

    return read


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
