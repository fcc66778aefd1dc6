"""Kinds of source: the options of each, and recipes that give the same source back."""

from collections.abc import Sequence

import pytest

from rainspark.data.errors import ConfigError, DataError
from rainspark.data.sources.choice import SOURCES, recipe_of, source_of_recipe, source_of_words
from rainspark.data.sources.source import Recipe

WORDS: dict[str, Sequence[str]] = {
    "knmi": ("knmi",),
    "smaat": ("smaat", "--group", "test", "--skip-gaps"),
    "odim": ("odim", "--quantity", "DBZH", "--zr", "223,1.53", "--name", "Finland", "--licence", "CC BY 4.0"),
    "xarray": (
        *("xarray", "--variable", "RR", "--engine", "h5netcdf", "--units", "mm", "--period-min", "7.5"),
        *("--scale=0.5,-32", "--missing", "255", "--missing=-9.5", "--zr", "223,1.53", "--name", "Italy"),
        *("--licence", "CC-BY-4.0", "--time-pattern", "a_%Y%m%d%H%M*", "--time-pattern", "%y%j_%H%M"),
    ),
    "importer": (
        *("importer", "--importer", "mch_gif", "--time-pattern", "AQC%y%j%H%M?_00005.801.gif"),
        *("--argument", "product=AQC", "--argument", "unit=mm", "--argument", "accutime=5"),
    ),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_recipe_gives_the_same_source_back(kind: str) -> None:
    source = source_of_words(WORDS[kind], 600)
    recipe = recipe_of(source)
    assert recipe.kind == source.kind == kind
    again = source_of_recipe(recipe)
    assert again == source
    assert again.settings == source.settings
    assert recipe_of(again) == recipe


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe(kind="pickle"), "the recipe's kind of source is pickle; expected one of knmi, smaat, odim"),
        (Recipe(kind="odim", options={"quantity": 7}), "a source odim: key quantity is 7; .*state it with --reader"),
        (Recipe(kind="odim", options={"run": "rm"}), "a source odim: key run is unknown"),
        (Recipe(kind="importer", options={"importer": "x"}), "a source importer: key time_patterns is missing"),
    ],
)
def test_a_recipe_of_a_stranger_is_checked(recipe: Recipe, message: str) -> None:
    with pytest.raises(DataError, match=message):
        source_of_recipe(recipe)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["odm"], "argument command: invalid choice: 'odm'"),
        (["odim", "--zr", "7"], "--reader 'odim --zr 7': --zr 7: expected A,B"),
        (["odim", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["importer"], "the following arguments are required: --importer, --time-pattern"),
    ],
)
def test_a_reader_that_no_sub_command_understands_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        source_of_words(words, 300)
