"""Storms like real ones: cells with life cycles, waves that forget as rain does, swirling winds, growth, regimes."""

import math
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy.ndimage import map_coordinates

from rainspark.data.exit_codes import ExitCode
from rainspark.data.sources.storms.cells import FOOT, REACH, ROUGHNESS, STRETCH, Cell, Cells, life_cycle
from rainspark.data.sources.storms.regime import Event, Regime, Weather, regime_of, weather
from rainspark.data.sources.storms.waves import Waves
from rainspark.data.sources.storms.wind import Swirls
from rainspark.data.sources.synthetic import events, iterate_storms, main
from tests.bench.rain import window_sums

PLAIN = Event(num_frames=48, seed=3)
REAL = Event(num_frames=6, seed=11, convective=0.5, growth=1.3, shear_kmh=10.0)
CELL = Cell(
    east_km=30.0, south_km=40.0, drift_east_kmh=0.0, drift_south_kmh=0.0, age_min=0.0, life_min=40.0, peak_mmh=20.0,
    radius_km=3.0, angle=0.5,
)  # fmt: skip
STILL = (0.0, 0.0)
SMOOTH = np.zeros((96, 96))


def frames(event: Event, size: int = 64) -> npt.NDArray[np.uint16]:
    return np.stack(list(iterate_storms(event, size, size)))


def one_cell(cell: Cell) -> Cells:
    """Make a system in which one cell lives and none is born."""
    cells = Cells(PLAIN, (320, 320))
    cells.step(SMOOTH, 0.0, STILL)
    cells.living = [cell]
    return cells


def test_a_cell_grows_fast_decays_slowly_and_is_gone() -> None:
    cells = one_cell(CELL)
    highest = []
    for _ in range(9):
        highest.append(cells.rain_mmh(SMOOTH, Swirls(PLAIN), 0.0).max() / math.exp(-(ROUGHNESS**2) / 2))
        cells.step(SMOOTH, 0.0, STILL)
    top = int(np.argmax(highest))
    assert highest[0] == 0
    assert 1 <= top <= 3
    assert sorted(highest[: top + 1]) == highest[: top + 1]
    assert sorted(highest[top:8], reverse=True) == highest[top:8]
    assert 0.9 * CELL.peak_mmh < highest[top] <= CELL.peak_mmh
    assert highest[8] == 0
    assert not cells.living
    shares = np.linspace(0, 1, 1001)
    assert shares[np.argmax(life_cycle(shares))] == pytest.approx(0.5 ** (1 / 0.6), abs=1e-3)


def test_a_cell_rains_as_its_formula_says() -> None:
    """The hill pixel by pixel, in plain Python; across the upper left border as well."""
    for east, south in ((30.0, 40.0), (-4.5, 317.0)):
        cell = Cell(**{**vars(CELL), "east_km": east, "south_km": south, "age_min": 15.0})
        rain = one_cell(cell).rain_mmh(SMOOTH, Swirls(PLAIN), 0.0)
        height = 20.0 * math.sin(math.pi * (15 / 40) ** 0.6) * math.exp(-(ROUGHNESS**2) / 2)
        for row, col in ((40, 30), (44, 37), (0, 0), (3, 2), (30, 30), (90, 90)):
            x, y = ((d + 160) % 320 - 160 for d in (col - east, row - south))
            along, across = x * math.cos(0.5) + y * math.sin(0.5), y * math.cos(0.5) - x * math.sin(0.5)
            s = math.sqrt((along**2 / STRETCH + across**2 * STRETCH) / 9.0 + 1)
            expected = height * (math.exp(1 - s) - FOOT) / (1 - FOOT) if s < REACH else 0.0
            assert rain[row, col] == pytest.approx(expected, abs=1e-12)


def test_cells_rain_as_much_as_asked_for_and_cluster() -> None:
    cells = Cells(PLAIN, (320, 320))
    field = np.zeros((320, 320))
    # What all cells rain, by the volume of one hill that is summed pixel by pixel.
    hill = one_cell(Cell(**{**vars(CELL), "age_min": 12.0}))
    volume = hill.rain_mmh(SMOOTH, Swirls(PLAIN), 0.0).sum() * math.exp(ROUGHNESS**2 / 2)
    volume /= hill.living[0].height_mmh * CELL.radius_km**2
    total, pairs = [], []
    for number in range(120):
        cells.step(field, 0.5, STILL)
        total.append(volume * sum(cell.height_mmh * cell.radius_km**2 for cell in cells.living) / 320**2)
        if number % 12 == 0:
            places = np.array([(cell.east_km, cell.south_km) for cell in cells.living]) % 320
            gaps = np.abs(places[:, None] - places)
            near = np.hypot(*np.minimum(gaps, 320 - gaps).transpose(2, 0, 1)) < 10
            pairs.append((near.sum() - len(places)) / len(places) ** 2 * 320**2 / (100 * math.pi))
    assert np.mean(total) == pytest.approx(0.5, rel=0.05)
    # Pairs nearer than 10 km, of those that places drawn at random have.
    assert np.mean(pairs) > 2
    ages = [cell.age_min / cell.life_min for cell in cells.living]
    assert 0 <= min(ages) <= max(ages) < 1


