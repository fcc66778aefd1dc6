"""Which radars a run can forecast, how their files are read, and on which pixels it learned."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...data.errors import ConfigError, DataError
from ...data.frames import Grid, parse_crop
from ...data.sources.choice import source_of_recipe, source_of_words
from ...data.sources.knmi import KnmiSource
from ...data.sources.source import SYNTHETIC, Recipe, Source
from .forecaster import RunForecaster


@dataclass(frozen=True, kw_only=True)
class Radar:
    """One radar that a run learned from.

    Attributes:
        name: The product's name.
        source: What reads its files.
        grid: Its whole grid when the run's archive was packed; None where the run does not say.
        part: The part of it that the run learned on; None for tiles.
    """

    name: str
    source: Source
    grid: Grid | None
    part: Grid | None

    @property
    def pixels(self) -> Grid:
        """Give a grid whose pixels are the run's, wherever it begins and ends."""
        pixels = self.part or self.grid
        assert pixels is not None
        return pixels


def radars_of(forecaster: RunForecaster, *, source: str | None = None, reader: str | None = None) -> list[Radar]:
    """List the radars that a run can forecast.

    Args:
        forecaster: The run.
        source: The product to forecast, of a run on several; None for all.
        reader: How its files are read, in the words of `rainspark pack` ("odim --zr 200,1.6"); None: as the run's
            archive was packed.

    Raises:
        DataError: The run has no such product, does not say how its files are read, or where its pixels lie.
        ConfigError: A reader that no sub-command of `rainspark pack` understands.
    """
    data = forecaster.data
    readers: Mapping[str, Any] = data.get("readers") or {str(data.get("source")): {}}
    if source is not None and source not in readers:
        raise DataError(
            f"{forecaster.name} did not learn from --source {source!r}; its sources: {'; '.join(map(repr, readers))}"
        )

    chosen = {name: values for name, values in readers.items() if source in (None, name)}
    if reader is not None and len(chosen) > 1:
        raise ConfigError(
            f"--reader {reader!r} reads one product, and {forecaster.name} learned from {len(chosen)}: choose with "
            f"--source ({'; '.join(map(repr, chosen))})"
        )
    return [_radar(forecaster, name, values, reader) for name, values in chosen.items()]


def _radar(forecaster: RunForecaster, name: str, values: Mapping[str, Any], reader: str | None) -> Radar:
    """Put together what a run records of a product; runs from before recipes were recorded know their part alone."""
    grid = Grid.from_json(values["grid"]) if values.get("grid") is not None else None
    if grid is None:
        part: Grid | None = forecaster.grid
    else:
        part = grid.cropped(parse_crop(values["crop"])) if values.get("crop") is not None else None
    return Radar(name=name, source=_source(forecaster, name, values, reader), grid=grid, part=part)


def _source(forecaster: RunForecaster, name: str, values: Mapping[str, Any], reader: str | None) -> Source:
    cadence_s = forecaster.cadence_s
    if reader is not None:
        try:
            words = shlex.split(reader)
        except ValueError as error:
            raise ConfigError(f"--reader {reader!r}: {error}; expected words such as odim --zr 200,1.6") from error
        return source_of_words(words, cadence_s)

    recipe = values.get("recipe")
    if recipe is not None:
        return source_of_recipe(Recipe(kind=str(recipe.get("kind")), options=dict(recipe.get("options") or {})))
    # What was packed before archives recorded it: KNMI's files, or files like them.
    if name.startswith("KNMI RAD_") or name == SYNTHETIC:
        return KnmiSource()
    raise DataError(
        f"{forecaster.name} does not record how the files of {name!r} are read: its archive is of an older version; "
        "state it in the words of rainspark pack, such as --reader 'odim --quantity RATE'"
    )
