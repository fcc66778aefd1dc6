"""Complete the words of a training command with what a job knows, without importing the training code."""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import yaml

from ..trainer.settings.recipes import find_config
from .slurm import LaunchError

ENTRIES: Final = ("pretrain", "finetune")
DEFAULT_CONFIG: Final = "pretrain_resnet50"
SHARDS_VARIABLE: Final = "RAINSPARK_SHARDS"
RUN_VARIABLE: Final = "RAINSPARK_RUN"
_SBATCH_TEXT: Final = """
account array begin chdir constraint cores-per-socket cpus-per-gpu cpus-per-task dependency error exclude exclusive
export gpus gpus-per-node gpus-per-task gres hold job-name licenses mail-type mail-user mem mem-per-cpu mem-per-gpu
no-requeue nodelist nodes ntasks ntasks-per-gpu ntasks-per-node open-mode output parsable partition qos requeue
reservation signal switches test-only time time-min wait
"""
_LAUNCHER_TEXT: Final = """
container container-python container-runtime cpus dry-run entry folder modules mounts name python ranks-per-node
signal-s
"""
_OF_SBATCH: Final = frozenset(_SBATCH_TEXT.split())
_OF_LAUNCHER: Final = frozenset(_LAUNCHER_TEXT.split())


def split_words(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split a command line at its first `--` into our options and the training program's words."""
    border = argv.index("--") if "--" in argv else len(argv)
    return list(argv[:border]), list(argv[border + 1 :])


def with_config(words: Sequence[str], entry: str) -> list[str]:
    """Write a first word that is no option as `--config WORD`, and put the default one before words that name none.

    Raises:
        LaunchError: No configuration is named, and the program has no default; or a word is an option of sbatch's or of
            the launcher's.
    """
    _refuse_options_of_others(words)
    if words and not words[0].startswith("-"):
        return ["--config", words[0], *words[1:]]
    if configurations(words):
        return list(words)
    if entry != "pretrain":
        raise LaunchError(f"no configuration for {entry}: give one, for example finetune_small")
    return ["--config", DEFAULT_CONFIG, *words]


def configurations(words: Sequence[str]) -> list[str]:
    """List the configuration files that the words name, in their order; the later ones win."""
    pairs = [(word.partition("="), following) for word, following in pairwise([*words, ""])]
    return [value if equals else following for (name, equals, value), following in pairs if name == "--config"]


def _refuse_options_of_others(words: Sequence[str]) -> None:
    """Refuse what every rank would: options that stand after the script, or after `--`, and belong before it."""
    for word in words:
        name = word.partition("=")[0]
        # The training program itself has no option of one letter but -h.
        is_short = re.match("-[A-Za-z]", word) is not None and word != "-h"
        if is_short or (name.startswith("--") and name[2:] in _OF_SBATCH):
            raise LaunchError(
                f"{word} is no option of the training program; options of sbatch stand before the script, as in "
                f"`sbatch {word} ... launch/multinode.sh CONFIG`, those of rainspark submit before its --"
            )
        if name.startswith("--") and name[2:] in _OF_LAUNCHER:
            raise LaunchError(
                f"{name} is an option of the launcher, not of the training program: it stands after "
                "launch/multinode.sh and before the configuration, or before the -- of rainspark submit"
            )


def complete(words: Sequence[str], environment: Mapping[str, str], run_name: str) -> list[str]:
    """Add what the configuration does not say: shards from RAINSPARK_SHARDS, a run's folder of the job's own.

    Args:
        words: The training program's.
        environment: May hold RAINSPARK_SHARDS and RAINSPARK_RUN.
        run_name: Name of the folder below `runs/` where nothing else is said.

    Raises:
        LaunchError: Nobody says where the shards are, or a configuration file cannot be read.
    """
    complete_words = list(words)
    if setting(words, "data.shards") is None:
        shards = environment.get(SHARDS_VARIABLE)
        if not shards:
            raise LaunchError(
                f"data.shards is not set and {SHARDS_VARIABLE} is not either; `export {SHARDS_VARIABLE}=FOLDER_OR_URL` "
                "before submitting, or add --data.shards FOLDER_OR_URL after the configuration"
            )
        complete_words += ["--data.shards", shards]
    if setting(words, "run.dir") is None:
        complete_words += ["--run.dir", environment.get(RUN_VARIABLE) or f"runs/{run_name}"]
    return complete_words


def setting(words: Sequence[str], key: str) -> str | None:
    """Find a setting in the words and the files that they name; the last one wins.

    Raises:
        LaunchError: A configuration file cannot be read.
    """
    last: str | None = None
    position = 0
    while position < len(words):
        word, equals, value = words[position].partition("=")
        position += 1
        if word not in (f"--{key}", "--config"):
            continue

        # `--key VALUE`: the value is the next word.
        if not equals:
            if position == len(words):
                raise LaunchError(f"{word} stands at the end without a value")
            value = words[position]
            position += 1
        last = value if word != "--config" else _in_file(find_config(value), key) or last
    return last


def _in_file(path: Path, key: str) -> str | None:
    try:
        node: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LaunchError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise LaunchError(f"{path} is not YAML: {error}") from None

    # Down the sections of the file; one that is not there has no such setting.
    for name in key.split("."):
        node = node.get(name) if isinstance(node, dict) else None
    return None if node is None else str(node)
