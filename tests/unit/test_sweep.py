"""The sweep and its arbitration, with a small device in C (probe_device.c).

Most tests step the sweep by hand, at times of their own: what they check is exact. The rest have
the thread do it.
"""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from probe import GUEST_PASID_7, SECONDARY, Probe, fastpath

from vdcm.errors import StateError, VdcmError
from vdcm.sweep import WEIGHTS, AdiPath, Group, QueueState, Sweep

PATIENCE = 20.0  # seconds after which something is said to hang
MS = 1_000_000


class Bench:
    """Some ADIs on a stepped sweep, each with one queue."""

    def __init__(self, spin_us: int = 0) -> None:
        self.sweep = Sweep(spin_us, stepped=True)
        self.now = 10**12
        self.events: list[AdiPath] = []
        self.paths: list[AdiPath] = []
        self.groups: list[Group] = []

    def group(self, weight: int = 16, rate: int = 0) -> Group:
        group = Group()
        group.set_qos(weight, rate)
        self.groups.append(group)
        return group

    def probe(
        self, weight: int = 16, rate: int = 0, group: Group | None = None, **settings: int
    ) -> Probe:
        path = self.sweep.adi(self.events.append, group)
        path.set_qos(weight, rate)
        self.paths.append(path)
        probe = Probe(path, **settings)
        probe.queue.state = QueueState.RUNNING
        return probe

    def run(self, steps: int = 1000, ns: int = 1000) -> int:
        """``steps`` of ``ns`` each, fewer if there is nothing more to do. The units done."""
        total = in_vain = 0
        for _ in range(steps):
            done, wait = self.sweep.step(self.now)
            total += done
            self.now += ns
            in_vain = 0 if done or wait is not None else in_vain + 1
            if in_vain > len(self.paths):  # one step looks at one doorbell at least
                break
        return total

    def close(self) -> None:
        for path in self.paths:
            path.close()
        for group in self.groups:
            group.close()
        self.sweep.close()

    def units(self, group: Group | None = None) -> int:
        """Done by the ADIs of a group, or by those without one."""
        return sum(path.counters()["units"] for path in self.paths if path.group is group)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


@pytest.fixture
def sweep() -> Iterator[Sweep]:
    made = Sweep()
    yield made
    made.close()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.001)


def test_what_a_doorbell_says_is_run(bench: Bench) -> None:
    probe = bench.probe(cost=100)
    assert bench.run() == 0
    probe.ring(3)
    assert bench.run() == 300
    assert (probe.done, bench.paths[0].counters()["units"]) == (3, 300)


def test_a_queue_without_doorbells_is_looked_at_when_kicked(bench: Bench) -> None:
    probe = bench.probe(doorbells=False)
    probe.ring()
    bench.run()
    assert probe.done == 0
    probe.queue.kick()
    probe.queue.kick()
    bench.run()
    assert probe.done == 1


def test_a_queue_that_rests_is_looked_at_from_a_kick_on_until_it_is_idle(bench: Bench) -> None:
    probe = bench.probe(doorbells=False, rests=True)
    bench.run()  # RUNNING counts as a kick: what came before is not missed
    assert probe.device.rested == 1
    probe.ring()
    assert bench.run() == 0, "it is looked at while it rests"
    probe.device.restless = 1
    probe.queue.kick()
    assert bench.sweep.step(bench.now)[0] == 1
    probe.ring(2)  # without a kick: it is awake
    assert bench.run() == 2
    assert probe.device.restless == 0
    bench.run()
    looks = bench.sweep.counters()["looks"]
    bench.run()
    assert bench.sweep.counters()["looks"] == looks


