"""A trace for one reader: what it wants, what waits for it, and what is dropped."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_model import BOTH

from vdcm import trace as module
from vdcm.definition import load
from vdcm.errors import VdcmError
from vdcm.events import KINDS, Dropped, Event, Hint, Note, Reset
from vdcm.manager import Manager
from vdcm.protocol import Region
from vdcm.registers import Access, AccessRecord, Field, Register, RegisterMap, RegisterSpace
from vdcm.trace import LEAST_SHARE, QUEUE_LIMIT, Filter, Trace, Traced
from vdcm.vdev import Vdev

TWO = """
parents: {s: {model: street}}
vdevs:
  lamp0: {type: lamp, parent: s, socket: lamp0.sock}
  lamp1: {type: plugged-lamp, parent: s, socket: lamp1.sock}
"""


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    (tmp_path / "d.yaml").write_text(TWO)
    manager = Manager()
    manager.adopt(load(tmp_path / "d.yaml", BOTH))
    yield manager
    manager.close()


def on_loop(manager: Manager, work: Callable[[], None]) -> None:
    """Both VDEVs started, and the event loop running."""

    async def run() -> None:
        await manager.start_all()
        work()
        for name in ("lamp0", "lamp1"):
            manager.stop(name)

    asyncio.run(run())


def vdev(manager: Manager, name: str) -> Vdev:
    found = manager.entry(name).vdev
    assert found is not None
    return found


def texts(found: list[Traced]) -> list[tuple[str, str]]:
    return [(name, str(event)) for _, name, event in found]


# What is wanted


class Registers(RegisterMap):
    CC = Register(0x0, 32, fields={"EN": Field(0)})
    WQCFG = Register(0x10, 32, count=4)
    CMD = Register(0x20, 32, Access.WO)


def record(offset: int, width: int = 4) -> AccessRecord:
    space = RegisterSpace("BAR0", 0x100)
    space.place(0, Registers(), "Map.")
    records: list[AccessRecord] = []
    space.observer = records.append
    space.read(offset, width)
    return records[0]


@pytest.mark.parametrize(
    ("pattern", "offset", "wanted"),
    [
        ("Map.CC", 0, True),
        ("CC", 0, False),
        ("*CC", 0, True),
        ("Map.C?", 0, True),
        ("Map?CC", 0, True),
        ("Map.CC.*", 0, False),
        ("Map.WQCFG[2]", 0x18, True),
        ("Map.WQCFG[2]", 0x14, False),
        ("Map.WQCFG*", 0x14, True),
        ("*", 0x80, False),
    ],
)
def test_a_pattern_names_registers(pattern: str, offset: int, wanted: bool) -> None:
    assert Filter(registers=("nothing", pattern)).wants(record(offset)) is wanted


def test_an_access_of_several_registers_is_each_ones() -> None:
    assert Filter(registers=("*[1]",)).wants(record(0x10, 8))
    assert not Filter(registers=("*[2]",)).wants(record(0x10, 8))


def test_kinds() -> None:
    everything, resets = Filter(), Filter(frozenset({"reset"}))
    assert everything.kinds == KINDS.keys() and everything.accesses
    assert everything.wants(Reset()) and everything.wants(record(0))
    assert resets.wants(Reset()) and not resets.wants(record(0)) and not resets.accesses
    some = Filter(registers=("Map.CC",))
    assert some.wants(Hint("polling", "it does", ("Map.CC",)))
    assert not some.wants(Hint("polling", "it does", ("Map.CMD",))) and not some.wants(Reset())
    both = Filter(frozenset({"reset", "access"}), ("Map.CC",))
    assert both.wants(Reset()) and both.wants(record(0)) and not both.wants(record(0x10))
    with pytest.raises(VdcmError, match="no kind of event rest: access, config, reset"):
        Filter(frozenset({"rest"}))


@given(text=st.text(max_size=12), noise=st.text(max_size=3))
def test_a_pattern_without_wildcards_is_the_name_itself(text: str, noise: str) -> None:
    if set(text) & set("*?"):
        return
    wanted = Filter(registers=(text,))
    assert wanted.wants(Hint("polling", "", (text,)))
    assert wanted.wants(Hint("polling", "", (text + noise,))) is (noise == "")


# What waits


def test_events_come_in_order_with_the_name_of_their_vdev(manager: Manager) -> None:
    def work() -> None:
        calls: list[int] = []
        names = ["lamp1", manager.entry("lamp0").definition.uuid]
        trace = Trace(manager, Filter(), names, lambda: calls.append(1))
        for name in ("lamp0", "lamp1", "lamp0"):
            vdev(manager, name).note("hello")
        assert texts(trace.take(10)) == [("lamp0", "hello"), ("lamp1", "hello"), ("lamp0", "hello")]
        assert trace.take(10) == [] and calls
        vdev(manager, "lamp0").write(0, 0, 4, 7)
        ((_, _, event),) = trace.take(10)
        assert str(event) == "BAR0+0x00 LEVEL 0x0→0x7 (write 0x7)"
        trace.close()
        trace.close()
        assert vdev(manager, "lamp0").observer is None
        vdev(manager, "lamp0").note("unheard")
        assert trace.take(10) == []

    on_loop(manager, work)


def test_a_trace_without_accesses_leaves_them_to_c(manager: Manager) -> None:
    def work() -> None:
        trace = Trace(manager, Filter(frozenset({"reset"})), None, lambda: None)
        lamp = vdev(manager, "lamp0")
        assert lamp.observer is not None and not lamp.observed
        lamp.write(0, 0, 4, 7)
        lamp.reset()
        assert texts(trace.take(10)) == [("lamp0", "reset")]
        trace.close()

    on_loop(manager, work)


def test_a_flood_takes_nothing_from_the_others(manager: Manager) -> None:
    def work() -> None:
        trace = Trace(manager, Filter(), None, lambda: None)
        loud, quiet = vdev(manager, "lamp0"), vdev(manager, "lamp1")
        quiet.note("first")
        for _ in range(2 * QUEUE_LIMIT):
            loud.read(0, 0, 4)
        quiet.note("last")
        found: list[Traced] = []
        while batch := trace.take(64):
            assert len(batch) <= 2 * 64
            found += batch
        assert [text for name, text in texts(found) if name == "lamp1"] == ["first", "last"]
        (dropped,) = [event for _, _, event in found if isinstance(event, Dropped)]
        assert dropped.count == 2 * QUEUE_LIMIT - QUEUE_LIMIT // 2
        assert len(found) == QUEUE_LIMIT // 2 + 3
        trace.close()

    on_loop(manager, work)


def test_what_was_dropped_is_told_where_it_is_missing(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUEUE_LIMIT", 1)
    monkeypatch.setattr(module, "LEAST_SHARE", 2)

    def work() -> None:
        trace = Trace(manager, Filter(), None, lambda: None)
        for n in range(5):
            vdev(manager, "lamp0").note(f"n{n}")
        assert [text for _, text in texts(trace.take(1))] == ["n0"]
        vdev(manager, "lamp0").note("n5")
        left = [text for _, text in texts(trace.take(9))]
        assert left[0] == "n1" and left[1].startswith("... 3 events dropped") and left[2] == "n5"
        trace.close()

    on_loop(manager, work)


def test_a_share_is_never_nothing() -> None:
    assert 0 < LEAST_SHARE < QUEUE_LIMIT


# Queues


class Counting:
    """Counters of an ADI, as its driver has them."""

    def __init__(self) -> None:
        self.now = {"units": 0, "messages": 5, "occupancy": 3}

    def __call__(self, _adi: object) -> dict[str, int]:
        return dict(self.now)


def test_queues_are_sampled(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Counting()

    async def run() -> None:
        await manager.start_all()
        (adi,) = vdev(manager, "lamp1").adis
        monkeypatch.setattr(adi.driver, "counters", counting)
        waiting = asyncio.Event()
        trace = Trace(manager, Filter(frozenset({"queue"})), None, waiting.set, sample=0.05)
        counting.now |= {"units": 7, "occupancy": 1}
        await asyncio.wait_for(waiting.wait(), 10)
        ((_, name, event),) = trace.take(9)
        details: dict[str, Any] = event.details()
        assert (name, details["adi"], details["grown"]) == ("lamp1", adi.name, {"units": 7})
        assert details["seconds"] >= 0.05
        assert str(event).endswith(" s: units +7")
        manager.stop("lamp1")
        await asyncio.sleep(0.12)  # samples of one that is gone
        assert trace.take(9) == []
        trace.close()
        manager.stop("lamp0")
        with pytest.raises(VdcmError, match=r"every 0\.05 s at most"):
            Trace(manager, Filter(), None, waiting.set, sample=0.01)

    asyncio.run(run())


# What models and parts of a VDEV say


def test_every_event_has_a_kind_and_fields_for_json(manager: Manager) -> None:
    seen: list[Event] = []

    def work() -> None:
        lamp = vdev(manager, "lamp1")
        lamp.observe(seen.append)
        lamp.note("n")
        lamp.write(Region.CONFIG, 4, 2, 6)
        with pytest.raises(VdcmError):
            lamp.dma_read(0x1000, 8)
        lamp.interrupts.signal(0)
        lamp.write(Region.CONFIG, lamp.config.capabilities[-1].offset + 2, 2, 0x8000)
        (adi,) = lamp.adis
        adi.driver.enable(adi)
        adi.driver.reset(adi)

    on_loop(manager, work)
    kinds = [event.kind for event in seen]
    assert set(kinds) <= KINDS.keys()
    said = [str(event) for event in seen]
    assert said[:2] == ["n", "config+0x04 COMMAND.MEMORY 0→1, COMMAND.BUS_MASTER 0→1 (write 0x6)"]
    assert said[2].startswith("dma read 0x1000+0x8 failed: ")
    assert said[3] == "interrupt 0 lost: neither MSI-X nor MSI is enabled"
    assert "MsiX." in said[4] and "ENABLE 0→1" in said[4]
    assert [line.split()[1] for line in said[5:7]] == ["enabled", "reset"]
    assert said[-1].endswith(" released"), "by the VDEV's stop"
    assert Note("n").details() == {"note": "n"}
