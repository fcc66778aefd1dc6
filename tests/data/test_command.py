"""How commands end: their exit codes and their last words."""

import pytest

from rainspark.data.command import GOES_ON, run_command
from rainspark.data.errors import DataError


@pytest.mark.parametrize("code", [0, 4, 7])
def test_a_commands_own_code_is_given_back(capfd: pytest.CaptureFixture[str], code: int) -> None:
    assert run_command(lambda: code) == code
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "options", "code", "message"),
    [
        # What a hostile name holds does not steer the terminal.
        (DataError("a\x1b[31m.tar: cut"), {}, 4, "error: a\\x1b[31m.tar: cut\n"),
        (KeyboardInterrupt(), {}, 130, "interrupted\n"),
        (KeyboardInterrupt(), {"interrupted": GOES_ON}, 130, f"interrupted{GOES_ON}\n"),
    ],
)
def test_an_error_becomes_a_line_and_a_code(
    capfd: pytest.CaptureFixture[str], error: BaseException, options: dict[str, str], code: int, message: str
) -> None:
    def work() -> int:
        raise error

    assert run_command(work, **options) == code
    assert capfd.readouterr() == ("", message)


def test_an_error_of_the_program_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)