def test_it_stays_awake_longer_for_a_guest_that_comes_back_soon() -> None:
    bench = Bench(spin_us=50)
    probe = bench.probe(doorbells=False, rests=True)

    def awake(gap: int) -> int:
        """Microseconds after work that comes ``gap`` of them after its rest."""
        bench.now += 1000 * gap
        probe.ring()
        probe.queue.kick()
        assert bench.sweep.step(bench.now)[0] == 1
        start, rested = bench.now, probe.device.rested
        while probe.device.rested == rested:
            bench.now += 1000
            assert bench.sweep.step(bench.now)[0] == 0
        return (bench.now - start) // 1000

    bench.run(100)
    assert probe.device.rested == 1
    bench.now += MS
    assert awake(0) == 50
    assert awake(10) == 90  # half as long again as the 60 that it waited
    assert awake(0) == 135
    for _ in range(5):
        longest = awake(0)
    assert longest == 400
    assert awake(1) == 50  # longer than it ever waits: not worth it
    bench.close()


def test_a_queue_with_doorbells_rests_once_and_is_looked_at_all_the_same(bench: Bench) -> None:
    probe = bench.probe(rests=True)
    for items in range(1, 4):
        bench.run()
        bench.run()
        assert probe.device.rested == items
        probe.ring()
        assert bench.run() == 1


@pytest.mark.parametrize("doorbells", [True, False])
def test_work_that_waits_is_not_run_until_it_is_ready(bench: Bench, doorbells: bool) -> None:
    probe = bench.probe(doorbells=doorbells, rests=True, waits=True)
    other = bench.probe()
    probe.ring(2)
    probe.queue.kick()
    other.ring(3)
    bench.run()
    assert (probe.done, other.done, probe.device.accepted) == (0, 3, 2)
    assert probe.device.rested == 1
    assert probe.work_is_back()
    bench.run()
    assert probe.done == 2


def test_a_queue_that_waits_is_drained_when_its_work_is_back(bench: Bench) -> None:
    probe = bench.probe(doorbells=False, rests=True, waits=True)
    probe.ring(2)
    probe.queue.kick()
    bench.run()
    probe.queue.state = QueueState.DRAINING
    bench.run()
    assert probe.queue.state is QueueState.DRAINING
    assert probe.work_is_back()
    bench.run()
    assert (probe.queue.state, probe.done) == (QueueState.STOPPED, 2)


def test_nobody_is_to_kick_a_queue_that_was_closed(bench: Bench) -> None:
    probe = bench.probe(doorbells=False, rests=True)
    bench.run()
    bench.paths.pop().close()
    assert probe.device.closed == 1
    assert not probe.work_is_back()


def test_a_thread_that_sleeps_is_woken_when_work_is_back(sweep: Sweep) -> None:
    path = sweep.adi(lambda _path: None)
    probe = Probe(path, doorbells=False, rests=True, waits=True)
    probe.queue.state = QueueState.RUNNING
    probe.ring()
    probe.queue.kick()
    wait_until(lambda: bool(probe.device.rested))
    for items in range(1, 20):
        assert probe.work_is_back()
        wait_until(lambda items=items: probe.done == items)  # type: ignore[misc]
        rested = probe.device.rested
        probe.device.waits = True
        probe.ring()
        probe.queue.kick()
        wait_until(lambda rested=rested: probe.device.rested > rested)  # type: ignore[misc]
    path.close()


def test_stopped_keeps_and_abort_discards(bench: Bench) -> None:
    probe = bench.probe(cost=64 << 10)
    probe.ring(3)
    bench.sweep.step(bench.now)
    probe.queue.state = QueueState.STOPPED
    done = probe.done
    assert 0 < done < 3
    probe.ring(2)
    bench.run()
    assert (probe.done, probe.device.accepted) == (done, 3)
    probe.queue.state = QueueState.RUNNING
    bench.run()
    assert probe.done == 5
    probe.ring(4)
    probe.queue.state = QueueState.STOPPED
    probe.device.accepted = 9  # as if it had been looked at
    probe.queue.abort()
    probe.queue.state = QueueState.RUNNING
    bench.run()
    assert probe.device.aborted == 4


