"""Forecasts made elsewhere: a folder of NetCDF files, ours, pysteps', or others after the CF conventions.

CF conventions 1.8, https://cfconventions.org/Data/cf-conventions/cf-conventions-1.8/cf-conventions.html: a variable of
rain rates with coordinates of its grid mapping, of valid times or lead times (`forecast_period`), and of members
(`realization`); a `forecast_reference_time`. Files of pysteps count their times from it instead.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from ...data.errors import DataError
from ...data.frames import Grid, iso_time
from ...data.sources.foreign.mapping import locate
from ...data.sources.foreign.opening import opened
from ...data.sources.foreign.quantity import SECONDS, quantity_of
from ...models.baselines.methods import Gives
from ..forecasting.grid import same_projection
from ..forecasting.netcdf import PYSTEPS_NAME, RAIN_NAME
from .contestant import FloatArray
from .entries import NETCDF, Entry
from .windows import WindowRain

if TYPE_CHECKING:
    import xarray as xr

REFERENCE: Final = "forecast_reference_time"
MEMBERS: Final = ("realization", "ens_number", "member", "number")
"""What the dimension of members is called: CF's standard name, pysteps' name, others."""
UNISSUED: Final = "does not say when its forecast was issued; expected a variable forecast_reference_time"
MOST_LEAD_S: Final = 30 * 86_400
"""No forecast of radar rain begins so late: its times count from something else than its issue."""
LEAST_MMH: Final = -1.0
"""Less is a code for what is missing; a little below 0 is what interpolation leaves."""
UNITS: Final = "expected a rain rate in mm/h, mm h-1, kg m-2 s-1 or m s-1"
_STATED: Final = "stated_projection"
CORNER_PX: Final = 0.1
"""How far a corner may lie off the archive's, in pixels: coordinates are rounded."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """One forecast of a file.

    Attributes:
        path: The file.
        at: Position along its dimension of reference times; None: it has none.
        issue_s: When it was issued, epoch seconds.
        leads_s: Its lead times, seconds.
        members: Of the ensemble; 0: one field.
        grid: Where its pixels lie.
    """

    path: Path
    at: int | None
    issue_s: int
    leads_s: tuple[int, ...]
    members: int
    grid: Grid


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """How the forecasts of a file lie in it.

    Attributes:
        variable: Rain rates.
        factor: What makes mm/h of them.
        y: Dimensions, like the next four.
        x: Likewise.
        members: None: there is none.
        reference: None: the file holds one forecast.
        lead: None: it holds one lead time.
        is_south_up: Whether row 0 is the southernmost.
        grid: Where the pixels lie.
    """

    variable: "xr.DataArray"
    factor: float
    y: str
    x: str
    members: str | None
    reference: str | None
    lead: str | None
    is_south_up: bool
    grid: Grid


@dataclass(frozen=True, kw_only=True, eq=False)
class ForecastFolder:
    """A folder of forecasts.

    Attributes:
        name: Of the model.
        folder: The folder.
        by_issue: Its forecasts by issue time.
    """

    name: str
    folder: Path
    by_issue: Mapping[int, Held]

    @property
    def members(self) -> int:
        """Count the members; 0: one field."""
        return next(iter(self.by_issue.values())).members

    def num_leads(self, cadence_s: int) -> int:
        """Count the lead times that all forecasts have, one a frame from the first on.

        Raises:
            DataError: A forecast without the first lead time.
        """
        # Lead times that are missing in between end what can be scored: nothing is interpolated.
        fewest = 10**9
        for held in self.by_issue.values():
            leads_s = set(held.leads_s)
            num = next(number for number in range(len(leads_s) + 1) if (number + 1) * cadence_s not in leads_s)
            if not num:
                listed = ", ".join(f"{lead_s / 60:g}" for lead_s in held.leads_s[:3])
                raise DataError(
                    f"{held.path}: its lead times are {listed}... min; expected one of {cadence_s / 60:g} min, and "
                    "then every frame of the archive"
                )
            fewest = min(fewest, num)
        return fewest

    def check_grid(self, grid: Grid) -> None:
        """Refuse forecasts of another grid than the archive's; raises DataError, naming the file."""
        # Files of one grid differ in nothing that would be said of them.
        for held in {held.grid: held for held in self.by_issue.values()}.values():
            if difference := _difference(held.grid, grid):
                raise DataError(f"{held.path}: {difference}; expected forecasts on the archive's grid")

    def has_any(self, issue_s: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Tell which issue times have a forecast; raises DataError where none has."""
        has = np.isin(issue_s, np.array(list(self.by_issue), np.int64))
        if not has.any():
            first, last = min(self.by_issue), max(self.by_issue)
            raise DataError(
                f"{self.folder}: none of its {len(self.by_issue)} forecasts, issued {iso_time(first)} to "
                f"{iso_time(last)}, starts where a window does (such as {iso_time(int(issue_s[0]))}); expected "
                "forecasts issued at the end of a window's last past frame"
            )
        return has


def scan_forecasts(entry: Entry) -> ForecastFolder:
    """Read what the files of a folder hold, not the rain itself.

    Raises:
        DataError: A file that cannot be understood, two forecasts of one time, or ensembles of different sizes.
    """
    folder = entry.folder or Path()
    by_issue: dict[int, Held] = {}
    for path in sorted(folder.glob(NETCDF)):
        with opened(path, None, str(path)) as dataset:
            for held in _held(path, dataset):
                if other := by_issue.get(held.issue_s):
                    raise DataError(
                        f"{path} and {other.path} both hold the forecast issued {iso_time(held.issue_s)}; remove one"
                    )
                by_issue[held.issue_s] = held

    # One ensemble is as large as the other.
    first = next(iter(by_issue.values()))
    for held in by_issue.values():
        if held.members != first.members:
            raise DataError(
                f"{held.path}: {held.members or 'no'} members, and {first.path} has {first.members or 'none'}; "
                "expected as many in every file"
            )
    return ForecastFolder(name=entry.name, folder=folder, by_issue=by_issue)


@dataclass(frozen=True, kw_only=True, eq=False)
class External:
    """Forecasts made elsewhere, as a contestant; what is missing in them is unknown.

    Attributes:
        forecasts: The folder.
        frames_out: Lead times to give.
        cadence_s: Seconds from one to the next.
    """

    forecasts: ForecastFolder
    frames_out: int
    cadence_s: int
    marks_unknown: bool = field(default=True, init=False)

    @property
    def gives(self) -> Gives:
        """Tell what it forecasts."""
        return "members" if self.forecasts.members else "field"

    @property
    def about(self) -> dict[str, Any]:
        """Describe it as plain JSON."""
        num = len(self.forecasts.by_issue)
        return {"kind": "netcdf", "folder": str(self.forecasts.folder), "forecasts": num}

    def start(self, window: WindowRain, issue_s: int) -> Callable[[], FloatArray]:  # noqa: ARG002
        """Give a function that reads the forecast of a window; see `Contestant`."""
        return lambda: self._read(self.forecasts.by_issue[issue_s])

    def _read(self, held: Held) -> FloatArray:
        wanted = [held.leads_s.index((number + 1) * self.cadence_s) for number in range(self.frames_out)]
        with opened(held.path, None, str(held.path)) as dataset:
            layout = _layout(held.path, dataset)
            variable = layout.variable
            if layout.reference is not None:
                variable = variable.isel({layout.reference: held.at})
            if layout.lead is not None:
                variable = variable.isel({layout.lead: wanted})
            names = [name for name in (layout.members, layout.lead, layout.y, layout.x) if name is not None]
            rain = variable.transpose(*names, missing_dims="raise").values.astype(np.float64) * layout.factor

        # Without a dimension of lead times there is one.
        if layout.lead is None:
            rain = np.expand_dims(rain, -3)
        if (rain < LEAST_MMH).any():
            raise DataError(
                f"{held.path}: {layout.variable.name} holds {np.nanmin(rain):g} mm/h; expected no negative rain: state "
                "what is missing as _FillValue"
            )
        upright = rain[..., ::-1, :] if layout.is_south_up else rain
        return np.ascontiguousarray(upright, np.float32)


def _held(path: Path, dataset: "xr.Dataset") -> Iterator[Held]:
    """List the forecasts of an open file."""
    layout = _layout(path, dataset)
    members = dataset.sizes[layout.members] if layout.members is not None else 0
    for at, issue_s in enumerate(_reference_times_s(path, dataset, layout)):
        leads_s = _leads_s(path, dataset, layout, issue_s)
        # Times that count from 1970 say when they are valid, and not from when on they are a forecast.
        if min(leads_s) > MOST_LEAD_S:
            raise DataError(f"{path}: {UNISSUED}, and its times count from {iso_time(issue_s)}")
        yield Held(
            path=path,
            at=None if layout.reference is None else at,
            issue_s=issue_s,
            leads_s=leads_s,
            members=members,
            grid=layout.grid,
        )


def _layout(path: Path, dataset: "xr.Dataset") -> Layout:
    variable = _rain_variable(path, dataset)
    try:
        quantity = quantity_of(variable.attrs, None)
    except DataError as error:
        units = variable.attrs.get("units")
        raise DataError(f"{path}: {variable.name} has the units {units!r}; {UNITS}") from error
    if quantity.kind != "rate":
        raise DataError(f"{path}: {variable.name} has the units {variable.attrs.get('units')!r}; {UNITS}")

    # pysteps states its projection as a PROJ string beside words of CF that leave out the Earth's figure, or nothing.
    stated = str(dataset.attrs.get("projection", ""))
    if stated.startswith("+proj="):
        dataset = dataset.assign({_STATED: ((), 0, {"proj4": stated})})
        variable = variable.assign_attrs(grid_mapping=_STATED)

    # Every dimension but those of the map is one of members, reference times or lead times, or has one value.
    placed = locate(dataset, variable)
    others = [str(name) for name in variable.dims if name not in (placed.x_name, placed.y_name)]
    members = next((name for name in others if _says(dataset, name, MEMBERS)), None)
    reference = next((name for name in others if _says(dataset, name, (REFERENCE,))), None)
    rest = [name for name in others if name not in (members, reference)]
    several = [name for name in rest if variable.sizes[name] > 1] or rest[:1]
    if len(several) > 1:
        raise DataError(
            f"{path}: {variable.name} has the dimensions {', '.join(map(str, variable.dims))}; expected members "
            f"({MEMBERS[0]}), lead times, y and x"
        )
    squeezed = variable.isel({name: 0 for name in rest if name not in several})
    return Layout(
        variable=squeezed,
        factor=quantity.factor,
        y=placed.y_name,
        x=placed.x_name,
        members=members,
        reference=reference,
        lead=several[0] if several else None,
        is_south_up=placed.is_south_up,
        grid=placed.grid,
    )


def _rain_variable(path: Path, dataset: "xr.Dataset") -> "xr.DataArray":
    """Find the rain: by our name or pysteps', else the one variable that is a map of it."""
    # Files of ours hold the mean and quantiles besides: names decide before units do.
    names = [str(name) for name in dataset.data_vars]
    for name in (RAIN_NAME, PYSTEPS_NAME):
        if name in names:
            return dataset[name]
    rates = [name for name in names if _is_rate(dataset[name])]
    if len(rates) == 1:
        return dataset[rates[0]]
    listed = ", ".join(f"{name} ({dataset[name].attrs.get('units', 'no units')})" for name in names) or "none"
    raise DataError(f"{path}: its variables are {listed:.300}; {UNITS}, named {RAIN_NAME} where there are several")


def _is_rate(variable: "xr.DataArray") -> bool:
    try:
        return variable.ndim >= 2 and quantity_of(variable.attrs, None).kind == "rate"
    except DataError:
        return False


def _says(dataset: "xr.Dataset", name: str, words: Sequence[str]) -> bool:
    """Tell by a dimension's own name or its coordinate's standard name what it runs along."""
    attributes = dataset[name].attrs if name in dataset.variables else {}
    return name in words or attributes.get("standard_name") in words


def _reference_times_s(path: Path, dataset: "xr.Dataset", layout: Layout) -> list[int]:
    """Read when the forecasts of a file were issued; else from which time its times count."""
    # One time a forecast: along its own dimension, or a scalar.
    names = [str(name) for name in dataset.variables if _says(dataset, str(name), (REFERENCE,))]
    for name in names:
        if dataset[name].dtype.kind == "M" and dataset[name].size == (
            1 if layout.reference is None else dataset.sizes[layout.reference]
        ):
            return _epoch_s(dataset[name].values.reshape(-1))

    # pysteps' exporter: "seconds since" the last frame, whatever way of writing times xarray knows.
    units = "" if layout.lead is None else str(dataset[layout.lead].encoding.get("units", ""))
    if " since " in units and layout.reference is None:
        return _epoch_s(_decoded([0], units))
    raise DataError(f"{path}: {UNISSUED}")


def _decoded(numbers: Sequence[int], units: str) -> npt.NDArray[Any]:
    """Read times as they are written in files."""
    import xarray as xr

    times: npt.NDArray[Any] = xr.decode_cf(xr.Dataset({"time": ("time", numbers, {"units": units})}))["time"].values
    return times


def _leads_s(path: Path, dataset: "xr.Dataset", layout: Layout, issue_s: int) -> tuple[int, ...]:
    """Read the lead times of a forecast: of valid times, or of periods."""
    names = [layout.lead] if layout.lead in dataset.variables else []
    names += [str(name) for name in dataset.variables if _says(dataset, str(name), ("time", "forecast_period"))]
    for name in names:
        # One value a lead time: what has another shape is about something else.
        values = dataset[name].values
        if values.ndim > 1 or values.size != (1 if layout.lead is None else dataset.sizes[layout.lead]):
            continue
        if values.dtype.kind == "M":
            return tuple(time_s - issue_s for time_s in _epoch_s(values.reshape(-1)))
        if values.dtype.kind == "m":
            return tuple(values.reshape(-1).astype("timedelta64[s]").astype(np.int64).tolist())
        unit_s = SECONDS.get(str(dataset[name].attrs.get("units", "")).lower())
        if unit_s is not None:
            return tuple(np.rint(values.reshape(-1) * unit_s).astype(np.int64).tolist())
    raise DataError(f"{path}: does not say its lead times; expected a coordinate `time` or `forecast_period`")


def _epoch_s(times: npt.NDArray[Any]) -> list[int]:
    seconds: list[int] = np.rint(times.astype("datetime64[ns]").astype(np.int64) / 1e9).astype(np.int64).tolist()
    return seconds


def _difference(own: Grid, grid: Grid) -> str:
    """Say how a grid differs from the archive's; nothing where it does not."""
    if (own.rows, own.cols) != (grid.rows, grid.cols):
        return f"{own.rows} x {own.cols} pixels, and the archive has {grid.rows} x {grid.cols}"
    if abs(own.pixel_km - grid.pixel_km) * max(grid.rows, grid.cols) > CORNER_PX * grid.pixel_km:
        return f"pixels of {own.pixel_km:g} km, and the archive has {grid.pixel_km:g} km"
    if not same_projection(grid, own.projection):
        return f"its projection is {own.projection!r:.200}, and the archive's is {grid.projection!r:.200}"
    off_px = max(abs(own.x0_km - grid.x0_km), abs(own.y0_km - grid.y0_km)) / grid.pixel_km
    if off_px > CORNER_PX:
        return (
            f"its upper left corner is x {own.x0_km:g}, y {own.y0_km:g} km, and the archive's x {grid.x0_km:g}, y "
            f"{grid.y0_km:g} km"
        )
    return ""
