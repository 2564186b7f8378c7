"""Linux's own iavf in a guest, by iproute, ethtool and sysfs."""

from __future__ import annotations

import time
from typing import Any

from tests.guest.lab import address_of
from tests.guest.machine import Machine
from tests.guest.server import Server

AVF = "8086:1889"
MODULES = ("iavf", "8021q")  # for Machine(modules=…)
TOOLS = ("ethtool", "ip")  # for Machine(tools=…)
IP = "/bin/ip"  # iproute's; the name alone is busybox's own to its shell
SECONDS = 20.0  # a limit, not an expectation


class Nic:
    """The guest's end of VDEV ``name``, whose function is ``address`` in the guest."""

    def __init__(self, server: Server, machine: Machine, name: str) -> None:
        self.server = server
        self.machine = machine
        self.name = name
        self.address = address_of(machine, AVF)

    @property
    def folder(self) -> str:
        return f"/sys/bus/pci/devices/{self.address}"

    @property
    def interface(self) -> str:
        """The name that Linux gave it; empty while there is none."""
        return self.machine.run(f"ls {self.folder}/net 2>/dev/null").output.strip()

    def read(self, attribute: str) -> str:
        """An attribute of the network device; empty if it cannot be read, as when it is down."""
        return self.machine.run(f"cat {self.folder}/net/*/{attribute} 2>/dev/null").output.strip()

    def wait(self, what: str, attribute: str, value: str) -> None:
        """Until an attribute has a value."""
        deadline = time.monotonic() + SECONDS
        while (found := self.read(attribute)) != value:
            assert time.monotonic() < deadline, f"{what}: {attribute} is {found!r}\n{self.log()}"
            time.sleep(0.05)

    def wait_up(self) -> None:
        self.wait("the link does not come up", "carrier", "1")

    def load(self) -> None:
        """Load the driver and wait for its network device."""
        self.machine.check("modprobe iavf")
        deadline = time.monotonic() + SECONDS
        while not self.interface:
            assert time.monotonic() < deadline, f"no network device\n{self.log()}"
            time.sleep(0.05)

    def up(self) -> None:
        self.machine.check(f"ip link set {self.interface} up")
        self.wait_up()

    def down(self) -> None:
        self.machine.check(f"ip link set {self.interface} down")

    def ip(self, words: str) -> None:
        """iproute's ip; ``@`` in ``words`` is the interface."""
        self.machine.check(f"{IP} {words.replace('@', self.interface)}")

    def ethtool(self, option: str, words: str = "") -> str:
        """What ethtool prints for the interface."""
        return self.machine.check(f"ethtool {option} {self.interface} {words}")

    def shown(self) -> dict[str, Any]:
        """The VSI, as the server sees it."""
        found: dict[str, Any] = self.server.show(self.name)["vsi"]
        return found

    def wait_shown(self, key: str, value: object) -> None:
        """Until the VSI has a value: the driver says much a while later only."""
        self.server.wait_for(f"{key} is {value}", lambda: self.shown()[key] == value)

    def complaints(self) -> int:
        """Of the device about the driver."""
        found: int = self.server.show(self.name)["channel"]["complaints"]
        return found

    def last_complaint(self) -> str:
        """The last of them, in words."""
        found: str = self.server.show(self.name)["channel"]["last_complaint"]
        return found

    def log(self) -> str:
        """What the driver has said."""
        return self.machine.run("dmesg | grep -i -e iavf -e eth0").output
