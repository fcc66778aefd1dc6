"""The one command: sub-commands, help without torch, recipes by name, completion, and scripts of their own tree."""

import gc
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rainspark.__main__ import COMMANDS, _lean_imports, main
from rainspark.data.exit_codes import ExitCode
from rainspark.trainer.settings.experiment import FinetuneConfig, PretrainConfig
from rainspark.trainer.settings.help import help_text, type_words
from rainspark.trainer.settings.parse import dotted_keys, parse_config
from rainspark.trainer.settings.recipes import recipe_names
from tests.conftest import REPOSITORY
from tests.data.radar_files import write_series

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


def test_a_recipe_goes_before_a_folder_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # `make demo` keeps its storms and runs in a folder of that name.
    monkeypatch.chdir(tmp_path)
    Path("demo").mkdir()
    path = REPOSITORY / "configs" / "demo.yaml"
    by_name = parse_config([*NEEDED, "--config", "demo"], PretrainConfig, prog="x")
    assert by_name == parse_config([*NEEDED, f"--config={path}"], PretrainConfig, prog="x")


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


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small archive under a name that ASCII has not."""
    folder = tmp_path_factory.mktemp("packed")
    write_series(folder / "radar", range(6))
    assert main(["pack", "knmi", str(folder / "radar"), "--out", str(folder / "wärme"), "--window", "2"]) == 0
    return folder / "wärme"


@pytest.mark.parametrize("threads", ["4,2", "", "many", "0", "-3", "9" * 30])
def test_any_setting_of_openmp_is_survived(archive: Path, threads: str) -> None:
    done = run("-m", "rainspark", "count", str(archive), OMP_NUM_THREADS=threads)
    assert (done.returncode, done.stdout.count("windows")) == (0, 2)


@pytest.mark.parametrize(
    "more",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
    ids=["ascii", "locale C"],
)
def test_an_output_that_lacks_a_letter_gets_its_escape(archive: Path, more: dict[str, str]) -> None:
    done = run("-m", "rainspark", "reshard", str(archive), "--out", str(archive.parent / "ü"), folder=None, **more)
    # In the locale C the name comes as bytes that are no letters.
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0)
    assert re.fullmatch(rf"packed        '?{archive.parent}/(\\xfc|\\udcc3\\udcbc)'?", done.stdout.splitlines()[-1])
    wrong = run("-m", "rainspark", "count", str(archive.parent / "ö"), folder=None, **more)
    assert wrong.returncode == ExitCode.DATA
    assert re.match(rf"error: {archive.parent}/(\\xf6|\\udcc3\\udcb6)/index.json is missing", wrong.stderr)


@pytest.mark.parametrize(
    ("command", "code"), [("count {}", 0), ("count {}.", 4), ("count {} --nonsense", 3), ("pretrain --help data", 0)]
)
@pytest.mark.parametrize("ends", ["| true", ">&-", ">&- 2>&-", "2>&1 | true"])
def test_an_output_that_nobody_reads_changes_no_exit_code(archive: Path, command: str, code: int, ends: str) -> None:
    line = f"{sys.executable} -m rainspark {command.format(archive)} {ends}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


@pytest.mark.parametrize("command", ["count {}", "--help", "count --help"])
def test_an_output_that_cannot_be_written_is_an_error(archive: Path, command: str) -> None:
    words = command.format(archive).split()
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "rainspark", *words], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert done.returncode == ExitCode.DATA
    assert done.stderr == "error: standard output cannot be written: No space left on device\n"


@pytest.mark.parametrize(
    "words",
    [
        ["storms", "--seed", "9" * 5000, "--out", "x"],
        ["pack", "knmi", "x", "--out", "y", "--shard-mb", "9" * 24],
        ["pack", "knmi", "x", "--out", "y", "--cadence-min", "1e400"],
        ["count", "x", "--min-rain-fraction", "nan"],
        ["reshard", "x", "--out", "y", "--window", "1e3"],
        ["fetch", "knmi", "--out", "y", "--patience-min=inf"],
        ["doctor", "--device-memory-gb", "1e400"],
        ["submit", "pretrain", "--time", "1:00", "--nodes", "9" * 5000],
        ["evaluate", "--limit", "9" * 5000],
    ],
    ids=lambda words: words[0],
)
def test_huge_numbers_are_refused_by_every_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == ExitCode.CONFIG
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert re.search(r"--[a-z-]+[: ]", message)
    assert "1000000000" in message or "9223372036854775808" in message


@pytest.mark.parametrize("command", ["count", "reshard --out ~/new", "inspect", "checkpoint list"])
def test_a_tilde_in_the_place_of_an_archive_is_the_home_folder(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main([*command.split(), "~/none"]) == ExitCode.DATA
    assert f"{tmp_path}/none" in capsys.readouterr().err


def test_lean_imports_change_nothing_that_comes_after(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "wandb", raising=False)

    def fail() -> None:
        with _lean_imports():
            assert not gc.isenabled()
            importlib.import_module("wandb")

    with pytest.raises(ModuleNotFoundError):
        fail()
    assert gc.isenabled()
    assert "wandb" not in sys.modules


def test_an_interruption_after_the_imports_prints_nothing_of_libraries() -> None:
    """One of them lists all its objects that are left when the interpreter ends."""
    code = (
        "import sys\nfrom rainspark.__main__ import _lean_imports\n"
        "with _lean_imports():\n    import rainspark.trainer.training.pretraining\nsys.exit(130)"
    )
    done = run("-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
