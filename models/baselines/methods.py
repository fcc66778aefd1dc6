"""The methods of pysteps as plain functions of one window, for worker processes: numpy alone, no torch.

Pulkkinen et al. (2019), Pysteps: an open-source Python library for probabilistic precipitation nowcasting,
doi:10.5194/gmd-12-4185-2019. pysteps' S-PROG and STEPS work in decibels, 10 log10 of mm/h, where what is below 0.1 mm/h
becomes -15; ANVIL, LINDA and the Lagrangian probability work in mm/h. All are carried by Lucas and Kanade's motion of
the last three frames.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar, Final, Literal, Protocol

import numpy as np
import numpy.typing as npt

from .fields import DRIZZLE_MMH, MOTION_FRAMES, BoolArray, FloatArray, carry, find_motion, import_pysteps, quietly

Gives = Literal["field", "members", "probabilities"]

DRIZZLE_DBR: Final = -10.0
"""DRIZZLE_MMH in decibels."""
DRY_DBR: Final = -15.0
"""What stands for dry in decibels: pysteps' examples."""
AR_ORDER: Final = 2
"""Order of the autoregressive model of S-PROG and STEPS, pysteps' default; it is estimated from one frame more."""
NOTHING_TO_ESTIMATE: Final = ("no features found", "x contains non-finite", "zero-size array", "precip contains only")
"""How pysteps refuses rain that is too little or too even to estimate anything from."""
MOST_MEMBERS: Final = 1000


