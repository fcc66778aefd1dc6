"""Times in names of files: zones become UTC, what varies is left to wildcards, what is not clear is refused."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rainspark.data.errors import ConfigError, DataError
from rainspark.data.sources.foreign.name_times import NameTimes


def time_of(name: str, *patterns: str) -> str | None:
    """Read a name's time as text; None where no pattern fits."""
    name_times = NameTimes(patterns=patterns)
    name_times.check()
    time_s = name_times.time_of(name)
    return None if time_s is None else f"{datetime.fromtimestamp(time_s, UTC):%Y-%m-%dT%H:%M:%S}"


@pytest.mark.parametrize(
    ("pattern", "name", "time"),
    [
        ("r_%Y%m%d%H%M%z.h5", "r_202401010000+0200.h5", "2023-12-31T22:00:00"),
        ("r_%Y%m%d%H%M%z.h5", "r_202401010000-0330.h5", "2024-01-01T03:30:00"),
        ("r_%Y%m%d%H%M%z.h5", "r_202401010000+05:45.h5", "2023-12-31T18:15:00"),
        ("r_%Y%m%d%H%M%z.h5", "r_202401010000+02.h5", "2023-12-31T22:00:00"),
        ("r_%Y%m%d%H%MUTC.h5", "r_202401010000UTC.h5", "2024-01-01T00:00:00"),
        ("r_%Y%m%d%H%M-01.h5", "r_202401010000-01.h5", "2024-01-01T00:00:00"),
        ("%Y%m%d%H%M_ESTofex*", "202401010000_ESTofex.h5", "2024-01-01T00:00:00"),
        ("r_%Y%m%dT%H%M%S%z.h5", "r_20240101T000500Z.h5", "2024-01-01T00:05:00"),
        ("AQC%y%j%H%M?_00005.801.gif", "AQC170311145F_00005.801.gif", "2017-01-31T11:45:00"),
        ("AQC%y%j%H%M?_00005.801.gif", "AQC1703111500_00005.801.gif", "2017-01-31T11:50:00"),
        ("raa01-r?_10000-%y%m%d%H%M-*.gz", "raa01-rw_10000-1811220050-dwd---bin.gz", "2018-11-22T00:50:00"),
        ("*_%Y%m%d%H%M*", "T_PAAH22_202401010005_v2.hdf", "2024-01-01T00:05:00"),
        ("%Y-%m-%d %H:%M", "2020-1-5 0:05", "2020-01-05T00:05:00"),
        ("%d%b%Y_%I%M%p", "05jan2020_1205am", "2020-01-05T00:05:00"),
        ("100%%_%Y%m%d%H", "100%_2024010107", "2024-01-01T07:00:00"),
        # A digit beside the time may be one of it, and a day has to be one.
        ("*%Y%m%d%H%M*", "720240101000055", None),
        ("r_%Y%m%d%H%M*", "r_20240101000055.h5", None),
        ("*%y%m%d%H%M*", "r_201201010000.h5", None),
        ("%Y%m%d-%H%M", "2020115-0005", None),
        ("%Y%m%d%H%M", "202302300000", None),
        ("%Y%m%d%H%M", "202402290000x", None),
    ],
)
def test_names_give_times(pattern: str, name: str, time: str | None) -> None:
    assert time_of(name, pattern) == time


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("", "no year"),
        ("%m%d%H%M", "no year"),
        ("%Y%d%H%M", "no month"),
        ("%Y%m%H%M", "no day"),
        ("%Y%m%d", "no hour"),
        ("%Y%m%d%M", "no hour"),
        ("%Y%m%d%H*", "no minutes, and what follows the hour may be them"),
        ("%Y%m%d%H50", "no minutes"),
        ("%Y%m%d%H_%S", "no minutes"),
        ("%Y%y%m%d%H%M", "more than one year"),
        ("%Y%m%d%j%H%M", "more than one month"),
        ("%Y%m%d%H%I%p%M", "more than one hour"),
        ("%Y%m%d%I%M", "expected both, or %H"),
        ("%Y%m%d%H%M%p", "expected both, or %H"),
        ("%Y%m%d%H%M_%Y", "%Y stands in it twice"),
        ("%Y%m%d%H%M%Z", "names of zones have several meanings: write %z"),
        ("%Y%m%d%H%M%S%f", "times are whole seconds"),
        ("%Y%W%a%H%M", "name no day"),
        ("%Y%m%d%X", "machine's language"),
        ("%Y%m%d%H%M%q", r"%q cannot be read; expected %Y, %y, "),
        ("%Y%m%d%H%M%", "ends in %"),
        ("%Y%m%d%H%M+0200.h5", "a zone stands in it as text; write %z"),
        ("%Y%m%d%H%M%S_-03:30", "a zone stands in it as text"),
        ("%Y%m%d%H%M+02.nc", "a zone stands in it as text"),
        ("%Y%m%d%H%M_CEST.nc", "files with times of a named zone have to be renamed"),
        ("%Y%m%d%H%MEST.nc", "a zone stands in it as text"),
        ("%Y%m%d%H%M_local.nc", "a zone stands in it as text"),
        ("%Y%m%d%H%M+2.nc", "a zone stands in it as text"),
        ("%Y%m%d%H%M_UTC-3.nc", "a zone stands in it as text"),
        ("%Y%m%d%H%MZ+01.nc", "a zone stands in it as text"),
    ],
)
def test_patterns_that_are_not_clear_are_refused(pattern: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"--time-pattern .*{message}"):
        NameTimes(patterns=(pattern,)).check()
    with pytest.raises(ConfigError, match="--time-pattern is missing"):
        NameTimes(patterns=()).check()


