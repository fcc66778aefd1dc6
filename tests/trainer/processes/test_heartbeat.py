"""Who is named as late or silent, and how ranks come together; whole runs are in tests/integration/test_ranks.py."""

import os
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from torch._C._distributed_c10d import HashStore
from torch.distributed.distributed_c10d import Store

from rainspark.trainer.processes import rendezvous
from rainspark.trainer.processes.heartbeat import WAITING, Heartbeat
from rainspark.trainer.processes.rendezvous import (
    Address,
    RankEndedError,
    Verdict,
    declare,
    meet,
    read_verdict,
)
from rainspark.trainer.processes.table import Beat, Seen, list_few, name_late, silent_ranks
from tests.programs import free_port

HOST = os.uname().nodename


def seen(rank: int, operation: str, step: int | None, count: int, *, waits: bool = False, read_s: float = 0.0) -> Seen:
    beat = Beat(operation=operation, step=step, count=count, waits=waits, at_s=read_s - 2.0)
    return Seen(rank=rank, host=f"node{rank}", beat=beat, published=1, read_s=read_s)


def named(*table: Seen, now_s: float = 5.0) -> str:
    return name_late(table, silent_ranks(table, now_s, 8.0), now_s)


def test_the_rank_that_is_behind_is_late() -> None:
    reading = seen(1, "read data", 12, 0)
    assert named(seen(0, "backward", 12, 3), reading, seen(2, "backward", 12, 3)) == (
        "rank 1 (node1) is late: read data, step 12, for 7 s"
    )
    assert "rank 1 (node1)" in named(seen(0, "read data", 13, 0), seen(1, "update", 12, 9))
    assert "rank 0 (node0) is late: load checkpoint, for" in named(
        seen(0, "load checkpoint", None, 4), seen(1, WAITING, None, 4, waits=True)
    )


def test_who_waits_for_rank_0_is_not_late() -> None:
    table = [seen(0, "write checkpoint", 12, 2), *(seen(rank, WAITING, 12, 2, waits=True) for rank in (1, 2))]
    assert named(*table) == "rank 0 (node0) is late: write checkpoint, step 12, for 7 s"


def test_a_silent_rank_is_named_first_and_alone() -> None:
    table = [seen(0, "backward", 3, 1, read_s=20.0), seen(1, "update", 4, 0), seen(2, "backward", 4, 1, read_s=20.0)]
    text = named(*table, now_s=21.0)
    assert text.startswith("rank 1 (node1) is silent for 21 s: its process has ended or is stopped")
    assert text.endswith("its last operation was: update, step 4")
    assert "rank 0" not in text


def test_nobody_is_blamed_where_all_are_at_the_same_place() -> None:
    assert named(*(seen(rank, "backward", 3, 1) for rank in range(3))).startswith("no rank is behind: all are at back")


def test_of_many_late_ranks_the_first_are_named() -> None:
    table = [seen(rank, "forward" if rank < 20 else "backward", 3, int(rank >= 20)) for rank in range(64)]
    text = named(*table)
    assert text.count("is late") == 8
    assert text.endswith("; 12 more")
    assert list_few(list(range(11))) == "0, 1, 2, 3, 4, 5, 6, 7, 3 more"


def heart() -> Heartbeat:
    return Heartbeat(0, 1, timeout_s=60.0, start_timeout_s=60.0)


def test_beats_count_within_a_step() -> None:
    beating = heart()
    orders = []
    for operation, step in (("read data", 1), ("forward", 1), ("evaluate", 1), ("read data", 2)):
        beating.beat(operation, step)
        orders.append(beating._beat.order)
    assert orders == sorted(orders)
    assert beating.doing == "read data, step 2"
    beating.again()
    assert beating._beat.order > orders[-1]
    order = beating._beat.order
    beating.rename("draw a picture")
    assert beating._beat.order == order
    assert beating.doing == "draw a picture, step 2"


def test_one_process_has_no_table_and_no_thread_without_a_watch() -> None:
    before = threading.active_count()
    beating = heart()
    assert threading.active_count() == before
    assert beating.explain() == "this is the only process"
    beating.declare(1, "nobody hears it")
    assert beating.find_cause() is None
    with beating.watching():
        assert threading.active_count() == before + 1
    beating.leave()
    beating.close()
    assert threading.active_count() == before


def test_a_silent_rank_shows_in_a_table_that_was_watched_for_long_enough() -> None:
    store = HashStore()
    first, second = (Heartbeat(rank, 2, timeout_s=6.0, start_timeout_s=6.0, connect=lambda: store) for rank in range(2))
    second.beat("forward", 6)
    second._await_exchange()
    second.close()
    first.beat("forward", 6)
    first._wants_table = True
    time.sleep(2 * first.silence_s)
    assert first.explain().startswith(f"rank 1 ({HOST}) is silent for ")
    first.close()


