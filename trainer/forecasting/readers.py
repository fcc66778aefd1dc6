"""Which radars a run can forecast, how their files are read, and on which pixels it learned."""

import shlex
from dataclasses import dataclass

from ...data.errors import ConfigError, DataError
from ...data.frames import Grid
from ...data.json_checks import canonical, read_json
from ...data.sources.choice import source_of_recipe, source_of_words
from ...data.sources.knmi import KnmiSource
from ...data.sources.source import SYNTHETIC, Recipe, Source
from ..checkpoint.learned import Learned
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
        source: The product to forecast, of a run on several; None for all but storms in the format of one of them.
        reader: How its files are read, in the words of `rainspark pack` ("odim --zr 200,1.6"); None: as the run's
            archive was packed.

    Raises:
        DataError: The run has no such product, does not say how its files are read, or where its pixels lie.
        ConfigError: A reader that no sub-command of `rainspark pack` understands.
    """
    readers = _recorded(forecaster)
    if source is not None and source not in readers:
        raise DataError(
            f"{forecaster.name} did not learn from --source {source!r}; its sources: {'; '.join(map(repr, readers))}"
        )

    chosen = {name: values for name, values in readers.items() if source in (None, name)}
    # Storms in a radar's format were mixed in to learn from: that radar's files would be forecast as theirs too.
    formats = {name: learned.recipe.kind for name, learned in chosen.items() if learned and learned.recipe}
    if list(formats.values()).count(formats.get(SYNTHETIC, "")) > 1:
        del chosen[SYNTHETIC]
    if reader is not None and len(chosen) > 1:
        raise ConfigError(
            f"--reader {reader!r} reads one product, and {forecaster.name} learned from {len(chosen)}: choose with "
            f"--source ({'; '.join(map(repr, chosen))})"
        )
    return [_radar(forecaster, name, values, reader) for name, values in chosen.items()]


def _recorded(forecaster: RunForecaster) -> dict[str, Learned | None]:
    """Read what the run records of its sources; None for the source of a run from before that was recorded."""
    recorded = forecaster.data.get("readers")
    if recorded is None:
        return {str(forecaster.data.get("source")): None}
    try:
        return {name: read_json(Learned, canonical(values)) for name, values in recorded.items()}
    except (DataError, AttributeError) as error:
        raise DataError(
            f"{forecaster.path}: what it records of its sources cannot be read ({error}); another version wrote it, or "
            "it was changed"
        ) from error


def _radar(forecaster: RunForecaster, name: str, learned: Learned | None, reader: str | None) -> Radar:
    source = _source(forecaster, name, None if learned is None else learned.recipe, reader)
    if learned is None:
        return Radar(name=name, source=source, grid=None, part=forecaster.grid)
    cropped = None if learned.crop is None else learned.grid.cropped(learned.crop)
    return Radar(name=name, source=source, grid=learned.grid, part=cropped)


def _source(forecaster: RunForecaster, name: str, recipe: Recipe | None, reader: str | None) -> Source:
    if reader is not None:
        try:
            words = shlex.split(reader)
        except ValueError as error:
            raise ConfigError(f"--reader {reader!r}: {error}; expected words such as odim --zr 200,1.6") from error
        return source_of_words(words, forecaster.cadence_s)

    if recipe is not None:
        return source_of_recipe(recipe)
    # What was packed before archives recorded it: KNMI's files, or files like them.
    if name.startswith("KNMI RAD_") or name == SYNTHETIC:
        return KnmiSource()
    raise DataError(
        f"{forecaster.name} does not record how the files of {name!r} are read: its archive is of an older version; "
        "state it in the words of rainspark pack, such as --reader 'odim --quantity RATE'"
    )
