"""Motion of rain from frame to frame, and fields carried along with it. Nothing here is learned.

The motion is found by least squares on the brightness constancy equation over a Gaussian window (Lucas and Kanade 1981,
An iterative image registration technique with an application to stereo vision, IJCAI), coarse to fine, each level
warping with what the one before found (Bouguet 2001). Fields are carried by the backward semi-Lagrangian scheme with a
constant motion field (Germann and Zawadzki 2002, doi:10.1175/1520-0493(2002)130<2859:SDOTPO>2.0.CO;2); displacements
are those of pysteps' extrapolation with n_iter=0. CSI here is that of extrapolation at 60 minutes and 0.5 mm/h, on 13
windows of KNMI's composites where storms cross a third of the domain in an hour.

Displacements are in pixels, (x: along columns, y: along rows).
"""

import math
from dataclasses import dataclass
from typing import Final, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW_PX: Final = 32.0
"""Standard deviation of the window that pixels share a motion in: 16 to 64 gave CSI within 0.006 of each other."""
LEVELS: Final = (8, 4)
"""Pixels that are averaged into one, level by level. Smooth rain is followed up to 20 pixels a frame; one more level
of 2 pixels lost 0.009 of CSI and took five times as long, without the last CSI is 0.006 lower."""
ITERATIONS: Final = 3
RIDGE: Final = 0.1
"""Weight of the frame's common motion, as a share of the mean gradient: where nothing rains, the field takes it."""
COMMON_RIDGE: Final = 1e-3
"""Weight of the motion found so far against the frame's gradients, as a share of them: straight bands, whose motion
along themselves cannot be seen, would divide by zero (ours)."""
NUM_FRAMES: Final = 3
"""Latest frames that the motion is found from: CSI is within 0.003 of that with 2 or with 6."""
MARGIN_PX: Final = 160
"""Pixels around the frame that a guess is made for: in an hour, storms of 160 km/h bring in no more of 1 km each. What
comes from further takes the guess of the nearest pixel of this margin, a mean over about 100 x 100 pixels."""
INFLOW_PX: Final = ((0, 4), (4, 12), (12, 24), (24, 48))
"""Beyond so many pixels outside the frame, the guess is the mean over a square of about this radius."""
SQUARE_PX: Final = 4
"""Radius of the squares that are averaged pixel by pixel; wider ones are multiples of it, on a coarser canvas."""
WHOLLY: Final = 0.999
"""Above this share of its sources a pixel counts as measured: weights of all four add up to 1 but for rounding."""
DRIZZLE_MMH: Final = 0.1
"""Rain below it counts as none: the motion is found on 10 log10(max(R, 0.1))."""


def estimate_motion(rain_mmh_bthw: Tensor, valid_bthw: Tensor | None = None) -> Tensor:
    """Find the motion of the latest frames.

    Args:
        rain_mmh_bthw: rain in mm/h, at least 2 frames, 0 where missing.
        valid_bthw: bool, False where a pixel is missing; None: none is.

    Returns:
        Pixels a frame, (b, 2, h, w), of the input's dtype; the frame's common motion where nothing rains.

    Raises:
        ValueError: fewer than 2 frames, or frames too small for the coarsest level.
    """
    frames, height, width = rain_mmh_bthw.shape[1:]
    if frames < 2:
        raise ValueError(f"{frames} frame to find a motion from; expected at least 2")
    if min(height, width) < 2 * LEVELS[0]:
        raise ValueError(f"frames of {height} x {width} pixels; expected at least {2 * LEVELS[0]} a side")
    latest = rain_mmh_bthw[:, -NUM_FRAMES:].clamp(min=DRIZZLE_MMH)
    signal = 10.0 * (torch.log10(latest) - math.log10(DRIZZLE_MMH))
    valid = torch.ones_like(signal) if valid_bthw is None else valid_bthw[:, -NUM_FRAMES:].to(signal.dtype)
    motion = signal.new_zeros(signal.shape[0], 2, 1, 1)
    for level in LEVELS:
        coarse = F.avg_pool2d(signal, level)
        # A coarse pixel counts when all its fine ones are measured: the edge of the radar's range does not move.
        whole = -F.max_pool2d(-valid, level)
        motion = _resize(motion, coarse.shape[-2], coarse.shape[-1]) / level
        for _ in range(ITERATIONS):
            motion = _refine(motion, coarse, whole, WINDOW_PX / level)
        motion = motion * level
    return _resize(motion, height, width)


