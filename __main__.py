"""The one command: `rainspark NAME ...`, or `python -m rainspark NAME ...`. Each sub-command lies in its own room.

Nothing is imported before it is asked for: the help of every command, and a mistyped setting, answer without torch.
"""

import argparse
import difflib
import gc
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, cast

from . import check_tree
from .data.command import run_command
from .data.errors import ConfigError

Main = Callable[[Sequence[str]], int]


@dataclass(frozen=True)
class Command:
    """A sub-command.

    Attributes:
        summary: What it does, in one line.
        run: Reads its command line and does it; returns the exit code.
        module: Of the package; has `make_parser` where it parses its command line by argparse.
    """

    summary: str
    run: Main
    module: str | None = None


def _room(module: str, *first: str) -> tuple[Main, str]:
    """Make a sub-command of a module's `main`, with words that stand before the user's."""

    def run(argv: Sequence[str]) -> int:
        code: int = importlib.import_module(f".{module}", __package__).main([*first, *argv])
        return code

    return run, module


def _training(name: str, module: str) -> Main:
    """Make the sub-command of a training, which reads its settings before it imports torch."""

    def run(argv: Sequence[str]) -> int:
        from .trainer.settings.experiment import TRAININGS
        from .trainer.settings.parse import parse_config

        config = parse_config(argv, TRAININGS[name], prog=f"rainspark {name}")
        from .trainer.processes.allocator import keep_freed_memory
        from .trainer.processes.starting import start_other_processes

        start_other_processes(os.environ)
        # Before torch takes memory.
        keep_freed_memory()
        with _lean_imports():
            training = importlib.import_module(f".trainer.training.{module}", __package__)
        _end(lambda: training.run(config))

    return run


def _evaluate(argv: Sequence[str]) -> int:
    from .trainer.settings.evaluation import parse_evaluation

    config = parse_evaluation(argv)
    from .trainer.processes.starting import start_other_processes

    start_other_processes(os.environ)
    with _lean_imports():
        from .trainer.evaluation.evaluating import run
    _end(lambda: run(config, argv))


def _forecast(argv: Sequence[str]) -> int:
    from .trainer.settings.forecast import make_parser

    options = make_parser().parse_args(argv)
    if options.watch:
        with _lean_imports():
            from .trainer.watching.watch import watch
        _end(lambda: watch(options, argv))
    # It is over in seconds, and imports what its run needs on the way.
    with _lean_imports():
        from .trainer.forecasting.outputs import run

        _end(lambda: run(options, argv))


@contextmanager
def _lean_imports() -> Iterator[None]:
    """Import in three quarters of the time: without garbage collection and without wandb, which timm asks for.

    A tracker imports wandb when it is asked for.
    """
    gc.disable()
    hidden = "wandb" not in sys.modules
    if hidden:
        sys.modules["wandb"] = cast(Any, None)
    try:
        yield
    finally:
        if hidden:
            sys.modules.pop("wandb", None)
        gc.enable()


def _end(work: Callable[[], int]) -> NoReturn:
    """Do what needs torch and end the process, whatever threads and connections to other ranks are left."""
    from .trainer.processes.entry import run_process

    run_process(work)


COMMANDS: Final = {
    "pack": Command("pack radar files into an archive of shards", *_room("data.pack.__main__")),
    "inspect": Command("show what an archive holds, and draw a contact sheet", *_room("data.pack.__main__", "inspect")),
    "fetch": Command("download radar files from a weather service", *_room("data.fetch.__main__")),
    "count": Command("count the windows that a selection holds", *_room("data.count")),
    "verify": Command("read every byte of an archive again and list what is wrong", *_room("data.verify")),
    "reshard": Command("write an archive anew: other sizes, several into one", *_room("data.reshard")),
    "storms": Command("make radar files of moving storms, to try things with", *_room("data.sources.synthetic")),
    "pretrain": Command("pretrain an encoder by masked modelling", _training("pretrain", "pretraining")),
    "finetune": Command("train a nowcaster", _training("finetune", "finetuning")),
    "evaluate": Command("score nowcasters and baselines, and write a report", _evaluate),
    "forecast": Command("forecast the next hour from the latest radar", _forecast, "trainer.settings.forecast"),
    "checkpoint": Command("list, verify or show the checkpoints of a run", *_room("trainer.checkpoint.__main__")),
    "weights": Command("export an encoder for timm, import published weights", *_room("models.weights.__main__")),
    "doctor": Command("check a training job before it is submitted", *_room("launch.doctor.__main__")),
    "submit": Command("submit a training job to Slurm", *_room("launch.submit")),
}

HELP: Final = """\
usage: rainspark COMMAND ...

Rainspark pretrains convolutional encoders on radar rain sequences, turns them into nowcasters, scores and forecasts.

{commands}

rainspark COMMAND --help explains a command. Completion by Tab: eval "$(register-python-argcomplete rainspark)"
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command; returns its exit code (data/exit_codes.py).

    Args:
        argv: Command line without the program's name; None: this process'.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if "_ARGCOMPLETE" in os.environ:
        _complete()
    if not words or words[0] in ("-h", "--help"):
        return run_command(_print_help)
    return run_command(lambda: _chosen(words[0]).run(words[1:]))


def _print_help() -> int:
    width = max(len(name) for name in COMMANDS) + 2
    listed = "\n".join(f"  {name:<{width}}{command.summary}" for name, command in COMMANDS.items())
    sys.stdout.write(HELP.format(commands=listed))
    return 0


def run_script(command: str, tree: Path) -> NoReturn:
    """Run a sub-command as the script of a source tree, which has to be the tree of this package.

    Args:
        command: Name of the sub-command.
        tree: Root of the tree that the script lies in.
    """
    check_tree(tree)
    sys.exit(main([command, *sys.argv[1:]]))


def _chosen(name: str) -> Command:
    """Find a sub-command; raises ConfigError for a name that there is not."""
    if name in COMMANDS:
        return COMMANDS[name]
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"; the nearest is {near[0]}" if near else ""
    raise ConfigError(f"rainspark has no command {name!r}{hint}; there are {', '.join(COMMANDS)}")


def _complete() -> None:
    """Answer the shell, which asks for completions: sub-commands here, anything else by the command's own parser."""
    import argcomplete

    words = os.environ["COMP_LINE"].split()
    command = COMMANDS.get(words[1]) if len(words) > 1 else None
    if command is None:
        parser = argparse.ArgumentParser(prog="rainspark")
        parser.add_argument("command", choices=list(COMMANDS))
        argcomplete.autocomplete(parser)
        return

    # Words before this one are skipped: the sub-command is the program that completes itself.
    os.environ["_ARGCOMPLETE"] = "2"
    if command.module is not None:
        argcomplete.autocomplete(importlib.import_module(f".{command.module}", __package__).make_parser())
    else:
        command.run([])


def start() -> NoReturn:
    """Run the command of this process and end it with the exit code."""
    sys.exit(main())


if __name__ == "__main__":
    start()
