"""Counters: distributions, their edges in C and here, and what the sweep says of turns."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from probe import Probe

from vdcm._native import lib
from vdcm.counters import (
    ADI,
    BUCKETS,
    EDGES,
    PROCESS,
    SWEEP,
    VDEV,
    Counter,
    Latencies,
    from_json,
    nothing,
    to_json,
    together,
)
from vdcm.sweep import AdiPath, QueueState, Sweep

TEXT = (Path(__file__).parents[2] / "docs/observe.md").read_text()
TIMES = st.lists(st.integers(0, 1 << 34), max_size=50)


def of(times: list[int]) -> Latencies:
    counts = [0] * BUCKETS
    for ns in times:
        counts[bisect_right(EDGES, ns) - 1] += 1
    return Latencies(tuple(counts), sum(times))


def turns(path: AdiPath) -> Latencies:
    found = path.counters()["turn_ns"]
    assert isinstance(found, Latencies)
    return found


def test_the_edges() -> None:
    assert len(EDGES) == BUCKETS == lib.VDCM_LATENCY_BUCKETS
    assert EDGES[:7] == (0, 256, 384, 512, 768, 1024, 1536)
    assert EDGES[-1] == 1 << 31
    assert list(EDGES) == sorted(EDGES)


@pytest.mark.parametrize("ns", [0, 1, 255, 10**12, *(e + d for e in EDGES[1:] for d in (-1, 0, 1))])
def test_c_puts_a_time_into_its_bucket(ns: int) -> None:
    """A turn that takes so long, by the times that the steps are given."""
    sweep = Sweep(stepped=True)
    path = sweep.adi(lambda _: None)
    probe = Probe(path)
    probe.queue.state = QueueState.RUNNING
    sweep.step(10**12)
    probe.ring()
    assert sweep.step(2 * 10**12)[0] == 1
    assert turns(path).count == 0, "its end is not known yet"
    sweep.step(2 * 10**12 + ns)
    assert turns(path) == of([ns])
    assert path.counters()["busy_ns"] == ns
    path.close()
    sweep.close()


def test_a_turn_begins_with_work_being_seen() -> None:
    """Two ADIs: the second waits for the first one's turn, which the time of its own contains."""
    sweep = Sweep(stepped=True)
    paths = [sweep.adi(lambda _: None) for _ in range(2)]
    probes = [Probe(path, cost=1 << 20) for path in paths]
    for probe in probes:
        probe.queue.state = QueueState.RUNNING
    sweep.step(10**12)
    for probe in probes:
        probe.ring()
    now = 2 * 10**12
    while sum(probe.done for probe in probes) < 2:
        sweep.step(now)
        now += 10_000
    sweep.step(now)
    assert sorted(turns(path).ns for path in paths) == [10_000, 20_000]
    assert [path.counters()["busy_ns"] for path in paths] == [10_000, 10_000]
    probes[0].ring()  # after a while without work, the time in between does not count
    sweep.step(now + 10**9)
    sweep.step(now + 10**9 + 5_000)
    assert turns(paths[0]).count == 2
    assert sum(turns(path).ns for path in paths) == 35_000
    for path in paths:
        path.close()
    sweep.close()


def test_an_adi_may_go_before_its_turn_is_over() -> None:
    sweep = Sweep(stepped=True)
    path = sweep.adi(lambda _: None)
    probe = Probe(path)
    probe.queue.state = QueueState.RUNNING
    probe.ring()
    assert sweep.step(10**12)[0] == 1
    path.close()
    sweep.step(2 * 10**12)
    sweep.close()


@given(TIMES, TIMES)
def test_distributions_add_and_subtract(first: list[int], second: list[int]) -> None:
    assert of(first) + of(second) == of(first + second)
    assert of(first + second) - of(second) == of(first)


@given(TIMES.filter(bool), st.floats(0.01, 1.0))
def test_a_percentile_lies_in_the_bucket_of_the_exact_one(times: list[int], part: float) -> None:
    exact = sorted(times)[max(0, -int(-part * len(times) // 1) - 1)]
    found = of(times).percentile(part)
    assert found is not None
    bucket = bisect_right(EDGES, exact) - 1
    high = EDGES[min(bucket + 1, BUCKETS - 1)]
    assert EDGES[bucket] <= found <= high


def test_of_nothing_there_is_no_mean() -> None:
    assert Latencies().summary() == {"count": 0, "mean_ns": None, "p50_ns": None, "p99_ns": None}


@given(TIMES, st.integers(0, 1 << 64))
def test_json_loses_nothing(times: list[int], number: int) -> None:
    counts = {"a": number, "b_ns": of(times)}
    assert from_json(json.loads(json.dumps(to_json(counts)))) == counts


def test_sums() -> None:
    one = {**nothing(ADI), "units": 3, "turn_ns": of([7])}
    assert together(one, one, nothing(ADI)) == {
        **nothing(ADI),
        "units": 6,
        "turn_ns": of([7, 7]),
    }


@pytest.mark.parametrize(
    ("before", "scope"),
    [("Of a VDEV", VDEV), ("Of an ADI", ADI), ("Of a sweep", SWEEP), ("Of the server's", PROCESS)],
)
def test_the_documentation_has_them_all(before: str, scope: tuple[Counter, ...]) -> None:
    table = TEXT[TEXT.index(f"\n{before}") :].split("\n\n")[1]
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", table, re.MULTILINE)
    assert rows == [(one.name, one.doc) for one in scope]