def test_draining_accepts_nothing_and_says_when_it_is_done(bench: Bench) -> None:
    probe = bench.probe(cost=64 << 10)
    probe.ring(3)
    bench.sweep.step(bench.now)
    probe.ring(5)
    probe.queue.state = QueueState.DRAINING
    bench.sweep.look()
    assert not bench.events
    bench.run()
    bench.sweep.look()
    assert bench.events == bench.paths
    assert (probe.done, probe.queue.state) == (probe.device.accepted, QueueState.STOPPED)
    assert probe.done < 8


def test_an_empty_queue_has_drained_at_once(bench: Bench) -> None:
    probe = bench.probe()
    probe.queue.state = QueueState.DRAINING
    assert probe.queue.state is QueueState.STOPPED
    bench.sweep.look()
    assert bench.events == bench.paths


@pytest.mark.conformance("R2.6-7", "R2.6-8", "R4.1-11")
def test_weights_are_shares_under_contention(bench: Bench) -> None:
    """Within 10 % whatever the sizes of the operations are (here: within 1 %)."""
    weights = {1: 700, 3: 64 << 10, 16: 10, 40: 256 << 10}
    probes = {weight: bench.probe(weight=weight, cost=cost) for weight, cost in weights.items()}
    for probe in probes.values():
        probe.ring(1 << 40)
    bench.run(steps=60_000)
    units = [path.counters()["units"] for path in bench.paths]
    for weight, done in zip(weights, units, strict=True):
        assert done / sum(units) == pytest.approx(weight / sum(weights), rel=0.1)


@pytest.mark.conformance("R2.6-7", "R2.6-8", "R4.1-11")
def test_a_rate_is_kept_and_the_rest_is_for_others(bench: Bench) -> None:
    limited = bench.probe(rate=100_000_000, cost=4096)
    free = bench.probe(cost=4096)
    for probe in (limited, free):
        probe.ring(1 << 40)
    begin = bench.now
    bench.run(steps=100_000, ns=10_000)
    seconds = (bench.now - begin) / 1e9
    slow, fast = (path.counters() for path in bench.paths)
    assert slow["units"] / seconds == pytest.approx(100_000_000, rel=0.1)
    assert slow["throttled"] > 0
    assert fast["units"] > 10 * slow["units"]


@settings(max_examples=30, deadline=None)
@given(rate=st.integers(100_000, 10**11), ns=st.integers(100, 2 * MS), cost=st.integers(1, 1 << 20))
@example(1_969_001_500, 629, 89)  # a nanosecond too much at each look would show
def test_no_rate_is_exceeded(rate: int, ns: int, cost: int) -> None:
    bench = Bench()
    try:
        bench.probe(rate=rate, cost=cost).ring(1 << 40)
        begin = bench.now
        bench.run(steps=2000, ns=ns)
        seconds = (bench.now - begin) / 1e9
        burst = max(rate / 100, 64 << 10)
        budget = max(cost, 64 << 10) + cost  # one call may go beyond what is left
        assert bench.paths[0].counters()["units"] <= rate * seconds + burst + budget
    finally:
        bench.close()


def test_the_wait_of_a_rate_limit_is_told(bench: Bench) -> None:
    bench.probe(rate=1_000_000, cost=1_000_000).ring(2)
    assert bench.sweep.step(bench.now) == (1_000_000, None)
    done, wait = bench.sweep.step(bench.now)
    assert done == 0
    # It began with a burst of 64 KiB; what went beyond is paid off at the rate.
    assert wait == pytest.approx((1_000_000 - (64 << 10)) * 1000, rel=0.01)
    assert bench.sweep.step(bench.now + wait)[0] == 1_000_000


