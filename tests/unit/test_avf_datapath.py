"""What a data path with direct pages is told, and when: the interface that one in C implements."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import avf_machine as avf
import pytest
from avf_machine import Driver, LocalBus

from vdcm import Adi, Identity, ParentFunction, Pasid, PropertyError, Report, ScalableIov
from vdcm.parent import build
from vdcm_devices.avf.datapath import Filters, Offloads, Rss, RxQueue, Statistics, TxQueue
from vdcm_devices.avf.driver import AvfDriver
from vdcm_devices.avf.vdev import AvfVdev


class Recorder:
    """A data path that writes down what it is told."""

    def __init__(self, adi: Adi) -> None:
        self.adi = adi
        self.told: list[tuple[Any, ...]] = []
        self.pages: memoryview | None = None
        self.capturing = False
        self.records: list[bytes] = []
        self.capture_dropped = 0

    def since(self) -> list[tuple[Any, ...]]:
        told, self.told = self.told, []
        return told

    def attach(self, pages: memoryview) -> None:
        self.pages = pages
        self.told.append(("attach",))

    def configure_tx(self, queue: TxQueue) -> None:
        self.told.append(("tx", queue))

    def configure_rx(self, queue: RxQueue) -> None:
        self.told.append(("rx", queue))

    def enable(self, tx: int, rx: int) -> None:
        self.told.append(("enable", tx, rx, self.adi.state.value))

    def disable(self, tx: int, rx: int) -> None:
        self.told.append(("disable", tx, rx, self.adi.state.value))

    def set_filters(self, filters: Filters) -> None:
        self.told.append(("filters", filters))

    def set_offloads(self, offloads: Offloads) -> None:
        self.told.append(("offloads", offloads))

    def set_rss(self, rss: Rss) -> None:
        self.told.append(("rss", rss))

    def set_link(self, up: bool) -> None:
        self.told.append(("link", up))

    def learnt(self) -> dict[bytes, float]:
        return {bytes.fromhex("02000000000b"): 7.9, bytes.fromhex("02000000000a"): 299.0}

    def set_capture(self, on: bool) -> None:
        self.capturing = on

    def captured(self) -> bytes:
        self.capture_dropped += 0 if self.records else 3
        return self.records.pop() if self.records else b""

    def statistics(self) -> Statistics:
        return Statistics(rx_bytes=5, tx_unicast=7)

    def explain(self, report: Report) -> str:
        return f"queue {report.code}: {report.data.decode()}"

    def reset(self) -> None:
        # Before anything of the function is cleared.
        assert self.pages is not None
        self.told.append(("reset", int.from_bytes(self.pages[0:4], "little")))

    def close(self) -> None:
        self.pages = None
        self.told.append(("close",))


class Lab:
    def __init__(self) -> None:
        function = ParentFunction(
            "nic", Identity(vendor=0x8086, device=0x1592, class_code=0x020000),
            [ScalableIov(), Pasid()],
        )  # fmt: skip
        self.driver = AvfDriver(
            "nic",
            function,
            pairs=16,
            vsis=16,
            messages=16,
            workers=1,
            make=Recorder,
        )
        self.vdev = build(AvfVdev, "v", {"queues": 2}, drivers=[self.driver])
        self.bus = LocalBus(self.vdev)
        self.guest = Driver(self.bus)

    @property
    def path(self) -> Recorder:
        path = self.driver.path(self.vdev.adis[0])
        assert isinstance(path, Recorder)
        return path

    def close(self) -> None:
        self.bus.close()
        path = self.path
        self.vdev.close()
        assert path.told[-1] == ("close",)
        self.driver.close()


@pytest.fixture
def lab() -> Iterator[Lab]:
    made = Lab()
    yield made
    made.close()


def test_the_pages_of_the_queues_are_direct(lab: Lab) -> None:
    direct = {part.offset for part in lab.vdev.bars[0].pages if part.policy.value == "direct"}
    assert direct == {0x0000, 0x2000, 0x3000}
    assert lab.path.pages is not None
    assert len(lab.path.pages) == 0x4000
    lab.bus.write(0x2004, 77)  # by message, as from a client that maps nothing
    assert int.from_bytes(lab.path.pages[0x2004:0x2008], "little") == 77


def test_what_it_is_told_first(lab: Lab) -> None:
    kinds = [told[0] for told in lab.path.since()]
    assert kinds[:2] == ["attach", "link"]
    assert {"filters", "offloads", "rss"} <= set(kinds)


def test_queues_come_with_their_messages(lab: Lab) -> None:
    lab.guest.start()
    lab.path.since()
    lab.guest.configure(2, vectors=[2, 1])
    told = lab.path.since()
    last = {(what[0], what[1].index): what[1] for what in told}
    assert last["tx", 0] == TxQueue(0, avf.tx_ring(0), 64, message=1, itr=1)
    assert last["rx", 1] == RxQueue(1, avf.rx_ring(1), 64, 2048, 1536, message=0, itr=0)


def test_queues_are_enabled_before_the_adi_and_disabled_before_it(lab: Lab) -> None:
    lab.guest.start()
    lab.guest.configure(2)
    lab.path.since()
    lab.guest.select(avf.ENABLE_QUEUES, 1, 1)
    lab.guest.select(avf.ENABLE_QUEUES, 3, 3)
    lab.guest.select(avf.DISABLE_QUEUES, 3, 3)
    assert lab.path.since() == [
        ("enable", 1, 1, "allocated"),
        ("enable", 2, 2, "enabled"),
        ("disable", 3, 3, "enabled"),
    ]
    assert lab.vdev.adis[0].state.value == "allocated"


@pytest.mark.parametrize("how", ["driver", "function"])
def test_it_is_reset_before_the_pages_are_cleared(lab: Lab, how: str) -> None:
    lab.guest.start()
    lab.guest.configure(1)
    lab.guest.select(avf.ENABLE_QUEUES, 1, 1)
    lab.bus.write(0x0000, 9)
    lab.path.since()
    if how == "driver":
        lab.guest.post(avf.RESET_VF)
    else:
        lab.vdev.reset()
    assert lab.path.since()[0] == ("reset", 9)
    assert lab.bus.read(0x0000) == 0
    assert lab.vdev.adis[0].state.value == "allocated"


def test_tails_of_a_driver_that_knows_of_no_reset_are_void(lab: Lab) -> None:
    lab.guest.start()
    lab.vdev.reset()
    lab.bus.set_bus_master(True)
    for tail in (0x0000, 0x2004):
        lab.bus.write(tail, 9)
    lab.guest.start()
    assert (lab.bus.read(0x0000), lab.bus.read(0x2004)) == (0, 0)
    lab.bus.write(0x0000, 5)  # before its queue is configured, and of this driver
    lab.guest.configure(1)
    lab.guest.select(avf.ENABLE_QUEUES, 1, 1)
    assert lab.bus.read(0x0000) == 5


def test_other_queue_pairs_are_another_adi(lab: Lab) -> None:
    lab.guest.start()
    before = lab.path
    lab.guest.post(avf.REQUEST_QUEUES, struct.pack("<H", 5))
    assert before.told[-1] == ("close",)
    assert lab.path is not before
    assert len(lab.path.adi.messages) == 5
    assert [entry.vector for entry in lab.path.adi.messages] == [1, 2, 3, 4, 5]


def test_a_report_resets_the_function_and_says_why(lab: Lab) -> None:
    lab.guest.start()
    lab.vdev.on_adi_report(lab.vdev.adis[0], Report(3, b"a chain without end"))
    assert lab.vdev.last_complaint == "queue 3: a chain without end"
    assert lab.bus.read(avf.ARQLEN) == 0
    lab.guest.start()


def test_filters_and_link(lab: Lab) -> None:
    lab.guest.start()
    lab.path.since()
    lab.vdev.link = False
    lab.vdev.spoof_check = False
    lab.guest.vlans_v2(avf.ADD_VLAN_V2, 5)
    told = lab.path.since()
    assert told[0] == ("link", False)
    filters = told[-1][1]
    assert filters.mac == lab.guest.resources.mac
    assert (filters.vlans, filters.check_source) == ({5}, False)
    assert filters.addresses == {filters.mac}


def test_a_switch_learns_from_those_who_may_have_and_send_from_other_addresses(lab: Lab) -> None:
    lab.guest.start()
    found = {}
    for trust, check in ((False, True), (False, False), (True, False), (True, True)):
        lab.vdev.trust, lab.vdev.spoof_check = trust, check
        found[trust, check] = lab.path.since()[-1][1].learn
    assert found == {key: key == (True, False) for key in found}
    shown = lab.vdev.describe()["vsi"]["learnt"]
    assert list(shown.items()) == [("02:00:00:00:00:0b", 7), ("02:00:00:00:00:0a", 299)]


def test_what_is_captured_is_in_a_file(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "web.pcap"
    lab.vdev.pcap = str(file)
    assert lab.path.capturing
    lab.path.records = [b"two", b"one"]
    lab.guest.start()
    lab.guest.post(avf.REQUEST_QUEUES, struct.pack("<H", 5))  # another data path
    assert lab.path.capturing
    assert lab.vdev.describe()["capture"] == {"file": str(file), "left_out": 3}
    lab.path.records = [b"three"]
    lab.vdev.pcap = ""
    assert not lab.path.capturing
    content = file.read_bytes()
    assert content[:4] == struct.pack("=I", 0xA1B2C3D4)
    assert content[24:] == b"onetwothree"
    with pytest.raises(PropertyError, match="No such file"):
        lab.vdev.pcap = f"{tmp_path}/no/folder"
    assert lab.vdev.pcap == ""


def test_statistics_are_answered_and_shown(lab: Lab) -> None:
    number = lab.guest.start().vsi
    counters = struct.unpack("<12Q", lab.guest.check(avf.GET_STATS, struct.pack("<H10x", number)))
    assert (counters[0], counters[7]) == (5, 7)
    assert lab.vdev.describe()["adis"][0]["counters"]["rx_bytes"] == 5
