"""An Adaptive Virtual Function's control path: what a driver may ask, and what it gets."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import avf_machine as avf
import pytest
from avf_machine import Driver, LocalBus

from vdcm import PropertyError, ResourceError
from vdcm.parent import build
from vdcm.protocol import Irq
from vdcm.transport import IrqAction
from vdcm_devices.avf import Avf
from vdcm_devices.avf.vdev import AvfVdev, mac_of

OTHER = bytes.fromhex("020000000099")
ANSWERS = 120
GROUP = bytes.fromhex("01005e000001")


class Lab:
    def __init__(self) -> None:
        self.parent = build(Avf, "nic", {"queue_pairs": 16})
        self.buses: list[LocalBus] = []

    def vdev(self, name: str = "v", **properties: Any) -> AvfVdev:
        vdev = self.parent.create("avf", name, properties)
        assert isinstance(vdev, AvfVdev)
        self.buses.append(LocalBus(vdev))
        return vdev

    def driver(self, name: str = "v", capabilities: int = avf.LINUX, **properties: Any) -> Driver:
        self.vdev(name, **properties)
        driver = Driver(self.buses[-1])
        driver.start(capabilities)
        return driver

    def close(self) -> None:
        for bus in self.buses:
            bus.close()
            bus.vdev.close()
        self.parent.close()
        assert not self.parent.driver.adis


@pytest.fixture
def lab() -> Iterator[Lab]:
    made = Lab()
    yield made
    made.close()


def vdev_of(driver: Driver) -> AvfVdev:
    assert isinstance(driver.bus, LocalBus)
    return driver.bus.vdev


def vsi(driver: Driver) -> dict[str, Any]:
    described: dict[str, Any] = vdev_of(driver).describe()["vsi"]
    return described


# Negotiation.


def test_a_driver_learns_what_it_has(lab: Lab) -> None:
    driver = lab.driver(mac="02:00:00:00:00:01", queues=3)
    found = driver.resources
    assert (found.pairs, found.vectors, found.vsi_type) == (3, 4, 6)
    assert found.mac == bytes.fromhex("020000000001")
    assert (found.key_size, found.lut_size, found.max_mtu) == (52, 64, 9728)
    assert found.capabilities == (
        avf.L2 | avf.REQ_QUEUES | avf.ADV_SPEED | avf.VLAN_V2 | avf.RSS_PF
    )


@pytest.mark.parametrize("asked", [avf.L2, avf.VLAN_V1, avf.RSS_PF | avf.RXDID_CAP, 0xFFFF_FFFF])
def test_it_is_granted_nothing_that_it_has_not_asked_for(lab: Lab, asked: int) -> None:
    granted = lab.driver(capabilities=asked).resources.capabilities
    assert granted & ~(asked | avf.L2) == 0
    assert not granted & avf.VLAN_V1 or not granted & avf.VLAN_V2


def test_an_old_driver_cannot_ask(lab: Lab) -> None:
    lab.vdev()
    driver = Driver(lab.buses[0])
    driver.init_queues()
    assert driver.check(avf.VERSION, struct.pack("<II", 1, 0)) == struct.pack("<II", 1, 0)
    assert driver.call(avf.GET_RESOURCES, bytes(4)).status == avf.LENGTH
    found = avf.parse_resources(driver.check(avf.GET_RESOURCES))
    assert found.capabilities == avf.L2 | avf.VLAN_V1 | avf.RSS_PF


def test_a_later_minor_version_is_brought_down(lab: Lab) -> None:
    driver = lab.driver()
    assert driver.check(avf.VERSION, struct.pack("<II", 1, 7)) == struct.pack("<II", 1, 1)
    assert driver.call(avf.VERSION, struct.pack("<II", 2, 0)).status == avf.PARAMETER


@pytest.mark.parametrize(
    "opcode", [op for op in avf.OPCODES if op not in (avf.VERSION, avf.RESET_VF, avf.GET_RESOURCES)]
)
def test_nothing_goes_before_resources(lab: Lab, opcode: int) -> None:
    lab.vdev()
    driver = Driver(lab.buses[0])
    driver.init_queues()
    assert driver.call(opcode).status == avf.PARAMETER


@pytest.mark.parametrize("opcode", [0, 16, 18, 20, 30, 32, 45, 58, 64, 200, 0xFFFF_FFFF])
def test_what_is_no_message_is_not_supported(lab: Lab, opcode: int) -> None:
    driver = lab.driver()
    answer = driver.call(opcode, b"abcd")
    assert (answer.status, answer.data) == (avf.NOT_SUPPORTED, b"")
    assert vdev_of(driver).last_complaint == f"message {opcode} is not one of a driver's"


@pytest.mark.parametrize("opcode", [op for op in avf.OPCODES if op != avf.RESET_VF])
@pytest.mark.parametrize("size", [1, 3, 5, 13, 41, 4095])
def test_a_wrong_length_is_refused(lab: Lab, opcode: int, size: int) -> None:
    driver = lab.driver()
    before = vsi(driver)
    assert driver.call(opcode, b"\xff" * size).status == avf.LENGTH
    assert vsi(driver) == before


def test_another_vsi_is_refused(lab: Lab) -> None:
    driver = lab.driver()
    other = driver.resources.vsi + 1
    for opcode, message in (
        (avf.PROMISCUOUS, struct.pack("<HH", other, 0)),
        (avf.GET_STATS, struct.pack("<HHII", other, 0, 1, 1)),
        (avf.CONFIG_TX, avf.tx_queue(other, 0)),
        (avf.CONFIG_RX, avf.rx_queue(other, 0)),
        (avf.CONFIG_IRQS, struct.pack("<H6H", 1, other, 1, 1, 1, 0, 0)),
        (avf.STRIP_ON_V2, struct.pack("<IIH6x", 0, 1, other)),
    ):
        assert driver.call(opcode, message).status == avf.PARAMETER


# Queues.


def test_queues_are_configured_mapped_and_enabled(lab: Lab) -> None:
    driver = lab.driver()
    driver.configure(2)
    assert driver.select(avf.ENABLE_QUEUES, 3, 3).status == avf.SUCCESS
    assert vsi(driver)["tx_enabled"] == vsi(driver)["rx_enabled"] == [0, 1]
    adi = vdev_of(driver).adis[0]
    assert adi.state.value == "enabled"
    assert driver.select(avf.DISABLE_QUEUES, 3, 1).status == avf.SUCCESS
    assert (vsi(driver)["tx_enabled"], vsi(driver)["rx_enabled"]) == ([], [1])
    assert adi.state.value == "enabled"
    assert driver.select(avf.DISABLE_QUEUES, 0, 2).status == avf.SUCCESS
    assert adi.state.value == "allocated"


def test_vectors_may_be_mapped_before_their_queues_are_configured(lab: Lab) -> None:
    driver = lab.driver()
    number = driver.resources.vsi
    driver.check(avf.CONFIG_IRQS, struct.pack("<H6H", 1, number, 2, 1, 1, 0, 1))
    driver.check(avf.CONFIG_TX, avf.tx_queue(number, 0))
    driver.check(avf.CONFIG_RX, avf.rx_queue(number, 0))
    found = vdev_of(driver).vsi
    assert (found.tx[0].message, found.tx[0].itr) == (1, 1)
    assert (found.rx[0].message, found.rx[0].itr) == (1, 0)


def test_bad_queues_are_refused(lab: Lab) -> None:
    driver = lab.driver(queues=2)
    number = driver.resources.vsi
    for opcode, message in (
        (avf.CONFIG_TX, avf.tx_queue(number, 2)),
        (avf.CONFIG_TX, avf.tx_queue(number, 0, length=0)),
        (avf.CONFIG_TX, avf.tx_queue(number, 0, length=65)),
        (avf.CONFIG_TX, avf.tx_queue(number, 0, length=4104)),
        (avf.CONFIG_TX, avf.tx_queue(number, 0, address=0)),
        (avf.CONFIG_TX, avf.tx_queue(number, 0, address=0x1001)),
        (avf.CONFIG_RX, avf.rx_queue(number, 0xFFFF)),
        (avf.CONFIG_RX, avf.rx_queue(number, 0, length=72)),
        (avf.CONFIG_RX, avf.rx_queue(number, 0, length=0xFFFF_FFE0)),
        (avf.CONFIG_RX, avf.rx_queue(number, 0, buffer=0)),
        (avf.CONFIG_RX, avf.rx_queue(number, 0, buffer=16384)),
        (avf.CONFIG_RX, avf.rx_queue(number, 0, buffer=1025)),
        (avf.CONFIG_RX, avf.rx_queue(number, 0, frame=9729)),
        (avf.CONFIG_RX, avf.rx_queue(number, 0, frame=63)),
        (avf.CONFIG_IRQS, struct.pack("<H6H", 1, number, 3, 1, 1, 0, 0)),
        (avf.CONFIG_IRQS, struct.pack("<H6H", 1, number, 0, 1, 0, 0, 0)),
        (avf.CONFIG_IRQS, struct.pack("<H6H", 1, number, 1, 4, 0, 0, 0)),
        (avf.CONFIG_IRQS, struct.pack("<H6H", 1, number, 1, 1, 0, 4, 0)),
        (avf.ENABLE_QUEUES, struct.pack("<HHII", number, 0, 1, 1)),
        (avf.ENABLE_QUEUES, struct.pack("<HHII", number, 0, 0, 0)),
        (avf.DISABLE_QUEUES, struct.pack("<HHII", number, 0, 1 << 31, 0)),
    ):
        assert driver.call(opcode, message).status == avf.PARAMETER, (opcode, message)
    assert vdev_of(driver).vsi.tx == vdev_of(driver).vsi.rx == {}


def test_a_queue_that_works_is_not_configured_anew(lab: Lab) -> None:
    driver = lab.driver()
    driver.configure(1)
    driver.select(avf.ENABLE_QUEUES, 1, 1)
    number = driver.resources.vsi
    assert driver.call(avf.CONFIG_TX, avf.tx_queue(number, 0)).status == avf.PARAMETER
    assert driver.call(avf.CONFIG_RX, avf.rx_queue(number, 0)).status == avf.PARAMETER
    remap = struct.pack("<H6H", 1, number, 1, 1, 1, 0, 0)
    assert driver.call(avf.CONFIG_IRQS, remap).status == avf.PARAMETER


def test_receive_descriptors_are_those_of_32_bytes(lab: Lab) -> None:
    driver = lab.driver(capabilities=avf.RXDID_CAP)
    assert driver.check(avf.RXDIDS) == struct.pack("<Q", 1 << 1)
    number = driver.resources.vsi
    assert driver.call(avf.CONFIG_RX, avf.rx_queue(number, 0, rxdid=22)).status == avf.PARAMETER
    driver.check(avf.CONFIG_RX, avf.rx_queue(number, 0, rxdid=1))


# Filters and policies.


def test_addresses(lab: Lab) -> None:
    driver = lab.driver()
    mac = driver.resources.mac
    assert driver.addresses(avf.ADD_ADDRESS, mac, GROUP).status == avf.SUCCESS
    assert vsi(driver)["addresses"] == ["01:00:5e:00:00:01"]
    assert driver.addresses(avf.ADD_ADDRESS, OTHER).status == avf.PARAMETER
    assert "set trust" in vdev_of(driver).last_complaint
    assert driver.addresses(avf.ADD_ADDRESS, bytes(6)).status == avf.PARAMETER
    assert driver.addresses(avf.DEL_ADDRESS, OTHER).status == avf.PARAMETER
    assert driver.addresses(avf.DEL_ADDRESS, mac, GROUP).status == avf.SUCCESS
    assert vdev_of(driver).vsi.filters.addresses == {mac}


def test_one_that_is_trusted_may_have_any_address_but_anothers(lab: Lab) -> None:
    driver = lab.driver(trust=True)
    neighbour = lab.driver("neighbour")
    assert driver.addresses(avf.ADD_ADDRESS, OTHER).status == avf.SUCCESS
    stolen = driver.addresses(avf.ADD_ADDRESS, GROUP, neighbour.resources.mac)
    assert stolen.status == avf.PARAMETER
    assert vsi(driver)["addresses"] == ["02:00:00:00:00:99"]
    vdev_of(driver).trust = False
    assert vsi(driver)["addresses"] == []


def test_there_is_a_limit_to_addresses(lab: Lab) -> None:
    driver = lab.driver()
    groups = [b"\x01" + i.to_bytes(5, "big") for i in range(64)]
    assert driver.addresses(avf.ADD_ADDRESS, *groups).status == avf.NO_MEMORY
    assert vsi(driver)["addresses"] == []
    assert driver.addresses(avf.ADD_ADDRESS, *groups[:63]).status == avf.SUCCESS


def test_vlans_of_both_versions(lab: Lab) -> None:
    old = lab.driver("old", avf.VLAN_V1, max_vlans=3)
    assert old.vlans(avf.ADD_VLAN, 0, 5, 6).status == avf.SUCCESS
    assert old.vlans(avf.ADD_VLAN, 4095).status == avf.PARAMETER
    assert old.vlans(avf.ADD_VLAN, 7, 8).status == avf.NO_MEMORY
    assert old.vlans(avf.DEL_VLAN, 5).status == avf.SUCCESS
    assert vsi(old)["vlans"] == [0, 6]
    assert old.vlans_v2(avf.ADD_VLAN_V2, 9).status == avf.NOT_SUPPORTED

    new = lab.driver("new", avf.VLAN_V2, max_vlans=3)
    caps = struct.unpack("<IIIH2xIIIIIB3x", new.check(avf.VLAN_CAPS))
    toggle = 1 << 31 | 1 << 8 | 1
    assert caps == (0, 1, 1, 3, 0, toggle, 0, toggle, 1, 0)
    assert new.vlans_v2(avf.ADD_VLAN_V2, 5, 6).status == avf.SUCCESS
    assert new.vlans_v2(avf.ADD_VLAN_V2, 7, tpid=0x88A8).status == avf.PARAMETER
    assert new.vlans_v2(avf.DEL_VLAN_V2, 6).status == avf.SUCCESS
    assert vsi(new)["vlans"] == [5]
    assert new.vlans(avf.ADD_VLAN, 9).status == avf.NOT_SUPPORTED

    neither = lab.driver("neither", avf.L2)
    assert vsi(neither)["vlans"] == "all"


def test_vlan_offloads(lab: Lab) -> None:
    driver = lab.driver()
    number = driver.resources.vsi
    setting = struct.pack("<IIH6x", 0, 1, number)
    for opcode, key, value in (
        (avf.STRIP_ON_V2, "strip_vlan", True),
        (avf.STRIP_OFF_V2, "strip_vlan", False),
        (avf.INSERT_OFF_V2, "insert_vlan", False),
        (avf.INSERT_ON_V2, "insert_vlan", True),
    ):
        driver.check(opcode, setting)
        assert vsi(driver)[key] is value
        outer = struct.pack("<IIH6x", 1, 0, number)
        assert driver.call(opcode, outer).status == avf.PARAMETER
    old = lab.driver("old", avf.VLAN_V1)
    assert vsi(old)["strip_vlan"] is True
    old.check(avf.STRIP_OFF)
    assert vsi(old)["strip_vlan"] is False
    old.check(avf.STRIP_ON)
    assert vsi(old)["strip_vlan"] is True


def test_only_one_that_is_trusted_is_promiscuous(lab: Lab) -> None:
    driver = lab.driver()
    both = struct.pack("<HH", driver.resources.vsi, 3)
    driver.check(avf.PROMISCUOUS, both)
    assert vsi(driver)["promiscuous"] == []
    assert "set trust" in vdev_of(driver).last_complaint
    vdev_of(driver).trust = True
    driver.check(avf.PROMISCUOUS, both)
    assert vsi(driver)["promiscuous"] == ["unicast", "multicast"]
    wrong = struct.pack("<HH", driver.resources.vsi, 4)
    assert driver.call(avf.PROMISCUOUS, wrong).status == avf.PARAMETER
    vdev_of(driver).trust = False
    assert vsi(driver)["promiscuous"] == []


def test_rss(lab: Lab) -> None:
    driver = lab.driver(queues=2)
    number = driver.resources.vsi
    key, table = bytes(range(52)), bytes([0, 1] * 32)
    driver.check(avf.RSS_KEY, struct.pack("<HH", number, 52) + key + b"\0")
    driver.check(avf.RSS_LUT, struct.pack("<HH", number, 64) + table)
    (types,) = struct.unpack("<Q", driver.check(avf.HENA_CAPS))
    driver.check(avf.SET_HENA, struct.pack("<Q", types))
    rss = vdev_of(driver).vsi.rss
    assert (rss.key, rss.table, rss.types) == (key, table, types)
    for opcode, message in (
        (avf.RSS_KEY, struct.pack("<HH", number, 51) + key[:51]),
        (avf.RSS_LUT, struct.pack("<HH", number, 63) + table[:63]),
        (avf.RSS_LUT, struct.pack("<HH", number, 64) + bytes(63) + b"\2"),
        (avf.SET_HENA, struct.pack("<Q", 1)),
    ):
        assert driver.call(opcode, message).status == avf.PARAMETER
    assert vdev_of(driver).vsi.rss == rss


def test_rss_by_registers(lab: Lab) -> None:
    driver = lab.driver(capabilities=avf.L2 | 1 << 4, queues=2)
    assert driver.resources.capabilities == avf.L2 | 1 << 4
    driver.bus.write(0xC400, 1 << 31)
    for word in range(13):
        driver.bus.write(0xCC00 + 4 * word, 0x0101_0101 * word)
    driver.bus.write(0xD000, 0x01_00_01_00)
    rss = vdev_of(driver).vsi.rss
    assert rss.types == 1 << 31
    assert rss.key == bytes(word for word in range(13) for _ in range(4))
    assert rss.table == bytes([0, 1, 0, 1]) + bytes(60)
    driver.bus.write(0xD000, 2)
    assert vdev_of(driver).vsi.rss == rss
    assert "queue 2 of 2" in vdev_of(driver).last_complaint


def test_rss_by_registers_is_negotiated(lab: Lab) -> None:
    driver = lab.driver()
    before = vdev_of(driver).vsi.rss
    driver.bus.write(0xC400, 1 << 31)
    assert vdev_of(driver).vsi.rss == before
    assert "RSS_REGISTERS has not been negotiated" in vdev_of(driver).last_complaint


def test_a_message_is_done_as_a_whole_or_not_at_all(lab: Lab) -> None:
    driver = lab.driver(queues=2)
    number = driver.resources.vsi
    message = struct.pack("<HHI", number, 2, 0) + avf.queue_pair(number, 0)
    broken = message + avf.tx_queue(number, 1) + avf.rx_queue(number, 1, length=3)
    assert driver.call(avf.CONFIG_QUEUES, broken).status == avf.PARAMETER
    assert vdev_of(driver).vsi.tx == {}
    good, bad = (number, 1, 1, 1, 0, 0), (number, 2, 2, 2, 0, 9)
    maps = struct.pack("<H6H6H", 2, *good, *bad)
    assert driver.call(avf.CONFIG_IRQS, maps).status == avf.PARAMETER
    assert vdev_of(driver).vsi.tx_vectors == {}


# Queue pairs, resets, events.


def test_a_driver_asks_for_other_queue_pairs(lab: Lab) -> None:
    driver = lab.driver()
    driver.post(avf.REQUEST_QUEUES, struct.pack("<H", 10))
    assert driver.bus.read(avf.ARQLEN) == 0
    assert driver.start().pairs == 10
    assert [adi.type.name for adi in vdev_of(driver).adis] == ["10-queue-vsi"]
    lab.driver("other", queues=5)
    assert driver.check(avf.REQUEST_QUEUES, struct.pack("<H", 16)) == struct.pack("<H", 11)
    assert driver.check(avf.REQUEST_QUEUES, struct.pack("<H", 17)) == struct.pack("<H", 11)
    assert driver.check(avf.REQUEST_QUEUES, struct.pack("<H", 0)) == struct.pack("<H", 0)
    driver.post(avf.REQUEST_QUEUES, struct.pack("<H", 1))
    assert driver.start().pairs == 1
    with pytest.raises(ResourceError, match="queue-pairs"):
        lab.vdev("third", queues=11)
    lab.vdev("third", queues=10)


def test_a_reset_forgets_what_drivers_say_again(lab: Lab) -> None:
    driver = lab.driver(trust=True)
    driver.configure(2)
    driver.select(avf.ENABLE_QUEUES, 3, 3)
    driver.addresses(avf.ADD_ADDRESS, OTHER, GROUP)
    driver.vlans_v2(avf.ADD_VLAN_V2, 5)
    driver.check(avf.PROMISCUOUS, struct.pack("<HH", driver.resources.vsi, 3))
    driver.reset()
    found = vsi(driver)
    assert found["tx_enabled"] == found["addresses"] == []
    assert driver.bus.read(avf.ATQLEN) == driver.bus.read(avf.ARQLEN) == 0
    driver.init_queues()  # as Linux does it: no VERSION again
    driver.check(avf.GET_RESOURCES, struct.pack("<I", avf.LINUX))
    assert vsi(driver)["vlans"] == []


def test_what_drivers_do_not_say_again_stays_until_the_next_driver(lab: Lab) -> None:
    driver = lab.driver(trust=True)
    number, mac = driver.resources.vsi, driver.resources.mac
    own = struct.pack("<HH6sBB", number, 1, OTHER, 1, 0)
    driver.check(avf.ADD_ADDRESS, own)
    assert vdev_of(driver).vsi.filters.addresses == {mac, OTHER}
    assert driver.addresses(avf.DEL_ADDRESS, mac).status == avf.SUCCESS
    driver.check(avf.PROMISCUOUS, struct.pack("<HH", number, 2))
    driver.check(avf.STRIP_ON_V2, struct.pack("<IIH6x", 0, 1, number))
    driver.check(avf.INSERT_OFF_V2, struct.pack("<IIH6x", 0, 1, number))
    driver.reset()
    driver.init_queues()
    found = avf.parse_resources(driver.check(avf.GET_RESOURCES, struct.pack("<I", avf.LINUX)))
    assert found.mac == OTHER
    assert vdev_of(driver).vsi.filters.addresses == {OTHER}
    assert vsi(driver)["promiscuous"] == ["multicast"]
    assert (vsi(driver)["strip_vlan"], vsi(driver)["insert_vlan"]) == (True, False)
    driver.check(avf.VERSION, struct.pack("<II", 1, 1))  # is somebody there?
    assert vsi(driver)["promiscuous"] == ["multicast"]
    driver.reset()
    assert driver.start().mac == mac
    assert vsi(driver)["promiscuous"] == []
    assert (vsi(driver)["strip_vlan"], vsi(driver)["insert_vlan"]) == (False, True)


def test_a_function_level_reset_comes_to_the_same(lab: Lab) -> None:
    driver = lab.driver()
    driver.configure(1)
    driver.select(avf.ENABLE_QUEUES, 1, 1)
    vdev_of(driver).reset()
    assert driver.bus.read(avf.RSTAT) == avf.ACTIVE
    assert driver.bus.read(avf.ATQLEN) == 0
    lab.buses[0].set_bus_master(True)
    assert vsi(driver)["tx_enabled"] == []
    driver.start()


def test_the_stages_of_a_reset_can_be_seen(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = lab.driver()
    vdev = vdev_of(driver)
    put_off: list[Any] = []
    monkeypatch.setattr(vdev, "later", lambda _seconds, do: put_off.append(do))
    seen = []
    driver.post(avf.RESET_VF)
    driver.post(avf.RESET_VF)  # it is one reset
    assert driver.bus.read(avf.ATQH) == driver.send_at  # its driver sees that it was taken
    while put_off:
        put_off.pop(0)()
        seen.append(driver.bus.read(avf.RSTAT))
    assert seen == [avf.IN_PROGRESS, avf.COMPLETED, avf.ACTIVE]
    assert vdev.resets == 1


def test_link_changes_are_told(lab: Lab) -> None:
    driver = lab.driver(speed=25000)
    driver.configure(1)
    driver.select(avf.ENABLE_QUEUES, 1, 1)
    vdev = vdev_of(driver)
    vdev.link = False
    vdev.link = True
    vdev.speed = 2500
    events = [avf.parse_event(event) for event in driver.events + driver.receive()]
    assert events == [
        avf.Link(1, 25000, True, 0),
        avf.Link(1, 0, False, 0),
        avf.Link(1, 25000, True, 0),
        avf.Link(1, 2500, True, 0),
    ]


def test_an_old_driver_is_told_speeds_by_bits(lab: Lab) -> None:
    driver = lab.driver(capabilities=avf.L2, speed=10000)
    vdev_of(driver).link = True
    vdev_of(driver).speed = 12345
    events = [avf.parse_event(event) for event in driver.receive()]
    assert events == [avf.Link(1, 1 << 3, True, 0), avf.Link(1, 0, True, 0)]


def test_a_reset_by_the_host_is_announced(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = lab.driver()
    vdev = vdev_of(driver)
    put_off: list[Any] = []
    monkeypatch.setattr(vdev, "later", lambda _seconds, do: put_off.append(do))
    vdev.vf_reset = True
    assert [avf.parse_event(event) for event in driver.receive()] == [avf.Link(2, 0, False, 255)]
    assert driver.bus.read(avf.ARQLEN) & avf.ENABLE
    while put_off:
        put_off.pop(0)()
    assert driver.bus.read(avf.ARQLEN) == 0
    assert vdev.vf_reset is False


# Admin queues and interrupts.


def test_an_interrupt_is_sent_once_until_it_is_enabled_again(lab: Lab) -> None:
    driver = lab.driver()
    vdev = vdev_of(driver)

    class Eventfds:
        sent = 0

        def trigger(self, _kind: Irq, _vector: int) -> bool:
            Eventfds.sent += 1
            return True

        def eventfd(self, _kind: Irq, _vector: int) -> int:
            return -1

    vdev.interrupts.attach(Eventfds())
    vdev.interrupts.irqs_changed(Irq.MSIX, IrqAction.BOUND, 0, 1)
    vdev.interrupts.set_enabled(Irq.MSIX, enabled=True)
    assert driver.bus.read(avf.ICR0) & avf.ADMINQ  # of the answers until now
    driver.call(avf.RXDIDS)
    assert Eventfds.sent == 0
    driver.bus.write(avf.DYN_CTL0, 1)
    driver.bus.write(avf.ICR0_ENA, avf.ADMINQ)
    assert Eventfds.sent == 1
    assert driver.bus.read(avf.DYN_CTL0) & 1 == 0
    driver.call(avf.RXDIDS)
    assert Eventfds.sent == 1
    driver.bus.write(avf.DYN_CTL0, 1)
    assert Eventfds.sent == 2
    assert driver.bus.read(avf.ICR0) & avf.ADMINQ
    driver.bus.write(avf.DYN_CTL0, 1)  # nothing has come since
    assert Eventfds.sent == 2
    vdev.interrupts.detach()


def test_admin_commands_of_a_physical_function_are_refused(lab: Lab) -> None:
    driver = lab.driver()
    flags, result = driver.sent(driver.post(0, command=0x0001))
    assert (flags & 7, result) == (7, 17)
    flags, result = driver.sent(driver.post(0, command=0x0003))
    assert (flags & 7, result) == (3, 0)


def test_a_buffer_that_lies_is_refused(lab: Lab) -> None:
    driver = lab.driver()
    small = 1 << 12 | 1 << 10
    assert driver.sent(driver.post(avf.VERSION, bytes(600), flags=small))[1] == 14
    assert driver.sent(driver.post(avf.VERSION, bytes(5000)))[1] == 14
    assert driver.receive() == []


def test_rings_outside_memory_stop_their_queue(lab: Lab) -> None:
    driver = lab.driver()
    bus = driver.bus
    bus.write(avf.ATQBAL, 0x10)
    driver.post(avf.VERSION, struct.pack("<II", 1, 1))
    assert bus.read(avf.ATQLEN) & avf.CRITICAL
    assert "admin send queue: PASID" in vdev_of(driver).last_complaint
    driver.start()
    bus.write(avf.ATQT, 700)
    assert bus.read(avf.ATQLEN) & avf.CRITICAL
    driver.start()
    bus.write(avf.ARQBAL, 0x10)
    driver.post(avf.RXDIDS)
    assert bus.read(avf.ARQLEN) & avf.CRITICAL
    driver.start()


def test_answers_wait_for_buffers_and_what_is_too_much_is_lost(lab: Lab) -> None:
    driver = lab.driver()
    for _ in range(ANSWERS):
        driver.post(avf.RXDIDS)
    assert driver.bus.read(avf.ARQLEN) & avf.OVERFLOW
    assert vdev_of(driver).admin.lost == ANSWERS - 31 - 64
    answers = []
    while found := driver.receive():
        answers += found
    assert len(answers) == 31 + 64
    driver.check(avf.GET_STATS, struct.pack("<H10x", driver.resources.vsi))


def test_without_bus_mastering_nothing_is_read(lab: Lab) -> None:
    driver = lab.driver()
    lab.buses[0].set_bus_master(False)
    driver.post(avf.RXDIDS)
    assert driver.bus.read(avf.ATQLEN) & avf.CRITICAL


# Composition.


def test_mac_addresses(lab: Lab) -> None:
    assert mac_of("a", "") == mac_of("a", "") != mac_of("b", "")
    assert mac_of("a", "")[0] & 3 == 2  # locally administered, unicast
    for wrong in ("1", "02:00:00:00:00", "01:00:00:00:00:00", "00:00:00:00:00:00", "zz" * 6):
        with pytest.raises(PropertyError, match="mac takes"):
            lab.vdev("w", mac=wrong)
    lab.vdev("a", mac="02:00:00:00:00:01")
    with pytest.raises(ResourceError, match="02:00:00:00:00:01 is in use"):
        lab.vdev("b", mac="02:00:00:00:00:01")


def test_addresses_are_free_again_when_their_vdev_is_closed(lab: Lab) -> None:
    vdev = lab.parent.create("avf", "a", {"mac": "02:00:00:00:00:01"})
    vdev.close()
    lab.vdev("b", mac="02:00:00:00:00:01")


def test_one_that_comes_from_a_spare_parent_is_known_there(lab: Lab) -> None:
    spare = build(Avf, "spare", {"queue_pairs": 16})
    lab.vdev(queues=16)
    mac = "02:00:00:00:00:01"
    vdev = lab.parent.create("avf", "b", {"mac": mac}, [spare])
    with pytest.raises(ResourceError, match="spare: MAC address"):
        spare.create("avf", "c", {"mac": mac})
    vdev.close()
    spare.create("avf", "c", {"mac": mac}).close()
    spare.close()


def test_quality_of_service_is_the_vdevs(lab: Lab) -> None:
    vdev = lab.vdev(weight=7, rate=1000)
    group = vdev.adis[0].path.group
    assert group is not None and (group.weight, group.rate) == (7, 1000)
    vdev.weight, vdev.rate = 9, 0
    assert (group.weight, group.rate) == (9, 0)


def test_there_are_as_many_as_queue_pairs(lab: Lab) -> None:
    assert lab.parent.available("avf") == 4
    lab.vdev(queues=16)
    assert lab.parent.available("avf") == 0
    with pytest.raises(ResourceError, match="16 of 16 queue-pairs are in use"):
        lab.vdev("more", queues=1)