def test_a_debt_of_minutes_is_paid_off_once(bench: Bench) -> None:
    bench.probe(rate=1000, cost=1_000_000).ring(2)
    assert bench.sweep.step(bench.now)[0] == 1_000_000
    _, wait = bench.sweep.step(bench.now)
    assert wait == pytest.approx((1_000_000 - (64 << 10)) * MS, rel=0.01)
    assert bench.sweep.step(bench.now + wait // 2)[0] == 0
    assert bench.sweep.step(bench.now + wait)[0] == 1_000_000


def test_queues_of_one_adi_take_turns(bench: Bench) -> None:
    path = bench.sweep.adi(bench.events.append)
    bench.paths.append(path)
    probes = [Probe(path, cost=64 << 10) for _ in range(3)]
    for probe in probes:
        probe.queue.state = QueueState.RUNNING
        probe.ring(1000)
    bench.run(steps=300)
    done = [probe.done for probe in probes]
    assert max(done) - min(done) <= 1


@pytest.mark.parametrize("cost", [10, 700, 64 << 10, 256 << 10])
def test_a_group_gets_no_more_for_having_more(bench: Bench, cost: int) -> None:
    one, many = bench.group(weight=1), bench.group(weight=3)
    bench.probe(group=one, cost=4096).ring(1 << 40)
    bench.probe(weight=4, cost=4096).ring(1 << 40)
    members = [bench.probe(group=many, cost=cost) for _ in range(64)]
    for probe in members:
        probe.ring(1 << 40)
    bench.run(steps=60_000)
    done = [bench.units(one), bench.units(many), bench.units()]
    assert [n / sum(done) for n in done] == pytest.approx([1 / 8, 3 / 8, 4 / 8], rel=0.02)
    each = [probe.done * cost for probe in members]
    assert max(each) - min(each) <= 2 * max(cost, 64 << 10)


@settings(max_examples=20, deadline=None)
@given(
    groups=st.lists(
        st.tuples(
            st.integers(1, 40),
            st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9000)), min_size=1, max_size=5),
        ),
        min_size=2,
        max_size=4,
    )
)
def test_a_groups_weight_is_divided_by_those_of_its_adis(
    groups: list[tuple[int, list[tuple[int, int]]]],
) -> None:
    bench = Bench()
    try:
        expected = []
        for weight, members in groups:
            group = bench.group(weight)
            part = weight / sum(weight for weight, _ in groups)
            for share, cost in members:
                bench.probe(share, group=group, cost=cost).ring(1 << 40)
                expected.append(part * share / sum(share for share, _ in members))
        bench.run(steps=40_000)
        done = [path.counters()["units"] for path in bench.paths]
        # A round of the least of the sweep and of its group, twice, and what one call does.
        slack = 2 * 41 * 5 * 1024 * max(weight for weight, _ in groups) + 73_000
        for part, n in zip(expected, done, strict=True):
            assert n == pytest.approx(part * sum(done), abs=slack)
    finally:
        bench.close()


@pytest.mark.parametrize("members", [1, 64])
def test_the_rate_of_a_group_is_that_of_all_its_adis(bench: Bench, members: int) -> None:
    group = bench.group(rate=100_000_000)
    free = bench.probe(cost=4096)
    for probe in [free, *(bench.probe(group=group, cost=4096) for _ in range(members))]:
        probe.ring(1 << 40)
    begin = bench.now
    bench.run(steps=100_000, ns=10_000)
    seconds = (bench.now - begin) / 1e9
    assert bench.units(group) / seconds == pytest.approx(100_000_000, rel=0.02)
    assert bench.units() > 10 * bench.units(group)
    assert sum(path.counters()["throttled"] for path in bench.paths if path.group) > 0


def test_the_limit_of_an_adi_leaves_the_rest_of_its_groups_to_others(bench: Bench) -> None:
    group = bench.group(rate=100_000_000)
    bench.probe(rate=10_000_000, group=group, cost=4096).ring(1 << 40)
    bench.probe(group=group, cost=4096).ring(1 << 40)
    begin = bench.now
    bench.run(steps=100_000, ns=10_000)
    seconds = (bench.now - begin) / 1e9
    slow, fast = (path.counters()["units"] / seconds for path in bench.paths)
    assert (slow, fast) == (
        pytest.approx(10_000_000, rel=0.02),
        pytest.approx(90_000_000, rel=0.02),
    )


