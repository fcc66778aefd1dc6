"""Exit codes, messages and signals of the entry points."""

import errno
import os
import signal

import pytest

from rainspark.data.errors import ConfigError, DataError
from rainspark.data.exit_codes import ExitCode
from rainspark.models.weights.manifest import CheckpointError
from rainspark.trainer.processes.agreement import NonFiniteError, describe
from rainspark.trainer.processes.ending import STOP_SIGNALS
from rainspark.trainer.processes.entry import StopSignal, run_entry
from rainspark.trainer.processes.starting import start_other_processes


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("a"), ExitCode.CONFIG),
        (DataError("a"), ExitCode.DATA),
        (CheckpointError("a"), ExitCode.CHECKPOINT),
        (NonFiniteError("a"), ExitCode.NONFINITE),
    ],
)
def test_every_cause_has_its_code_and_words(
    error: Exception, code: ExitCode, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> ExitCode:
        raise error

    assert run_entry(fail) == code
    text = capsys.readouterr().err
    assert text.endswith(": a\n")
    assert "Traceback" not in text


def test_errors_of_the_system_are_described_without_their_number() -> None:
    assert describe(OSError("cut off")) == "cut off"
    assert describe(OSError(errno.EIO, "Input/output error")) == "Input/output error"
    assert describe(OSError(errno.EROFS, "read-only", "a/config.yaml")) == "a/config.yaml: read-only"
    assert describe(CheckpointError("damaged")) == "damaged"


def test_an_unknown_error_keeps_its_traceback() -> None:
    def fail() -> ExitCode:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_entry(fail)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_stop_signals_are_remembered_and_repeats_change_nothing(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {known: signal.getsignal(known) for known in STOP_SIGNALS}
    stop = StopSignal()
    try:
        stop.install()
        assert not stop()
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)
        assert stop()
        assert stop.received == number.name
    finally:
        for known, handler in before.items():
            signal.signal(known, handler)
    assert capfd.readouterr().err.count("saving a checkpoint") == 1


def test_other_processes_are_not_started_where_a_launcher_did(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        pytest.fail("started a launcher")

    monkeypatch.setattr(os, "execv", never)
    start_other_processes({})
    start_other_processes({"MASTER_PORT": "1", "RANK": "0"})
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    start_other_processes({"MASTER_PORT": "1", "RANK": "0"})