def test_a_table_that_not_all_ranks_have_reached_is_not_complete() -> None:
    store = HashStore()
    waiting = Heartbeat(0, 2, timeout_s=6.0, start_timeout_s=6.0, connect=lambda: store)
    waiting._wants_table = True
    waiting._await_exchange()
    assert waiting.explain() == "the table of all ranks is not complete"
    waiting.close()


def address(rank: int, world_size: int, port: int) -> Address:
    return Address.read(rank, world_size, {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})


def met(rank: int, world_size: int, port: int, stop: Any = lambda: False, timeout_s: float = 30.0) -> Store:
    return meet(address(rank, world_size, port), timeout_s, stop)


def test_ranks_meet_and_the_first_reason_counts() -> None:
    port = free_port()
    with ThreadPoolExecutor(2) as pool:
        stores = list(pool.map(lambda rank: met(rank, 2, port), range(2)))
    assert read_verdict(stores[0]) is None
    first = Verdict(rank=1, code=4, text="rank 1: damage")
    assert declare(stores[1], first) == first
    assert declare(stores[0], Verdict(rank=0, code=1, text="rank 0: connection reset")) == first
    assert read_verdict(stores[0]) == first


def test_missing_ranks_are_named_by_all_that_came() -> None:
    port = free_port()
    with ThreadPoolExecutor(2) as pool:
        ends = [pool.submit(met, rank, 4, port, timeout_s=2.0) for rank in (0, 2)]
        errors = [end.exception() for end in ends]
    for error in errors:
        assert isinstance(error, RankEndedError)
        assert error.code == 7
        assert "2 of 4 ranks did not come within 2 s (engine.start_timeout_s): 1, 3;" in str(error)


def test_a_long_wait_is_reported_once_with_the_variables_that_say_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rendezvous, "NOTIFY_S", 0.5)
    port = free_port()
    with ThreadPoolExecutor(2) as pool:
        for end in [pool.submit(met, rank, 4, port, timeout_s=2.0) for rank in (0, 2)]:
            assert isinstance(end.exception(), RankEndedError)
    (line,) = caplog.messages
    assert line.startswith("waiting up to 2 s (engine.start_timeout_s) for rank 1, 3 of 4: RANK=0 and WORLD_SIZE=4 in ")
    assert f"MASTER_ADDR:MASTER_PORT (127.0.0.1:{port})" in line
    assert line.endswith("left over from another program: unset RANK WORLD_SIZE LOCAL_RANK")


def test_the_wait_for_who_holds_the_store_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rendezvous, "NOTIFY_S", 0.5)
    with pytest.raises(RankEndedError, match="did not answer within 2 s"):
        met(1, 2, free_port(), timeout_s=2.0)
    (line,) = caplog.messages
    assert re.match(r"waiting up to 2 s .* for rank 0 at 127\.0\.0\.1:\d+: RANK=1 and WORLD_SIZE=2", line)


def test_a_stop_ends_the_wait_of_all() -> None:
    port, asked = free_port(), threading.Event()
    with ThreadPoolExecutor(2) as pool:
        ends = [pool.submit(met, rank, 3, port, asked.is_set if rank else lambda: False) for rank in (0, 1)]
        # Both have come by then: who is stopped before cannot tell the others.
        time.sleep(1)
        asked.set()
        errors = [end.exception() for end in ends]
    assert [getattr(error, "code", None) for error in errors] == [75, 75]
    assert all("rank 1: asked to stop before all ranks had come" in str(error) for error in errors)


def test_a_stop_ends_the_wait_for_rank_0_too() -> None:
    asked = [False, False, True]
    with pytest.raises(RankEndedError, match=r"asked to stop before rank 0 at 127\.0\.0\.1:\d+ had answered") as error:
        met(1, 2, free_port(), lambda: bool(asked) and asked.pop(0), timeout_s=3.0)
    assert error.value.code == 75
    for thread in threading.enumerate():
        if thread.name == "meeting":
            thread.join()


def test_a_rank_0_that_never_comes_and_a_port_in_use_are_named() -> None:
    port = free_port()
    with pytest.raises(RankEndedError, match=rf"rank 0 at 127.0.0.1:{port} .* did not answer within 1 s"):
        met(1, 2, port, timeout_s=1.0)
    with socket.socket() as taken:
        taken.bind(("", port))
        taken.listen()
        with pytest.raises(RankEndedError, match=f"cannot open port {port} of MASTER_PORT: it is in use"):
            met(0, 2, port, timeout_s=1.0)


def test_the_launchers_store_is_named_as_such() -> None:
    environment = {"MASTER_ADDR": "n1", "MASTER_PORT": "5", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    assert Address.read(0, 2, environment).holder == "the launcher at n1:5"
