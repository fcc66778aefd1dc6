"""Times and memory of steps, as the metrics tell them."""

import psutil
import pytest
import torch

from rainspark.trainer.training.step_costs import MEGABYTE, Speed, StepTimes, device_name, memory_tables, read_since

CPU = torch.device("cpu")


def times(data_s: float, marks_s: list[float]) -> StepTimes:
    return StepTimes(CPU, data_s, marks_s)


def test_the_parts_of_a_step_add_up() -> None:
    speed = Speed(8)
    speed.start(10, 95.0)
    speed.add(times(1.0, [0.0, 2.0, 2.5, 3.0]))
    speed.add(times(0.0, [0.0, 4.0, 4.0, 5.5]))
    line = speed.line(12, 105.0)
    assert line == {
        "windows_per_s": 1.6,
        "step_time_s": 5.0,
        "data_wait_share": 0.1,
        "time/data_s": 0.5,
        "time/forward_backward_s": 3.0,
        "time/update_s": 1.0,
        "time/other_s": 0.5,
    }
    assert speed.line(12, 105.0) == {}


def test_marks_are_read_from_the_hosts_clock_on_a_cpu() -> None:
    step = StepTimes(CPU, 0.0)
    step.mark()
    torch.randn(200, 200) @ torch.randn(200, 200)
    step.mark()
    assert step.part_s(0) > 0


def test_the_largest_of_the_sum_of_memory_tables_is_the_largest_of_all() -> None:
    own_mb = psutil.Process().memory_info().rss / MEGABYTE
    assert 10 < own_mb < 100_000
    tables = [memory_tables(rank, 3, CPU)["memory/cpu_mb"] for rank in range(3)]
    for rank, table in enumerate(tables):
        assert (table > 0).tolist() == [other == rank for other in range(3)]
    assert float(torch.stack(tables).sum(dim=0).max()) == pytest.approx(own_mb, rel=0.2)
    assert device_name(CPU) == "cpu"


def test_what_was_read_is_counted_from_the_last_reading_and_peaks_are_not() -> None:
    now = {"requests": 7.0, "retries": 1.0, "held_bytes_peak": 30.0, "hash_s": 2.0}
    assert read_since({"requests": 5.0, "held_bytes_peak": 20.0}, now) == {
        "data/epoch_requests": 2.0,
        "data/epoch_retries": 1.0,
        "data/held_bytes_peak": 30.0,
    }
