"""Options of forecasts: what an ensemble is asked for, and what is refused."""

import pytest

from rainspark.data.errors import ConfigError
from rainspark.trainer.settings.forecast import EnsembleOptions, Site, ensemble_options, make_parser

NEEDED = ["--run", "r", "--input", "i", "--out", "o"]


def _options(*words: str) -> EnsembleOptions | None:
    return ensemble_options(make_parser().parse_args([*NEEDED, *words]))


def test_without_members_there_is_one_forecast() -> None:
    assert _options() is None


def test_members_have_defaults_that_can_be_replaced() -> None:
    assert _options("--members", "20") == EnsembleOptions(members=20)
    words = "--members 2 --seed 7 --thresholds 5 0.5 5 --sum-thresholds 3 --radius-km 12 0 --quantiles 0.9 0.1"
    stated = _options(*words.split(), "--place", "De Bilt=52.1,5.18", "--place=-33.9,18.4")
    assert stated == EnsembleOptions(
        members=2,
        seed=7,
        thresholds_mmh=(0.5, 5),
        sum_thresholds_mm=(3,),
        radii_km=(0, 12),
        quantiles=(0.1, 0.9),
        sites=(
            Site(name="De Bilt", latitude_deg=52.1, longitude_deg=5.18),
            Site(name="", latitude_deg=-33.9, longitude_deg=18.4),
        ),
    )
    assert [str(site) for site in stated.sites] == ["De Bilt (52.1 N, 5.18 E)", "33.9 S, 18.4 E"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--members", "1"], "argument --members: '1' is no whole number of 2 or more, up to 100"),
        (["--members", "101"], "'101' is no whole number"),
        (["--members", "2", "--seed", "-1"], "'-1' is no whole number of 0 or more"),
        (["--members", "2", "--thresholds", "-0.1"], "--thresholds: '-0.1' is no number from 0 to 1000"),
        (["--members", "2", "--thresholds", "nan"], "'nan' is no number"),
        (["--members", "2", "--radius-km", "201"], "--radius-km.*'201' is no number from 0 to 200"),
        (["--members", "2", "--quantiles", "50"], "--quantiles: '50' is no number from 0 to 1"),
        (["--members", "2", "--place", "52.1"], r"'52.1'; expected degrees north and east, 52.1,5.18"),
        (["--members", "2", "--place", "Here=91,5"], r"'Here=91,5'; expected degrees"),
        (["--members", "2", "--place", "1,2,3"], "expected degrees"),
        (["--seed", "0"], "--seed: has an effect with --members only; add --members 20, or leave it out"),
        (["--thresholds", "1", "--place", "1,2"], "--thresholds, --place: has an effect with --members only"),
    ],
)
def test_what_cannot_be_meant_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _options(*words)