def displacements(motion_b2hw: Tensor, num_steps: int) -> list[Tensor]:
    """Follow the motion upstream: what arrives at x after k frames starts at x - D_k(x).

    D_k(x) = D_(k-1)(x) + V(x - D_(k-1)(x)), with V continued as it is at the border.

    Args:
        motion_b2hw: pixels a frame.
        num_steps: frames.

    Returns:
        D_1 to D_num_steps, each (b, 2, h, w), pixels.
    """
    total = torch.zeros_like(motion_b2hw)
    steps = []
    for _ in range(num_steps):
        total = total + advect(motion_b2hw, total)
        steps.append(total)
    return steps


def advect(fields_bchw: Tensor, displacement_b2hw: Tensor, *, margin_px: int = 0) -> Tensor:
    """Carry fields along: the value at x is that at x - displacement, between pixels bilinearly.

    What comes from outside the fields takes the value of their nearest pixel.

    Args:
        fields_bchw: any values.
        displacement_b2hw: pixels.
        margin_px: pixels by which the fields reach beyond the displacements' frame on every side.

    Returns:
        (b, c, h, w), of the displacements' frame.
    """
    rows, cols = fields_bchw.shape[-2:]
    x, y = _sources(displacement_b2hw)
    x, y = x + margin_px, y + margin_px
    # grid_sample counts from the image's edges, -1 to 1.
    grid_bhw2 = torch.stack([(2 * x + 1) / cols - 1, (2 * y + 1) / rows - 1], dim=-1)
    return F.grid_sample(fields_bchw, grid_bhw2, mode="bilinear", padding_mode="border", align_corners=False)


def fill_missing(fields_bchw: Tensor, valid_bchw: Tensor) -> Tensor:
    """Put into missing pixels what the measured ones around them say (push-pull, Gortler et al. 1996).

    Means of 2 x 2 pixels over what is measured are taken until one pixel is left, and handed back down, between pixels
    bilinearly, to those that have nothing of their own. A field with nothing measured becomes 0.

    Args:
        fields_bchw: any values; those of missing pixels do not enter.
        valid_bchw: bool, False where missing.
    """
    weight = valid_bchw.to(fields_bchw.dtype)
    values = torch.where(valid_bchw, fields_bchw, 0.0)
    height, width = values.shape[-2:]
    if max(height, width) == 1:
        return values
    share = F.avg_pool2d(weight, 2, ceil_mode=True)
    means = F.avg_pool2d(values, 2, ceil_mode=True) / share.clamp(min=0.25)
    filled = _finer(fill_missing(means, share > 0), 2, height, width)
    return torch.where(valid_bchw, values, filled)


class Space(Protocol):
    """The space of a model's values."""

    def from_mmh(self, rain_mmh: Tensor) -> Tensor:
        """Turn rain in mm/h into the space."""

    def to_mmh(self, values: Tensor) -> Tensor:
        """Turn the space into rain in mm/h."""


@dataclass(frozen=True, kw_only=True)
class Carried:
    """A window seen by somebody who moves with the rain.

    Attributes:
        past_bthw: The past frames, each moved on to the last one's time; missing pixels filled from around.
        canvas_b1hw: The last frame continued by `MARGIN_PX` on every side, model space, float32 at least: what the
            future is carried from.
        known_bthw: The past frames moved on, with the last one's value where they were not measured: no change is the
            guess that invents none.
        steps: Displacements to the future frames, each (b, 2, h, w), pixels.
    """

    past_bthw: Tensor
    canvas_b1hw: Tensor
    known_bthw: Tensor
    steps: list[Tensor]


def carry(frames_bthw: Tensor, valid_bthw: Tensor | None, frames_out: int, space: Space) -> Carried:
    """Find the motion of a window, take it out of the past, and make the last frame ready to be carried along.

    In these coordinates rain only grows, decays and changes shape, which is what is left to learn (Ritvanen et al.
    2023, Advection-free convolutional neural network for convective rainfall nowcasting,
    doi:10.1109/JSTARS.2023.3238016).

    Args:
        frames_bthw: the past, model space, 0 where missing.
        valid_bthw: bool, False where a pixel is missing; None: none is.
        frames_out: future frames.
        space: of the frames.
    """
    with torch.no_grad(), torch.autocast(frames_bthw.device.type, enabled=False):
        num_past = frames_bthw.shape[1]
        # Half precision cannot count to the columns of a frame.
        frames = frames_bthw.to(torch.promote_types(frames_bthw.dtype, torch.float32))
        rain_mmh = space.to_mmh(frames)
        motion = estimate_motion(rain_mmh, valid_bthw)
        steps = displacements(motion, max(frames_out, num_past - 1))

        # Missing pixels first: carried along, they would spread.
        last_mmh = rain_mmh[:, -1:]
        if valid_bthw is not None:
            frames, last_mmh = fill_missing(frames, valid_bthw), fill_missing(last_mmh, valid_bthw[:, -1:])
        past_bthw = _moved_on(frames, steps)
        known_bthw = past_bthw
        if valid_bthw is not None:
            measured = _moved_on(valid_bthw.to(frames.dtype), steps) > WHOLLY
            known_bthw = torch.where(measured, past_bthw, past_bthw[:, -1:])
        return Carried(
            past_bthw=past_bthw.to(frames_bthw.dtype),
            canvas_b1hw=space.from_mmh(_beyond(last_mmh)),
            known_bthw=known_bthw,
            steps=steps[:frames_out],
        )


