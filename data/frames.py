"""What a radar frame is: counts, scale, missing code, end time and grid. Times are integer epoch seconds, UTC."""

import json
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final, Self

from .errors import DataError
from .json_checks import JsonRecord, read_json

# Nine digits hold every pixel there is, and no number that takes long to compute with.
CROP_TEXT: Final = re.compile(r"(\d{1,9}):(\d{1,9}),(\d{1,9}):(\d{1,9})", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Grid(JsonRecord):
    """A regular map grid; row 0 lies in the north.

    Attributes:
        rows: Number of rows.
        cols: Number of columns.
        pixel_km: Side of a square pixel, in the projection's kilometres.
        projection: PROJ string or well-known text, as the source states it.
        x0_km: Easting of the left edge of column 0.
        y0_km: Northing of the upper edge of row 0.
    """

    rows: int
    cols: int
    pixel_km: float
    projection: str
    x0_km: float
    y0_km: float

    def cropped(self, crop: "Crop") -> "Grid":
        """Cut a part out of the grid.

        Raises:
            DataError: The crop reaches outside the grid.
        """
        # Row 0 lies in the north: northings fall by every row that is left out.
        crop.check_inside(self.rows, self.cols)
        return Grid(
            rows=crop.rows,
            cols=crop.cols,
            pixel_km=self.pixel_km,
            projection=self.projection,
            x0_km=self.x0_km + crop.col0 * self.pixel_km,
            y0_km=self.y0_km - crop.row0 * self.pixel_km,
        )

    def to_json(self) -> dict[str, Any]:
        """Give the fields as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """Read the fields back; raises DataError for a missing, unknown or mistyped one, or a grid without pixels."""
        try:
            # Through JSON, so that types are judged as strictly as in an index.
            grid = read_json(cls, json.dumps(values).encode())
        except DataError as error:
            raise DataError(f"grid: {error}") from error
        if grid.rows < 1 or grid.cols < 1:
            raise DataError(f"a grid of {grid.rows} x {grid.cols} pixels; expected at least 1 x 1")
        return grid


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A rectangle of pixels: rows row0 to row1 - 1, columns col0 to col1 - 1."""

    row0: int
    row1: int
    col0: int
    col1: int

    def __post_init__(self) -> None:
        """Refuse a rectangle without pixels."""
        if not (0 <= self.row0 < self.row1 and 0 <= self.col0 < self.col1):
            raise DataError(
                f"crop {self} holds no pixels; expected ROW0:ROW1,COL0:COL1 with ROW0 < ROW1 and COL0 < COL1"
            )

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.row1 - self.row0

    @property
    def cols(self) -> int:
        """Number of columns."""
        return self.col1 - self.col0

    def check_inside(self, rows: int, cols: int) -> None:
        """Raise DataError unless the rectangle lies inside a grid of rows x cols pixels."""
        if self.row1 > rows or self.col1 > cols:
            raise DataError(
                f"crop {self} reaches outside the grid of {rows} rows and {cols} columns; "
                f"expected rows within 0:{rows} and columns within 0:{cols}"
            )

    def __str__(self) -> str:
        """Format the crop as `parse_crop` reads it."""
        return f"{self.row0}:{self.row1},{self.col0}:{self.col1}"


def parse_crop(text: str) -> Crop:
    """Parse a crop such as "284:572,225:513" (rows, columns; the ends are exclusive).

    Raises:
        DataError: The text is no crop, or the rectangle holds no pixels.
    """
    match = CROP_TEXT.fullmatch(text)
    if match is None:
        raise DataError(f"crop {text!r} was not understood; expected ROW0:ROW1,COL0:COL1, for example 284:572,225:513")
    row0, row1, col0, col1 = map(int, match.groups())
    return Crop(row0=row0, row1=row1, col0=col0, col1=col1)


def printable(text: str) -> str:
    """Spell out the characters of a message that would steer a terminal; line ends stay."""
    # Inside the quotes of ascii() stands the escape in plain letters.
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def iso_time(time_s: int) -> str:
    """Format a time: epoch seconds -> "2010-08-26T00:05:00Z"."""
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
