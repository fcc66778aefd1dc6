"""The README's commands name what exists: targets, modules, files and settings."""

import importlib.util
import re
import shlex

import pytest

from rainspark.trainer.settings.experiment import FinetuneConfig, PretrainConfig
from rainspark.trainer.settings.parse import dotted_keys
from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
COMMANDS = [line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) >= 6


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_names_what_exists(command: str) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        targets = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
        assert all(re.search(rf"^{word}:", targets, re.MULTILINE) for word in words[1:])
    if "-m" in words:
        assert importlib.util.find_spec(words[words.index("-m") + 1]) is not None
    for word in words:
        if word.endswith((".py", ".yaml", ".sh")):
            assert (REPOSITORY / word).exists()


def test_every_setting_in_the_readme_exists() -> None:
    sources = "".join(
        path.read_text(encoding="utf-8")
        for room in ("data", "models", "trainer", "launch")
        for path in (REPOSITORY / room).rglob("*.py")
    )
    known = {
        *dotted_keys(PretrainConfig),
        *dotted_keys(FinetuneConfig),
        *re.findall(r'"--([a-z][a-z_.-]*)"', sources),
        # Settings of evaluate.py, options of the launchers and of the parser itself.
        *("split", "models", "report", "protocol", "num_processes", "num_cpu_threads_per_process"),
        *("help", "print_config"),
        # Commands of other tools.
        *("format", "gpus-per-node", "cpus-per-gpu", "signal", "batch", "partition"),
        # Options of the batch script.
        *re.findall(r"--([a-z-]+)", (REPOSITORY / "launch" / "multinode.sh").read_text(encoding="utf-8")),
    }
    asked = set(re.findall(r"--([a-z][a-z_-]*(?:\.[a-z_]+)*)", README))
    assert asked <= known, asked - known
    named = set(re.findall(r"`((?:data|run|optim|engine|tracking)\.[a-z_.]+)`", README))
    assert named <= {*dotted_keys(PretrainConfig), *dotted_keys(FinetuneConfig)}, named


def test_what_a_runs_folder_holds_is_what_the_readme_says() -> None:
    for name in ("config.yaml", "metrics.jsonl", "tensorboard/", "pictures/", "model.safetensors", "MANIFEST.json"):
        assert f"`{name}`" in README
