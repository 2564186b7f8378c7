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
    assert avf_lab.complaints() == complaints, avf_lab.server.show(avf_lab.name)["channel"]


def enabled(nic: Nic) -> bool:
    return bool(nic.shown()["tx_enabled"])


def test_the_stock_driver_is_bound_and_has_its_address(nic: Nic) -> None:
    assert "Kernel driver in use: iavf" in nic.machine.check(f"lspci -k -s {nic.address}")
    assert nic.read("address") == nic.shown()["mac"] == "02:00:00:00:00:01"
    assert nic.read("speed") == "10000"
    assert nic.shown()["tx_enabled"] == nic.shown()["rx_enabled"] == [0, 1]  # for 2 CPUs


def test_the_driver_has_no_complaint(nic: Nic) -> None:
    assert "PF returned error" not in nic.log()
    assert "Failed" not in nic.log()


def test_the_link_goes_and_comes_back_with_another_speed(nic: Nic) -> None:
    nic.server.set(nic.name, link=False)
    nic.wait("the link stays up", "carrier", "0")
    nic.server.set(nic.name, speed=25000)
    nic.server.set(nic.name, link=True)
    nic.wait_up()
    nic.wait("the speed stays", "speed", "25000")


def test_multicast_addresses_are_told(nic: Nic) -> None:
    addresses = nic.shown()["addresses"]
    assert isinstance(addresses, list)
    assert {"01:00:5e:00:00:01", "33:33:00:00:00:01"} <= set(addresses)


def test_down_and_up_again(nic: Nic) -> None:
    for _ in range(5):
        nic.down()
        nic.server.wait_for("its queues stop", lambda: not enabled(nic))
        nic.up()
        assert enabled(nic)


def test_down_and_up_in_haste(nic: Nic) -> None:
    interface = nic.interface
    loop = f"for i in $(seq 20); do ip link set {interface} down; ip link set {interface} up; done"
    nic.machine.check(loop, timeout=60)
    nic.wait_up()


def test_what_is_sent_goes_nowhere_and_the_queue_does_not_stick(nic: Nic) -> None:
    interface = nic.interface
    before = nic.server.show(nic.name)["adis"][0]["counters"]["tx_discards"]
    nic.machine.check(f"ip addr add 192.0.2.1/24 dev {interface} 2>/dev/null; true")
    nic.machine.run("for i in 2 3 4 5; do ping -c 1 -W 1 192.0.2.$i; done", timeout=30)
    after = nic.server.show(nic.name)["adis"][0]["counters"]["tx_discards"]
    assert after > before
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