def test_cells_are_born_where_the_field_is_high_and_leave_the_wind() -> None:
    field = np.zeros((320, 320))
    field[:, 160:] = 2.0
    cells = Cells(PLAIN, (320, 320))
    cells.step(field, 0.5, STILL)
    before = np.array([cell.east_km for cell in cells.living if cell.life_min > 30 > cell.age_min])
    assert ((before % 320) > 150).mean() > 0.75
    moved = one_cell(CELL)
    moved.step(SMOOTH, 0.0, (4.0, 0.0))
    (cell,) = moved.living
    east, south = cell.east_km - 30.0, cell.south_km - 40.0
    assert 0 < math.hypot(east - 4.0, south) < 4.0
    assert 0.8 * 4 <= math.hypot(east, south) <= 4.0


@pytest.mark.parametrize("order", [1, 2])
def test_waves_forget_as_an_autoregression_does(order: int) -> None:
    """Variance 1 from the first frame on; correlations m**k, and (1 + k (1 - m**2) / (1 + m**2)) m**k of order 2."""
    event = Event(num_frames=13, seed=5, lifetime_min=20.0)
    regime = Regime(lifetime_exponent=0.0, order=order)
    series = list(islice(Waves(event, regime, 64, 64).frames(), 13))
    m = math.exp(-5 / (20 / order))
    power = [float((np.abs(waves) ** 2).mean()) / 320**2 for waves in series]
    assert power == pytest.approx([1.0] * 13, rel=0.03)
    for lag in (1, 3, 6, 12):
        kept = float((series[0] * series[lag].conj()).real.mean()) / 320**2
        more = lag * (1 - m**2) / (1 + m**2) if order == 2 else 0.0
        assert kept == pytest.approx((1 + more) * m**lag, abs=0.02)


def test_field_and_texture_have_unit_variance() -> None:
    waves = Waves(PLAIN, Regime(), 64, 64)
    states = list(islice(waves.frames(), 40))[::13]
    assert np.mean([waves.field(state, (7.0, 3.0)).var() for state in states]) == pytest.approx(1, rel=0.35)
    texture = waves.texture(states[0], STILL)
    assert texture.var() == pytest.approx(1, rel=0.1)
    longest = np.abs(np.fft.fft2(texture))[:4, :4]
    assert longest.max() < 1e-9


def test_swirls_have_the_asked_speed_and_no_divergence() -> None:
    event = Event(num_frames=1, seed=2, shear_kmh=10.0)
    speeds, south, east = [], np.arange(0.0, 2000.0, 20.0)[:, None], np.arange(0.0, 2000.0, 20.0)
    for seed in range(12):
        swirls = Swirls(Event(**{**vars(event), "seed": seed}))
        for hour in np.arange(0, 12, 2.3):
            (x0, y0), (x1, y1) = (swirls.displacement_km(east, south, hour + step) for step in (0, 0.01))
            speeds.append(float((((x1 - x0) / 0.01) ** 2 + ((y1 - y0) / 0.01) ** 2).mean()))
    assert math.sqrt(np.mean(speeds)) == pytest.approx(10.0, rel=0.15)
    x, y = swirls.displacement_km(np.arange(0.0, 50.0), np.arange(0.0, 50.0)[:, None], 1.0)
    divergence = np.gradient(x, axis=1) + np.gradient(y, axis=0)
    assert np.abs(divergence[2:-2, 2:-2]).max() < 1e-3 * np.abs(np.gradient(x, axis=0)).max()


def test_moved_fields_equal_scipys() -> None:
    field = np.random.default_rng(0).standard_normal((64, 96))
    np.testing.assert_array_equal(Swirls(PLAIN).moved(field, 40, 50, 1.0), field[:40, :50])
    swirls = Swirls(Event(num_frames=1, seed=2, shear_kmh=15.0))
    south, east = np.mgrid[:40, :50].astype(float)
    x, y = swirls.displacement_km(east, south, 1.0)
    expected = map_coordinates(field, [south - y, east - x], order=1, mode="grid-wrap")
    np.testing.assert_allclose(swirls.moved(field, 40, 50, 1.0), expected, atol=1e-12)


@pytest.mark.parametrize("growth", [0.5, 2.0])
def test_a_system_grows_by_its_factor(growth: float) -> None:
    """Against the same system without growth; half of it is in the odds of rain, which lag behind where it is wet."""
    grown, plain = (
        [state.mean_mmh for state in weather(Event(num_frames=49, seed=3, growth=factor), Regime())]
        for factor in (growth, 1.0)
    )
    change = (grown[30] / plain[30]) / (grown[18] / plain[18])
    assert math.sqrt(growth) < change < growth or growth < change < math.sqrt(growth)
    ratios = np.array(grown) / plain
    assert (np.diff(ratios) > 0).all() if growth > 1 else (np.diff(ratios) < 0).all()


