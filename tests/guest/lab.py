"""The devices that the guest tests attach, and what they ask a guest about them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from tests.guest.gpio import TOOLS, Gpio
from vdcm.testing import Machine, Server, address_of

CARD = "494f:0dc8"
SHOWCASE = "1af4:f00d"
OPTIONS: Final[Mapping[str, Any]] = {"modules": ("gpio-pci-idio-16",), "tools": TOOLS}
"""Of a Machine that has the card."""


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


def driven(server: Server, since: int, levels: int) -> bool:
    """The outputs of ``gpio0`` are ``levels``, one bit each: its trace from character ``since`` of
    the log on says so, by the last value written to each register."""
    last = {"OUT_LOW": 0, "OUT_HIGH": 0}
    for line in server.trace("gpio0", since):
        written = re.search(r" (OUT_LOW|OUT_HIGH) .*\(write (0x[0-9a-f]+)\)", line)
        if written:
            last[written[1]] = int(written[2], 16)
    return last["OUT_LOW"] | last["OUT_HIGH"] << 8 == levels