def test_a_group_on_two_sweeps_has_one_rate(bench: Bench) -> None:
    other = Bench()
    group = bench.group(rate=100_000_000)
    for where in (bench, other):
        where.probe(group=group, cost=4096).ring(1 << 40)
    begin = bench.now
    other.now += 3000  # clocks are read at different moments
    for _ in range(50_000):
        bench.run(steps=1, ns=10_000)
        other.run(steps=1, ns=10_000)
    seconds = (bench.now - begin) / 1e9
    done = bench.units(group), other.units(group)
    assert sum(done) / seconds == pytest.approx(100_000_000, rel=0.04)
    for path in bench.paths:
        path.close()
    with pytest.raises(StateError, match="has 1 ADIs"):
        group.close()
    for path in other.paths:
        path.close()
    group.close()
    other.close()


def test_the_wait_of_a_group_is_told_while_it_has_work(bench: Bench) -> None:
    group = bench.group(rate=1_000_000)
    bench.probe(group=group, cost=1_000_000).ring()
    last = bench.probe(group=group, cost=1)
    last.ring()
    assert bench.sweep.step(bench.now)[0] > 0
    bench.sweep.step(bench.now)
    done, wait = bench.sweep.step(bench.now)
    assert done == 0 and wait is not None
    last.queue.state = QueueState.STOPPED
    bench.paths[0].queues[0].abort()
    assert bench.sweep.step(bench.now) == (0, None)
    group.set_qos(1, 0)
    last.queue.state = QueueState.RUNNING
    bench.run()
    assert last.done == 1


def test_a_group_that_goes_takes_its_place_along(bench: Bench) -> None:
    going, staying = bench.group(), bench.group()
    for group in (going, staying, going):
        bench.probe(group=group, cost=64 << 10).ring(10)
    bench.sweep.step(bench.now)
    for path in [path for path in bench.paths if path.group is going]:
        path.close()
        bench.paths.remove(path)
    going.close()
    bench.groups.remove(going)
    bench.run()
    assert bench.units(staying) == 10 * (64 << 10)


def test_more_doorbells_than_one_look_has(bench: Bench) -> None:
    probes = [bench.probe() for _ in range(300)]
    for probe in probes[::7]:
        probe.ring()
    bench.run()
    assert [probe.done for probe in probes] == [int(i % 7 == 0) for i in range(300)]


@pytest.mark.conformance("R2.6-9")
def test_reports_come_in_order_and_an_adi_loses_only_its_own(bench: Bench) -> None:
    noisy, quiet = bench.probe(report=5), bench.probe(report=6)
    noisy.ring(100)
    quiet.ring(1)
    bench.run()
    bench.sweep.look()
    assert set(bench.events) == set(bench.paths)
    reports = bench.paths[0].reports()
    assert [int.from_bytes(r.data, "little") for r in reports] == list(range(1, 17))
    assert {r.code for r in reports} == {5}
    assert noisy.device.lost == bench.paths[0].counters()["lost"] == 84
    assert [r.code for r in bench.paths[1].reports()] == [6]
    assert bench.paths[0].reports() == []


def test_an_event_is_told_once(bench: Bench) -> None:
    bench.probe(report=1).ring()
    bench.run()
    bench.sweep.look()
    bench.sweep.look()
    assert len(bench.events) == 1


@pytest.mark.conformance("R2.5.2-3")
def test_a_message_that_the_adi_has_not_is_refused(bench: Bench) -> None:
    """2.5.2: an ADI can only generate messages that are its own."""
    probe = bench.probe(message=0)
    probe.ring()
    bench.run()
    assert probe.device.last_error < 0
    assert bench.paths[0].counters()["messages"] == 0


@pytest.mark.conformance("R2.2-5", "R2.6-2")
@pytest.mark.parametrize("pasid", [0xFFFF_FFFF, 0, 5, 0xFFFFF, SECONDARY, GUEST_PASID_7])
def test_no_memory_without_a_pasid_of_its_own(bench: Bench, pasid: int) -> None:
    probe = bench.probe(pasid=pasid, address=0x1000, length=8)
    probe.ring()
    bench.run()
    assert probe.device.errors == 1
    assert bench.paths[0].counters()["refused"] == 1


