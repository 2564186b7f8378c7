"""Adaptive Virtual Functions served: what a driver sees of resets, interrupts and neighbours."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import avf_machine as avf
import pytest
from avf_client import AvfClient

from vdcm.testing import Host
from vdcm_devices.avf import Avf
from vdcm_devices.avf.vdev import AvfVdev


class Lab:
    def __init__(self, folder: Path) -> None:
        self.host = Host(folder)
        self.parent = self.host.parent(Avf, "nic")
        self.clients: list[AvfClient] = []
        self.vdevs: list[AvfVdev] = []

    def vdev(self, **properties: Any) -> AvfVdev:
        name = f"nic{len(self.vdevs)}"
        vdev = self.host.run(lambda: self.parent.create("avf", name, properties))
        assert isinstance(vdev, AvfVdev)
        self.host.add(vdev)
        self.vdevs.append(vdev)
        return vdev

    def client(self, vdev: AvfVdev) -> AvfClient:
        client = AvfClient(self.host.path(vdev.name))
        self.clients.append(client)
        return client

    def started(self, **properties: Any) -> AvfClient:
        client = self.client(self.vdev(**properties))
        client.driver.start()
        return client

    def set(self, name: str, value: object, vdev: int = 0) -> None:
        self.host.run(setattr, self.vdevs[vdev], name, value)

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.host.close()
        self.parent.close()
        assert self.host.complaints == []


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    yield made
    made.close()


def test_it_is_the_function_that_linux_knows(lab: Lab) -> None:
    nic = lab.client(lab.vdev())
    assert nic.client.config.read(0, 4) == 0x1889_8086
    assert nic.client.config.read(0xA, 2) == 0x0200
    at = nic.client.config.find(0x11)
    assert at is not None
    assert nic.client.config.read(at + 2, 2) & 0x7FF == 16  # 17 vectors
    assert nic.client.config.read(at + 4, 4) == 0x0000 | 3  # table and pending bits in BAR3
    assert nic.client.config.read(at + 8, 4) == 0x2000 | 3


def test_a_driver_from_reset_to_enabled_queues(lab: Lab) -> None:
    nic = lab.started(queues=2, mac="02:00:00:00:00:07")
    assert nic.driver.resources.mac == bytes.fromhex("020000000007")
    nic.driver.configure(2)
    assert nic.driver.select(avf.ENABLE_QUEUES, 3, 3).status == avf.SUCCESS
    (link,) = nic.driver.receive() or nic.driver.events
    assert avf.parse_event(link) == avf.Link(1, 10000, True, 0)


def test_an_answer_comes_with_one_interrupt(lab: Lab) -> None:
    nic = lab.started()
    nic.enable_interrupts()
    assert nic.events[0].wait(20) == 1  # of the answers until now
    assert nic.acknowledge() == avf.ADMINQ
    for _ in range(3):
        nic.driver.post(avf.HENA_CAPS)
    assert nic.events[0].wait(20) == 1
    assert nic.acknowledge() == avf.ADMINQ
    assert len(nic.driver.receive()) == 3


def test_transmit_descriptors_are_reported_with_their_vector(lab: Lab) -> None:
    nic = lab.started()
    nic.enable_interrupts()
    nic.driver.configure(2, vectors=[2, 1])
    nic.driver.select(avf.ENABLE_QUEUES, 3, 3)
    word = 1 << 4 | 1 << 5 | 64 << 34
    for queue, vector in ((0, 2), (1, 1)):
        nic.bus.store(avf.tx_ring(queue), struct.pack("<QQ", avf.FREE, word))
        nic.bus.write(4 * queue, 1)
        nic.enable_vector(vector)  # it is not sent before
        assert nic.events[vector].wait(20) == 1
        done = nic.bus.load(avf.tx_ring(queue) + 8, 8)
        assert int.from_bytes(done, "little") == word | 0xF


def test_a_reset_by_the_driver(lab: Lab) -> None:
    nic = lab.started()
    nic.driver.configure(1)
    nic.driver.select(avf.ENABLE_QUEUES, 1, 1)
    nic.driver.post(avf.RESET_VF)
    assert nic.bus.read(avf.ATQH) == nic.driver.send_at  # the message is seen to be taken
    nic.bus.wait("the reset", lambda: not nic.bus.read(avf.ARQLEN) & avf.ENABLE)
    nic.driver.start()
    assert lab.vdevs[0].vsi.tx == {}


def test_a_reset_by_the_host_is_announced_before(lab: Lab) -> None:
    nic = lab.started()
    nic.driver.receive()
    lab.set("vf_reset", True)
    (event,) = nic.bus.wait("the event", nic.driver.receive)
    assert avf.parse_event(event) == avf.Link(2, 0, False, 255)
    nic.bus.wait("the reset", lambda: not nic.bus.read(avf.ARQLEN) & avf.ENABLE)
    nic.driver.start()


def test_other_queue_pairs(lab: Lab) -> None:
    nic = lab.started(queues=1)
    nic.driver.post(avf.REQUEST_QUEUES, struct.pack("<H", 16))
    nic.bus.wait("the reset", lambda: not nic.bus.read(avf.ARQLEN) & avf.ENABLE)
    assert nic.driver.start().pairs == 16
    nic.driver.configure(16)
    assert nic.driver.select(avf.ENABLE_QUEUES, 0xFFFF, 0xFFFF).status == avf.SUCCESS


def test_a_driver_that_goes_leaves_nothing(lab: Lab) -> None:
    nic = lab.started(trust=True)
    nic.driver.configure(1)
    nic.driver.select(avf.ENABLE_QUEUES, 1, 1)
    nic.driver.addresses(avf.ADD_ADDRESS, bytes.fromhex("020000000055"))
    nic.close()
    again = lab.client(lab.vdevs[0])
    again.driver.start()
    assert lab.vdevs[0].vsi.tx == {}
    assert lab.vdevs[0].vsi.others == set()


def test_one_that_floods_does_not_disturb_its_neighbour(lab: Lab) -> None:
    offender, neighbour = lab.started(), lab.started()
    neighbour.driver.configure(1)
    neighbour.driver.select(avf.ENABLE_QUEUES, 1, 1)
    number = neighbour.driver.resources.vsi
    offender.bus.write(avf.ATQLEN, 0)
    offender.bus.write(avf.ATQBAL, avf.FREE)
    offender.bus.write(avf.ATQH, 0)
    offender.bus.write(avf.ATQT, 0)
    offender.bus.write(avf.ATQLEN, 1023 | avf.ENABLE)
    for turn in range(20):
        offender.bus.write(avf.ATQT, 1000 if turn % 2 else 500)
        neighbour.driver.check(avf.GET_STATS, struct.pack("<H10x", number))
    assert lab.vdevs[1].complaints == 0
    assert lab.vdevs[0].complaints > 0
    offender.client.reset()
    offender.set_bus_master()
    offender.driver.start()
