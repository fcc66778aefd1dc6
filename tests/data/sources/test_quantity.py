"""Units and standard names: rates, amounts and reflectivities, and what is none of them."""

import pytest

from rainspark.data.errors import DataError
from rainspark.data.sources.foreign.quantity import Quantity, quantity_of


@pytest.mark.parametrize("units", ["mm/h", "mm/hr", "[mm/hr]", "mm h-1", "mm h**-1", "mm h^-1", "mm.h-1", "mm hour-1"])
@pytest.mark.parametrize("name", ["", "unknown", "rainfall_flux", "lwe_precipitation_rate"])
def test_millimetres_an_hour_in_every_spelling(units: str, name: str) -> None:
    assert quantity_of({"units": units, "standard_name": name}, None) == Quantity(kind="rate")


@pytest.mark.parametrize(
    ("units", "kind", "factor"),
    [
        ("kg m-2 s-1", "rate", 3600.0),
        ("kg/m2/s", "rate", 3600.0),
        ("kg/m^2/s", "rate", 3600.0),
        ("kg m**-2 s**-1", "rate", 3600.0),
        ("mm per hour", "rate", 1.0),
        ("m s-1", "rate", 3.6e6),
        ("mm/5min", "rate", 12.0),
        ("mm/(5 min)", "rate", 12.0),
        ("kg/(m2 s)", "rate", 3600.0),
        ("kg / (m^2 h)", "rate", 1.0),
        ("0.1 mm/h", "rate", 0.1),
        ("mm d-1", "rate", 1 / 24),
        ("inch/hour", "rate", 25.4),
        ("kg m-2", "amount", 1.0),
        ("mm", "amount", 1.0),
        ("0.01mm", "amount", 0.01),
        ("1e-3 m", "amount", 1.0),
        ("dBZ", "reflectivity", 1.0),
    ],
)
def test_units_have_their_factors(units: str, kind: str, factor: float) -> None:
    quantity = quantity_of({"units": "K"}, units)
    assert quantity.kind == kind
    assert quantity.factor == pytest.approx(factor)


@pytest.mark.parametrize(
    "units", ["K", "m2", "%", "dB", "m s-2", "kg m-3", "mm2", "mm h", "g m-2", "mm/h/h", "mm5", "-"]
)
def test_other_units_are_refused(units: str) -> None:
    with pytest.raises(DataError, match=r"these are units of no rain; .*state it with --units"):
        quantity_of({"units": units}, None)


def test_names_have_to_agree() -> None:
    assert quantity_of({"unit": "mm h-1", "standard_name": "rainfall_rate"}, None).kind == "rate"
    assert quantity_of({"GRIB_UNIT": "[mm/hr]"}, None).kind == "rate"
    assert quantity_of({"units": "dB", "standard_name": "equivalent_reflectivity_factor"}, None).kind == "reflectivity"
    for attributes, message in (
        ({"units": "mm/h", "standard_name": "rainfall_amount"}, "a rate, and its standard_name is .* an amount"),
        ({"units": "mm", "standard_name": "equivalent_reflectivity_factor"}, "an amount, .* a reflectivity"),
        ({"units": "m s-1", "standard_name": "wind_speed"}, "which is no rain"),
        ({"units": "1"}, "its units are 1"),
        ({"units": "unknown", "standard_name": "unknown"}, "its units are unknown"),
        ({}, "its units are None"),
    ):
        with pytest.raises(DataError, match=message):
            quantity_of(attributes, None)
        assert quantity_of(attributes, "mm/h") == Quantity(kind="rate")