def test_mean_rain_is_that_of_a_log_normal() -> None:
    state = Weather(wet_share=0.3, median_rate_mmh=0.5, rate_spread=0.9, carried_km=STILL)
    rates = 0.5 * np.exp(0.9 * np.random.default_rng(0).standard_normal(200_000))
    assert state.mean_mmh == pytest.approx(0.3 * rates.mean(), rel=0.02)


def test_equal_seeds_give_equal_storms_whatever_their_length() -> None:
    first = frames(REAL)
    np.testing.assert_array_equal(first, frames(Event(**{**vars(REAL), "num_frames": 9}))[:6])
    for name, value in (("seed", 12), ("convective", 0.6), ("growth", 1.0), ("shear_kmh", 0.0)):
        assert (first != frames(Event(**{**vars(REAL), name: value}))).any()
    assert regime_of(REAL) != regime_of(Event(**{**vars(REAL), "seed": 12}))
    assert regime_of(PLAIN) == Regime()


def test_each_system_draws_its_own_kind_and_the_others_draws_stay() -> None:
    plain = events(100, 6, 4, (20.0, 90.0), (10.0, 30.0))
    series = events(
        100, 6, 4, (20.0, 90.0), (10.0, 30.0), convective=(0.1, 0.8), growths=(0.5, 2.0), shears_kmh=(5.0, 15.0)
    )
    for bare, event in zip(plain, series, strict=True):
        assert (bare.convective, bare.growth, bare.shear_kmh) == (None, 1.0, 0.0)
        assert Event(**{**vars(event), "convective": None, "growth": 1.0, "shear_kmh": 0.0}) == bare
        assert event.convective is not None
        assert 0.1 <= event.convective <= 0.8
        assert 0.5 <= event.growth <= 2.0
        assert 5.0 <= event.shear_kmh <= 15.0
    assert len({event.convective for event in series}) == len(series)


@pytest.mark.parametrize(
    ("option", "wanted", "texts"),
    [
        ("--convective", "from 0 to 0.9", ["-0.1", "1", "0.5:0.95", "0.6:0.2", "nan", "much", "", "0:0.1:0.2"]),
        ("--growth", "from 0.25 to 4", ["0", "-1", "5", "0.1:1", "2:1", "nan", "inf", ":"]),
        ("--shear-kmh", "from 0 to 20", ["-1", "21", "5:30", "9:3", "nan:4", "strong"]),
    ],
)
def test_ranges_that_are_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, wanted: str, texts: list[str]
) -> None:
    for text in texts:
        assert main(["--out", str(tmp_path / "a"), f"{option}={text}"]) == ExitCode.CONFIG
        message = f"argument {option}: {text!r} is no range; expected a number {wanted}, or LOW:HIGH of such"
        assert message in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_the_command_takes_all_options(tmp_path: Path) -> None:
    options = ["--convective", "0:0.8", "--growth", "0.6:1.6", "--shear-kmh", "5:15"]
    for name in ("a", "b"):
        assert main(["--out", str(tmp_path / name), "--hours", "0.5", "--size", "32", *options]) == 0
    names = [path.name for path in sorted((tmp_path / "a").iterdir())]
    assert len(names) == 6
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.slow
def test_storms_have_the_spectrum_the_rates_and_the_memory_of_real_rain() -> None:
    """Against the three wet real events of tests/bench/RESULTS.md, KNMI 2010, FMI 2016 and MeteoSwiss 2015."""
    series = events(
        1920, 48, 5, (15.0, 110.0), (12.0, 32.0), convective=(0.0, 0.8), growths=(0.6, 1.6), shears_kmh=(5.0, 15.0)
    )
    total = None
    for event in series[:16]:
        event = Event(**{**vars(event), "num_frames": 15})
        rain_mmh = frames(event, 288).astype(np.float32) * np.float32(0.12)
        if (rain_mmh[2] > 0).mean() > 0.05:
            total = window_sums(rain_mmh) if total is None else total + window_sums(rain_mmh)
    assert total is not None

    # Power at 64, 32, 16, 8 and 4 km within a factor 2 of the events' mean.
    ratios = total.power / total.windows / (3210, 544, 81, 9.8, 1.02)
    assert (np.abs(np.log2(ratios)) < 1).all()
    # Shares of the wet pixels above 0.5, 2, 5 and 10 mm/h from half the lowest to the highest of the events.
    shares = total.counts[2:6] / total.counts[1]
    assert (shares > np.array([0.396, 0.064, 0.0039, 0.0001]) / 2).all()
    assert (shares < np.array([0.72, 0.31, 0.085, 0.027])).all()
    # What is kept after 5, 15, 30 and 60 minutes, by band of wavelengths: within 0.15 of the events' range.
    kept = total.products / total.norms
    least = [[0.67, 0.26, 0.06, 0.01], [0.86, 0.49, 0.18, 0.01], [0.95, 0.74, 0.43, 0.08], [0.98, 0.87, 0.64, 0.28]]
    most = [[0.72, 0.29, 0.08, 0.03], [0.89, 0.55, 0.24, 0.06], [0.96, 0.78, 0.51, 0.16], [0.99, 0.91, 0.73, 0.38]]
    assert (kept[:4] > np.array(least) - 0.15).all()
    assert (kept[:4] < np.array(most) + 0.15).all()
