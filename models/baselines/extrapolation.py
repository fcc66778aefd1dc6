"""The last frame carried on by pysteps: Lucas-Kanade optical flow, semi-Lagrangian."""

from typing import Final

import numpy as np
import torch
from torch import Tensor

from .fields import MOTION_FRAMES, carry, find_motion, import_pysteps


class Extrapolation:
    """The last frame carried on by pysteps: Lucas-Kanade optical flow, semi-Lagrangian; NaN where something flows in.

    The motion is found on 10 log10(max(R, 0.1)) of the last three frames, features are not searched in missing pixels,
    and both parts run with pysteps' defaults: Pulkkinen et al. (2019), Pysteps: an open-source Python library for
    probabilistic precipitation nowcasting, doi:10.5194/gmd-12-4185-2019.

    Args:
        name: For tables.

    Raises:
        ImportError: pysteps or OpenCV is not installed; the text says how to install them.
    """

    frames_in: Final = MOTION_FRAMES
    marks_unknown: Final = True

    def __init__(self, *, name: str = "extrapolation") -> None:
        self.name = name
        import_pysteps("motion.lucaskanade", "extrapolation")

    def forecast(self, rain_mmh_bthw: Tensor, valid_bthw: Tensor | None, frames_out: int) -> Tensor:
        """Carry the last frames on, a window at a time on the CPU; see `Forecaster`."""
        rain_bthw = rain_mmh_bthw.detach().cpu().double().numpy()
        valid = np.ones(rain_bthw.shape, bool) if valid_bthw is None else valid_bthw.cpu().numpy()

        forecasts = []
        for window_thw, valid_thw in zip(rain_bthw, valid, strict=True):
            rain_thw = np.where(valid_thw, window_thw, 0.0)
            motion_2hw = find_motion(rain_thw, valid_thw)
            forecasts.append(carry(rain_thw[-1], valid_thw[-1], motion_2hw, frames_out))
        return torch.from_numpy(np.stack(forecasts)).to(rain_mmh_bthw)
