"""A forecast as ODIM_H5 composites, one a lead time: what weather services exchange, and `rainspark pack odim` reads.

Groups, attributes and quantities: EUMETNET OPERA weather radar information model for implementation with the HDF5 file
format, version 2.4 (2021).
"""

import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import numpy.typing as npt
import pyproj

from ...data.errors import DataError
from ...data.frames import Grid, iso_time
from ...data.store.storage import open_storage
from .content import Content
from .grid import proj_string
from .netcdf import COMPRESSION_LEVEL

NODATA: Final = -9_999_000.0
"""A pixel that no radar saw, in the file; OPERA's composites write the same number."""

UNDETECT: Final = 0.0
"""A pixel without rain."""


def write_odim(folder: Path, content: Content) -> list[Path]:
    """Write a forecast as composites of rain rates (COMP, RATE, mm/h in float32); each file appears whole.

    Of an ensemble it is the mean: ODIM_H5 has no quantity for the share of members.

    A composite starts a cadence before its valid time, at which it ends; what is not finite is written as nodata.

    Args:
        folder: Of the files; made if need be. Their names carry two times: of the last radar frame, and the valid one.
        content: The forecast.

    Returns:
        The files, by lead time.

    Raises:
        DataError: The projection is not known or has no degrees for a corner, or a file cannot be written.
    """
    storage = open_storage(folder)
    where = _where(content.grid)
    reference_time_s, cadence_s = content.reference_time_s, content.cadence_s
    names = []
    for lead, rain_mmh_hw in enumerate(content.rain_mmh_thw, start=1):
        valid_s = reference_time_s + lead * cadence_s
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            file.attrs["Conventions"] = np.bytes_("ODIM_H5/V2_4")
            _fill(file.create_group("where"), where)
            _write_about(file, content, valid_s)
            _fill(file["how"], {"reference_time": iso_time(reference_time_s), "lead_minutes": lead * cadence_s / 60})
            _write_rain(file, rain_mmh_hw, valid_s - cadence_s, valid_s)

        # Two times: a reader that takes one for the frame's own has to look inside.
        times = (datetime.fromtimestamp(time_s, UTC) for time_s in (reference_time_s, valid_s))
        names.append("_".join(["forecast", *(f"{time:%Y%m%d%H%M}" for time in times)]) + ".h5")
        storage.write(names[-1], buffer.getvalue())
    return [folder / name for name in names]


def _where(grid: Grid) -> dict[str, Any]:
    """Give the attributes of the grid: corners are the outer ones of the corner pixels, in degrees."""
    projdef = proj_string(grid.projection)
    pixel_m = 1000 * grid.pixel_km
    attributes = {"projdef": projdef, "xsize": grid.cols, "ysize": grid.rows, "xscale": pixel_m, "yscale": pixel_m}

    projection = pyproj.Proj(projdef)
    for name, col, row in (("LL", 0, grid.rows), ("UL", 0, 0), ("UR", grid.cols, 0), ("LR", grid.cols, grid.rows)):
        x_m = 1000 * (grid.x0_km + col * grid.pixel_km)
        y_m = 1000 * (grid.y0_km - row * grid.pixel_km)
        try:
            attributes[f"{name}_lon"], attributes[f"{name}_lat"] = projection(x_m, y_m, inverse=True, errcheck=True)
        except pyproj.exceptions.ProjError as error:
            raise DataError(
                f"projection {projdef!r:.200} has no degrees for the corner at {x_m:.0f} m east, {y_m:.0f} m north "
                f"({error}), which ODIM_H5 asks for: leave odim out of --products, or forecast a smaller --crop"
            ) from error
    return attributes


def _write_about(file: Any, content: Content, valid_s: int) -> None:
    provenance = content.provenance
    nominal = {"date": _date(valid_s), "time": _time(valid_s)}
    source = {"source": f"CMT:{provenance.source}"}
    _fill(file.create_group("what"), {"object": "COMP", "version": "H5rad 2.4", **nominal, **source})
    how = {
        "software": provenance.model,
        "comment": content.comment,
        "history": provenance.history,
        "institution": provenance.institution,
        "licence": provenance.licence,
    }
    _fill(file.create_group("how"), how)


def _write_rain(file: Any, rain_mmh_hw: npt.NDArray[np.floating], start_s: int, end_s: int) -> None:
    times = {"startdate": _date(start_s), "starttime": _time(start_s), "enddate": _date(end_s), "endtime": _time(end_s)}
    # SURF: valid at the Earth's surface.
    _fill(file.create_group("dataset1/what"), {"product": "SURF", **times})
    levels = {"gain": 1.0, "offset": 0.0, "nodata": NODATA, "undetect": UNDETECT}
    _fill(file.create_group("dataset1/data1/what"), {"quantity": "RATE", **levels})

    stored_hw = np.where(np.isfinite(rain_mmh_hw), np.maximum(rain_mmh_hw, 0), NODATA).astype(np.float32)
    file.create_dataset(
        "dataset1/data1/data", data=stored_hw, compression="gzip", compression_opts=COMPRESSION_LEVEL, shuffle=True
    )


def _fill(group: Any, attributes: dict[str, Any]) -> None:
    """Write attributes in the types of ODIM_H5: text of fixed length, double, and long."""
    for name, value in attributes.items():
        is_text = isinstance(value, str)
        group.attrs[name] = np.bytes_(value.encode("ascii", errors="replace")) if is_text else value


def _date(time_s: int) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y%m%d")


def _time(time_s: int) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%H%M%S")
