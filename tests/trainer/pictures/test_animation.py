"""Animations: exact colours after the palette, the radar first, and how long each frame stands."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageColor

from rainspark.data.shards.palette import DRY_COLOUR, MISSING_COLOUR, RAIN_COLOURS
from rainspark.trainer.pictures.animation import (
    FORECAST_MS,
    RADAR_MS,
    REST_MS,
    animation_frames,
    write_animation,
    write_gif,
)
from tests.trainer.cases import field, make_case, shares


def _read(path: Path) -> tuple[list[npt.NDArray[np.uint8]], list[int]]:
    pictures, durations_ms = [], []
    with Image.open(path) as picture:
        assert picture.format == "GIF"
        for number in range(getattr(picture, "n_frames", 1)):
            picture.seek(number)
            pictures.append(np.asarray(picture.convert("RGB")))
            durations_ms.append(int(picture.info["duration"]))
        assert picture.info.get("loop") == 0
    return pictures, durations_ms


def test_scale_colours_survive_exactly_among_thousands_of_others(tmp_path: Path) -> None:
    scale = [ImageColor.getrgb(colour) for colour in (DRY_COLOUR, *RAIN_COLOURS, MISSING_COLOUR)]
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, (60, 80, 3)).astype(np.uint8) for _ in range(3)]
    for number, picture in enumerate(pictures):
        for column, colour in enumerate(scale):
            picture[number * 3 : number * 3 + 2, column * 4 : column * 4 + 4] = colour
    write_gif(tmp_path / "a.gif", pictures, [100, 200, 300])
    read, durations_ms = _read(tmp_path / "a.gif")
    assert durations_ms == [100, 200, 300]
    for number, picture in enumerate(read):
        for column, colour in enumerate(scale):
            assert (picture[number * 3 : number * 3 + 2, column * 4 : column * 4 + 4] == colour).all()


def test_pictures_of_few_colours_are_kept_bit_for_bit(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    colours = random.integers(0, 256, (200, 3)).astype(np.uint8)
    pictures = [colours[random.integers(0, 200, (30, 40))] for _ in range(4)]
    write_gif(tmp_path / "a.gif", pictures, [50] * 4)
    read, _ = _read(tmp_path / "a.gif")
    for one, other in zip(read, pictures, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_radar_comes_first_then_each_models_forecast(tmp_path: Path) -> None:
    case = make_case()
    write_animation(tmp_path / "a.gif", case, "title")
    read, durations_ms = _read(tmp_path / "a.gif")
    assert durations_ms == [RADAR_MS, REST_MS, FORECAST_MS, FORECAST_MS, REST_MS]
    for picture in read[:2]:
        drawn = shares(picture)
        assert drawn["2"] > 0.3, "the radar in all three panels"
        assert max(drawn["5"], drawn["10"], drawn["20"]) < 0.02, "only the legend's"
    for picture in read[2:]:
        drawn = shares(picture)
        assert min(drawn["5"], drawn["10"], drawn["20"]) > 0.1
        assert drawn["2"] < 0.02
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]


def test_one_model_without_what_came_has_one_panel() -> None:
    alone = make_case(forecasts_mmh={"a": field(7)}, observed_mmh_thw=None, observed_valid_thw=None)
    pictures, _ = animation_frames(alone, "title")
    assert len(pictures) == 5
    assert shares(pictures[0])["2"] > 0.4
    assert shares(pictures[-1])["5"] > 0.4


@pytest.mark.parametrize("num_models", [1, 2, 3, 4, 6])
def test_any_number_of_models(num_models: int) -> None:
    case = make_case(forecasts_mmh={f"model {number}": field(7) for number in range(num_models)})
    pictures, _ = animation_frames(case, "title")
    assert shares(pictures[-1])["5"] > 0.05 * num_models
