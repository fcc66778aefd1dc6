"""What a training command does around a run: settings, processes, signals, and an end for all ranks together."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from ..engine.engine import Engine
from ..processes.entry import ExitCode, StopSignal, set_up_logging, settle, start_other_processes
from ..settings.parse import FinetuneConfig, PretrainConfig, parse_config
from .run import TrainingRun

_Config = TypeVar("_Config", PretrainConfig, FinetuneConfig)


def run_training(
    build: Callable[[_Config, Engine, StopSignal], TrainingRun[_Config]],
    kind: type[_Config],
    argv: Sequence[str] | None,
    *,
    prog: str,
) -> ExitCode:
    """Parse the settings, start the processes, build a run and train it: all that an entry point does.

    Args:
        build: The class of the run.
        kind: The class of its settings.
        argv: Command line without the program's name; None: this process'.
        prog: Name of the program, for messages.
    """
    config = parse_config(sys.argv[1:] if argv is None else argv, kind, prog=prog)
    start_other_processes(os.environ)
    stop = StopSignal()
    stop.install()
    engine = Engine(config.engine, lambda: stop.received is not None)
    with engine.heartbeat.watching():
        clean = False
        try:
            set_up_logging(engine.rank)
            code = build(config, engine, stop).run()
            engine.heartbeat.again("end")
            engine.shutdown(clean=True)
            clean = True
        except Exception as error:
            settle(engine, error)
            raise
        finally:
            if not clean:
                engine.shutdown(clean=False)
    return code
