"""A PCI function as a guest sees it, and a driver of it for guests that have none."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Final

from vdcm.testing.machine import Machine
from vdcm.testing.qmp import GuestError

_DEVICES: Final = "/sys/bus/pci/devices"


def root_port(number: int) -> list[str]:
    """QEMU's arguments for a PCI Express root port ``rpN``, into which a device can be plugged."""
    return ["-device", f"pcie-root-port,id=rp{number},chassis={number},slot={number}"]


def address_of(machine: Machine, identity: str) -> str:
    """``domain:bus:device.function`` of the device ``vendor:device`` (hexadecimal) in the guest.

    GuestError if there is none.
    """
    vendor, _, device = identity.lower().partition(":")
    wanted = f"0x{vendor} 0x{device}"
    listed = machine.check(
        f"cd {_DEVICES}; for d in *; do echo $d $(cat $d/vendor $d/device); done"
    )
    for line in listed.splitlines():
        address, _, found = line.partition(" ")
        if found == wanted:
            return address
    raise GuestError(f"the guest has no device {identity}; these are there:\n{listed}")


def bars_of(machine: Machine, address: str) -> dict[int, int]:
    """The addresses of a device's regions, from its ``resource`` file in the guest."""
    lines = machine.check(f"cat {_DEVICES}/{address}/resource").splitlines()
    starts = (int(line.split()[0], 16) for line in lines[:6])
    return {index: start for index, start in enumerate(starts) if start}


def interrupts_of(machine: Machine, name: str) -> int:
    """How often the guest's CPUs have counted the interrupts whose line ends with ``name``.

    GuestError if there is no such line.
    """
    lines = machine.check("cat /proc/interrupts").splitlines()
    named = [line for line in lines if re.search(rf"\b{re.escape(name)}$", line)]
    if not named:
        raise GuestError(f"the guest has no interrupt {name}:\n" + "\n".join(lines))
    cpus = len(lines[0].split())
    return sum(int(count) for line in named for count in line.split()[1 : 1 + cpus])


class GuestDevice:
    """The device ``vendor:device`` (hexadecimal) in a guest.

    Memory BARs and memory are reached with devmem, the configuration space with setpci: the driver
    of a device that has none yet. GuestError if the device is not there, or a command fails.
    """

    def __init__(self, machine: Machine, identity: str) -> None:
        self.machine: Final = machine
        self.address: Final = address_of(machine, identity)

    @cached_property
    def bars(self) -> dict[int, int]:
        """The guest-physical addresses of its BARs, by index."""
        return bars_of(self.machine, self.address)

    @property
    def driver(self) -> str:
        """The name of the driver that is bound to it; "" if there is none."""
        link = f"{_DEVICES}/{self.address}/driver"
        return self.machine.check(f"basename $(readlink {link} || echo /)").strip("/\n")

    def enable(self) -> None:
        """Decoding and bus mastering on, as a driver's probe does."""
        # Command register (PCI 3.0, 6.2.2), lower byte; setpci need not be there.
        config = f"{_DEVICES}/{self.address}/config"
        self.machine.check(f"printf '\\007' | dd of={config} bs=1 seek=4 conv=notrunc 2>&1")

    def reset(self) -> None:
        """Reset the function."""
        self.machine.check(f"echo 1 >{_DEVICES}/{self.address}/reset")

    def setpci(self, what: str) -> str:
        """``setpci -s ADDRESS what``; what it prints, or nothing."""
        return self.machine.check(f"setpci -s {self.address} {what}").strip()

    def read(self, bar: int, offset: int, width: int = 4) -> int:
        """Read 1, 2, 4 or 8 bytes of a memory BAR."""
        return self.read_memory(self.bars[bar] + offset, width)

    def write(self, bar: int, offset: int, width: int, value: int) -> None:
        """Write 1, 2, 4 or 8 bytes of a memory BAR."""
        self.write_memory(self.bars[bar] + offset, width, value)

    def read_memory(self, address: int, width: int = 4) -> int:
        """Read guest-physical memory that the kernel lets /dev/mem reach: below 1 MiB, MMIO."""
        return int(self.machine.check(f"devmem {address:#x} {8 * width}"), 16)

    def write_memory(self, address: int, width: int, value: int) -> None:
        """Write what ``read_memory`` reads."""
        self.machine.check(f"devmem {address:#x} {8 * width} {value:#x}")
