"""Read a frame of a variable that xarray opened: what it is, where and when, and its pixels in mm/h, north up."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import h5py
import numpy as np
import numpy.typing as npt

from ...counts import NO_ROUNDING, Rounding, requantise
from ...errors import DataError
from ...frames import Crop
from ...json_checks import shown
from ..hdf5 import KINDS, MAX_PIXELS, STRIP_PIXELS, TELLING_GROUPS, ChoiceError
from .mapping import Placed, locate
from .peculiar import EVERYTHING, Peculiar, peculiar_of
from .quantity import Quantity, quantity_of
from .times import SPANS, end_times_s, period_s, time_variable

if TYPE_CHECKING:
    import xarray as xr

    from ...units import ZR

HOUR_S: Final = 3600
NO_ECHO_DBZ: Final = -100.0
"""Reflectivities below are codes: a thousandth of a droplet in a cubic metre is above."""
LICENCES: Final = ("license", "licence")
"""Attributes that state a licence: CF's discovery convention, and British spelling."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked for beside the files: the options of the source that decide how a variable is read.

    Attributes:
        variable: Its name.
        units: Units that count in place of the file's; None for the file's.
        scale: Gain and offset that count in place of the file's tags; None for those.
        missing: Further numbers that are no measurement.
        period_s: Seconds over which amounts are sums, where the file does not say; None for the file's.
        zr: From reflectivity to rain; needed for dBZ.
    """

    variable: str
    units: str | None
    scale: tuple[float, float] | None
    missing: tuple[float, ...]
    period_s: int | None
    zr: "ZR | None"


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A variable of an open data set, understood.

    Attributes:
        dataset: The data set; its values are read when they are asked for.
        variable: The variable.
        wanted: What was asked for.
        placed: Where its pixels lie.
        quantity: What its numbers are.
        period_s: Over which time they are means or sums; 0 of instantaneous ones, None where nothing says it.
        peculiar: What the format says in its own words.
        time_name: The dimension of its times; None of one frame.
    """

    dataset: "xr.Dataset"
    variable: "xr.DataArray"
    wanted: Wanted
    placed: Placed
    quantity: Quantity
    period_s: int | None
    peculiar: Peculiar
    time_name: str | None

    @property
    def licence(self) -> str | None:
        """The licence that the data set states; None where it states none."""
        everywhere = {**self.variable.attrs, **self.dataset.attrs}
        text = next((str(everywhere[name]).strip() for name in LICENCES if name in everywhere), "")
        return " ".join(text.split()) or None

    @property
    def product(self) -> str:
        """The product's name."""
        attributes = self.dataset.attrs
        producer = str(attributes.get("mlcast_dataset_identifier") or attributes.get("institution") or "").strip()
        name = f"{shown(' '.join(producer.split())) or 'unknown institution'}, {self.wanted.variable} by xarray"
        return f"{name} as rain by Z = {self.wanted.zr.a:g} R**{self.wanted.zr.b:g}" if self.wanted.zr else name

    @property
    def num_frames(self) -> int:
        """How many frames it holds."""
        return 1 if self.time_name is None else self.dataset.sizes[self.time_name]

    @property
    def notes(self) -> tuple[str, ...]:
        """What was read into it that it does not state, or hardly anybody looks at."""
        return (*self._fill_notes(), *self._valid_notes(), *self._period_notes())

    def _period_notes(self) -> tuple[str, ...]:
        """Note values over a time that nothing states."""
        methods = str(self.variable.attrs.get("cell_methods", ""))
        if self.period_s is not None or not SPANS.search(methods):
            return ()
        return (
            f"{self.wanted.variable}: its cell_methods are {shown(methods)}, and nothing says over which time: "
            "--period-min states it",
        )

    def _valid_notes(self) -> tuple[str, ...]:
        """Note the range beyond which values are missing."""
        low, high = self.peculiar.valid
        if (low, high) == EVERYTHING:
            return ()
        return (f"{self.wanted.variable}: values outside of its valid range, {low:g} to {high:g}, are missing",)

    def _fill_notes(self) -> tuple[str, ...]:
        """Note missing pixels where the fill value stands for no rain."""
        fill = self.variable.encoding.get("_FillValue")
        scale, offset = (self.variable.encoding.get(name) for name in ("scale_factor", "add_offset"))
        # An array of Zarr has a fill value whether its writer chose one or not, and it is 0 by default.
        if fill is None or np.size(fill) != 1 or self.quantity.kind == "reflectivity":
            return ()
        if float(fill) * (1.0 if scale is None else scale) + (0.0 if offset is None else offset) != 0:
            return ()
        return (f"{self.wanted.variable}: its fill value stands for 0, so that pixels of 0 are missing and not dry",)

    def times_s(self) -> npt.NDArray[np.int64] | None:
        """Read when the frames end, epoch seconds UTC (frames,); None where the data set does not say."""
        if self.peculiar.end_time_s is not None:
            return np.array([self.peculiar.end_time_s], np.int64)
        times_s = end_times_s(self.dataset, self.variable)
        if times_s is not None and len(times_s) != self.num_frames:
            raise DataError(f"it holds {self.num_frames} frames and {len(times_s)} times; expected as many")
        return times_s

    def counts(self, index: int, crop: Crop) -> tuple[npt.NDArray[np.uint16], Rounding]:
        """Read a part of a frame as counts of 0.01 mm/h, north up.

        Raises:
            DataError: The part reaches outside the frame, or too many of its pixels are no rain rate.
        """
        grid = self.placed.grid
        crop.check_inside(grid.rows, grid.cols)
        raw_hw = self._values(self.variable, index, crop)
        masks_hw = [self._values(self.dataset[name], index, crop) for name in self.peculiar.masks]

        # A strip at a time: whole frames of some services have gigabytes of 64-bit floats.
        counts_hw = np.empty(raw_hw.shape, np.uint16)
        rounding = NO_ROUNDING
        height = max(1, STRIP_PIXELS // crop.cols)
        for first in range(0, crop.rows, height):
            strip = slice(first, first + height)
            rain_mmh_hw = self._rain_mmh(
                np.asarray(raw_hw[strip], np.float64), [mask_hw[strip] for mask_hw in masks_hw]
            )
            counts, rounding = requantise(
                rain_mmh_hw.ravel(),
                partial(_pixel, crop.row0 + first, crop.col0, crop.cols),
                frame_pixels=grid.rows * grid.cols,
                before=rounding,
            )
            counts_hw[strip] = counts.reshape(rain_mmh_hw.shape)
        return counts_hw, rounding

    def _values(self, variable: "xr.DataArray", index: int, crop: Crop) -> npt.NDArray[Any]:
        """Read the numbers of a part of a frame (rows, cols), north up, as the file or its decoding holds them."""
        rows = slice(crop.row0, crop.row1)
        if self.placed.is_south_up:
            rows = slice(self.placed.grid.rows - crop.row1, self.placed.grid.rows - crop.row0)
        picks: dict[Any, int | slice] = dict.fromkeys(variable.dims, 0)
        picks |= {self.placed.y_name: rows, self.placed.x_name: slice(crop.col0, crop.col1)}
        if self.time_name in picks:
            picks[self.time_name] = index
        values: npt.NDArray[Any] = variable.isel(picks).transpose(self.placed.y_name, self.placed.x_name).values
        return values[::-1] if self.placed.is_south_up else values

    def _rain_mmh(self, raw_hw: npt.NDArray[np.float64], masks_hw: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """Turn numbers into mm/h, NaN where nothing was measured."""
        peculiar = self.peculiar
        missing_hw = np.isnan(raw_hw) | np.isin(raw_hw, (*peculiar.missing, *self.wanted.missing))
        low, high = peculiar.valid
        missing_hw |= (raw_hw < low) | (raw_hw > high)
        for mask_hw in masks_hw:
            missing_hw |= mask_hw.astype(bool)

        gain, offset = self.wanted.scale or (peculiar.gain, peculiar.offset)
        rain_hw = self._rain((raw_hw * gain + offset) * self.quantity.factor)
        if peculiar.dry is not None:
            rain_hw[raw_hw == peculiar.dry] = 0.0
        rain_hw[missing_hw] = np.nan
        return rain_hw

    def _rain(self, numbers_hw: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Turn rates, amounts or reflectivities into mm/h."""
        if self.quantity.kind == "reflectivity":
            assert self.wanted.zr is not None
            return rain_of_dbz(self.wanted.zr, numbers_hw)
        if self.quantity.kind == "amount":
            assert self.period_s
            return numbers_hw * (HOUR_S / self.period_s)
        return numbers_hw


def _pixel(row0: int, col0: int, cols: int, at: int) -> tuple[int, int]:
    """Give the row and column of the n-th pixel of a part of a frame."""
    return row0 + at // cols, col0 + at % cols


def rain_of_dbz(zr: "ZR", dbz_hw: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Turn reflectivities into mm/h; codes and infinities among them become -infinity, which requantising counts.

    Without an echo Z is 0, and dBZ -infinity: dry.
    """
    is_code = ((dbz_hw < NO_ECHO_DBZ) & ~np.isneginf(dbz_hw)) | np.isposinf(dbz_hw)
    return np.where(is_code, -np.inf, zr.rain_mmh(dbz_hw))


def layer_of(dataset: "xr.Dataset", wanted: Wanted, path: Path | None, engine: str) -> Layer:
    """Understand a variable of an open data set.

    Args:
        dataset: The data set.
        wanted: What was asked for.
        path: The file; None in a store.
        engine: What opened it.

    Raises:
        ChoiceError: There is no such variable, or it is nothing that was asked for.
        DataError: It cannot be understood.
    """
    if wanted.variable not in dataset.data_vars:
        held = ", ".join(f"{name} ({', '.join(map(str, dataset[name].dims))})" for name in dataset.data_vars)
        raise ChoiceError(
            f"it has no variable {shown(wanted.variable)}; its variables: {shown_list(held) or 'none'}{_reader(path)}",
            holds="other variables",
        )
    variable = dataset[wanted.variable]
    peculiar = peculiar_of(dataset, variable, path, engine)
    quantity = quantity_of(peculiar.attributes, wanted.units)
    _check_zr(quantity, wanted)
    placed = locate(dataset, variable)
    time_name = _time_dimension(dataset, variable, placed)
    if placed.grid.rows * placed.grid.cols > MAX_PIXELS:
        raise DataError(f"its frames have {placed.grid.rows} x {placed.grid.cols} pixels; expected up to {MAX_PIXELS}")

    stated = peculiar.period_s if quantity.kind != "reflectivity" else None
    stated = stated if stated is not None else period_s(dataset, variable, quantity.kind)
    if None not in (stated, wanted.period_s) and stated != wanted.period_s:
        raise ChoiceError(
            f"{wanted.variable} is of {(stated or 0) / 60:g} min, as the file says; --period-min is for what files do "
            "not say: leave it away"
        )
    period = stated if wanted.period_s is None else wanted.period_s
    if quantity.kind == "amount" and not period:
        raise ChoiceError(
            f"{wanted.variable} is an amount, and neither bounds of its times nor the format say over which time; "
            "state it with --period-min"
        )
    return Layer(
        dataset=dataset,
        variable=variable,
        wanted=wanted,
        placed=placed,
        quantity=quantity,
        period_s=period,
        peculiar=peculiar,
        time_name=time_name,
    )


def _reader(path: Path | None) -> str:
    """Name the sub-command that reads a file of HDF5 which is no NetCDF."""
    if path is None or not h5py.is_hdf5(path):
        return ""
    with h5py.File(path, "r") as file:
        kind = next((kind for group, kind in TELLING_GROUPS.items() if group in file), None)
    return "" if kind is None else f" (it looks like {KINDS[kind]}: pack it with the sub-command {kind})"


def shown_list(text: str) -> str:
    """Write a list of names of a file for people."""
    return text[:300] if text.isprintable() else ascii(text[:300])


def _check_zr(quantity: Quantity, wanted: Wanted) -> None:
    if quantity.kind == "reflectivity" and wanted.zr is None:
        raise ChoiceError(
            f"{wanted.variable} is a reflectivity; expected a relation Z = A R**B to make rain of it: give --zr A,B "
            "(--zr 200,1.6 is Marshall and Palmer's)"
        )
    if quantity.kind != "reflectivity" and wanted.zr is not None:
        raise ChoiceError(f"{wanted.variable} is {quantity.kind} of rain already; leave --zr away")


def _time_dimension(dataset: "xr.Dataset", variable: "xr.DataArray", placed: Placed) -> str | None:
    """Find the dimension of a variable's times; every other one may hold one value only."""
    times = time_variable(dataset, variable)
    time_dims = set(times.dims) & set(variable.dims) if times is not None else set()
    others: dict[Any, int] = {
        name: variable.sizes[name]
        for name in variable.dims
        if name not in (placed.x_name, placed.y_name) and name not in time_dims and variable.sizes[name] > 1
    }
    if others:
        listed = ", ".join(f"{name} ({size})" for name, size in others.items())
        raise ChoiceError(f"{variable.name} has several values along {listed}; expected one: choose one first")
    return next(map(str, time_dims), None)
