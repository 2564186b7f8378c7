"""The card PCIe-IDIO-16 with Linux's own driver gpio-pci-idio-16, in the shared guest."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from tests.guest.gpio import Edge, Gpio
from tests.guest.lab import Lab, driven
from vdcm.testing import interrupts_of

OUTPUTS = range(16)
INPUTS = range(16, 32)
DRIVER = "/sys/bus/pci/drivers/pci-idio-16"


@pytest.fixture
def gpio(lab: Lab) -> Iterator[Gpio]:
    lab.server.set("gpio0", inputs=0x00FF)
    yield lab.gpio()


def counted(lab: Lab) -> tuple[int, int]:
    """Interrupts: as the guest counts them, and as the server does."""
    server: int = lab.server.show("gpio0")["counters"]["interrupts"]
    return interrupts_of(lab.machine, lab.card), server


def test_the_stock_driver_is_bound(lab: Lab) -> None:
    shown = lab.machine.check(f"lspci -k -s {lab.card}")
    assert "Kernel driver in use: pci-idio-16" in shown
    assert "Kernel modules: gpio_pci_idio_16" in shown
    assert lab.server.show("gpio0")["state"] == "attached"


def test_each_output_reaches_the_server_and_reads_back(lab: Lab, gpio: Gpio) -> None:
    gpio.set(dict.fromkeys(OUTPUTS, 0))
    for line in OUTPUTS:
        since = len(lab.server.log)
        gpio.set({other: int(other == line) for other in OUTPUTS})
        lab.server.wait_for(
            f"output {line} alone is 1", partial(driven, lab.server, since, 1 << line)
        )
        assert gpio.get(OUTPUTS) == [int(other == line) for other in OUTPUTS]


def test_each_input_reaches_the_guest(lab: Lab, gpio: Gpio) -> None:
    for line in range(16):
        lab.server.set("gpio0", inputs=1 << line)
        assert gpio.get(INPUTS) == [int(other == line) for other in range(16)]


def test_both_edges_of_an_input_interrupt_the_guest(lab: Lab, gpio: Gpio) -> None:
    before = counted(lab)
    monitor = gpio.watch([16], edges=2)
    lab.server.set("gpio0", inputs=0x00FE)
    lab.server.wait_for("the first interrupt is served", lambda: interrupt_served(lab))
    lab.server.set("gpio0", inputs=0x00FF)
    assert monitor.wait() == [Edge(16, rising=False), Edge(16, rising=True)]
    after = counted(lab)
    assert after[0] >= before[0] + 2
    assert after[1] >= before[1] + 2


def interrupt_served(lab: Lab) -> bool:
    """The line is low again: Interrupt Status of the function is 0."""
    status = lab.machine.check(f"setpci -s {lab.card} STATUS")
    return not int(status, 16) & 0x8


def test_an_interrupt_of_the_high_inputs(lab: Lab, gpio: Gpio) -> None:
    since = len(lab.server.log)
    monitor = gpio.watch([31], edges=1)
    lab.server.set("gpio0", inputs=0x80FF)
    assert monitor.wait() == [Edge(31, rising=True)]
    assert any("IRQ_STATUS = 0x6" in line for line in lab.server.trace("gpio0", since))


def test_no_interrupt_once_nobody_watches(lab: Lab, gpio: Gpio) -> None:
    monitor = gpio.watch([16], edges=1)
    lab.server.set("gpio0", inputs=0x00FE)
    assert len(monitor.wait()) == 1
    since = len(lab.server.log)
    before = counted(lab)
    for levels in (0xFFFF, 0x0000, 0x00FF):
        lab.server.set("gpio0", inputs=levels)
    assert gpio.get([16]) == [1]  # the guest is awake and has seen what there was
    assert counted(lab) == before
    assert not [line for line in lab.server.trace("gpio0", since) if line.startswith("INTX")]


@pytest.mark.usefixtures("gpio")
def test_the_driver_unbinds_and_binds_again(lab: Lab) -> None:
    lab.machine.check(f"echo {lab.card} >{DRIVER}/unbind")
    assert "driver in use" not in lab.machine.check(f"lspci -k -s {lab.card}")
    lab.machine.check(f"echo {lab.card} >{DRIVER}/bind")
    assert lab.gpio().get(INPUTS) == [1] * 8 + [0] * 8


@pytest.mark.usefixtures("gpio")
def test_the_module_unloads_and_loads_again(lab: Lab) -> None:
    lab.machine.check("rmmod gpio-pci-idio-16")
    assert lab.card not in lab.machine.check("gpiodetect")
    lab.machine.check("modprobe gpio-pci-idio-16")
    monitor = lab.gpio().watch([16], edges=1)
    lab.server.set("gpio0", inputs=0x00FE)
    assert monitor.wait() == [Edge(16, rising=False)]


def test_function_level_reset_clears_the_outputs(lab: Lab, gpio: Gpio) -> None:
    gpio.set(dict.fromkeys(OUTPUTS, 1))
    assert gpio.get(OUTPUTS) == [1] * 16
    resets = lab.server.show("gpio0")["counters"]["resets"]
    folder = f"/sys/bus/pci/devices/{lab.card}"
    assert "flr" in lab.machine.check(f"cat {folder}/reset_method").split()
    lab.machine.check(f"echo flr >{folder}/reset_method && echo 1 >{folder}/reset")
    assert lab.server.show("gpio0")["counters"]["resets"] > resets
    assert gpio.get(OUTPUTS) == [0] * 16
    gpio.set({3: 1})  # the kernel has restored the configuration: the card is usable
    assert gpio.get(OUTPUTS) == [int(line == 3) for line in OUTPUTS]
