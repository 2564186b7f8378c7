"""Guests and servers that come, go and die; what is left goes on.

Each test here but the first boots guests of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.guest.gpio import Gpio
from tests.guest.lab import CARD, OPTIONS, SHOWCASE
from tests.guest.showcase import MODELS
from vdcm.testing import Machine, Server, address_of, bars_of, vfio_user

pytestmark = pytest.mark.timeout(300)  # several boots; each has its own, shorter limit

Serve = Callable[..., Server]
Boot = Callable[..., Machine]

OUTPUTS = range(16)
CARDS: dict[str, dict[str, Any]] = {
    "gpio0": {"type": "pcie-idio-16", "inputs": 0x00FF},
    "gpio1": {"type": "pcie-idio-16", "inputs": 0xFF00},
}


def load(machine: Machine) -> Gpio:
    """Load the card's driver; its lines."""
    machine.check("modprobe gpio-pci-idio-16")
    return Gpio(machine, address_of(machine, CARD))


def keep_busy(server: Server, machine: Machine, gpio: Gpio, name: str) -> None:
    """From now on accesses come without end."""
    since = len(server.log)
    machine.check(f"while :; do gpioget {gpio.chip} 0; done >/dev/null 2>&1 & sleep 0")
    server.wait_for(
        f"{name} is busy",
        lambda: sum("OUT_LOW" in line for line in server.trace(name, since)) > 10,
    )


def inputs(gpio: Gpio) -> int:
    """All 16 inputs as the guest reads them."""
    values = gpio.get(range(16, 32))
    return sum(value << line for line, value in enumerate(values))


def until(machine: Machine, condition: str) -> None:
    """Wait in the guest until a command succeeds."""
    machine.check(f"until {condition}; do usleep 50000; done", timeout=30)


def test_reboot_in_the_middle_of_work(serve: Serve, boot: Boot) -> None:
    server = serve({"gpio0": CARDS["gpio0"]})
    machine = boot(vfio_user(server.socket("gpio0")), **OPTIONS)
    gpio = load(machine)
    gpio.set(dict.fromkeys(OUTPUTS, 1))
    keep_busy(server, machine, gpio, "gpio0")
    resets = server.show("gpio0")["counters"]["resets"]
    machine.reboot()
    assert server.show("gpio0")["counters"]["resets"] > resets
    gpio = load(machine)
    assert gpio.get(OUTPUTS) == [0] * 16
    assert inputs(gpio) == 0x00FF
    monitor = gpio.watch([16], edges=1)
    server.set("gpio0", inputs=0x00FE)
    assert len(monitor.wait()) == 1


def test_two_guests_of_one_server_and_one_is_killed(serve: Serve, boot: Boot) -> None:
    server = serve(CARDS)
    victim, other = (boot(vfio_user(server.socket(name)), **OPTIONS) for name in CARDS)
    victim_gpio, other_gpio = load(victim), load(other)
    assert (inputs(victim_gpio), inputs(other_gpio)) == (0x00FF, 0xFF00)
    other_gpio.set({5: 1})
    keep_busy(server, victim, victim_gpio, "gpio0")
    victim.kill()
    server.wait_for("gpio0 is free", lambda: server.show("gpio0")["state"] == "ready")
    assert other_gpio.get(OUTPUTS) == [int(line == 5) for line in OUTPUTS]
    monitor = other_gpio.watch([16], edges=1)
    server.set("gpio1", inputs=0xFF01)
    assert len(monitor.wait()) == 1
    victim.stop()
    victim.start()
    assert inputs(load(victim)) == 0x00FF


def test_the_server_is_killed(serve: Serve, boot: Boot) -> None:
    server = serve({"gpio0": CARDS["gpio0"]})
    machine = boot(vfio_user(server.socket("gpio0")), **OPTIONS)
    gpio = load(machine)
    server.kill()
    # Reads give what a device that has gone gives: all ones.
    assert inputs(gpio) == 0xFFFF
    gpio.set({0: 1})
    assert server.socket("gpio0").exists(), "nothing could be cleaned up"
    server.start()
    assert machine.check("echo alive").strip() == "alive"
    machine.stop()
    machine.start()
    gpio = load(machine)
    assert inputs(gpio) == 0x00FF
    # In mid-access. QEMU 11.1 itself may fail an assertion when the answer that it waits for never
    # comes (error_setv, with the error set already), so what counts is that the next one attaches.
    keep_busy(server, machine, gpio, "gpio0")
    server.kill()
    server.start()
    machine.stop()
    machine.start()
    assert inputs(load(machine)) == 0x00FF


@pytest.mark.parametrize("backend", ["ram", "memfd,share=off"])
def test_guest_memory_that_is_not_shared(serve: Serve, boot: Boot, backend: str) -> None:
    """The log names the fix, the card works, and DMA is the error of the device that tries it.

    Of a memfd with share=off QEMU passes the descriptor all the same.
    """
    server = serve({"gpio0": CARDS["gpio0"], "show0": {"type": "showcase"}}, models=MODELS)
    devices = [*vfio_user(server.socket("gpio0")), *vfio_user(server.socket("show0"))]
    machine = boot(devices, backend=backend, **OPTIONS)
    assert "-object memory-backend-memfd,id=mem,size=SIZE,share=on" in server.log
    assert "-machine memory-backend=mem" in server.log
    assert inputs(load(machine)) == 0x00FF
    address = address_of(machine, SHOWCASE)
    machine.check(f"setpci -s {address} COMMAND=6:6")
    base = bars_of(machine, address)[2]
    since = len(server.log)
    machine.check(f"devmem {base + 0x8:#x} 64 0x9fd00; devmem {base + 0x18:#x} 32 1")
    machine.check(f"devmem {base:#x} 32")
    assert "guest memory is not shared" in server.log[since:]
    assert server.show("show0")["state"] == "attached"
