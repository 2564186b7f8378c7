"""Pages, DMA and message-signaled interrupts of the show-case device, in the shared guest.

Nothing in the guest drives it: devmem and setpci are the driver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.guest.lab import Lab
from tests.guest.showcase import (
    DIRECT,
    FAR_MEMORY,
    IDENT,
    MEMORY,
    STATUS,
    TABLE,
    ShowcaseRegisters,
)
from vdcm.testing import bars_of

SHARED = {
    "direct": (2, DIRECT + 0x10),
    "memory": (2, MEMORY),
    "memory, last word": (2, MEMORY + 0xFFC),
    "memory in an area of two pages": (2, FAR_MEMORY + 0x1FF8),
    "the prefetchable BAR": (0, 0),
    "the end of the prefetchable BAR": (0, 0xFFFC),
}
EBDA = 0x9FD00  # firmware's data area: memory that /dev/mem reaches and Linux leaves alone
OFFSETS = {name: register.offset for name, register in ShowcaseRegisters.registers.items()}


class Driver:
    """What a driver in the guest does, done from here."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.bars = bars_of(lab.machine, lab.showcase)

    def read(self, bar: int, offset: int, bits: int = 32) -> int:
        return self.physical_read(self.bars[bar] + offset, bits)

    def write(self, bar: int, offset: int, value: int, bits: int = 32) -> None:
        self.lab.machine.check(f"devmem {self.bars[bar] + offset:#x} {bits} {value:#x}")

    def physical_read(self, address: int, bits: int = 32) -> int:
        return int(self.lab.machine.check(f"devmem {address:#x} {bits}"), 16)

    def register(self, name: str, value: int, bits: int = 32) -> None:
        self.write(2, OFFSETS[name], value, bits)

    def setpci(self, what: str) -> str:
        return self.lab.machine.check(f"setpci -s {self.lab.showcase} {what}").strip()


@pytest.fixture
def driver(lab: Lab) -> Iterator[Driver]:
    """The device with memory decoding and bus mastering on; reset afterwards."""
    driver = Driver(lab)
    driver.setpci("COMMAND=6:6")
    yield driver
    lab.machine.check(f"echo 1 >/sys/bus/pci/devices/{lab.showcase}/reset")


Accesses = Callable[[], list[str]]


@pytest.fixture
def accesses(lab: Lab, driver: Driver) -> Accesses:
    """The BAR accesses that the server has seen since, up to now."""
    since = len(lab.server.log)

    def seen() -> list[str]:
        assert driver.read(2, OFFSETS["IDENT"]) == IDENT  # flushes what was written before
        lines = [line for line in lab.server.trace("show0", since) if line.startswith("BAR")]
        assert "IDENT" in lines[-1]
        return lines[:-1]

    return seen


@pytest.mark.conformance("R4.3-1", "R4.4.1-4")
def test_intercepted_accesses_appear_by_register_name(driver: Driver, accesses: Accesses) -> None:
    driver.register("SCRATCH", 0x1234_5678)
    assert driver.read(2, OFFSETS["SCRATCH"]) == 0x1234_5678
    assert driver.read(2, OFFSETS["SCRATCH"] + 1, 8) == 0x56
    write, *reads = accesses()
    assert write == "BAR2+0x04 SCRATCH 0x0→0x12345678 (write 0x12345678)"
    assert reads[0] == "BAR2+0x04 SCRATCH = 0x12345678 (read)"
    assert "SCRATCH" in reads[1] and len(reads) == 2


@pytest.mark.conformance("R4.3-1", "R4.4.1-3", "R4.4.1-7")
@pytest.mark.parametrize("where", SHARED)
def test_shared_pages_need_no_message(
    lab: Lab, driver: Driver, accesses: Accesses, where: str
) -> None:
    bar, offset = SHARED[where]
    lab.server.set("show0", bar=bar, at=offset)
    driver.write(bar, offset, 0xC0FF_EE01)
    assert lab.server.show("show0")["word"] == 0xC0FF_EE01
    lab.server.set("show0", word=0x0BAD_CAFE)
    assert driver.read(bar, offset) == 0x0BAD_CAFE
    assert accesses() == []


