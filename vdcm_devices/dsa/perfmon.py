"""Performance monitoring: its registers, in front of the C that counts (DSA specification, 6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from vdcm import Access, Field, Register, RegisterMap
from vdcm_devices.dsa._fastpath import ffi, lib
from vdcm_devices.dsa.datapath import OPERATIONS

RO, WO = Access.RO, Access.WO
COUNTERS: Final[int] = lib.DSA_COUNTERS
WIDTH: Final[int] = lib.DSA_COUNTER_WIDTH
"""Bits of a counter."""
FILTERS: Final = (
    "FLTCFG_WQ",
    "FLTCFG_TC",
    "FLTCFG_PAGE_SIZE",
    "FLTCFG_TRANSFER_SIZE",
    "FLTCFG_ENGINE",
    "FLTCFG_PASID",
)
"""Names of the filter registers by the filters' encoding (table 6-2)."""
_COUNTING: Final = {
    lib.DSA_CATEGORY_WQ: lib.DSA_EV_SWQ_SUCCESS_LIMITED
    | lib.DSA_EV_SWQ_RETRY_LIMITED
    | lib.DSA_EV_SWQ_SUCCESS_UNLIMITED
    | lib.DSA_EV_SWQ_RETRY_UNLIMITED
    | lib.DSA_EV_DWQ_SUCCESS
    | lib.DSA_EV_DWQ_FULL
    | lib.DSA_EV_WQ_DISCARD,
    lib.DSA_CATEGORY_ENGINE: lib.DSA_EV_CL_PROCESSED
    | lib.DSA_EV_CL_WRITE
    | lib.DSA_EV_NUM_READ
    | lib.DSA_EV_NUM_WRITE
    | lib.DSA_EV_DESC_FROM_BATCH
    | lib.DSA_EV_DESC_FROM_WQ
    | lib.DSA_EV_NUM_READ2
    | lib.DSA_EV_NUM_WRITE2,
    lib.DSA_CATEGORY_OPERATIONS: OPERATIONS & 0x3FF
    | (OPERATIONS >> 0x10 & 0x3F) << 10
    | (OPERATIONS >> 0x20 & 1) << 16,
    lib.DSA_CATEGORY_COMPLETIONS: lib.DSA_EV_NUM_MSIX
    | lib.DSA_EV_PARTIAL
    | lib.DSA_EV_ERROR
    | lib.DSA_EV_SUCCESS
    | lib.DSA_EV_RECORD,
}
# What the first version of the specification had not (D.1.2).
_LATER: Final = {
    lib.DSA_CATEGORY_WQ: lib.DSA_EV_WQ_DISCARD,
    lib.DSA_CATEGORY_ENGINE: lib.DSA_EV_NUM_READ2 | lib.DSA_EV_NUM_WRITE2,
}


def events(version: int) -> dict[int, int]:
    """The events of each category that a DSA of ``version`` (as in VERSION) counts, as in EVNTCAP
    and appendix D."""
    later = 0 if version >= 0x200 else 0xFFFF_FFFF
    return {
        category: can & ~(_LATER.get(category, 0) & later) for category, can in _COUNTING.items()
    }


