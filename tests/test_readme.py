"""The READMEs: every command parses as it stands, files and links exist, settings and commands are named rightly."""

import importlib
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from rainspark.__main__ import COMMANDS
from rainspark.data.exit_codes import ExitCode
from rainspark.trainer.settings.evaluation import EvaluateConfig, parse_evaluation
from rainspark.trainer.settings.experiment import FinetuneConfig, PretrainConfig
from rainspark.trainer.settings.parse import dotted_keys, parse_config
from tests.conftest import REPOSITORY

READMES = sorted(
    path for path in (REPOSITORY / "README.md", *REPOSITORY.glob("*/README.md")) if path.parent.name != "demo"
)
TEXTS = {path.relative_to(REPOSITORY).as_posix(): path.read_text(encoding="utf-8") for path in READMES}
COMMAND_LINES = [
    pytest.param(line.split("  #")[0].strip(), id=f"{name}: {line[:60]}")
    for name, text in TEXTS.items()
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip() and not line.startswith("#")
]
TRAINING = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}
LAUNCHER_OPTIONS = {"--num_processes", "--num_cpu_threads_per_process", "--multi_gpu"}
KEYS = {*dotted_keys(PretrainConfig), *dotted_keys(FinetuneConfig), *dotted_keys(EvaluateConfig)}


def test_there_are_readmes_and_commands_to_check() -> None:
    assert {"README.md", "data/README.md", "models/README.md", "trainer/README.md", "configs/README.md"} <= set(TEXTS)
    assert len(COMMAND_LINES) >= 30


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_a_command_parses_as_it_stands(line: str) -> None:
    words = shlex.split(line)
    match words:
        case ["make", *targets]:
            makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
            assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
        case ["rainspark", name, *arguments]:
            parse_command(name, arguments)
        case ["accelerate", "launch", *rest]:
            start = next(place for place, word in enumerate(rest) if word.endswith(".py"))
            assert {word for word in rest[:start] if word.startswith("--")} <= LAUNCHER_OPTIONS
            assert (REPOSITORY / rest[start]).is_file()
            parse_command(Path(rest[start]).stem, rest[start + 1 :])
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module) is not None
        case _:
            files = [word for word in words if word.endswith((".py", ".sh", ".yaml")) and "*" not in word]
            assert all((REPOSITORY / file).exists() for file in files)


def parse_command(name: str, arguments: list[str]) -> None:
    """Parse a command line as the command does; wrong ones raise ConfigError or SystemExit."""
    assert name in COMMANDS
    if name in TRAINING:
        parse_config(arguments, TRAINING[name], prog=name)
    elif name == "evaluate":
        parse_evaluation(arguments)
    elif name in ("doctor", "submit"):
        own = arguments[: arguments.index("--")] if "--" in arguments else arguments
        parser = importlib.import_module(f"rainspark.{COMMANDS[name].module}").make_parser()
        _, rest = parser.parse_known_args(own)
        assert {word[2:] for word in rest if word.startswith("--")} <= KEYS | {"config"}
    else:
        first = ["inspect"] if name == "inspect" else []
        module = importlib.import_module(f"rainspark.{COMMANDS[name].module}")
        # Several sources of one archive stand between +; each parses like the first.
        module.make_parser().parse_args([*first, *arguments[: (*arguments, "+").index("+")]])


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_to_files_and_headings(name: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", TEXTS[name]):
        file, _, heading = target.partition("#")
        path = (REPOSITORY / name).parent / file
        assert path.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^a-z0-9 -]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("name", TEXTS)
def test_settings_and_commands_that_are_named_exist(name: str) -> None:
    text = TEXTS[name]
    settings = set(re.findall(r"`(?:--)?((?:data|run|optim|engine|tracking|model)\.[a-z_.]+)\b", text))
    settings -= {"model.safetensors"}
    assert settings <= KEYS, settings - KEYS
    assert set(re.findall(r"`rainspark ([a-z]+)", text)) <= set(COMMANDS)


def test_the_front_page_stands_on_two_screens() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= 120


def test_what_a_runs_folder_holds_is_what_the_readme_says() -> None:
    for name in ("config.yaml", "metrics.jsonl", "tensorboard/", "pictures/", "model.safetensors", "MANIFEST.json"):
        assert f"`{name}`" in TEXTS["trainer/README.md"]


def test_the_table_of_exit_codes_is_whole() -> None:
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", TEXTS["trainer/README.md"], re.MULTILINE)}
    assert codes == {int(code) for code in ExitCode}