def test_an_adi_that_goes_takes_its_work_along(bench: Bench) -> None:
    going, staying = bench.probe(cost=64 << 10, report=1), bench.probe(cost=64 << 10)
    for probe in (going, staying):
        probe.ring(10)
    bench.sweep.step(bench.now)
    bench.sweep.step(bench.now)
    bench.paths.pop(0).close()
    going_done = going.done
    bench.run()
    bench.sweep.look()
    assert (going.done, staying.done) == (going_done, 10)
    assert not bench.events
    with pytest.raises(StateError, match="has been released"):
        going.queue.kick()


def test_a_table_of_another_version_is_refused(bench: Bench) -> None:
    path = bench.sweep.adi(bench.events.append)
    bench.paths.append(path)
    with pytest.raises(VdcmError, match=r"build it against the\s+fastpath.h"):
        path.queue(fastpath("probe_of_another_version"), 0, doorbells=False)


@pytest.mark.parametrize(
    ("weight", "rate"), [(0, 0), (WEIGHTS.stop, 0), (1, 1 << 51), (2**32 - 1, 0)]
)
def test_impossible_qos_is_refused(bench: Bench, weight: int, rate: int) -> None:
    bench.probe()
    with pytest.raises(VdcmError, match="a weight is 1 to 255"):
        bench.paths[0].set_qos(weight, rate)
    group = bench.group(7, 1000)
    with pytest.raises(VdcmError, match="a weight is 1 to 255"):
        group.set_qos(weight, rate)
    assert (group.weight, group.rate) == (7, 1000)


# With the thread.


def test_the_thread_sees_a_store_and_a_kick(sweep: Sweep) -> None:
    path = sweep.adi(lambda _: None)
    swept, kicked = Probe(path), Probe(path, doorbells=False)
    for probe in (swept, kicked):
        probe.queue.state = QueueState.RUNNING
    for _ in range(20):
        swept.ring()
        kicked.ring()
        kicked.queue.kick()
        wait_until(lambda: swept.done == kicked.done == swept.doorbell[0])
        time.sleep(0.002)  # long enough for it to nap
    path.close()


def test_a_sweep_without_doorbells_sleeps(sweep: Sweep) -> None:
    path = sweep.adi(lambda _: None)
    probe = Probe(path, doorbells=False)
    probe.queue.state = QueueState.RUNNING
    probe.ring()
    probe.queue.kick()
    wait_until(lambda: probe.done == 1)
    time.sleep(0.05)
    before = sweep.counters()
    time.sleep(0.2)
    assert sweep.counters() == before
    path.close()


@given(
    spent=st.integers(0, 1 << 63), more=st.integers(0, 1 << 40), nap_us=st.integers(50, 1_000_000)
)
def test_naps_grow_with_what_a_look_costs_up_to_a_limit(spent: int, more: int, nap_us: int) -> None:
    sweep = Sweep(nap_us=nap_us, stepped=True)
    nap, limit = sweep.longest_nap(spent), 1000 * nap_us
    assert min(MS, limit) <= nap <= limit
    assert nap in (limit, MS) or spent < nap / 124, "idling takes more than 1 % of a CPU"
    assert nap <= sweep.longest_nap(spent + more) <= limit
    sweep.close()


@given(
    spent=st.integers(0, 1 << 40), idle=st.integers(0, 1 << 50), nap_us=st.integers(50, 1_000_000)
)
def test_soon_after_work_naps_are_shorter(spent: int, idle: int, nap_us: int) -> None:
    sweep = Sweep(nap_us=nap_us, stepped=True)
    nap, limit = sweep.longest_nap(spent, idle), sweep.longest_nap(spent)
    assert sweep.longest_nap(spent, 0) <= nap <= limit
    assert nap == limit or nap == idle // 128 or spent <= nap / 10 <= spent + 5001
    sweep.close()


