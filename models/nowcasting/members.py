"""Members of an ensemble: what a forecast loses at each scale comes back as noise, and the motion differs a little.

This is the stochastic half of STEPS (Bowler et al. 2006, doi:10.1256/qj.04.100; Pulkkinen et al. 2019,
doi:10.5194/gmd-12-4185-2019), with learned amplitudes: noise at the scales of the decoder, as SDL (arXiv:2512.18815)
and CRPS-LAM (arXiv:2510.09484) have it, trained on a proper score.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blend import smooth
from .cascade import NUM_LEVELS, SCALES_PX, STRIDE
from .motion import MARGIN_PX, advect

NOISE_STEP_PX: Final = tuple(max(1, int(scale) // 2) for scale in SCALES_PX)
"""Pixels a noise pixel of each level: its Gaussians are at least 2 of them wide but for the finest ones."""
COARSE_PX: Final = 4
"""Local variances are computed on squares of so many pixels a side, or on the level's noise pixels where those are
larger: they change slowly."""
NEAR_PX: Final = tuple(max(2 * scale, 6.0) for scale in SCALES_PX)
FAR_PX: Final = tuple(max(4 * scale, 24.0) for scale in SCALES_PX)
"""Two widths of the Gaussian that a local variance is taken over, between which each level chooses (ours)."""
LEAST_VARIANCE: Final = 1e-6
START_MOTION: Final = (0.08, 0.08, 0.1)
"""Start of the learned deviations of the motion: along it and across it as a share of it, and in pixels a frame."""
MOTION_DRAWS: Final = 4


@dataclass(frozen=True, kw_only=True)
class Noise:
    """What members draw; n is windows x members, the members of a window one after the other.

    Attributes:
        white_nhw: Independent standard normal numbers, of the canvas (`MARGIN_PX` beyond the frame on every side).
        shift_nls2: Rows and columns by which a level's noise is turned round for each lead time, (n, leads, levels, 2).
        motion_n4: Standard normal numbers of the motion: along it, across it, and of each axis.
    """

    white_nhw: Tensor
    shift_nls2: Tensor
    motion_n4: Tensor

    @classmethod
    def draw(cls, draws: np.random.Generator, size_hw: tuple[int, int], num_leads: int) -> "Noise":
        """Draw one member's noise (n is 1) for frames of a size."""
        rows, cols = (size + 2 * MARGIN_PX for size in size_hw)
        white = draws.standard_normal((1, rows, cols), dtype=np.float32)
        shift = draws.integers((rows, cols), size=(1, num_leads, NUM_LEVELS, 2), dtype=np.int64)
        motion = draws.standard_normal((1, MOTION_DRAWS), dtype=np.float32)
        return cls(
            white_nhw=torch.from_numpy(white),
            shift_nls2=torch.from_numpy(shift),
            motion_n4=torch.from_numpy(motion),
        )

    def to(self, device: torch.device) -> "Noise":
        """Copy to a device."""
        return Noise(
            white_nhw=self.white_nhw.to(device),
            shift_nls2=self.shift_nls2.to(device),
            motion_n4=self.motion_n4.to(device),
        )


