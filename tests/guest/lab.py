"""The devices that the guest tests attach, and what they ask a guest about them."""

from __future__ import annotations

import re

from tests.guest.gpio import Gpio
from tests.guest.machine import Machine
from tests.guest.server import Server

CARD = "494f:0dc8"
SHOWCASE = "1af4:f00d"
MODULES = ("gpio-pci-idio-16",)


def root_port(number: int) -> list[str]:
    """QEMU's arguments for a PCI Express root port ``rpN``, into which a device can be plugged."""
    return ["-device", f"pcie-root-port,id=rp{number},chassis={number},slot={number}"]


class Lab:
    """The shared server and guest. VDEVs: ``gpio0`` on the root bus, ``show0`` behind a root
    port."""

    def __init__(self, server: Server, machine: Machine) -> None:
        self.server = server
        self.machine = machine
        self.card = address_of(machine, CARD)
        self.showcase = address_of(machine, SHOWCASE)
        machine.check("modprobe gpio-pci-idio-16")
        # Before any test has changed anything.
        self.dumps = {
            "idio16": machine.check(f"lspci -vvv -xxxx -s {self.card}"),
            "showcase": machine.check(f"lspci -vvv -xxxx -s {self.showcase}"),
        }

    def gpio(self) -> Gpio:
        """The card's lines; the driver labels its chip with the card's address."""
        return Gpio(self.machine, self.card)


def address_of(machine: Machine, identity: str) -> str:
    """``domain:bus:device.function`` of the device ``vendor:device`` in the guest."""
    found = machine.check(f"lspci -D -n -d {identity}").split()
    assert found, f"the guest has no device {identity}:\n{machine.check('lspci -nn')}"
    return found[0]


def bars_of(machine: Machine, address: str) -> dict[int, int]:
    """The addresses of a device's regions, from its ``resource`` file in the guest."""
    lines = machine.check(f"cat /sys/bus/pci/devices/{address}/resource").splitlines()
    starts = (int(line.split()[0], 16) for line in lines[:6])
    return {index: start for index, start in enumerate(starts) if start}


def interrupts_of(machine: Machine, name: str) -> int:
    """How often the guest's CPUs have counted the interrupts whose line ends with ``name``."""
    lines = machine.check("cat /proc/interrupts").splitlines()
    named = [line for line in lines if re.search(rf"\b{re.escape(name)}$", line)]
    assert named, "\n".join(lines)
    cpus = len(lines[0].split())
    return sum(int(count) for line in named for count in line.split()[1 : 1 + cpus])


def driven(server: Server, since: int, levels: int) -> bool:
    """The outputs of ``gpio0`` are ``levels``, one bit each: its trace from character ``since`` of
    the log on says so, by the last value written to each register."""
    last = {"OUT_LOW": 0, "OUT_HIGH": 0}
    for line in server.trace("gpio0", since):
        words = line.split()
        if words[0] == "write" and words[2] in last:
            last[words[2]] = int(words[-1], 16)
    return last["OUT_LOW"] | last["OUT_HIGH"] << 8 == levels
