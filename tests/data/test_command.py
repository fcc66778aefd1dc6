"""How commands end: their exit codes and their last words."""

from pathlib import Path

import pytest

from rainspark.data.command import GOES_ON, MOST_NUMBER, CommandParser, expand_home, read_variable, run_command
from rainspark.data.errors import ConfigError, DataError


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


def parser() -> CommandParser:
    made = CommandParser(prog="test")
    made.add_argument("--count", type=int)
    made.add_argument("--share", type=float)
    made.add_argument("--folder", type=Path)
    return made


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--count", value) for value in ("9" * 24, "-" + "9" * 24, "9" * 5000, "1e3", "²", "0x10", "", "nan")),
        *(("--share", value) for value in ("1e400", "nan", "-inf", "1_000e99", "9" * 5000, "½", "")),
    ],
)
def test_a_number_that_no_option_takes_is_named_with_the_bound(option: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"^argument {option}: '.{{0,82}}' is no .*{MOST_NUMBER}; --help lists"):
        parser().parse_args([f"{option}={value}"])


def test_numbers_up_to_the_bound_are_taken() -> None:
    options = parser().parse_args([f"--count={-MOST_NUMBER}", "--share", "1e9"])
    assert (options.count, options.share) == (-MOST_NUMBER, 1e9)
    assert parser().parse_args(["--count", "+7", "--share=.5"]).share == 0.5


def test_a_leading_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parser().parse_args(["--folder", "~/radar"]).folder == tmp_path / "radar"
    assert [expand_home(text) for text in ("~", "a~", "s3://b/~/c", "./~x")] == [
        str(tmp_path),
        "a~",
        "s3://b/~/c",
        "./~x",
    ]
    with pytest.raises(ConfigError, match="--folder: ~no-such-user/a: there is no user or home folder of that name"):
        parser().parse_args(["--folder", "~no-such-user/a"])


@pytest.mark.parametrize("text", ["4,2", "two", "-1", "1.5", "9" * 5000, "70000"])
def test_a_variable_that_is_no_number_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^the environment variable MASTER_PORT: '.{1,80}' is no whole number of 1"):
        read_variable({"MASTER_PORT": text}, "MASTER_PORT", least=1, most=65_535)


def test_a_variable_that_is_not_set_has_its_default() -> None:
    assert [read_variable({"A": text}, "A", default=3) for text in ("", " ", " 7\n")] == [3, 3, 7]
    with pytest.raises(ConfigError, match="variable A"):
        read_variable({}, "A")