class BaselineError(Exception):
    """pysteps failed; the text names the window and the method."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Window:
    """What a method forecasts from.

    Attributes:
        rain_mmh_thw: Rain in mm/h, (past frames, rows, cols), 0 where missing.
        valid_thw: False where missing; None: nothing is.
        issue_s: End of the last frame, epoch seconds.
        frames_out: Lead times to give.
        pixel_km: Side of a pixel.
        step_min: Minutes from frame to frame.
        seed: Of this window's members.
        thresholds_mmh: That probabilities are of.
    """

    rain_mmh_thw: FloatArray
    valid_thw: BoolArray | None
    issue_s: int
    frames_out: int
    pixel_km: float
    step_min: float
    seed: int = 0
    thresholds_mmh: tuple[float, ...] = ()


class Method(Protocol):
    """A method of pysteps with its options."""

    kind: ClassVar[str]

    @property
    def gives(self) -> Gives:
        """Tell what it forecasts."""

    @property
    def frames_in(self) -> int:
        """Count the past frames that it takes."""

    def compute(self, window: Window, motion_2hw: FloatArray) -> FloatArray:
        """Run pysteps on a window without missing pixels: rain in mm/h or probabilities, NaN where something flows in.

        Fields are (frames_out, rows, cols), behind members or thresholds where it gives those.
        """


@dataclass(frozen=True, kw_only=True)
class Sprog:
    """S-PROG: scales fade as fast as the window's own autocorrelation says (Seed 2003).

    Seed (2003), A dynamic and spatial scaling approach to advection forecasting, J. Appl. Meteor. 42, 381-388. The
    forecast has the rates of the last frame (cdf matching).

    Args:
        levels: Scales of the cascade.
    """

    levels: int = 6

    kind: ClassVar[str] = "sprog"
    gives: ClassVar[Gives] = "field"
    frames_in: ClassVar[int] = AR_ORDER + 1

    def __post_init__(self) -> None:
        """Check the options."""
        _check("levels", self.levels, 1, 20)

    def compute(self, window: Window, motion_2hw: FloatArray) -> FloatArray:
        """Run pysteps; see `Method`."""
        forecast_dbr_thw = import_pysteps("nowcasts.sprog", self.kind).forecast(
            _decibels(window.rain_mmh_thw),
            motion_2hw,
            window.frames_out,
            precip_thr=DRIZZLE_DBR,
            n_cascade_levels=self.levels,
            ar_order=AR_ORDER,
            probmatching_method="cdf",
        )
        return _rain_of(forecast_dbr_thw)


@dataclass(frozen=True, kw_only=True)
class Anvil:
    """ANVIL on rain rates: scales grow and fade, place by place, as the last frames did (Pulkkinen et al. 2020).

    Pulkkinen, Chandrasekar, von Lerber and Harri (2020), Nowcasting of convective rainfall using volumetric radar
    observations, doi:10.1109/TGRS.2020.2984594.

    Args:
        levels: Scales of the cascade.
        order: Of the autoregressive model of differences, 1 or 2; it takes two frames more.
    """

    levels: int = 6
    order: int = 1

    kind: ClassVar[str] = "anvil"
    gives: ClassVar[Gives] = "field"

    def __post_init__(self) -> None:
        """Check the options."""
        _check("levels", self.levels, 1, 20)
        _check("order", self.order, 1, 2)

    @property
    def frames_in(self) -> int:
        """Count the past frames that it takes."""
        return self.order + 2

    def compute(self, window: Window, motion_2hw: FloatArray) -> FloatArray:
        """Run pysteps; see `Method`."""
        return import_pysteps("nowcasts.anvil", self.kind).forecast(
            window.rain_mmh_thw, motion_2hw, window.frames_out, n_cascade_levels=self.levels, ar_order=self.order
        )


@dataclass(frozen=True, kw_only=True)
class Linda:
    """LINDA: cells grow and fade, each with a kernel of its own (Pulkkinen, Chandrasekar and Niemi 2021).

    Pulkkinen, Chandrasekar and Niemi (2021), Lagrangian integro-difference equation model for precipitation nowcasting,
    J. Atmos. Oceanic Technol. 38, 2125-2145.

    Args:
        members: Of an ensemble; 0: one field, without perturbations.
        features: Cells to look for, at most.
    """

    members: int = 0
    features: int = 25

    kind: ClassVar[str] = "linda"
    frames_in: ClassVar[int] = 3

    def __post_init__(self) -> None:
        """Check the options."""
        _check("members", self.members, 0, MOST_MEMBERS)
        _check("features", self.features, 1, 1000)

    @property
    def gives(self) -> Gives:
        """Tell what it forecasts."""
        return "members" if self.members else "field"

    def compute(self, window: Window, motion_2hw: FloatArray) -> FloatArray:
        """Run pysteps; see `Method`."""
        linda = import_pysteps("nowcasts.linda", self.kind)
        # It seeds numpy's global generator, which is nobody's: put back as it was.
        state = np.random.get_state()  # noqa: NPY002
        try:
            return linda.forecast(
                window.rain_mmh_thw,
                motion_2hw,
                window.frames_out,
                max_num_features=self.features,
                add_perturbations=self.members > 0,
                n_ens_members=max(self.members, 1),
                kmperpixel=window.pixel_km,
                timestep=window.step_min,
                seed=window.seed,
            )
        finally:
            np.random.set_state(state)  # noqa: NPY002


@dataclass(frozen=True, kw_only=True)
class Steps:
    """STEPS: S-PROG with noise of the last frame's spectrum and a perturbed motion (Bowler, Pierce and Seed 2006).

    Bowler, Pierce and Seed (2006), STEPS: A probabilistic precipitation forecasting scheme which merges an
    extrapolation nowcast with downscaled NWP, doi:10.1256/qj.04.100. Nonparametric noise, `bps` perturbations of the
    motion, an incremental mask and cdf matching. Member k draws from seeds that follow from the window's and its number
    alone, so that it is the same in a smaller or larger ensemble.

    Args:
        members: Of the ensemble.
        levels: Scales of the cascade.
    """

    members: int = 16
    levels: int = 6

    kind: ClassVar[str] = "steps"
    gives: ClassVar[Gives] = "members"
    frames_in: ClassVar[int] = AR_ORDER + 1

    def __post_init__(self) -> None:
        """Check the options."""
        _check("members", self.members, 1, MOST_MEMBERS)
        _check("levels", self.levels, 1, 20)

    def compute(self, window: Window, motion_2hw: FloatArray) -> FloatArray:
        """Run pysteps; see `Method`."""
        forecast_dbr_mthw = import_pysteps("nowcasts.steps", self.kind).forecast(
            _decibels(window.rain_mmh_thw),
            motion_2hw,
            window.frames_out,
            n_ens_members=self.members,
            n_cascade_levels=self.levels,
            precip_thr=DRIZZLE_DBR,
            kmperpixel=window.pixel_km,
            timestep=window.step_min,
            ar_order=AR_ORDER,
            noise_method="nonparametric",
            vel_pert_method="bps",
            mask_method="incremental",
            probmatching_method="cdf",
            seed=window.seed,
        )
        return _rain_of(forecast_dbr_mthw)


@dataclass(frozen=True, kw_only=True)
class LagrangianProbability:
    """Share of rainy pixels of the carried last frame around a pixel, in circles that grow with lead time.

    Germann and Zawadzki (2004), Scale dependence of the predictability of precipitation from continental radar images.
    Part II: Probability forecasts, J. Appl. Meteor. 43, 74-89: the best diameter grows by 1 km a minute.

    Args:
        slope: Kilometres a minute that the diameter grows by.
    """

    slope: float = 1.0

    kind: ClassVar[str] = "lagrangian_probability"
    gives: ClassVar[Gives] = "probabilities"
    frames_in: ClassVar[int] = MOTION_FRAMES

    def __post_init__(self) -> None:
        """Check the options."""
        _check("slope", self.slope, 0, 100)

    def compute(self, window: Window, motion_2hw: FloatArray) -> FloatArray:
        """Run pysteps; see `Method`."""
        forecast = import_pysteps("nowcasts.lagrangian_probability", self.kind).forecast
        last_mmh_hw = window.rain_mmh_thw[-1]
        if window.valid_thw is not None:
            # Shares are of measured pixels.
            last_mmh_hw = np.where(window.valid_thw[-1], last_mmh_hw, np.nan)

        slope_px = self.slope * window.step_min / window.pixel_km
        shares = [
            # pysteps counts rain at or above a threshold; an event here is rain above it.
            forecast(last_mmh_hw, motion_2hw, window.frames_out, np.nextafter(threshold_mmh, np.inf), slope=slope_px)
            for threshold_mmh in window.thresholds_mmh
        ]
        return np.stack(shares)


METHODS: Final[Mapping[str, type[Sprog | Anvil | Linda | Steps | LagrangianProbability]]] = {
    method.kind: method for method in (Sprog, Anvil, Linda, Steps, LagrangianProbability)
}


def forecast(method: Method, window: Window) -> npt.NDArray[np.float32]:
    """Forecast a window by a method of pysteps.

    A window whose rain is too little to estimate anything from (a frame without rain above 0.1 mm/h, no cell, or the
    same rain everywhere) is the last frame carried on, in all members alike.

    Returns:
        Rain in mm/h, or probabilities: (frames_out, rows, cols) behind members or thresholds where there are such. NaN
        where there flows in what lay outside or was not measured; infinite where pysteps gave no number at all.

    Raises:
        BaselineError: pysteps failed.
        ImportError: pysteps, or what it needs, is not installed.
    """
    last = slice(-method.frames_in, None)
    rain_thw = window.rain_mmh_thw[last].astype(np.float64)
    valid_thw = None if window.valid_thw is None else window.valid_thw[last]
    if valid_thw is not None:
        rain_thw = np.where(valid_thw, rain_thw, 0.0)
    prepared = Window(**{**vars(window), "rain_mmh_thw": rain_thw, "valid_thw": valid_thw})

    # Without missing pixels the method itself knows what flows in; missing ones are carried along with the motion.
    valid_hw = None if valid_thw is None else valid_thw[-1]
    try:
        motion_2hw = find_motion(rain_thw, valid_thw, method.kind)
        carried_thw = carry(rain_thw[-1], valid_hw, motion_2hw, window.frames_out, method.kind)
        result = _computed(method, prepared, motion_2hw, carried_thw)
    except ImportError:
        raise
    # They raise nearly everything, depending on what the rain looks like.
    except Exception as error:
        when = datetime.fromtimestamp(window.issue_s, UTC)
        raise BaselineError(
            f"{method.kind}: pysteps failed on the window issued at {when:%Y-%m-%dT%H:%M}Z "
            f"({type(error).__name__}: {error}); leave the model out, or that time"
        ) from error
    if valid_hw is not None and not valid_hw.all():
        result[..., np.isnan(carried_thw)] = np.nan
    return np.maximum(result, 0.0, dtype=np.float32, casting="same_kind")


def _computed(method: Method, window: Window, motion_2hw: FloatArray, carried_thw: FloatArray) -> FloatArray:
    """Let pysteps work where there is rain enough, and carry the last frame on elsewhere."""
    # What stands in wherever pysteps has nothing to estimate from, in all members alike.
    leading = {"field": (), "members": (getattr(method, "members", 0),), "probabilities": (len(window.thresholds_mmh),)}
    carried = np.broadcast_to(carried_thw, (*leading[method.gives], *carried_thw.shape)).copy()
    if np.isnan(carried_thw).all():
        return carried
    if method.gives == "probabilities":
        with quietly():
            return method.compute(window, motion_2hw).astype(np.float64)

    # Its autoregressive models need rain in every frame.
    if not (window.rain_mmh_thw >= DRIZZLE_MMH).any(axis=(1, 2)).all():
        return carried
    try:
        with quietly():
            result = method.compute(window, motion_2hw).astype(np.float64)
    except (ValueError, np.linalg.LinAlgError) as error:
        if isinstance(error, np.linalg.LinAlgError) or str(error).startswith(NOTHING_TO_ESTIMATE):
            return carried
        raise

    # NaN says that a pixel cannot be known. Where a lead time has no number at all, the forecast failed.
    is_failed = np.isnan(result).all(axis=(-2, -1)) & ~np.isnan(carried_thw).all(axis=(-2, -1))
    result[is_failed] = np.inf
    return result


def _decibels(rain_mmh: FloatArray) -> FloatArray:
    transform = import_pysteps("utils.transformation", "sprog").dB_transform
    decibels: FloatArray = transform(rain_mmh, threshold=DRIZZLE_MMH, zerovalue=DRY_DBR)[0]
    return decibels


def _rain_of(decibels: FloatArray) -> FloatArray:
    transform = import_pysteps("utils.transformation", "sprog").dB_transform
    rain_mmh: FloatArray = transform(decibels, threshold=DRIZZLE_DBR, inverse=True)[0]
    return rain_mmh


def _check(name: str, value: float, least: float, most: float) -> None:
    """Raise ValueError for an option outside its range."""
    if not least <= value <= most:
        raise ValueError(f"{name} is {value}; expected {least} to {most}")