class Members(nn.Module):
    """Noise and motion of the members, with learned amplitudes.

    A level of which a^2 of the variance is forecast has lost the share 1 - a^2. Noise of its scale takes that place:
    its deviation is sqrt(1 - a^2) times the level's own local deviation times a learned factor of level and lead time
    and one that the decoder gives for each level and pixel. From lead time to lead time it is damped as the level is
    and renewed (an autoregression of first order), and it moves with the rain.

    Args:
        num_leads: lead times.
    """

    def __init__(self, num_leads: int) -> None:
        super().__init__()
        self.num_leads = num_leads
        # One-dimensional, so that weight decay leaves them alone; divided by `STRIDE` as the cascade's are.
        self.log_amplitude = nn.Parameter(torch.zeros(NUM_LEVELS * num_leads))
        self.nearness = nn.Parameter(torch.zeros(NUM_LEVELS))
        self.log_motion = nn.Parameter(torch.tensor(START_MOTION).log() / STRIDE)
        self.drift = nn.Parameter(torch.zeros(num_leads))

    def forward(
        self,
        start_blhw: Tensor,
        levels_bshw: Tensor,
        damping_bsl: Tensor,
        log_factor_bshw: Tensor,
        steps: list[Tensor],
        noise: Noise,
        leads: tuple[int, ...],
    ) -> Tensor:
        """Make members.

        Args:
            start_blhw: what all members have in common before it is carried along, of `leads`, on the canvas.
            levels_bshw: the last frame's levels, on the canvas.
            damping_bsl: what is left of them at all lead times, a of above.
            log_factor_bshw: the decoder's factor, as a logarithm, of the frame.
            steps: displacements to all lead times.
            noise: of the members.
            leads: numbers of the lead times to make, rising, from 0.

        Returns:
            (b, members, leads, rows, cols), model space, without bounds.
        """
        batch = start_blhw.shape[0]
        num_members = noise.white_nhw.shape[0] // batch
        amplitudes = self._amplitudes(levels_bshw, log_factor_bshw)
        fields = _evolved(noise, damping_bsl.detach().repeat_interleave(num_members, 0), leads)

        log_amplitude_sl = STRIDE * self.log_amplitude.view(NUM_LEVELS, self.num_leads).to(start_blhw.dtype)
        members = []
        for position, (lead, noise_s) in enumerate(zip(leads, fields, strict=True)):
            total_nhw = (start_blhw[:, position] + STRIDE * self.drift[lead]).repeat_interleave(num_members, 0)
            for level, noise_nhw in enumerate(noise_s):
                amplitude_bhw = amplitudes[level] * log_amplitude_sl[level, lead].exp()
                total_nhw = total_nhw + _finer(amplitude_bhw.repeat_interleave(num_members, 0) * noise_nhw, total_nhw)
            step_n2hw = self._moved(steps[lead].repeat_interleave(num_members, 0), lead, noise.motion_n4)
            members.append(advect(total_nhw.unsqueeze(1), step_n2hw, margin_px=MARGIN_PX))
        members_nlhw = torch.cat(members, dim=1)
        return members_nlhw.view(batch, num_members, *members_nlhw.shape[1:])

    def _amplitudes(self, levels_bshw: Tensor, log_factor_bshw: Tensor) -> list[Tensor]:
        """Local deviation of each level on its noise's pixels, with the decoder's factor, (b, rows, cols)."""
        share_s = (STRIDE * self.nearness).sigmoid().to(levels_bshw.dtype)
        amplitudes = []
        for level, step_px in enumerate(NOISE_STEP_PX):
            coarse_px = max(COARSE_PX, step_px)
            field_b1hw = levels_bshw[:, level : level + 1].detach()
            if level == NUM_LEVELS - 1:
                field_b1hw = field_b1hw - field_b1hw.mean((2, 3), keepdim=True)
            variance = F.avg_pool2d(field_b1hw.square(), coarse_px, ceil_mode=True, count_include_pad=False)
            near, far = (smooth(variance, width / coarse_px) for width in (NEAR_PX[level], FAR_PX[level]))
            local = (share_s[level] * near + (1 - share_s[level]) * far + LEAST_VARIANCE).sqrt()

            # The decoder knows the frame only: its factor goes on beyond the borders.
            factor = F.pad(log_factor_bshw[:, level : level + 1], (MARGIN_PX,) * 4, mode="replicate")
            local = local * F.avg_pool2d(factor, coarse_px, ceil_mode=True, count_include_pad=False).exp()
            if coarse_px > step_px:
                local = F.interpolate(local, scale_factor=coarse_px / step_px, mode="bilinear", align_corners=False)
            rows, cols = (-(-size // step_px) for size in levels_bshw.shape[-2:])
            amplitudes.append(local[:, 0, :rows, :cols])
        return amplitudes

    def _moved(self, step_n2hw: Tensor, lead: int, motion_n4: Tensor) -> Tensor:
        """Displace each member by its own motion: along the rain's, across it, and by pixels a frame."""
        along, across, pixels = (STRIDE * self.log_motion).exp().to(step_n2hw.dtype)
        draws = motion_n4.to(step_n2hw.dtype)[:, :, None, None, None]
        turned_n2hw = torch.stack([-step_n2hw[:, 1], step_n2hw[:, 0]], dim=1)
        away_n2 = pixels * (lead + 1) * motion_n4[:, 2:].to(step_n2hw.dtype)
        moved = step_n2hw + along * draws[:, 0] * step_n2hw + across * draws[:, 1] * turned_n2hw
        return moved + away_n2[:, :, None, None]


def _evolved(noise: Noise, damping_nsl: Tensor, leads: tuple[int, ...]) -> list[list[Tensor]]:
    """Noise of each level at each lead time, its variance what the level has lost by then; (n, rows, cols) a level."""
    with torch.no_grad():
        fresh = [_band(noise.white_nhw.to(damping_nsl.dtype), level) for level in range(NUM_LEVELS)]
        state = [torch.zeros_like(field) for field in fresh]
        wanted = []
        before_ns = torch.ones_like(damping_nsl[..., 0])
        # From one wanted lead time to the next, whatever lies between: an autoregression of first order may skip.
        for lead in leads:
            # What is lost to the last bit stays lost: 0 / 0 is 0 here.
            keep_ns = damping_nsl[..., lead] / before_ns.clamp(min=torch.finfo(before_ns.dtype).tiny)
            before_ns = damping_nsl[..., lead]
            renew_ns = (1 - keep_ns.square()).clamp(min=0).sqrt()
            for level, field in enumerate(fresh):
                # The same field turned round far enough is another one: no lead time needs numbers of its own.
                shifts = (noise.shift_nls2[:, lead, level] // NOISE_STEP_PX[level]).tolist()
                turned = torch.stack([one.roll(tuple(shift), (0, 1)) for one, shift in zip(field, shifts, strict=True)])
                keep, renew = keep_ns[:, level, None, None], renew_ns[:, level, None, None]
                state[level] = keep * state[level] + renew * turned
            wanted.append(list(state))
        return wanted


def _band(white_nhw: Tensor, level: int) -> Tensor:
    """Noise of a level's scale with variance 1, periodic, on its noise's pixels."""
    step_px = NOISE_STEP_PX[level]
    # Means of independent numbers are independent: times the step, their variance is 1 again.
    rows, cols = (-(-size // step_px) for size in white_nhw.shape[-2:])
    if step_px > 1:
        size = (rows * step_px, cols * step_px)
        padded = F.pad(white_nhw, (0, size[1] - white_nhw.shape[-1], 0, size[0] - white_nhw.shape[-2]), mode="circular")
        white_nhw = F.avg_pool2d(padded.unsqueeze(1), step_px).squeeze(1) * step_px

    # The difference of two Gaussians, by its spectrum: exp(-2 pi^2 sigma^2 f^2).
    row_f = torch.fft.fftfreq(rows, dtype=white_nhw.dtype, device=white_nhw.device).unsqueeze(1)
    col_f = torch.fft.rfftfreq(cols, dtype=white_nhw.dtype, device=white_nhw.device).unsqueeze(0)
    exponent = -2 * math.pi**2 * (row_f.square() + col_f.square())
    band = (exponent * (SCALES_PX[level] / step_px) ** 2).exp()
    if level < NUM_LEVELS - 1:
        band = band - (exponent * (SCALES_PX[level + 1] / step_px) ** 2).exp()
    else:
        # The mean is not damped, and turned round it would be the same at every lead time.
        band[0, 0] = 0.0
    filtered = torch.fft.irfft2(torch.fft.rfft2(white_nhw) * band, s=(rows, cols))

    # The variance of filtered white noise is the mean of the squared response over all frequencies.
    both = torch.full_like(col_f, 2.0)
    both[:, 0] = 1.0
    if cols % 2 == 0:
        both[:, -1] = 1.0
    return filtered / ((band.square() * both).sum() / (rows * cols)).sqrt()


def _finer(field_nhw: Tensor, like_nhw: Tensor) -> Tensor:
    """Bring noise to the canvas' pixels; that the last coarse pixel may be cut moves it by less than it is wide."""
    if field_nhw.shape == like_nhw.shape:
        return field_nhw
    size = like_nhw.shape[-2:]
    return F.interpolate(field_nhw.unsqueeze(1), size=size, mode="bilinear", align_corners=False).squeeze(1)
