"""The reconstruction picture: right colours in right places, whatever the shape, and never half a file."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageColor

from rainspark.data.shards.palette import DRY_COLOUR, MASKED_COLOUR, MISSING_COLOUR, RAIN_COLOURS, RAIN_LEVELS_MMH, rgb
from rainspark.trainer.pictures.panels import reconstruction_picture
from tests.trainer.cases import read_picture, shares


def _arguments(frames: int = 2, rows: int = 64, cols: int = 96, **changes: Any) -> dict[str, Any]:
    shape = (frames, rows, cols)
    visible_hw = np.zeros((rows // 32, cols // 32), dtype=bool)
    visible_hw[0, 0] = True
    rain = {"radar_mmh_thw": np.full(shape, 3, np.float32), "reconstruction_mmh_thw": np.full(shape, 30, np.float32)}
    titles = {"frame_titles": [f"frame {index}" for index in range(frames)], "title": "A picture"}
    return {**rain, **titles, "visible_hw": visible_hw, "valid_thw": None} | changes


def _drawn(folder: Path, **changes: Any) -> dict[str, float]:
    """Draw a picture, and give the share of its pixels that have each colour."""
    reconstruction_picture(folder / "a.png", **_arguments(**changes))
    return shares(read_picture(folder / "a.png"))


def test_rain_classes_begin_at_their_bounds() -> None:
    for dtype in (np.float32, np.float64):
        levels: npt.NDArray[np.floating] = np.asarray(RAIN_LEVELS_MMH, dtype=dtype)
        expected = [ImageColor.getrgb(colour) for colour in RAIN_COLOURS]
        assert rgb(levels).tolist() == [list(colour) for colour in expected]
        below = np.nextafter(levels, dtype(0))
        assert rgb(below).tolist() == [list(ImageColor.getrgb(DRY_COLOUR)), *(list(colour) for colour in expected[:-1])]
    edge = np.array([-1.0, 0.0, np.nan, np.inf, 5.0])
    colours = [DRY_COLOUR, DRY_COLOUR, MISSING_COLOUR, RAIN_COLOURS[-1], MISSING_COLOUR]
    missing = np.array([False, False, False, False, True])
    assert [tuple(colour) for colour in rgb(edge, missing)] == [ImageColor.getrgb(colour) for colour in colours]
    with pytest.raises(ValueError, match=r"missing has shape \(4,\), expected \(5,\)"):
        rgb(edge, missing[:4])


def _lightness(colour: tuple[int, ...]) -> float:
    """CIE L* of an sRGB colour (IEC 61966-2-1, CIE 15:2004), 0 to 100."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in colour)]
    luminance = float(np.dot([0.2126, 0.7152, 0.0722], linear))
    return 116 * luminance ** (1 / 3) - 16


def test_neighbouring_classes_differ_in_lightness() -> None:
    """Colour blindness spares lightness: neighbours are told apart by it, whatever the eye."""
    lightness = [_lightness(ImageColor.getrgb(colour)) for colour in (DRY_COLOUR, *RAIN_COLOURS)]
    assert min(abs(one - other) for one, other in pairwise(lightness)) > 6
    neutral = [_lightness(ImageColor.getrgb(colour)) for colour in (DRY_COLOUR, MISSING_COLOUR, MASKED_COLOUR)]
    assert min(one - other for one, other in pairwise(neutral)) > 20


def test_columns_show_the_radar_the_visible_part_and_the_fill_in(tmp_path: Path) -> None:
    drawn = _drawn(tmp_path)
    # Of 6 patches 1 is visible: radar in 6 + 1 + 1 of 18, masked in 5, the network in 5.
    panels = drawn["2"] + drawn["masked"] + drawn["20"]
    assert panels > 0.5
    assert drawn["2"] / panels == pytest.approx(8 / 18, rel=0.06)
    assert drawn["masked"] / panels == pytest.approx(5 / 18, rel=0.06)
    assert drawn["20"] / panels == pytest.approx(5 / 18, rel=0.06)


def test_missing_is_grey_in_every_column_and_named_only_where_it_is(tmp_path: Path) -> None:
    valid = np.ones((2, 64, 96), dtype=bool)
    assert _drawn(tmp_path, valid_thw=valid)["missing"] < 1e-3
    drawn = _drawn(tmp_path, valid_thw=~valid)
    assert drawn["missing"] > 0.2
    assert max(drawn["2"], drawn["20"]) < 0.02, "only the legend's"
    radar: npt.NDArray[np.float32] = np.full((2, 64, 96), np.nan, dtype=np.float32)
    assert _drawn(tmp_path, radar_mmh_thw=radar) == drawn


@pytest.mark.parametrize(("frames", "rows", "cols"), [(1, 32, 32), (1, 64, 128), (5, 128, 64), (12, 96, 96)])
def test_any_number_of_frames_and_any_shape(tmp_path: Path, frames: int, rows: int, cols: int) -> None:
    reconstruction_picture(tmp_path / "a.png", **_arguments(frames, rows, cols))
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG"
        assert picture.height > frames * picture.width / 3 * rows / cols * 0.8
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_picture_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    name = f"{'a' * 248}.png"  # no room for the ending of an unfinished file
    (tmp_path / name).write_bytes(b"old")
    with pytest.raises(OSError, match="partial"):
        reconstruction_picture(tmp_path / name, **_arguments())
    assert (tmp_path / name).read_bytes() == b"old"
