"""The one command: sub-commands, help without torch, recipes by name, completion, and scripts of their own tree."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rainspark.__main__ import COMMANDS, main
from rainspark.data.exit_codes import ExitCode
from rainspark.trainer.settings.experiment import FinetuneConfig, PretrainConfig
from rainspark.trainer.settings.help import help_text, type_words
from rainspark.trainer.settings.parse import dotted_keys, parse_config
from rainspark.trainer.settings.recipes import recipe_names
from tests.conftest import REPOSITORY

SCRIPTS = ("pretrain", "finetune", "evaluate", "forecast")
WIDTH, TWO_SCREENS = 120, 80
NEEDED = ["--data.shards", "s", "--run.dir", "r"]

HELP_WITHOUT_TORCH = """
import contextlib, sys
from rainspark.__main__ import main
with contextlib.suppress(SystemExit):
    main(sys.argv[1:])
sys.stderr.write(str(sorted({"torch", "matplotlib", "timm"} & set(sys.modules))))
"""


def run(*words: str, folder: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env={**os.environ, **more}, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)], ids=lambda words: " ".join(words) or "all")
def test_help_stands_on_two_screens_and_comes_without_torch(command: tuple[str, ...], tmp_path: Path) -> None:
    done = run("-c", HELP_WITHOUT_TORCH, *command, "--help", folder=tmp_path)
    assert done.stderr == "[]"
    lines = done.stdout.splitlines()
    assert lines[0].startswith("usage: rainspark")
    assert len(lines) <= TWO_SCREENS
    assert max(map(len, lines)) <= WIDTH


def test_the_list_names_every_command_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"  {name} " in text
        assert command.summary in text


def test_an_unknown_command_is_named_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrian"]) == ExitCode.CONFIG
    assert capsys.readouterr().err.startswith("settings: rainspark has no command 'pretrian'; the nearest is pretrain;")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_command_line_ends_with_the_code_of_settings(command: str, tmp_path: Path) -> None:
    done = run("-m", "rainspark", command, "--nonsense", folder=tmp_path)
    assert done.returncode == ExitCode.CONFIG
    # The doctor lists findings; what is wrong with its settings is the first.
    lines = done.stdout.splitlines()[:1] if command == "doctor" else done.stderr.splitlines()
    (line,) = lines
    assert line.removeprefix("FAIL  ").startswith("settings: ")


@pytest.mark.parametrize("config", [PretrainConfig, FinetuneConfig])
def test_every_setting_stands_in_the_overview_and_in_its_group(config: type) -> None:
    overview = help_text(config, "x", None)
    for key in dotted_keys(config):
        group, _, name = key.rpartition(".")
        assert f"{name} (" in overview or f"--{key}" in overview
        in_full = help_text(config, "x", group or key)
        assert f"--{key}  " in in_full


def test_help_of_one_setting_says_its_type_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_config(["--help", "model.loss"], PretrainConfig, prog="x")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("--model.loss  one of masked, all; default masked\n")
    assert type_words(tuple[float, float]) == "list of 2 float"
    assert type_words(dict[str, float] | None) == "table of text to float or null"


def test_help_of_what_there_is_not_names_the_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--help", "dat"]) == ExitCode.CONFIG
    assert "--help dat: there is no such group or setting; groups are run, data, model" in capsys.readouterr().err


def test_a_recipe_is_found_by_name_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    by_name = parse_config([*NEEDED, "--config", "pretrain_resnet50"], PretrainConfig, prog="x")
    path = REPOSITORY / "configs" / "pretrain_resnet50.yaml"
    assert by_name == parse_config([*NEEDED, f"--config={path}"], PretrainConfig, prog="x")


def test_a_file_goes_before_a_recipe_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo").write_text("run: {steps: 77}\n")
    assert parse_config([*NEEDED, "--config", "demo"], PretrainConfig, prog="x").run.steps == 77


def test_a_mistyped_recipe_is_named_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--config", "pretrain_resnet5"]) == ExitCode.CONFIG
    message = capsys.readouterr().err
    assert "no such recipe; the nearest recipe is pretrain_resnet50" in message
    assert all(name in message for name in recipe_names())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("rainspark pre", ["pretrain"]),
        ("rainspark pretrain --model.enc", ["--model.encoder"]),
        ("rainspark evaluate --thr", ["--thresholds"]),
        ("rainspark forecast --no", ["--no-pictures"]),
        ("rainspark pack kn", ["knmi"]),
        ("rainspark checkpoint ve", ["verify"]),
    ],
)
def test_tab_completes(line: str, expected: list[str], tmp_path: Path) -> None:
    answers = tmp_path / "answers"
    asked = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answers),
        "_ARGCOMPLETE_IFS": "\n",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
    }
    run("-m", "rainspark", folder=tmp_path, **asked)
    assert sorted(word.strip() for word in answers.read_text().splitlines()) == expected


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_answers_as_its_command_does(script: str, tmp_path: Path) -> None:
    by_script = run(str(REPOSITORY / "trainer" / f"{script}.py"), "--help", folder=tmp_path)
    by_command = run("-m", "rainspark", script, "--help", folder=tmp_path)
    assert by_script.stdout == by_command.stdout
    assert (by_script.returncode, by_command.returncode) == (0, 0)


@pytest.fixture
def foreign_folder(tmp_path: Path) -> Path:
    """A folder that holds packages of the names of our rooms, as a thesis folder does."""
    for name in ("data", "models", "trainer", "launch"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('somebody else')\n")
    return tmp_path


def test_a_users_own_data_and_models_are_not_taken_for_ours(foreign_folder: Path) -> None:
    for words in (["-c", "import rainspark.data.shards.index"], ["-m", "rainspark.data.count", "--help"]):
        done = run(*words, folder=foreign_folder)
        assert (done.returncode, done.stderr) == (0, "")
    script = run(str(REPOSITORY / "trainer" / "pretrain.py"), "--help", folder=foreign_folder)
    assert script.returncode == 0


def test_a_script_of_another_tree_names_both_trees(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    (clone / "trainer").mkdir(parents=True)
    shutil.copy(REPOSITORY / "trainer" / "pretrain.py", clone / "trainer")
    done = run(str(clone / "trainer" / "pretrain.py"), "--help", folder=tmp_path)
    assert done.returncode == ExitCode.CONFIG
    assert done.stdout == ""
    assert str(clone) in done.stderr
    assert str(REPOSITORY) in done.stderr
