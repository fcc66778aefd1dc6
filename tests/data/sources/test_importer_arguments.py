"""Arguments for pysteps' importers: names, types and requirements as their signatures and docstrings have them."""

from typing import Any

import numpy as np
import pytest

from rainspark.data.errors import ConfigError
from rainspark.data.sources.foreign.importer_arguments import check_arguments, effective, parameters_of
from rainspark.data.sources.importer import _pysteps_method

pytest.importorskip("pysteps", reason="pysteps (extra nowcast) is not installed")

RADAR = {"product": "AQC", "unit": "mm", "accutime": "5"}


@pytest.mark.parametrize(
    ("importer", "given", "expected"),
    [
        ("mrms_grib", {}, {"window_size": 1}),
        ("mrms_grib", {"window_size": "1"}, {"window_size": 1}),
        ("mrms_grib", {"window_size": "4,4"}, {"window_size": (4, 4)}),
        ("mrms_grib", {"window_size": "(2, 3)"}, {"window_size": (2, 3)}),
        ("fmi_pgm", {"gzipped": "False"}, {"gzipped": False}),
        ("fmi_pgm", {"gzipped": "true"}, {"gzipped": True}),
        ("mch_gif", RADAR, {"product": "AQC", "unit": "mm", "accutime": 5.0}),
        ("mch_gif", RADAR | {"product": "rzc", "unit": "mm/h"}, {"product": "RZC", "unit": "mm/h", "accutime": 5.0}),
        ("odim_hdf5", {"qty": "DBZH"}, {"qty": "DBZH"}),
        ("knmi_hdf5", {"accutime": 5}, {"accutime": 5.0}),
        ("bom_rf3", {}, {}),
    ],
)
def test_arguments_get_the_types_of_the_importer(
    importer: str, given: dict[str, Any], expected: dict[str, Any]
) -> None:
    arguments = check_arguments(importer, _pysteps_method(importer), given)
    assert arguments == expected
    assert [type(value) for value in arguments.values()] == [type(value) for value in expected.values()]


@pytest.mark.parametrize(
    ("importer", "given", "message"),
    [
        ("odim_hdf5", {"qtty": "DBZH"}, r"--argument qtty: not one of odim_hdf5; expected one of: qty \(RATE or ACRR"),
        ("odim_hdf5", {"qty": "RAIN"}, r"--argument qty=RAIN: expected qty \(RATE or ACRR or DBZH; RATE by default\)"),
        ("odim_hdf5", {"unit": "mm/h"}, "--argument unit: not one of odim_hdf5"),
        ("bom_rf3", {"qty": "RATE"}, "not one of bom_rf3; expected one of: none"),
        ("mch_gif", {"product": "AQC"}, r"mch_gif needs --argument unit=\.\.\. --argument accutime=\.\.\.; it takes"),
        ("mch_gif", RADAR | {"accutime": "five"}, r"accutime=five: expected accutime \(float; required\)"),
        ("mch_gif", RADAR | {"accutime": "nan"}, "accutime=nan: expected accutime"),
        ("mch_gif", RADAR | {"fillna": "0"}, r"fillna: not one of mch_gif \(it makes missing pixels a measurement\)"),
        ("mrms_grib", {"window_size": "1.0"}, r"window_size=1.0: expected window_size \(array_like or int; 1 by def"),
        ("mrms_grib", {"window_size": "wide"}, "window_size=wide: expected window_size"),
        ("mrms_grib", {"window_size": ""}, "window_size=: expected window_size"),
        ("mrms_grib", {"extent": "1,2,3,4"}, r"extent: not one of mrms_grib \(it moves the grid; --crop cuts\)"),
        ("mrms_grib", {"dtype": "single"}, "it rounds the data"),
        ("fmi_pgm", {"gzipped": "maybe"}, "gzipped=maybe: expected gzipped"),
    ],
)
def test_arguments_that_the_importer_does_not_take_are_named(
    importer: str, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_arguments(importer, _pysteps_method(importer), given)


def test_an_importer_of_somebody_else_is_read_by_its_own_words() -> None:
    def read(name: str, size: int, levels: Any = None, *, label: str = "a", factor: Any = 1.5, **rest: Any) -> None:
        """Read a file.

        Parameters
        ----------
        name : str
            The file.
        size : int
            Its size.
        levels : tuple of float, optional
            Its levels; levels: 3 is no type.

        Returns
        -------
        rest : dict
        """

    assert list(parameters_of(read)) == ["size", "levels", "label", "factor"]
    given = {"size": "3", "levels": "0.5,2", "label": "7", "factor": "2"}
    assert check_arguments("read", read, given) == {"size": 3, "levels": (0.5, 2.0), "label": "7", "factor": 2.0}
    assert check_arguments("read", read, {"size": np.int64(3), "levels": "None"}) == {"size": 3, "levels": None}
    assert effective(read, {"size": 3}) == "size=3, levels=None, label='a', factor=1.5"
    with pytest.raises(ConfigError, match=r"read needs --argument size=\.\.\."):
        check_arguments("read", read, {})