def test_shared_pages_are_separate(lab: Lab, driver: Driver) -> None:
    """Several areas of one BAR come from one descriptor: each lies at its own offset."""
    for number, (bar, offset) in enumerate(SHARED.values()):
        driver.write(bar, offset, 0x100 + number)
    for number, (bar, offset) in enumerate(SHARED.values()):
        lab.server.set("show0", bar=bar, at=offset)
        assert lab.server.show("show0")["word"] == 0x100 + number


@pytest.mark.conformance("R4.4.1-5")
def test_write_intercepted_page(lab: Lab, driver: Driver, accesses: Accesses) -> None:
    driver.write(2, STATUS, 0x77)
    assert driver.read(2, STATUS) == 0x77
    assert any(line.startswith("BAR2+0x5000 COUNTER") for line in accesses())
    lab.server.set("show0", bar=2, at=STATUS)
    assert lab.server.show("show0")["word"] == 0x77


def test_dma_reads_and_writes_guest_memory(driver: Driver) -> None:
    driver.lab.machine.check(f"devmem {EBDA:#x} 64 0x1122334455667788")
    driver.register("DMA_ADDRESS", EBDA, 64)
    driver.register("COMMAND", 1)
    assert driver.read(2, OFFSETS["DMA_DATA"], 64) == 0x1122_3344_5566_7788
    driver.register("DMA_DATA", 0xFEDC_BA98_7654_3210, 64)
    driver.register("COMMAND", 2)
    assert driver.read(2, OFFSETS["IDENT"]) == IDENT
    assert driver.physical_read(EBDA, 64) == 0xFEDC_BA98_7654_3210


def test_dma_needs_bus_master_enable(driver: Driver) -> None:
    since = len(driver.lab.server.log)
    driver.setpci("COMMAND=0:4")
    driver.register("DMA_ADDRESS", EBDA, 64)
    driver.register("COMMAND", 1)
    assert driver.read(2, OFFSETS["DMA_DATA"], 64) == 0
    assert "pci_set_master" in driver.lab.server.log[since:]


@pytest.mark.conformance("R4.4.2-1", "R4.4.2-5")
def test_msix_can_be_enabled_and_its_table_written(lab: Lab, driver: Driver) -> None:
    driver.setpci("CAP_MSIX+2.w=8000:8000")
    driver.write(2, TABLE + 0xC, 0)
    driver.register("COMMAND", 4)
    assert driver.read(2, OFFSETS["IDENT"]) == IDENT
    driver.setpci("CAP_MSIX+2.w=0:8000")
    assert lab.server.show("show0")["state"] == "attached"


@pytest.mark.conformance("R4.4.2-1", "R4.4.2-5")
def test_msi_can_be_enabled_and_masked(lab: Lab, driver: Driver) -> None:
    driver.setpci("CAP_MSI+10.l=f:f")
    driver.setpci("CAP_MSI+2.w=1:1")
    driver.register("COMMAND", 4 | 2 << 8)
    assert driver.read(2, OFFSETS["IDENT"]) == IDENT
    driver.setpci("CAP_MSI+2.w=0:1")
    assert lab.server.show("show0")["state"] == "attached"


def test_function_level_reset_clears_registers_and_shared_pages(lab: Lab, driver: Driver) -> None:
    driver.register("SCRATCH", 0x55)
    driver.write(2, MEMORY, 0x66)
    lab.machine.check(f"echo 1 >/sys/bus/pci/devices/{lab.showcase}/reset")
    assert driver.read(2, OFFSETS["SCRATCH"]) == 0
    assert driver.read(2, MEMORY) == 0
    assert driver.read(2, OFFSETS["IDENT"]) == IDENT
