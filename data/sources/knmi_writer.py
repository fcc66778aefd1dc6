"""Write frames in KNMI's file format, under a product name that says that they are synthetic."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import numpy.typing as npt

from ..units import MISSING_COUNT
from ..whole_file import writing_whole
from .knmi import MONTHS, SYNTHETIC_GROUP

CADENCE_S: Final = 300
KNMI_ROWS: Final = 765
KNMI_COLS: Final = 700
KNMI_ROW_OFFSET: Final = 3650
KNMI_PROJECTION: Final = "+proj=stere +lat_0=90 +lon_0=0.0 +lat_ts=60.0 +a=6378.137 +b=6356.752 +x_0=0 +y_0=0"


def write_knmi_file(path: Path, counts: npt.NDArray[np.uint16], end_time_s: int) -> None:
    """Write one frame as KNMI does, with a product name that says it is synthetic.

    The grid is KNMI's 1 km grid, cut or extended around its centre to the frame's size, and the offsets say so.

    Args:
        path: The file, which appears when it is whole.
        counts: uint16 (rows, cols), 0.12 mm/h a count, 65535 missing.
        end_time_s: End of the 5 minutes, epoch seconds UTC.
    """
    # HDF5 opens the unfinished file by its name: through a Python file it would write other bytes.
    with writing_whole(path, durable=False) as unfinished, h5py.File(unfinished.name, "w") as file:
        _fill(file, counts, end_time_s)


def _fill(file: Any, counts: npt.NDArray[np.uint16], end_time_s: int) -> None:
    """Write what a KNMI file holds."""
    rows, cols = counts.shape
    image = file.create_dataset(
        "image1/image_data", data=counts.astype("<u2"), chunks=counts.shape, compression="gzip", compression_opts=6
    )
    _set(image, CLASS="IMAGE", VERSION="1.2")
    _set(file["image1"], image_bytes_per_pixel=2, image_geo_parameter="ACCUMULATED_PRECIPITATION_[MM]")
    _set(file["image1"], image_product_name=SYNTHETIC_GROUP, image_size=rows * cols)

    calibration = file.create_group("image1/calibration")
    _set(calibration, calibration_flag="Y", calibration_formulas="GEO=0.01*PV+0.0")
    _set(calibration, calibration_missing_data=MISSING_COUNT, calibration_out_of_image=MISSING_COUNT)

    geographic = file.create_group("geographic")
    _set(geographic, geo_dim_pixel="KM,KM", geo_number_rows=rows, geo_number_columns=cols)
    _set(geographic, geo_par_pixel="X,Y", geo_pixel_def="LU", geo_pixel_size_x=1.0, geo_pixel_size_y=-1.0)
    _set(geographic, geo_row_offset=float(KNMI_ROW_OFFSET + (KNMI_ROWS - rows) // 2))
    _set(geographic, geo_column_offset=float((KNMI_COLS - cols) // 2))
    projection = file.create_group("geographic/map_projection")
    _set(projection, projection_indication="Y", projection_name="STEREOGRAPHIC")
    _set(projection, projection_proj4_params=KNMI_PROJECTION)

    overview = file.create_group("overview")
    _set(overview, hdftag_version_number="3.5", number_image_groups=1, number_radar_groups=0)
    _set(overview, product_datetime_start=product_time(end_time_s - CADENCE_S))
    _set(overview, product_datetime_end=product_time(end_time_s))
    _set(overview, product_group_name=SYNTHETIC_GROUP, products_missing="NA")


def file_name(end_time_s: int) -> str:
    """Name a frame's file as KNMI does, by its end time."""
    return f"RAD_NL25_RAP_5min_{datetime.fromtimestamp(end_time_s, UTC):%Y%m%d%H%M}.h5"


def _set(item: Any, **attributes: str | int | float) -> None:
    """Set attributes in the types that KNMI's files have: fixed-length text, int32 and float32 arrays of one value."""
    for name, value in attributes.items():
        if isinstance(value, str):
            item.attrs[name] = np.bytes_(value)
        else:
            item.attrs[name] = np.array([value], dtype=np.int32 if isinstance(value, int) else np.float32)


def product_time(time_s: int) -> str:
    """Write a time as KNMI does, "26-AUG-2010;00:05:00.000"."""
    # Month names by hand: strftime's follow the user's language.
    time = datetime.fromtimestamp(time_s, UTC)
    return f"{time:%d}-{MONTHS[time.month - 1]}-{time:%Y;%H:%M:%S}.000"
