"""Rates between two snapshots, and how ``top`` shows them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from vdcm.cli.top import KEYS, SORTS, View, render, shown
from vdcm.counters import ADI, EDGES, PROCESS, SWEEP, VDEV, Latencies, nothing
from vdcm.rates import COLUMNS, Row, Unit, between, ordered
from vdcm.snapshot import AdiCounts, Snapshot, SweepCounts, VdevCounts, read

SECOND = 10**9


def times(*ns: int) -> Latencies:
    return Latencies(tuple(sum(one == edge for one in ns) for edge in EDGES), sum(ns))


def adi(slot: int = 0, name: str = "p0/q0", **counts: Any) -> AdiCounts:
    return AdiCounts(slot, name, "q", "enabled", {**nothing(ADI), **counts}, {"done": 1})


def vdev(at: int, *adis: AdiCounts, name: str = "v", direct: Any = None, **own: Any) -> VdevCounts:
    counts = {**nothing(VDEV), **own}
    return VdevCounts(name, "t", "ready", at, counts, {**nothing(ADI), **(direct or {})}, adis)


def snapshot(at: int, *vdevs: VdevCounts, python: int = 0, cpu: int = 0) -> Snapshot:
    process = {**nothing(PROCESS), "python_cpu_ns": python, "cpu_ns": cpu + python}
    sweep = SweepCounts("p0", 0, {**nothing(SWEEP), "cpu_ns": cpu, "nap_ns": SECOND - cpu})
    return Snapshot(at, vdevs, (sweep,), process)


def test_rates_are_a_second_and_shares_of_it() -> None:
    start = 5 * SECOND
    before = vdev(start, adi(units=100), reads=10, read_ns=times(1024), direct={"units": 150})
    now = vdev(
        start + 2 * SECOND,
        adi(units=500, turn_ns=times(512, 512), busy_ns=SECOND, messages=4),
        reads=50,
        read_ns=times(1024, 2048, 2048, 2048),
        direct={"units": 1150, "dma_read_bytes": 40, "refused": 3},
        dma_read_bytes=60,
        errors=2,
    )
    found = between(
        snapshot(start, before), snapshot(start + 2 * SECOND, now, python=SECOND, cpu=SECOND // 2)
    )
    assert (found.seconds, found.python_cpu, found.cpu) == (2, 0.5, 0.75)
    assert found.sweeps == {"p0/0": 0.25}
    (row,) = found.rows
    expected = {"reads_per_s": 20, "units_per_s": 500, "dma_read_bytes_per_s": 50, "errors": 5}
    assert {key: row.values[key] for key in expected} == expected
    assert row.values["message_share"] == 3 * 2048 / (2 * SECOND)
    assert 2048 < row.values["message_p50_ns"] < 3072  # type: ignore[operator]
    assert row.values["turn_p99_ns"] is None
    assert row.failing
    (one,) = row.adis
    expected = {"units_per_s": 200, "turns_per_s": 1, "turn_share": 0.5, "interrupts_per_s": 2}
    assert {key: one.values[key] for key in expected} == expected
    assert one.values["reads_per_s"] is None
    assert not one.failing


def test_what_has_begun_in_between_has_counted_from_0_on() -> None:
    again = vdev(2 * SECOND, adi(name="p0/q7", units=5), reads=3)
    for before in ((), (vdev(SECOND, adi(name="p0/q1", units=900), reads=100),)):
        (row,) = between(snapshot(SECOND, *before), snapshot(2 * SECOND, again)).rows
        assert row.values["reads_per_s"] == 3
        assert row.adis[0].values["units_per_s"] == 5


def test_a_row_has_a_value_for_every_column() -> None:
    (row,) = between(snapshot(0), snapshot(SECOND, vdev(SECOND, adi()))).rows
    assert tuple(row.values) == tuple(row.adis[0].values) == KEYS
    assert len(set(KEYS)) == len(COLUMNS)


def test_pages_are_put_together_and_lose_nothing() -> None:
    whole = snapshot(7, *(vdev(n, adi(n, units=n), name=f"v{n}", reads=n) for n in range(5)))
    first = {
        "at": whole.at,
        "process": dict(whole.process),
        "sweeps": [
            {"parent": "p0", "index": 0, "counts": dict(whole.sweeps[0].counts)},
        ],
    }

    def page(skip: int) -> dict[str, Any]:
        found = [one.to_json() for one in whole.vdevs[skip : skip + 2]]
        after = skip + 2 if skip + 2 < 5 else None
        return json.loads(
            json.dumps({"vdevs": found, "next": after, **(first if not skip else {})})
        )

    assert read(page) == whole


def row(name: str, **values: Any) -> Row:
    return Row(name, "t", "ready", {**dict.fromkeys(KEYS), **values}, False)


def test_order() -> None:
    rows = [row("b", errors=1), row("c"), row("a", errors=1), row("d", errors=5)]

    def names(key: str, reverse: bool = False) -> str:
        return "".join(one.name for one in ordered(rows, key, reverse=reverse))

    assert (names("name"), names("name", True)) == ("abcd", "dcba")
    assert (names("errors"), names("errors", True)) == ("dabc", "abdc")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, Unit.RATE, "-"),
        (0, Unit.NUMBER, "."),
        (0.0, Unit.BYTES, "."),
        (0.25, Unit.RATE, "0.25"),
        (999.4, Unit.RATE, "999"),
        (999.6, Unit.RATE, "1k"),
        (7_123_456, Unit.BYTES, "7.12M"),
        (3e15, Unit.BYTES, "3000T"),
        (850, Unit.TIME, "850ns"),
        (35_600, Unit.TIME, "35.6µs"),
        (2_500_000_000, Unit.TIME, "2.5s"),
        (0.0123, Unit.SHARE, "1.23%"),
        (0.0001, Unit.SHARE, "."),
        (12345, Unit.NUMBER, "12345"),
        (123456, Unit.NUMBER, "123k"),
    ],
)
def test_values(value: float | None, unit: Unit, text: str) -> None:
    assert shown(value, unit) == text


def screen(view: View, width: int, height: int, vdevs: int = 30) -> list[str]:
    """What a terminal of that size shows."""
    made = [
        vdev(SECOND, adi(units=n), name=f"disk-number-{n:02}", direct={"refused": n % 2})
        for n in range(vdevs)
    ]
    rates = between(snapshot(0), snapshot(SECOND, *made))
    console = Console(
        file=StringIO(), width=width, height=height, force_terminal=True, color_system=None
    )
    with console.capture() as capture:
        console.print(render(rates, view, width, height))
    return capture.get().splitlines()


@given(st.integers(1, 300), st.integers(1, 100), st.integers(0, 40), st.sampled_from(SORTS))
def test_it_fits_on_every_terminal(width: int, height: int, vdevs: int, sort: str) -> None:
    lines = screen(View(sort), width, height, vdevs)
    assert len(lines) <= max(height, 5)
    assert all(len(line) <= width for line in lines)


def test_what_there_is_room_for() -> None:
    view = View("errors")
    wide = screen(view, 200, 24)
    assert all(column.head in wide[2] for column in COLUMNS)
    assert "ERRORS▼" in wide[2]
    narrow = screen(view, 80, 24)
    assert "READ/s" in narrow[2] and "WORK/s" in narrow[2] and "ERRORS▼" in narrow[2]
    assert "TURN/s" not in narrow[2]
    assert narrow[3].startswith("disk-number-01")
    assert "40 more below" in narrow[-1]


def test_the_documentation_has_the_columns() -> None:
    text = (Path(__file__).parents[2] / "docs/observe.md").read_text()
    rows = re.findall(r"^\| ([A-Z][A-Z0-9 %/s]+) \| `(\w+)` \| (.*) \|$", text, re.MULTILINE)
    assert rows == [(column.head, column.key, column.doc) for column in COLUMNS]


def test_keys() -> None:
    view = View()
    assert view.press(">") and view.sort == SORTS[1]
    assert view.press("\x1b[D") and view.press("<") and view.sort == SORTS[-1]
    assert view.press("r") and view.reverse
    assert view.press("j") and view.press("\x1b[B") and view.press("k") and view.first == 1
    assert screen(view, 100, 10)[3].startswith("  p0/q0")
    assert view.press("a") and (view.adis, view.first) == (False, 0)
    for _ in range(100):
        view.press("j")
    assert "disk-number-00" in screen(replace(view, sort="name"), 100, 10)[-2]
    assert view.press("?") and not view.press("q")