def _moved_on(past_bthw: Tensor, steps: list[Tensor]) -> Tensor:
    """Move past frames on to the last one's time."""
    num_before = past_bthw.shape[1] - 1
    # The second last goes one step, the first one all.
    moved = [advect(past_bthw[:, [frame]], steps[num_before - 1 - frame]) for frame in range(num_before)]
    return torch.cat([*moved, past_bthw[:, -1:]], dim=1)


def extrapolate(last_mmh_b1hw: Tensor, steps: list[Tensor]) -> Tensor:
    """Carry the last frame along, with a guess of what flows in from outside.

    The guess is the border pixel's rain, averaged over the wider a square the further out it lies (`INFLOW_PX`): rain
    areas go on, their detail is not known. CSI (see above) is 0.303 with nothing flowing in, 0.395 with the border's
    pixels and 0.406 with their averages.

    Args:
        last_mmh_b1hw: rain in mm/h, nothing missing.
        steps: displacements to each lead time.

    Returns:
        Rain in mm/h, (b, leads, h, w).
    """
    canvas = _beyond(last_mmh_b1hw)
    return torch.cat([advect(canvas, step, margin_px=MARGIN_PX) for step in steps], dim=1)


def _beyond(field_b1hw: Tensor) -> Tensor:
    """Continue a field over its borders by `MARGIN_PX`, smoother the further out."""
    height, width = field_b1hw.shape[-2:]
    canvas = F.pad(field_b1hw, (MARGIN_PX,) * 4, mode="replicate")
    rows = torch.arange(-MARGIN_PX, height + MARGIN_PX, device=field_b1hw.device).view(-1, 1)
    cols = torch.arange(-MARGIN_PX, width + MARGIN_PX, device=field_b1hw.device).view(1, -1)
    out_rows, out_cols = (torch.maximum(-i, i - size + 1) for i, size in ((rows, height), (cols, width)))
    distance = torch.maximum(out_rows.clamp(min=0), out_cols.clamp(min=0))
    result = canvas
    for beyond_px, radius_px in INFLOW_PX:
        # A mean over a wide square does not change from pixel to pixel: it is taken of a coarser canvas.
        factor = max(1, radius_px // SQUARE_PX)
        coarse = F.avg_pool2d(canvas, factor, ceil_mode=True, count_include_pad=False)
        padded = F.pad(coarse, (SQUARE_PX,) * 4, mode="replicate")
        size = 2 * SQUARE_PX + 1
        smooth = F.avg_pool2d(F.avg_pool2d(padded, (1, size), stride=1), (size, 1), stride=1)
        result = torch.where(distance > beyond_px, _finer(smooth, factor, *canvas.shape[-2:]), result)
    return result


def _refine(motion: Tensor, frames: Tensor, valid: Tensor, window_px: float) -> Tensor:
    """One Gauss-Newton step of the windowed least squares, with the common motion as a prior; pixels of this level."""
    # Where each frame would lie if its pixels had moved so far, and which pixels are known in both.
    num_pairs = frames.shape[1] - 1
    pairs = motion.repeat_interleave(num_pairs, dim=0)
    height, width = frames.shape[-2:]
    before = advect(frames[:, :-1].reshape(-1, 1, height, width), pairs).view_as(frames[:, 1:])
    known = advect(valid[:, :-1].reshape(-1, 1, height, width), pairs).view_as(frames[:, 1:])
    unknown = ~((known > WHOLLY) & (valid[:, 1:] > WHOLLY) & _inside(motion))

    # Slopes reach over a pixel's neighbours: those must be known too, and the frame's outermost pixels have none.
    weight = 1.0 - F.max_pool2d(F.pad(unknown.to(frames.dtype), (1, 1, 1, 1), value=1.0), 3, stride=1)

    # Sums of the products of slopes and change: over the whole frame, and over each pixel's window.
    mean, change = (before + frames[:, 1:]) / 2, frames[:, 1:] - before
    slope_x = F.pad((mean[..., 2:] - mean[..., :-2]) / 2, (1, 1, 0, 0))
    slope_y = F.pad((mean[..., 2:, :] - mean[..., :-2, :]) / 2, (0, 0, 1, 1))
    products = (slope_x * slope_x, slope_x * slope_y, slope_y * slope_y, slope_x * change, slope_y * change)
    sums = torch.stack([(weight * product).sum(1) for product in products], dim=1)
    whole = sums.mean((2, 3), keepdim=True)
    local = _blur(sums, window_px)

    # The motion of the frame as a whole: where a window has no slopes, the ridge pulls its pixels towards it.
    gradient = (whole[:, 0] + whole[:, 2]) / 2
    # Dry frames have no gradient at all.
    tiny = torch.finfo(frames.dtype).eps
    least = COMMON_RIDGE * gradient + tiny
    common = motion.mean((2, 3), keepdim=True) + _solve(
        whole[:, 0] + least, whole[:, 1], whole[:, 2] + least, -whole[:, 3], -whole[:, 4]
    )

    ridge = RIDGE * gradient + tiny
    right_x = local[:, 0] * motion[:, 0] + local[:, 1] * motion[:, 1] - local[:, 3] + ridge * common[:, 0]
    right_y = local[:, 1] * motion[:, 0] + local[:, 2] * motion[:, 1] - local[:, 4] + ridge * common[:, 1]
    refined = _solve(local[:, 0] + ridge, local[:, 1], local[:, 2] + ridge, right_x, right_y)

    # Nothing moves further than half the frame; noise in an almost dry frame could say so.
    limit = min(height, width) / 2
    return refined.clamp(-limit, limit)


def _inside(motion: Tensor) -> Tensor:
    """Where a pixel comes from inside the frame, (b, 1, h, w)."""
    height, width = motion.shape[-2:]
    x, y = _sources(motion)
    return ((x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)).unsqueeze(1)


def _sources(displacement_b2hw: Tensor) -> tuple[Tensor, Tensor]:
    """Where each pixel comes from, columns and rows, (b, h, w)."""
    height, width = displacement_b2hw.shape[-2:]
    dtype, device = displacement_b2hw.dtype, displacement_b2hw.device
    x = torch.arange(width, dtype=dtype, device=device).view(1, 1, width) - displacement_b2hw[:, 0]
    y = torch.arange(height, dtype=dtype, device=device).view(1, height, 1) - displacement_b2hw[:, 1]
    return x, y


def _solve(a: Tensor, b: Tensor, c: Tensor, right_x: Tensor, right_y: Tensor) -> Tensor:
    """Solve ((a, b), (b, c)) (x, y) = right: (n, 2, h, w)."""
    determinant = a * c - b * b
    return torch.stack([(c * right_x - b * right_y) / determinant, (a * right_y - b * right_x) / determinant], dim=1)


def _blur(fields_bchw: Tensor, deviation_px: float) -> Tensor:
    """Smooth with a Gaussian, zeros outside."""
    channels, height, width = fields_bchw.shape[1:]
    radius = max(1, round(3 * deviation_px))
    # Beyond the frame there are only zeros: a longer kernel than twice the frame would be multiplied with nothing.
    radius = min(radius, max(height, width) - 1)
    offsets = torch.arange(-radius, radius + 1, dtype=fields_bchw.dtype, device=fields_bchw.device)
    kernel = torch.exp(-(offsets**2) / (2 * deviation_px**2))
    kernel = kernel / kernel.sum()
    flat = fields_bchw.reshape(-1, 1, height, width)
    flat = F.conv2d(flat, kernel.view(1, 1, 1, -1), padding=(0, radius))
    flat = F.conv2d(flat, kernel.view(1, 1, -1, 1), padding=(radius, 0))
    return flat.reshape(-1, channels, height, width)


def _finer(fields_bchw: Tensor, factor: int, height: int, width: int) -> Tensor:
    """Undo a pooling by a factor that may have gone over the border: each pixel stays where it is."""
    rows, cols = fields_bchw.shape[-2:]
    return _resize(fields_bchw, rows * factor, cols * factor)[..., :height, :width]


def _resize(fields_bchw: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(fields_bchw, size=(height, width), mode="bilinear", align_corners=False)
