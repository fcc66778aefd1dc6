"""What a forecast is trained on: losses of a window, missing pixels left out.

All take (forecast, target, valid), each (b, t, h, w), and return one loss a window, (b,), in float32 at least. A
window's loss is a mean over its valid target pixels; a window without any has loss 0, and is not to be counted. A
missing pixel's forecast gets a gradient of exactly 0, whatever its value.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

SSIM_WEIGHT = 1e-4
"""Weight of 1 - SSIM beside the MSE: published SpaT-SparK's fine-tuning loss."""
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
"""Gaussian window in pixels: Wang et al. 2004, doi:10.1109/TIP.2003.819861, section III-C."""
SSIM_K1, SSIM_K2 = 0.01, 0.03
"""Stabilising constants: ibid., section III-C."""
RAIN_STEPS_MMH = (2.0, 5.0, 10.0, 30.0)
RAIN_WEIGHTS = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Weight of a pixel whose rain lies below the first step, between the first and the second, and so on: B-MSE of Shi
et al. 2017, arXiv:1706.03458, section 3.2."""


def mse(forecast_bthw: Tensor, target_bthw: Tensor, valid_bthw: Tensor | None = None) -> Tensor:
    """Mean squared error.

    Args:
        forecast_bthw: model space.
        target_bthw: model space.
        valid_bthw: bool, False where a pixel is missing; None: none is.
    """
    forecast, target = measured(forecast_bthw, target_bthw, valid_bthw)
    return _mean_over_valid((forecast - target).square(), valid_bthw)


def mse_ssim(
    forecast_bthw: Tensor,
    target_bthw: Tensor,
    valid_bthw: Tensor | None = None,
    *,
    ssim_weight: float = SSIM_WEIGHT,
    data_range: float = 1.0,
) -> Tensor:
    """MSE + ssim_weight * (1 - SSIM), the published SpaT-SparK's fine-tuning loss; see `ssim`."""
    similarity_b = ssim(forecast_bthw, target_bthw, valid_bthw, data_range=data_range)
    return mse(forecast_bthw, target_bthw, valid_bthw) + ssim_weight * (1.0 - similarity_b)


def ssim(
    forecast_bthw: Tensor, target_bthw: Tensor, valid_bthw: Tensor | None = None, *, data_range: float = 1.0
) -> Tensor:
    """Structural similarity of a window's frames, their mean, (b,): Wang et al. 2004, equation 13.

    Positions whose 11 x 11 window leaves the frame or holds a missing pixel are left out, frames without a position
    too; a window without any is 1.

    Args:
        forecast_bthw: model space.
        target_bthw: model space.
        valid_bthw: bool, False where a pixel is missing; None: none is.
        data_range: largest value less smallest, model space.

    Raises:
        ValueError: frames smaller than the Gaussian window.
    """
    height, width = target_bthw.shape[-2:]
    if min(height, width) < SSIM_WINDOW:
        raise ValueError(f"frames are {height} x {width} pixels; expected at least {SSIM_WINDOW} a side for SSIM")
    # Equation 13: means, variances and the covariance of both frames under a Gaussian window.
    forecast, target = measured(forecast_bthw, target_bthw, valid_bthw)
    mean_f, mean_t = _blur(forecast), _blur(target)
    variance_f = _blur(forecast.square()) - mean_f.square()
    variance_t = _blur(target.square()) - mean_t.square()
    covariance = _blur(forecast * target) - mean_f * mean_t

    c1, c2 = (SSIM_K1 * data_range) ** 2, (SSIM_K2 * data_range) ** 2
    above = (2.0 * mean_f * mean_t + c1) * (2.0 * covariance + c2)
    below = (mean_f.square() + mean_t.square() + c1) * (variance_f + variance_t + c2)
    similarity_bthw = above / below

    if valid_bthw is None:
        return similarity_bthw.mean((1, 2, 3))
    # A position counts where no pixel of its window is missing: the largest "missing" over the window is 0.
    whole_bthw = F.max_pool2d((~valid_bthw).to(similarity_bthw.dtype), SSIM_WINDOW, stride=1) == 0.0
    count_bt = whole_bthw.sum((2, 3))
    frame_bt = torch.where(whole_bthw, similarity_bthw, 0.0).sum((2, 3)) / count_bt.clamp_min(1)
    num_frames_b = (count_bt > 0).sum(1)
    return torch.where(num_frames_b > 0, frame_bt.sum(1) / num_frames_b.clamp_min(1), 1.0)


