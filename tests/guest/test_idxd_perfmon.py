"""Linux's idxd has a PMU for the event counters of a DSA: what it counts is what the copies did."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.guest import idxd
from tests.guest.copies import copy
from tests.guest.perfcount import counted, counting, formats, pmus

# As perf has it: event_category=…,event=…
WQ, ENGINE, OPERATIONS, COMPLETIONS = 0, 1, 3, 4
FILTER_WQ, FILTER_SIZE = 0, 44  # where they are in the second word
COPIES = 2000


def event(category: int, bits: int) -> int:
    return category | bits << 4


@pytest.fixture(scope="module")
def lab(idxd_lab: idxd.IdxdLab) -> Iterator[idxd.IdxdLab]:
    """``wq0.1`` is enabled for dmaengine, and no other."""
    idxd.load(idxd_lab.machine)
    device = idxd.IdxdDevice(idxd_lab.machine, 0)
    device.configure(1)
    device.enable()
    device.enable_wq(1)
    yield idxd_lab
    device.disable()
    idxd.unload(idxd_lab.machine)


def test_each_dsa_has_a_pmu_with_all_filters(lab: idxd.IdxdLab) -> None:
    assert pmus(lab.machine) >= {"dsa0", "dsa1"}
    for pmu in ("dsa0", "dsa1"):
        assert formats(lab.machine, pmu) == {
            "event_category": "config:0-3",
            "event": "config:4-31",
            "filter_wq": "config1:0-31",
            "filter_tc": "config1:32-39",
            "filter_pgsz": "config1:40-43",
            "filter_sz": "config1:44-51",
            "filter_eng": "config1:52-59",
        }


def test_it_counts_what_the_copies_did(lab: idxd.IdxdLab) -> None:
    def shown() -> dict[str, int]:
        counters: dict[str, int] = lab.server.show("dsa0")["work_queues"][1]["counters"]
        return counters

    events = {
        "accepted": (event(WQ, 0x10), 0),
        "accepted by WQ 0": (event(WQ, 0x10), 1 << FILTER_WQ),
        "moves": (event(OPERATIONS, 0x8), 2 << FILTER_WQ),
        "units": (event(ENGINE, 0x1), 0),
        "written": (event(ENGINE, 0x8), 0),
        "of 4 KiB and more": (event(ENGINE, 0x8), 0xF8 << FILTER_SIZE),
        "successes": (event(COMPLETIONS, 0x10), 0),
        "interrupts": (event(COMPLETIONS, 0x1), 0),
    }
    before = shown()
    counts = copy(
        lab.machine,
        threads=4,
        copies=COPIES,
        max_size=4095,
        before=counting(lab.machine, "dsa0", *events.values()),
    )
    assert counts.flawless(COPIES)
    found = dict(zip(events, counted(lab.machine), strict=True))
    did = {name: number - before[name] for name, number in shown().items()}
    assert found["accepted"] == found["moves"] == found["successes"] == COPIES
    assert (did["accepted"], did["succeeded"], did["failed"]) == (COPIES, COPIES, 0)
    assert found["written"] == COPIES
    assert found["accepted by WQ 0"] == found["of 4 KiB and more"] == 0
    assert found["interrupts"] == did["interrupts"] > 0
    assert did["bytes"] == counts.bytes
    assert counts.bytes <= 32 * found["units"] < counts.bytes + 32 * COPIES


def test_nothing_is_counted_when_nobody_counts(lab: idxd.IdxdLab) -> None:
    """The counters are free again, and go on from where they are."""
    assert copy(lab.machine, copies=50).flawless(50)
    before = counting(lab.machine, "dsa0", (event(OPERATIONS, 0x8), 0xFFFF << FILTER_WQ))
    assert copy(lab.machine, copies=70, before=before).flawless(70)
    assert counted(lab.machine) == [70]
