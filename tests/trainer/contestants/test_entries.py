"""The words of `--models`: every kind of model, options, and what cannot be."""

from pathlib import Path

import pytest

from rainspark.data.errors import ConfigError
from rainspark.models.baselines.methods import Anvil, LagrangianProbability, Linda, Sprog, Steps
from rainspark.trainer.contestants.entries import read_entries


def test_methods_are_read_with_their_options() -> None:
    words = ["sprog", "steps:members=4,levels=5", "b=steps:members=8", "anvil:order=2", "l=linda:members=2"]
    entries = read_entries([*words, "lagrangian_probability:slope=0.5", "linda"])
    assert [entry.name for entry in entries] == [
        *("sprog", "steps", "b", "anvil", "l", "lagrangian_probability", "linda")
    ]
    assert [entry.method for entry in entries] == [
        *(Sprog(), Steps(members=4, levels=5), Steps(members=8), Anvil(order=2), Linda(members=2)),
        *(LagrangianProbability(slope=0.5), Linda()),
    ]
    assert [entry.kind for entry in entries[:3]] == ["sprog", "steps", "steps"]


def test_folders_and_classes_are_told_from_baselines(tmp_path: Path) -> None:
    for name in ("forecasts", "run", "checkpoint", "empty"):
        (tmp_path / name).mkdir()
    for name in ("forecasts/a.nc", "run/a.nc", "run/config.yaml", "checkpoint/a.nc", "checkpoint/model.safetensors"):
        (tmp_path / name).write_bytes(b"")
    words = [f"x={tmp_path / name}" for name in ("forecasts", "run", "checkpoint", "empty")]
    assert [read_entries([word])[0].kind for word in words] == ["netcdf", "run", "run", "run"]
    (python,) = read_entries(["mine=package.module:Class"])
    assert (python.name, python.kind, python.python, python.model) == (
        *("mine", "python", "package.module:Class", "package.module:Class"),
    )
    assert read_entries(["package.module:Class"])[0].name == "Class"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["steps:member=4"], r"steps has no option 'member'; it has members, levels; the nearest one is members$"),
        (["steps:4"], r"steps has no option '4'; it has members, levels$"),
        (["steps:members=four"], "steps:members=four: members=four: expected a whole number"),
        (["steps:members=4.5"], "expected a whole number"),
        (["lagrangian_probability:slope="], "slope=: expected a number"),
        (["steps:members=0"], "steps:members=0: members is 0; expected 1 to 1000"),
        (["steps:members=4,members=5"], "members is stated twice"),
        (["persistence:members=4"], "persistence has no options; leave 'members=4' away"),
        (["steps:members=4", "steps:members=8"], r"two of them are called 'steps' .* NAME=steps:members=8"),
        (["sprog=steps"], "'sprog' is the name of a baseline, and steps is not that one"),
        (["step:members=4"], "neither the folder of a run nor a baseline .*; the nearest baseline is steps"),
        (["s-prog"], "the nearest baseline is sprog"),
        (["no.module:"], "neither the folder of a run nor a baseline"),
        (["a=steps", "a mean=persistence"], "'a mean' is what the mean of a is called"),
        (["a p>0.3=persistence", "a=lagrangian_probability"], "'a p>0.3' is what .* of a is called"),
    ],
)
def test_slips_are_named_with_what_was_meant(words: list[str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        read_entries(words)
