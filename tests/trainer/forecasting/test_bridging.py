"""Bridged frames: rain where it would have been."""

import numpy as np
import pytest

from rainspark.trainer.forecasting.bridging import Field, bridge

SIZE = 96


def storm(number: int) -> Field:
    """Make a round storm that moves 3 pixels a frame to the right and 2 down, and a corner that no radar sees."""
    rows, cols = np.mgrid[:SIZE, :SIZE]
    square = (rows - 30 - 2 * number) ** 2 + (cols - 25 - 3 * number) ** 2
    valid = (rows + cols) > 20
    rain_mmh: np.ndarray = np.where(valid, 20 * np.exp(-square / (2 * 9.0**2)), 0)
    return rain_mmh.astype(np.float32), valid


@pytest.mark.parametrize("missing", [[4], [3, 4], [0], [0, 1], [9], [8, 9], [0, 5, 9]])
def test_rain_is_carried_to_where_it_would_have_been(missing: list[int]) -> None:
    truth = [storm(number) for number in range(10)]
    bridged = bridge([None if number in missing else field for number, field in enumerate(truth)])
    for number, ((rain_mmh_hw, valid_hw), (expected_mmh_hw, _)) in enumerate(zip(bridged, truth, strict=True)):
        if number not in missing:
            np.testing.assert_array_equal(rain_mmh_hw, expected_mmh_hw)
            continue
        error = np.abs(rain_mmh_hw - expected_mmh_hw)[valid_hw].max()
        # Persistence of the nearest frame is off by more than 4 mm/h a frame.
        nearest = min((abs(number - other), other) for other in range(10) if other not in missing)[1]
        persisted = np.abs(truth[nearest][0] - expected_mmh_hw)[valid_hw].max()
        assert persisted > 4
        assert error < persisted / 3
        assert (rain_mmh_hw[~valid_hw] == 0).all()


def test_what_comes_from_outside_or_from_missing_pixels_is_missing() -> None:
    truth = [storm(number) for number in range(4)]
    (_, valid_hw) = bridge([*truth, None])[-1]
    # The unseen corner moved on, and a strip at the left and upper edges was outside.
    assert not valid_hw[:2].any()
    assert not valid_hw[:, :2].any()
    assert valid_hw[10:, 20:].all()


def test_dry_frames_stay_dry() -> None:
    dry = np.zeros((SIZE, SIZE), np.float32), np.ones((SIZE, SIZE), bool)
    rain_mmh_hw, valid_hw = bridge([dry, None, dry])[1]
    assert (rain_mmh_hw == 0).all()
    assert valid_hw.all()
