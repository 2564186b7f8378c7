"""An Adaptive Virtual Function with Linux's own iavf: brought up, down, reset and taken away."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.guest.nic import Nic


@pytest.fixture
def nic(avf_lab: Nic) -> Iterator[Nic]:
    """Up; and afterwards the driver has done nothing that the device does not like."""
    avf_lab.server.set(avf_lab.name, link=True, speed=10000)
    if not avf_lab.interface:
        avf_lab.load()
    avf_lab.up()
    complaints = avf_lab.complaints()
    yield avf_lab
    assert avf_lab.complaints() == complaints, avf_lab.last_complaint()


def enabled(nic: Nic) -> bool:
    return bool(nic.shown()["tx_enabled"])


def sent(nic: Nic) -> int:
    """Frames that the device has taken from the guest."""
    counted = nic.server.show(nic.name)["adis"][0]["counters"]
    return int(sum(counted[f"tx_{kind}"] for kind in ("unicast", "multicast", "broadcast")))


def test_the_stock_driver_is_bound_and_has_its_address(nic: Nic) -> None:
    assert "Kernel driver in use: iavf" in nic.machine.check(f"lspci -k -s {nic.address}")
    assert nic.read("address") == nic.shown()["mac"] == "02:00:00:00:00:01"
    assert nic.read("speed") == "10000"
    assert nic.shown()["tx_enabled"] == nic.shown()["rx_enabled"] == [0, 1]  # for 2 CPUs


def test_the_driver_has_no_complaint(nic: Nic) -> None:
    assert "PF returned error" not in nic.log()
    assert "ailed" not in nic.log()


def test_the_link_goes_and_comes_back_with_another_speed(nic: Nic) -> None:
    nic.server.set(nic.name, link=False)
    nic.wait("the link stays up", "carrier", "0")
    nic.server.set(nic.name, speed=25000)
    nic.server.set(nic.name, link=True)
    nic.wait_up()
    nic.wait("the speed stays", "speed", "25000")


def test_multicast_addresses_are_told(nic: Nic) -> None:
    assert {"01:00:5e:00:00:01", "33:33:00:00:00:01"} <= set(nic.shown()["addresses"])
    nic.ip("maddr add 01:00:5e:00:00:77 dev @")
    nic.server.wait_for("it comes", lambda: "01:00:5e:00:00:77" in nic.shown()["addresses"])
    nic.ip("maddr del 01:00:5e:00:00:77 dev @")
    nic.server.wait_for("it goes", lambda: "01:00:5e:00:00:77" not in nic.shown()["addresses"])


def test_what_ethtool_says(nic: Nic) -> None:
    assert "driver: iavf\n" in nic.ethtool("-i")
    assert "Link detected: yes" in nic.ethtool("")
    channels = nic.ethtool("-l").split("Current hardware settings:")
    assert "Combined:\t4" in channels[0]
    assert "Combined:\t2" in channels[1]  # for 2 CPUs
    assert "RX:\t\t4096" in nic.ethtool("-g").split("Current")[0]
    features = nic.ethtool("-k")
    for feature in (
        "rx-checksumming: on",
        "tx-checksum-ipv4: on",
        "tx-tcp-segmentation: on",
        "tx-tcp6-segmentation: on",
        "rx-vlan-offload: on",
        "tx-vlan-offload: on",
        "rx-vlan-filter: on [fixed]",
        "receive-hashing: on",
    ):
        assert feature in features
    assert "toeplitz: on" in nic.ethtool("-x")
    assert nic.shown()["rss_queues"] == [0, 1]


def test_statistics_are_the_devices(nic: Nic) -> None:
    def told() -> bool:
        found = nic.ethtool("-S").split("tx_multicast:")[1].split()[0]
        counters = nic.server.show(nic.name)["adis"][0]["counters"]
        return int(found) == int(counters["tx_multicast"]) > 0

    nic.server.wait_for("the driver asks for statistics", told)


def test_the_table_of_rss(nic: Nic) -> None:
    nic.ethtool("-X", "equal 1")
    nic.wait_shown("rss_queues", [0])
    nic.ethtool("-X", "default")
    nic.wait_shown("rss_queues", [0, 1])


def test_vlans(nic: Nic) -> None:
    nic.machine.check("modprobe 8021q")
    nic.ip("link add link @ name vlan5 type vlan id 5")
    nic.ip("link add link @ name vlan7 type vlan id 7")
    nic.wait_shown("vlans", [5, 7])
    nic.ip("link del vlan5")
    nic.wait_shown("vlans", [7])
    nic.server.set(nic.name, vf_reset=True)
    nic.server.wait_for("its reset", lambda: not enabled(nic))
    nic.wait_shown("vlans", [7])
    nic.ip("link del vlan7")
    nic.wait_shown("vlans", [])


def test_vlan_offloads(nic: Nic) -> None:
    for feature, key in (("rx-vlan-offload", "strip_vlan"), ("tx-vlan-offload", "insert_vlan")):
        nic.ethtool("-K", f"{feature} off")
        nic.wait_shown(key, False)
        nic.ethtool("-K", f"{feature} on")
        nic.wait_shown(key, True)


def test_trust(nic: Nic) -> None:
    nic.server.set(nic.name, trust=True)
    nic.ip("link set @ promisc on")
    nic.wait_shown("promiscuous", ["unicast", "multicast"])
    nic.ip("link set @ promisc off")
    nic.wait_shown("promiscuous", [])
    nic.ip("link set @ address 02:00:00:00:00:42")
    nic.wait_shown("mac", "02:00:00:00:00:42")
    nic.ip("link set @ address 02:00:00:00:00:01")
    nic.wait_shown("mac", "02:00:00:00:00:01")
    # The driver removes the other one later: without trust there would be nothing to remove.
    gone = "02:00:00:00:00:42"
    nic.server.wait_for(f"{gone} goes", lambda: gone not in nic.shown()["addresses"])
    nic.server.set(nic.name, trust=False)


def test_without_trust_it_keeps_its_address(avf_lab: Nic) -> None:
    avf_lab.load()
    avf_lab.up()
    result = avf_lab.machine.run(f"ip link set {avf_lab.interface} address 02:00:00:00:00:43")
    assert "Permission denied" in result.output
    assert avf_lab.read("address") == avf_lab.shown()["mac"] == "02:00:00:00:00:01"
    assert "set trust" in avf_lab.server.show(avf_lab.name)["channel"]["last_complaint"]


def test_jumbo_frames(nic: Nic) -> None:
    """Down, because this driver keeps the lock that its reset needs while it waits for it."""
    nic.down()
    nic.ip("link set @ mtu 9000")
    nic.up()
    assert nic.shown()["max_frame"] >= 9018
    nic.down()
    nic.ip("link set @ mtu 1500")
    nic.up()
    assert nic.shown()["max_frame"] < 2048


def test_down_and_up_again(nic: Nic) -> None:
    for _ in range(5):
        nic.down()
        nic.server.wait_for("its queues stop", lambda: not enabled(nic))
        nic.up()
        assert enabled(nic)


def test_down_and_up_in_haste(nic: Nic) -> None:
    interface = nic.interface
    loop = f"for i in $(seq 100); do ip link set {interface} down; ip link set {interface} up; done"
    nic.machine.check(loop, timeout=90)
    nic.wait_up()


def test_what_is_sent_goes_nowhere_and_the_queue_does_not_stick(nic: Nic) -> None:
    interface = nic.interface
    before = sent(nic)
    nic.machine.check(f"ip addr add 192.0.2.1/24 dev {interface} 2>/dev/null; true")
    nic.machine.run("for i in 2 3 4 5; do ping -c 1 -W 1 192.0.2.$i; done", timeout=30)
    assert sent(nic) > before
    assert "NETDEV WATCHDOG" not in nic.machine.check("dmesg")


def test_a_reset_that_the_host_wants(nic: Nic) -> None:
    before = nic.server.show(nic.name)["counters"]["resets"]
    nic.server.set(nic.name, vf_reset=True)
    nic.server.wait_for(
        "the reset", lambda: nic.server.show(nic.name)["counters"]["resets"] > before
    )
    nic.server.wait_for("its queues work again", lambda: enabled(nic))
    nic.wait_up()
    assert "Reset indication received from the PF" in nic.log()


def test_a_function_level_reset(nic: Nic) -> None:
    since = len(nic.server.log)
    nic.machine.check(f"echo 1 > {nic.folder}/reset")
    assert "reset" in nic.server.trace(nic.name, since)
    nic.server.wait_for("its queues work again", lambda: enabled(nic))
    nic.wait_up()
    assert "Hardware reset detected" in nic.log()


def test_resets_while_it_sends(nic: Nic) -> None:
    interface, machine = nic.interface, nic.machine
    machine.run(f"ip addr add 192.0.2.1/24 dev {interface}")
    nic.ip("neigh replace 192.0.2.9 lladdr 02:00:00:00:00:99 dev @")
    send = "ping -q -s 1400 -i 0.005 -w 60 192.0.2.9"  # it ends when the network is down
    machine.check(f"(while [ ! -e /tmp/enough ]; do {send}; done) >/dev/null 2>&1 &")
    try:
        for _ in range(3):
            before = nic.server.show(nic.name)["counters"]["resets"]
            before_it = sent(nic)
            nic.server.wait_for("frames are sent", lambda least=before_it + 100: sent(nic) > least)
            nic.server.set(nic.name, vf_reset=True)
            nic.server.wait_for(
                "the reset",
                lambda before=before: nic.server.show(nic.name)["counters"]["resets"] > before,
            )
            nic.wait_up()
            nic.server.wait_for("its queues work again", lambda: enabled(nic))
        machine.check(f"echo 1 > {nic.folder}/reset")
        nic.server.wait_for("its queues work again", lambda: enabled(nic))
        before_it = sent(nic)
        nic.server.wait_for("frames are sent", lambda: sent(nic) > before_it)
    finally:
        machine.check("touch /tmp/enough; killall ping; true")
    assert "NETDEV WATCHDOG" not in machine.check("dmesg")


def test_the_driver_goes_and_comes(nic: Nic) -> None:
    for _ in range(3):
        nic.machine.check("rmmod iavf")
        assert not enabled(nic)
        nic.load()
        nic.up()


def test_unbinding_and_binding(nic: Nic) -> None:
    driver = "/sys/bus/pci/drivers/iavf"
    nic.machine.check(f"echo {nic.address} > {driver}/unbind")
    assert not nic.interface
    nic.machine.check(f"echo {nic.address} > {driver}/bind")
    nic.load()
    nic.up()


def test_the_guest_reboots(nic: Nic) -> None:
    nic.machine.reboot()
    assert not enabled(nic)
    nic.load()
    nic.up()
    assert enabled(nic)
