"""The one command: `rainspark NAME ...`, or `python -m rainspark NAME ...`. Each sub-command lies in its own room.

Nothing is imported before it is asked for: the help of every command, and a mistyped setting, answer without torch.
"""

import gc
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NoReturn

from . import check_tree

Main = Callable[[Sequence[str]], int]


def _pretrain(argv: Sequence[str]) -> int:
    from .trainer.settings.experiment import PretrainConfig
    from .trainer.settings.parse import parse_config

    config = parse_config(argv, PretrainConfig, prog="rainspark pretrain")
    from .trainer.training.pretraining import run

    return run(config)


def _finetune(argv: Sequence[str]) -> int:
    from .trainer.settings.experiment import FinetuneConfig
    from .trainer.settings.parse import parse_config

    config = parse_config(argv, FinetuneConfig, prog="rainspark finetune")
    from .trainer.training.finetuning import run

    return run(config)


def _evaluate(argv: Sequence[str]) -> int:
    from .trainer.settings.evaluation import parse_evaluation

    config = parse_evaluation(argv)
    from .trainer.evaluation.evaluating import run

    return run(config, argv)


def _forecast(argv: Sequence[str]) -> int:
    from .trainer.settings.forecast import parse_forecast

    options = parse_forecast(argv)
    from .trainer.forecasting.outputs import run

    return run(options, argv)


def _inspect(argv: Sequence[str]) -> int:
    from .data.pack.__main__ import main

    return main(["inspect", *argv])


def _room(module: str) -> Main:
    """Make a sub-command of a module that reads its own command line."""

    def run(argv: Sequence[str]) -> int:
        code: int = importlib.import_module(f".{module}", __package__).main(argv)
        return code

    return run


COMMANDS: Final[dict[str, tuple[str, Main]]] = {
    "pack": ("pack radar files into an archive of shards", _room("data.pack.__main__")),
    "inspect": ("show what an archive holds, and draw a contact sheet", _inspect),
    "fetch": ("download radar files from a weather service", _room("data.fetch.__main__")),
    "count": ("count the windows that a selection holds", _room("data.count")),
    "verify": ("read every byte of an archive again and list what is wrong", _room("data.verify")),
    "reshard": ("write an archive anew: other sizes, other windows, several into one", _room("data.reshard")),
    "storms": ("make radar files of moving storms, to try things with", _room("data.sources.synthetic")),
    "pretrain": ("pretrain an encoder by masked modelling", _pretrain),
    "finetune": ("train a nowcaster", _finetune),
    "evaluate": ("score nowcasters and baselines, and write a report", _evaluate),
    "forecast": ("forecast the next hour from the latest radar files", _forecast),
    "checkpoint": ("list, verify or show the checkpoints of a run", _room("trainer.checkpoint.__main__")),
    "weights": ("export an encoder for timm, import published weights", _room("models.weights.__main__")),
    "doctor": ("check a training job before it is submitted", _room("launch.doctor.__main__")),
    "submit": ("submit a training job to Slurm", _room("launch.submit")),
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
        sys.stdout.write(_help())
        return 0
    if words[0] not in COMMANDS:
        from .data.errors import ConfigError

        raise ConfigError(_unknown(words[0]))
    return COMMANDS[words[0]][1](words[1:])


def run_script(command: str, tree: Path) -> NoReturn:
    """Run a sub-command as the script of a source tree, which has to be the tree of this package.

    Args:
        command: Name of the sub-command.
        tree: Root of the tree that the script lies in.
    """
    check_tree(tree)
    _run([command, *sys.argv[1:]])


def _run(words: Sequence[str]) -> NoReturn:
    is_short = words[:1] == ["forecast"]
    if is_short:
        # Looking for cycles among the objects that libraries make at import would take a quarter of its time.
        gc.disable()
    from .trainer.processes.entry import run_process

    run_process(lambda: main(words), at_once=is_short)


def _help() -> str:
    width = max(len(name) for name in COMMANDS) + 2
    return HELP.format(commands="\n".join(f"  {name:<{width}}{summary}" for name, (summary, _) in COMMANDS.items()))


def _unknown(word: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(word, COMMANDS, n=1)
    hint = f"; the nearest is {near[0]}" if near else ""
    return f"rainspark has no command {word!r}{hint}; there are {', '.join(COMMANDS)}"


def _complete() -> None:
    """Answer the shell's question for completions: names of commands here, everything else by the command's parser."""
    import argcomplete

    words = os.environ["COMP_LINE"].split()
    if len(words) > 1 and words[1] in COMMANDS:
        # Words before this one are skipped: the sub-command is the program that completes itself.
        os.environ["_ARGCOMPLETE"] = "2"
        COMMANDS[words[1]][1]([])
        return

    import argparse

    parser = argparse.ArgumentParser(prog="rainspark")
    parser.add_argument("command", choices=list(COMMANDS))
    argcomplete.autocomplete(parser)


def start() -> NoReturn:
    """Run the command of this process, and end the process with its exit code."""
    words = sys.argv[1:]
    _run(words)


if __name__ == "__main__":
    start()
