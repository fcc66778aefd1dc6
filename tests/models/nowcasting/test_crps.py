"""The ensemble's loss against plain loops and scoringrules."""

import numpy as np
import pytest
import scoringrules
import torch

from rainspark.models.nowcasting.crps import SQUARES_PX, almost_fair_crps, ensemble_loss


def make(members: int = 3, side: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    # Rounded, so that members tie with each other and with the radar.
    return (
        torch.from_numpy(rng.gamma(0.5, 2, (2, members, 3, side, side)).round(1)),
        torch.from_numpy(rng.gamma(0.5, 2, (2, 3, side, side)).round(1)),
    )


@pytest.mark.parametrize("members", [2, 5])
def test_between_the_fair_and_the_plain_crps_of_scoringrules(members: int) -> None:
    forecast, target = make(members)
    last = forecast.movedim(1, -1).numpy()
    fair = scoringrules.crps_ensemble(target.numpy(), last, estimator="fair")
    plain = scoringrules.crps_ensemble(target.numpy(), last, estimator="nrg")
    np.testing.assert_allclose(almost_fair_crps(forecast, target, 1.0).numpy(), fair, atol=1e-12)
    np.testing.assert_allclose(almost_fair_crps(forecast, target, 0.0).numpy(), plain, atol=1e-12)
    mixed = almost_fair_crps(forecast, target, 0.95).numpy()
    np.testing.assert_allclose(mixed, 0.95 * fair + 0.05 * plain, atol=1e-12)


@pytest.mark.parametrize("missing", [False, True])
def test_the_loss_is_that_of_plain_loops(missing: bool) -> None:
    forecast, target = make(2, side=36)
    valid = None
    if missing:
        valid = torch.ones_like(target, dtype=torch.bool)
        valid[0, 0, 3:9, 5] = False
        valid[1] = False
        # What stands there does not matter.
        target = torch.where(valid, target, torch.nan)
    expected = []
    for window in range(2):
        total = 0.0
        for side in SQUARES_PX:
            values = []
            for lead in range(3):
                for row in range(0, 36 - side + 1, side):
                    for col in range(0, 36 - side + 1, side):
                        square = np.s_[row : row + side, col : col + side]
                        if valid is not None and not valid[window, lead][square].all():
                            continue
                        first, second = (float(forecast[window, m, lead][square].mean()) for m in (0, 1))
                        seen = float(target[window, lead][square].mean())
                        error = (abs(first - seen) + abs(second - seen)) / 2
                        values.append(error - (1 - 0.05 / 2) * abs(first - second) / 2)
            total += float(np.mean(values)) if values else 0.0
        expected.append(total)
    np.testing.assert_allclose(ensemble_loss(forecast, target, valid).numpy(), expected, atol=1e-12)


def test_a_missing_pixel_gives_no_slope() -> None:
    forecast, target = make(2)
    valid = torch.ones_like(target, dtype=torch.bool)
    valid[0, 0, 4, 5] = False
    forecast.requires_grad_(True)
    ensemble_loss(forecast, torch.where(valid, target, torch.nan), valid).sum().backward()  # type: ignore[no-untyped-call]
    assert forecast.grad is not None
    assert torch.isfinite(forecast.grad).all()
    assert not forecast.grad[0, :, 0, 4, 5].any()


def test_members_that_do_not_fit_are_refused() -> None:
    forecast, target = make(2)
    with pytest.raises(ValueError, match=r"members \(2, 1, 3, 32, 32\), target .* expected \(b, 2 or more, t, h, w\)"):
        ensemble_loss(forecast[:, :1], target)
    with pytest.raises(ValueError, match="expected"):
        ensemble_loss(forecast, target[:, :2])
