"""How commands end: their codes, and what they say."""

import pytest

from rainspark.data.command import GOES_ON, run_command
from rainspark.data.errors import DataError
from rainspark.data.exit_codes import ExitCode


def test_a_commands_own_code_is_given_back(capfd: pytest.CaptureFixture[str]) -> None:
    assert [run_command(lambda code=code: code) for code in (0, 4, 7)] == [0, 4, 7]  # type: ignore[misc]
    assert capfd.readouterr() == ("", "")


def test_bad_data_is_told_without_steering_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        raise DataError("a\x1b[31m.tar: cut")

    assert run_command(work) == ExitCode.DATA == 4
    assert capfd.readouterr() == ("", "error: a\\x1b[31m.tar: cut\n")


@pytest.mark.parametrize(("words", "said"), [("", "interrupted\n"), (GOES_ON, f"interrupted{GOES_ON}\n")])
def test_an_interruption_is_a_word_and_a_code(capfd: pytest.CaptureFixture[str], words: str, said: str) -> None:
    def work() -> int:
        raise KeyboardInterrupt

    assert run_command(work, interrupted=words) == ExitCode.INTERRUPTED == 130
    assert capfd.readouterr() == ("", said)


def test_what_is_nobodys_fault_keeps_its_traceback() -> None:
    def work() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_command(work)
