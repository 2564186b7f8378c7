"""VDEVs come and go while a guest runs, by the commands that an administrator has.

The machine is q35 without options of its own for this: its root ports tell the guest by ACPI that
something has been plugged in, and Linux' acpiphp does the rest. QEMU 11.1 aborts when a vfio-user
device with MSI-X is taken out (README, Limits); the card has none. Linux 6.1's driver for it gives
interrupts only to the first card after it has been loaded, hence the other device and the rmmod.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.guest.gpio import Edge, Gpio
from tests.guest.lab import CARD, OPTIONS, SHOWCASE
from tests.guest.showcase import MODELS, ShowcaseRegisters
from vdcm.testing import Machine, Server, address_of, bars_of, root_port, vfio_user

EBDA = 0x9FD00  # firmware's data area: memory that /dev/mem reaches and Linux leaves alone
OFFSETS = {name: register.offset for name, register in ShowcaseRegisters.registers.items()}
GONE = f"! lspci -n -d {CARD} | grep -q ."


def until(machine: Machine, condition: str) -> None:
    """Wait in the guest until a command succeeds."""
    machine.check(f"until {condition}; do usleep 50000; done", timeout=30)


def plug(machine: Machine, command: str) -> str:
    """Run a QMP command ``device_add`` as text; the id of the new device."""
    said: dict[str, Any] = json.loads(command)
    machine.qmp.execute(said["execute"], **said["arguments"])
    identity: str = said["arguments"]["id"]
    return identity


@contextmanager
def undisturbed(server: Server, machine: Machine) -> Iterator[None]:
    """Meanwhile ``show0`` writes number after number to guest memory, and each arrives."""
    address = address_of(machine, SHOWCASE)
    machine.check(f"setpci -s {address} COMMAND=6:6")
    base = bars_of(machine, address)[2]
    at = {name: f"{base + offset:#x}" for name, offset in OFFSETS.items()}
    before = server.show("show0")["counters"]
    machine.check(
        f"n=0; devmem {at['DMA_ADDRESS']} 64 {EBDA:#x}; while [ ! -e /tmp/enough ]; do "
        f"n=$((n + 1)); devmem {at['DMA_DATA']} 64 $n; devmem {at['COMMAND']} 32 2; "
        f"found=$(devmem {EBDA:#x} 64); [ $((found)) = $n ] || echo $n: $found; "
        "echo $n >/tmp/count; done >/tmp/wrong 2>&1 & sleep 0"
    )
    yield
    machine.check("touch /tmp/enough; sleep 1")
    assert machine.check("cat /tmp/wrong") == ""
    assert int(machine.check("cat /tmp/count")) > 10
    after = server.show("show0")
    assert after["state"] == "attached"
    assert after["counters"]["resets"] == before["resets"]


@pytest.mark.conformance("R4.4-1")
@pytest.mark.timeout(300)
def test_a_vdev_comes_into_a_running_guest_and_goes(
    serve: Callable[..., Server], boot: Callable[..., Machine]
) -> None:
    server = serve({"show0": {"type": "showcase"}}, models=MODELS)
    machine = boot([*root_port(1), *vfio_user(server.socket("show0"))], **OPTIONS)
    path = server.socket("plug")
    uuid = server.vdcm(
        *("define", "--type", "pcie-idio-16", "--parent", "idio16", "--name", "plug"),
        *("--set", "inputs=0x0f0f", "--socket", str(path)),
    ).strip()
    with undisturbed(server, machine):
        for _ in range(2):
            assert server.vdcm("start", "plug") == f"{uuid} {path}\n"
            device = plug(machine, server.vdcm("qemu-args", "plug", "--qmp", "rp1"))
            until(machine, f"lspci -n -d {CARD} | grep -q .")
            machine.check("modprobe gpio-pci-idio-16")
            card = address_of(machine, CARD)
            assert "Kernel driver in use: pci-idio-16" in machine.check(f"lspci -k -s {card}")
            use(server, Gpio(machine, card))
            assert server.show("plug")["state"] == "attached"

            machine.qmp.execute("device_del", id=device)
            until(machine, GONE)
            server.wait_for("the card is free", lambda: server.show("plug")["state"] == "ready")
            server.vdcm("stop", "--uuid", uuid)
            assert not path.exists()
            assert server.show("plug")["state"] == "defined"
            machine.check("rmmod gpio-pci-idio-16")
    server.vdcm("undefine", "plug")
    assert "plug" not in server.vdcm("list")


def use(server: Server, gpio: Gpio) -> None:
    """Outputs, inputs and the interrupt of the card that has been plugged in."""
    since = len(server.log)
    gpio.set({5: 1})
    assert any("OUT_LOW" in line and "0x20" in line for line in server.trace("plug", since))
    assert gpio.get(range(16, 32)) == [0x0F0F >> bit & 1 for bit in range(16)]
    monitor = gpio.watch([16], edges=1)
    server.set("plug", inputs=0x0F0E)
    assert monitor.wait() == [Edge(16, rising=False)]
