"""Call pysteps without its banner and warnings: motion of the last frames, and fields carried along with it.

Numpy alone, without torch: worker processes start in a second.
"""

import importlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any, Final

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]
BoolArray = npt.NDArray[np.bool_]

DRIZZLE_MMH: Final = 0.1
"""Rain below it counts as none: pysteps' own threshold in its examples, -10 dBR."""
MOTION_FRAMES: Final = 3
"""Latest frames that the motion is found from, as in pysteps' examples."""
WHOLLY: Final = 1 - 1e-6
"""Least weight of measured pixels, which are interpolated between, of a pixel that is known: 1 but for rounding."""
EXTRA_HINT: Final = "pip install 'rainspark[nowcast]'"


@contextmanager
def quietly() -> Iterator[None]:
    """Keep a library's prints, warnings and thread pool out of a block, and put everything back behind it."""
    with warnings.catch_warnings(), np.errstate(all="ignore"), redirect_stdout(io.StringIO()), _without_pool():
        warnings.simplefilter("ignore")
        yield


def _without_pool() -> Any:
    """Let dask, which pysteps uses where it is installed, work in the calling thread."""
    try:
        dask = importlib.import_module("dask")
    except ImportError:
        return nullcontext()
    return dask.config.set(scheduler="synchronous")


def import_pysteps(module: str, kind: str) -> Any:
    """Import a module of pysteps without its banner, and put the warning filters back.

    Args:
        module: Its name below `pysteps`.
        kind: The baseline that needs it.

    Raises:
        ImportError: pysteps or OpenCV is not installed; the text says how to install them.
    """
    try:
        with quietly():
            importlib.import_module("cv2")
            return importlib.import_module(f"pysteps.{module}")
    except ImportError as error:
        raise ImportError(
            f"the baseline `{kind}` needs pysteps and OpenCV ({error}): {EXTRA_HINT}, or take `advection`, "
            "which needs neither"
        ) from error


def find_motion(rain_mmh_thw: FloatArray, valid_thw: BoolArray | None, kind: str = "extrapolation") -> FloatArray:
    """Find the motion of the last frames by Lucas and Kanade's method with pysteps' defaults.

    It is found on 10 log10(max(R, 0.1)), features are not searched in missing pixels.

    Args:
        rain_mmh_thw: Rain in mm/h, 0 where missing.
        valid_thw: False where missing; None: nothing is.
        kind: The baseline that needs it.

    Returns:
        Pixels a frame, (2: along columns, along rows; rows, cols); 0 where there is nothing to follow.
    """
    rain_mmh_thw = rain_mmh_thw[-MOTION_FRAMES:]
    still_2hw = np.zeros((2, *rain_mmh_thw.shape[1:]))
    # Without rain in two frames there is nothing to follow, and OpenCV is not made for images of one colour.
    if (rain_mmh_thw > DRIZZLE_MMH).any(axis=(1, 2)).sum() < 2:
        return still_2hw

    signal_thw = 10.0 * np.log10(np.maximum(rain_mmh_thw, DRIZZLE_MMH))
    if valid_thw is not None and not valid_thw[-MOTION_FRAMES:].all():
        signal_thw = np.ma.array(signal_thw, mask=~valid_thw[-MOTION_FRAMES:])
    follow = import_pysteps("motion.lucaskanade", kind).dense_lucaskanade
    with quietly():
        motion_2hw: FloatArray = follow(signal_thw)
    return motion_2hw if np.isfinite(motion_2hw).all() else still_2hw


def carry(
    field_mmh_hw: FloatArray,
    valid_hw: BoolArray | None,
    motion_2hw: FloatArray,
    frames_out: int,
    kind: str = "extrapolation",
) -> FloatArray:
    """Carry a field on by pysteps' semi-Lagrangian scheme.

    Args:
        field_mmh_hw: Rain in mm/h, 0 where missing.
        valid_hw: False where missing; None: nothing is.
        motion_2hw: Pixels a frame.
        frames_out: Lead times to give.
        kind: The baseline that needs it.

    Returns:
        Rain in mm/h, (frames_out, rows, cols), NaN where there flows in what lay outside or was not measured.
    """
    extrapolate = import_pysteps("extrapolation.semilagrangian", kind).extrapolate
    with quietly():
        carried_thw: FloatArray = extrapolate(field_mmh_hw, motion_2hw, frames_out)
        # What was not measured is carried along as dry: nor is it known, not even where it has a part in a pixel.
        if valid_hw is not None and not valid_hw.all():
            measured_thw = extrapolate(valid_hw.astype(np.float64), motion_2hw, frames_out)
            carried_thw[~(measured_thw > WHOLLY)] = np.nan
    return carried_thw
