"""Linux's own iavf in guests, by iproute, ethtool and sysfs."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from vdcm.testing import Machine, Server, address_of

AVF = "8086:1889"
MODULES = ("iavf", "8021q", "bridge")  # for Machine(modules=…)
TOOLS = ("ethtool", "ip")  # for Machine(tools=…)
TRAFFIC_TOOLS = (*TOOLS, "iperf3")
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

    def counters(self) -> dict[str, int]:
        """Of the VSI."""
        found: dict[str, int] = self.server.show(self.name)["adis"][0]["counters"]
        return found

    def resets(self) -> int:
        found: int = self.server.show(self.name)["counters"]["resets"]
        return found

    def queues(self, side: str) -> list[int]:
        """Packets of each queue, as the driver counts them; ``side`` is rx or tx."""
        return [int(n) for n in re.findall(rf"{side}-\d+.packets: (\d+)", self.ethtool("-S"))]

    def log(self) -> str:
        """What the driver has said."""
        return self.machine.run("dmesg | grep -i -e iavf -e eth0").output


def pings(to: str, size: int) -> str:
    """A command that ends well if each of 20 pings comes back, be it late: with several under way
    at once, ping does not wait long for the last."""
    return f"for i in $(seq 20); do ping -q -c 1 -W 20 -s {size} {to} || exit 1; done"


class Pair:
    """Two guests on one switch, with addresses, serving HTTP; the second iperf3, too."""

    ADDRESSES: ClassVar = ("192.0.2.1", "192.0.2.2")
    ADDRESSES6: ClassVar = ("fd00::1", "fd00::2")
    BRIDGED_ADDRESSES: ClassVar = ("203.0.113.1", "203.0.113.2")
    VLAN_ADDRESSES: ClassVar = ("198.51.100.1", "198.51.100.2")

    def __init__(self, a: Nic, b: Nic) -> None:
        self.a, self.b = a, b
        self.server = a.server
        for nic in (a, b):
            nic.load()
            self.configure(nic)
            nic.machine.check("httpd -h /tmp")
        b.machine.check("iperf3 -s -D")

    def configure(self, nic: Nic) -> None:
        """Up, with its addresses."""
        nic.up()
        nic.ip(f"addr replace {self.ADDRESSES[nic is self.b]}/24 dev @")
        nic.ip(f"addr replace {self.ADDRESSES6[nic is self.b]}/64 dev @ nodad")

    def answers(self, to: str) -> bool:
        """Does ``to`` answer a's ping?"""
        return self.a.machine.run(f"ping -c 1 -W 1 {to}").status == 0

    def ping(self, to: str, size: int = 56) -> None:
        """From a: all of them come back."""
        self.server.wait_for("they know each other", lambda: self.answers(to))
        said = self.a.machine.run(pings(to, size), timeout=80)
        counted = self.a.counters(), self.b.counters()
        assert said.status == 0, f"{said.output}\n{counted}"

    def copy(
        self, source: Nic, to: Nic, megabytes: int, addresses: tuple[str, str] = ADDRESSES
    ) -> None:
        """A file over TCP, with its checksum before and after."""
        limit = 60 + megabytes
        make = f"dd if=/dev/urandom of=/tmp/sent bs=1M count={megabytes} 2>/dev/null"
        sent = source.machine.check(f"{make}; sha256sum < /tmp/sent", limit)
        get = f"wget -q -O - http://{addresses[source is self.b]}/sent"
        received = to.machine.check(f"{get} > /tmp/received; sha256sum < /tmp/received", limit)
        assert sent == received, to.machine.check("ls -l /tmp")
        to.machine.check("rm /tmp/received")
        source.machine.check("rm /tmp/sent")

    @contextmanager
    def vlans(self, of_a: int, of_b: int) -> Iterator[None]:
        """Each end in a VLAN, with an address there."""
        for nic, vlan, address in zip(
            (self.a, self.b), (of_a, of_b), self.VLAN_ADDRESSES, strict=True
        ):
            nic.machine.check("modprobe 8021q")
            nic.ip(f"link add link @ name vlan type vlan id {vlan}")
            nic.wait_shown("vlans", [vlan])
            nic.machine.check(f"ip link set vlan up; ip addr add {address}/24 dev vlan")
        yield
        for nic in (self.a, self.b):
            nic.ip("link del vlan")
            nic.wait_shown("vlans", [])

    @contextmanager
    def bridge(self, mac: str) -> Iterator[None]:
        """b's interface is a port of a bridge in b, which has an address and this MAC."""
        here, there = self.BRIDGED_ADDRESSES
        self.server.set(self.b.name, trust=True, spoof_check=False)
        self.b.machine.check(f"modprobe bridge; {IP} link add br0 address {mac} type bridge")
        self.b.ip("link set @ master br0")
        self.b.machine.check(f"ip link set br0 up; ip addr add {there}/24 dev br0")
        self.a.ip(f"addr add {here}/24 dev @")
        yield
        self.a.ip(f"addr del {here}/24 dev @")
        self.b.machine.check(f"{IP} link del br0")
        self.configure(self.b)
        self.b.wait_shown("promiscuous", [])
        self.server.set(self.b.name, trust=False, spoof_check=True)

    @contextmanager
    def mtu(self, size: int) -> Iterator[None]:
        """Both interfaces have it; changed while they are down (docs/avf.md)."""
        self._set_mtu(size)
        yield
        self._set_mtu(1500)

    def _set_mtu(self, size: int) -> None:
        for nic in (self.a, self.b):
            nic.down()
            nic.ip(f"link set @ mtu {size}")
            self.configure(nic)

    def missing(self) -> list[int]:
        """Frames that each has sent, and that the other has neither received nor had to drop."""
        counted = [self.a.counters(), self.b.counters()]
        return [
            from_["tx_unicast"] - to["rx_unicast"] - to["rx_discards"]
            for from_, to in (counted, reversed(counted))
        ]