class PerfmonRegisters(RegisterMap):
    """The part of BAR0 that OFFSETS2 tells of.

    All of a counter's configuration but its enable bit can be written only while it is disabled
    (table 9-8), and so can its value.
    """

    PERFCAP = Register(
        0x00,
        64,
        RO,
        fields={
            "COUNTERS": Field(0, 6, reset=COUNTERS),
            "WIDTH": Field(8, 8, reset=WIDTH),
            "NUMBER_OF_CATEGORIES": Field(16, 4, reset=lib.DSA_CATEGORIES),
            "CATEGORIES": Field(20, 16, reset=sum(1 << category for category in _COUNTING)),
            "FILTERS": Field(36, 8, doc="By their encoding (table 6-2)."),
            "PER_COUNTER": Field(52),
            "WRITABLE_WHILE_ENABLED": Field(53),
            "FREEZE": Field(54, reset=1),
            "OVERFLOW_INTERRUPT": Field(55, reset=1),
        },
        doc="What can be counted, and how (9.2.25.1).",
    )
    PERFRST = Register(
        0x10,
        32,
        WO,
        fields={"CONFIGURATION": Field(0), "COUNTERS": Field(1)},
        doc="Resets; over when they have been written (9.2.25.4).",
    )
    PERFFRZ = Register(
        0x20,
        32,
        fields={"FROZEN": Field(0, COUNTERS)},
        doc="A bit for each counter; one that is disabled cannot be frozen (9.2.25.6).",
    )
    OVFSTATUS = Register(
        0x30,
        32,
        fields={"OVERFLOWED": Field(0, COUNTERS)},
        doc="A bit for each counter; 1 clears it (9.2.25.5). C has them: what is stored is 0.",
    )
    EVNTCAP = Register(
        0x80,
        64,
        RO,
        count=lib.DSA_CATEGORIES,
        fields={"EVENTS": Field(0, 28)},
        doc="The events of a category that are counted (9.2.25.2, appendix D).",
    )
    CNTRCFG = Register(
        0x100,
        64,
        count=COUNTERS,
        fields={
            "ENABLE": Field(0),
            "INTERRUPT": Field(1, doc="On overflow."),
            "FREEZE": Field(2, doc="All counters, on overflow."),
            "CATEGORY": Field(8, 4),
            "EVENTS": Field(32, 28),
        },
        doc="What a counter counts (9.2.25.7).",
    )
    CNTRDATA = Register(
        0x200,
        64,
        count=COUNTERS,
        fields={"VALUE": Field(0, WIDTH)},
        doc="How often that has happened (9.2.25.9).",
    )
    FLTCFG_WQ = Register(
        0x300,
        32,
        count=COUNTERS,
        stride=32,
        fields={"PICKED": Field(0, 16, reset=0xFFFF)},
        doc="A bit for each; all ones: whatever it is (9.2.25.8).",
    )
    FLTCFG_TC = Register(
        0x304, 32, count=COUNTERS, stride=32, fields={"PICKED": Field(0, 16, reset=0xFFFF)}
    )
    FLTCFG_PAGE_SIZE = Register(
        0x308,
        32,
        count=COUNTERS,
        stride=32,
        fields={"PICKED": Field(0, 16, reset=0xFFFF)},
        doc="No event has a page size. Linux's idxd mixes up filters behind one that is missing.",
    )
    FLTCFG_TRANSFER_SIZE = Register(
        0x30C, 32, count=COUNTERS, stride=32, fields={"PICKED": Field(0, 16, reset=0xFFFF)}
    )
    FLTCFG_ENGINE = Register(
        0x310, 32, count=COUNTERS, stride=32, fields={"PICKED": Field(0, 16, reset=0xFFFF)}
    )
    FLTCFG_PASID = Register(
        0x314,
        32,
        count=COUNTERS,
        stride=32,
        fields={"PASID": Field(0, 20, reset=0xFFFFF), "MODE": Field(20, 2, reset=3)},
        doc="From version 2 on. 0: this PASID, 1: any, 2: none, 3: whatever it is (table 6-2).",
    )