def test_the_longest_nap_is_as_one_says() -> None:
    usual = Sweep(stepped=True)
    assert (usual.longest_nap(0), usual.longest_nap(10**9)) == (MS, 20 * MS)
    assert [usual.longest_nap(10_000, ms * MS) for ms in (1, 64, 10**4)] == [
        MS * 0.15,
        MS / 2,
        MS * 1.875,
    ]
    usual.close()
    sweep = Sweep(nap_us=70)  # whose thread has one doorbell to look at
    path = sweep.adi(lambda _: None)
    Probe(path).queue.state = QueueState.RUNNING
    wait_until(lambda: sweep.counters()["naps"] > 3)
    assert sweep.counters()["nap_ns"] == 70_000
    path.close()
    sweep.close()


def test_events_arrive_on_the_loop() -> None:
    async def main() -> int:
        sweep = Sweep()
        heard = asyncio.Event()
        path = sweep.adi(lambda _: heard.set())
        probe = Probe(path, report=9)
        probe.queue.state = QueueState.RUNNING
        probe.ring()
        async with asyncio.timeout(PATIENCE):
            await heard.wait()
        code = path.reports()[0].code
        path.close()
        sweep.close()
        return code

    assert asyncio.run(main()) == 9


def test_a_handler_that_fails_costs_others_nothing(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """The mistake of one model must not have another VDEV wait for ever."""

    def fail(_path: AdiPath) -> None:
        raise RuntimeError("a mistake")

    told: list[AdiPath] = []
    for handler in (told.append, fail, told.append):
        path = bench.sweep.adi(handler)
        bench.paths.append(path)
        Probe(path).queue.state = QueueState.DRAINING
    bench.sweep.look()
    assert sorted(map(id, told)) == sorted(map(id, (bench.paths[0], bench.paths[2])))
    assert "RuntimeError: a mistake" in caplog.text


def test_a_sweep_with_adis_is_not_closed(sweep: Sweep) -> None:
    path = sweep.adi(lambda _: None)
    with pytest.raises(StateError, match="serves 1 ADIs: release them first"):
        sweep.close()
    path.close()
    path.close()


def test_changes_from_here_while_the_thread_is_busy(sweep: Sweep) -> None:
    """A thread that never rests lets others change things, and nothing is run that is stopped."""
    busy = sweep.adi(lambda _: None)
    always = [Probe(busy, cost=100) for _ in range(4)]
    for each in always:
        each.ring(1 << 60)
        each.queue.state = QueueState.RUNNING
    for _ in range(200):
        path = sweep.adi(lambda _: None)
        probe = Probe(path, cost=10)
        probe.queue.state = QueueState.RUNNING
        probe.ring(1 << 60)
        wait_until(lambda probe=probe: probe.done > 0)  # type: ignore[misc]
        probe.queue.state = QueueState.STOPPED
        done = probe.done
        assert probe.done == done
        path.set_qos(3, 1000)
        probe.queue.abort()
        path.close()
    busy.close()


def test_threads_and_descriptors_go_with_the_sweep() -> None:
    def held() -> tuple[int, int]:
        gc.collect()  # what other tests have left
        return threading.active_count(), len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    tasks = len(os.listdir("/proc/self/task"))  # noqa: PTH208
    before = held()
    for _ in range(80):  # more than there can be readers at a time
        Sweep().close()
    assert (held(), len(os.listdir("/proc/self/task"))) == (before, tasks)  # noqa: PTH208


ENDING = """
import random, time
from vdcm.sweep import Sweep
for _ in range(20_000):
    sweep = Sweep()
    end = time.perf_counter_ns() + random.randrange(20_000, 140_000)
    while time.perf_counter_ns() < end:
        pass
    sweep.close()
"""


def test_a_sweep_ends_whenever_it_is_told() -> None:
    """Around the time of its first nap. In another process: nothing ends one that waits in C."""
    subprocess.run([sys.executable, "-c", ENDING], timeout=100, check=True)