def test_several_patterns_take_what_fits_and_agree() -> None:
    patterns = ("a_%Y%m%d%H%M.h5", "b_%y%j%H%M*.h5")
    assert time_of("a_202401010005.h5", *patterns) == "2024-01-01T00:05:00"
    assert time_of("b_240010010-x.h5", *patterns) == "2024-01-01T00:10:00"
    assert time_of("c_202401010005.h5", *patterns) is None
    assert time_of("a_202401010005.h5", *patterns, "a_%Y%m%d%H%M*") == "2024-01-01T00:05:00"
    with pytest.raises(DataError, match=r"several times .*2024-12-10T00:05:00Z, 2024-10-12T00:05:00Z; expected one"):
        time_of("a_202412100005.h5", *patterns, "a_%Y%d%m%H%M.h5")


@pytest.mark.parametrize(
    ("pattern", "name", "message"),
    [
        ("r_%Y%m%d%H%M*.h5", "r_202401010000+0200.h5", r"\+0200, .* leaves to a wildcard; expected %z"),
        ("r_%Y%m%dT%H%M*", "r_20240101T0000_-05:00.h5", "-05:00, .* leaves to a wildcard"),
        ("r_%Y%m%dT%H%M?????.h5", "r_20240101T0000+0545.h5", r"\+0545, .* leaves to a wildcard"),
        ("r_%Y%m%d%H%M*", "r_202401010000+01.h5", r"\+01, .* leaves to a wildcard"),
        ("r_%Y%m%d%H%M*", "r_202401010000_JST.h5", "JST, .* leaves to a wildcard.* have to be renamed"),
        ("*%Y%m%d%H%M*", "202401010000_202401010005.h5", "several times .*2024-01-01T00:00:00Z, 2024-01-01T00:05:00Z"),
    ],
)
def test_names_that_are_not_clear_are_refused(pattern: str, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        time_of(name, pattern)
    assert time_of("r_20240101T0000+00:00.h5", "r_%Y%m%dT%H%M*") == "2024-01-01T00:00:00"


@given(st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(2068, 12, 31)))
def test_every_time_comes_back_from_its_name(time: datetime) -> None:
    time = time.replace(microsecond=0)
    for pattern in ("x%Y%m%d%H%M%S.h5", "%y%j-%H%M_%S*", "%Y-%m-%dT%H%M%S%z"):
        name = time.replace(tzinfo=UTC).strftime(pattern.replace("*", "tail"))
        assert time_of(name, pattern) == f"{time:%Y-%m-%dT%H:%M:%S}"