class Perfmon:
    """The event counters of a VDEV that passes for ``version``, which all its queues count into
    (``native``). ``interrupt`` is called when the guest is to be told of an overflow."""

    def __init__(self, version: int, interrupt: Callable[[], None]) -> None:
        self.native: Final[Any] = ffi.new("dsa_perfmon *")
        self.registers: Final = PerfmonRegisters(self)
        self._interrupt: Final = interrupt
        self._enabled: set[int] = set()
        filters = len(FILTERS) if version >= 0x200 else lib.DSA_FILTER_PASID
        self.registers.PERFCAP.preset(FILTERS=(1 << filters) - 1)
        for category, can in events(version).items():
            self.registers.EVNTCAP[category].preset(EVENTS=can)
        for name in FILTERS[filters:]:
            for register in getattr(self.registers, name):
                register.preset(0)
                register.narrow(0)

    def reset(self) -> None:
        """All as in the beginning (table 9-3)."""
        self._reset_configuration()
        self._reset_counters()
        self.registers.reset()

    def look(self) -> None:
        """Tell the guest of overflows that it has not been told of."""
        if lib.dsa_perfmon_interrupts(self.native):
            self._interrupt()

    def refused(self, wq: int, portal: int, *, shared: bool, pasid: int) -> None:
        """A descriptor came for a work queue that is not enabled."""
        lib.dsa_perfmon_refused(self.native, wq, portal, shared, pasid)
        self.look()

    # What the guest does.

    def on_write_PERFRST(self, value: int) -> None:
        self.registers.PERFRST.value = 0
        if value & 1:
            self._reset_configuration()
        if value & 2:
            self._reset_counters()

    def _reset_configuration(self) -> None:
        for counter in tuple(self._enabled):
            self._disable(counter)
        registers = self.registers
        for register in registers.CNTRCFG:
            register.value = 0
        for name in FILTERS[: registers.PERFCAP.FILTERS.bit_length()]:
            for register in getattr(registers, name):
                register.value = registers.registers[name].reset
        self.on_write_PERFFRZ(0)
        lib.dsa_perfmon_clear_overflowed(self.native, 0xFFFF_FFFF)

    def _reset_counters(self) -> None:
        for counter in range(COUNTERS):
            self.registers.CNTRDATA[counter].value = 0
            lib.dsa_perfmon_set_value(self.native, counter, 0)

    def on_write_PERFFRZ(self, value: int) -> None:
        lib.dsa_perfmon_freeze(self.native, value)
        self.registers.PERFFRZ.value = self.on_read_PERFFRZ()

    def on_read_PERFFRZ(self) -> int:
        return int(lib.dsa_perfmon_frozen(self.native))

    def on_write_OVFSTATUS(self, value: int) -> None:
        self.registers.OVFSTATUS.value = 0
        lib.dsa_perfmon_clear_overflowed(self.native, value)

    def on_read_OVFSTATUS(self) -> int:
        return int(lib.dsa_perfmon_overflowed(self.native))

    def on_write_CNTRCFG(self, index: int, value: int) -> None:
        if not value & 1:
            self._disable(index)
        elif index not in self._enabled:
            self._enable(index)

    def _enable(self, counter: int) -> None:
        registers = self.registers
        config = registers.CNTRCFG[counter]
        filters = [getattr(registers, name)[counter] for name in FILTERS]
        can = 0
        if len(registers.EVNTCAP) > config.CATEGORY:
            can = registers.EVNTCAP[config.CATEGORY].EVENTS
        picked = [register.value for register in filters]
        if not registers.PERFCAP.FILTERS >> lib.DSA_FILTER_PASID & 1:
            picked[lib.DSA_FILTER_PASID] = registers.registers["FLTCFG_PASID"].reset
        settings = ffi.new(
            "dsa_counter_settings *",
            {
                "category": config.CATEGORY,
                "events": config.EVENTS & can,  # others are ignored
                "interrupt": config.INTERRUPT,
                "freeze": config.FREEZE,
                "filters": picked,
            },
        )
        lib.dsa_perfmon_enable(self.native, counter, settings)
        self._enabled.add(counter)
        config.lock(~1)
        for register in (registers.CNTRDATA[counter], *filters):
            register.lock()

    def _disable(self, counter: int) -> None:
        if counter not in self._enabled:
            return
        self._enabled.discard(counter)
        registers = self.registers
        lib.dsa_perfmon_disable(self.native, counter)
        registers.CNTRDATA[counter].value = self.on_read_CNTRDATA(counter)
        registers.PERFFRZ.value = self.on_read_PERFFRZ()
        for name in ("CNTRCFG", "CNTRDATA", *FILTERS):
            getattr(registers, name)[counter].lock(0)

    def on_write_CNTRDATA(self, index: int, value: int) -> None:
        if index not in self._enabled:
            lib.dsa_perfmon_set_value(self.native, index, value)

    def on_read_CNTRDATA(self, index: int) -> int:
        return int(lib.dsa_perfmon_value(self.native, index))
