"""The demo's last part: a second guest, and Linux's own iavf in both: they ping each other."""

from __future__ import annotations

from collections.abc import Callable

from tests.guest import nic
from tests.guest.nic import Nic
from vdcm.testing import Machine, Server

NAMES = ("net0", "net1")
VDEVS = {name: {"type": "avf"} for name in NAMES}
MODULES = nic.MODULES
TOOLS = nic.TOOLS
PINGS = 20
Say = Callable[[str, str], None]
Expect = Callable[[str, object, object], None]


def show_pings(server: Server, first: Machine, second: Machine, say: Say, expect: Expect) -> None:
    """From the first guest to the second and back, over the switch of the VDEVs' parent."""
    second.start()
    say("guest", f"a second guest is up after {second.boot_seconds:.1f} s")
    nics = [
        Nic(server, machine, name) for machine, name in zip((first, second), NAMES, strict=True)
    ]
    for index, one in enumerate(nics):
        one.load()
        one.up()
        one.ip(f"addr add 192.0.2.{index + 1}/24 dev @")
    say("guest", f"# ethtool -i {nics[0].interface}")
    say("guest", "\n".join(nics[0].ethtool("-i").splitlines()[:2]))
    for index, one in enumerate(nics):
        command = f"ping -q -c {PINGS} -i 0.02 192.0.2.{2 - index}"
        answer = one.machine.check(command, timeout=30).strip()
        say("guest", f"{'second: ' if index else ''}# {command}\n{answer}")
        expect("pings that came back", f" {PINGS} packets received" in answer, True)
    for one in nics:
        found = one.counters()
        say(
            "vdcm",
            f"{one.name} {one.shown()['mac']}: sent {found['tx_unicast']} frames to one address, "
            f"received {found['rx_unicast']}, dropped {found['rx_discards']}",
        )