def rain_weights(rain_mmh_bthw: Tensor) -> Tensor:
    """Weight of each pixel by its rain in mm/h, in steps: `RAIN_STEPS_MMH`, `RAIN_WEIGHTS`; the shape of the rain."""
    weight_bthw = torch.full_like(rain_mmh_bthw, RAIN_WEIGHTS[0])
    # A sum of steps, not a table looked up: a table would have to be copied to the device in every step.
    for step_mmh, (below, above) in zip(RAIN_STEPS_MMH, itertools.pairwise(RAIN_WEIGHTS), strict=True):
        weight_bthw += (above - below) * (rain_mmh_bthw >= step_mmh)
    return weight_bthw


def weighted(
    forecast_bthw: Tensor, target_bthw: Tensor, valid_bthw: Tensor | None = None, *, weight_bthw: Tensor
) -> Tensor:
    """Squared error times a weight a pixel, over the number of valid pixels (B-MSE, see `rain_weights`).

    Args:
        forecast_bthw: model space.
        target_bthw: model space.
        valid_bthw: bool, False where a pixel is missing; None: none is.
        weight_bthw: weights of the target's pixels, from `rain_weights`.
    """
    forecast, target = measured(forecast_bthw, target_bthw, valid_bthw)
    return _mean_over_valid(weight_bthw * (forecast - target).square(), valid_bthw)


def spectral(
    forecast_bthw: Tensor, target_bthw: Tensor, valid_bthw: Tensor | None = None, *, spectral_weight: float = 1.0
) -> Tensor:
    """MSE + spectral_weight * squared difference of the frames' amplitude spectra.

    A blurred forecast lacks amplitude at short wavelengths, a displaced one has all of it: only the first pays twice.
    The discrete Fourier transform is orthonormal, so that by Parseval's theorem the second term is of the size of the
    first; it is divided by the number of valid pixels too. Missing pixels are 0 in both fields.

    Args:
        forecast_bthw: model space.
        target_bthw: model space.
        valid_bthw: bool, False where a pixel is missing; None: none is.
        spectral_weight: of the second term, >= 0.
    """
    forecast, target = measured(forecast_bthw, target_bthw, valid_bthw)
    amplitude_f, amplitude_t = (torch.fft.fft2(field, norm="ortho").abs() for field in (forecast, target))
    spread_b = _mean_over_valid((amplitude_f - amplitude_t).square(), valid_bthw)
    return _mean_over_valid((forecast - target).square(), valid_bthw) + spectral_weight * spread_b


def measured(forecast_bthw: Tensor, target_bthw: Tensor, valid_bthw: Tensor | None) -> tuple[Tensor, Tensor]:
    """Give both fields in float32 at least, 0 where missing: there no gradient passes, and no NaN.

    Args:
        forecast_bthw: any space.
        target_bthw: any space.
        valid_bthw: bool, False where a pixel is missing; None: none is.

    Raises:
        ValueError: shapes that differ.
    """
    valid_shape = target_bthw.shape if valid_bthw is None else valid_bthw.shape
    if not forecast_bthw.shape == target_bthw.shape == valid_shape or target_bthw.ndim != 4:
        raise ValueError(
            f"forecast has shape {tuple(forecast_bthw.shape)}, target {tuple(target_bthw.shape)}, validity "
            f"{tuple(valid_shape)}; expected the same (windows, frames, h, w)"
        )
    wide = torch.promote_types(forecast_bthw.dtype, torch.float32)
    forecast, target = forecast_bthw.to(wide), target_bthw.to(wide)
    if valid_bthw is None:
        return forecast, target
    # `where`, not a product: what is missing must not reach the loss, not even as NaN * 0.
    return torch.where(valid_bthw, forecast, 0.0), torch.where(valid_bthw, target, 0.0)


def _mean_over_valid(values_bthw: Tensor, valid_bthw: Tensor | None) -> Tensor:
    """Sum of all values over the number of valid pixels, or over one where there is none; (b,)."""
    if valid_bthw is None:
        return values_bthw.mean((1, 2, 3))
    return values_bthw.sum((1, 2, 3)) / valid_bthw.sum((1, 2, 3)).clamp_min(1)


def _blur(field_bthw: Tensor) -> Tensor:
    """Gaussian mean over `SSIM_WINDOW` pixels where the window lies inside: (b, t, h - 10, w - 10)."""
    offset = torch.arange(SSIM_WINDOW, device=field_bthw.device, dtype=field_bthw.dtype) - SSIM_WINDOW // 2
    kernel = torch.exp(-offset.square() / (2.0 * SSIM_SIGMA**2))
    kernel = kernel / kernel.sum()
    frames = field_bthw.flatten(0, 1).unsqueeze(1)
    # A variance as a difference of means does not survive half precision.
    with torch.autocast(field_bthw.device.type, enabled=False):
        blurred = F.conv2d(F.conv2d(frames, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    return blurred.view(*field_bthw.shape[:2], *blurred.shape[2:])
