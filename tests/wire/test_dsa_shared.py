"""Shared work queues of the software DSA: several VDEVs on one (Scalable IOV, 2.3 and 3.3), and the
channel by which a guest asks for ADIs and PASIDs (4.4, 4.4.3)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from dsa_client import (
    ALLOCATE_ADI,
    BIND_PASID,
    LIMITED,
    MOVE,
    NOOP,
    RELEASE_ADI,
    UNBIND_PASID,
    UNLIMITED,
    DsaClient,
    MailboxRefusal,
    Wq,
)
from dsa_lab import PORTALS, Lab

from vdcm.adi import Adi
from vdcm.client import Region
from vdcm.mailbox import MailboxCode
from vdcm.pasid import PASIDS
from vdcm_devices.dsa.codes import Command, CommandError, WqMode, WqState
from vdcm_devices.dsa.vdev import DsaVdev

SIZE, THRESHOLD = 8, 5


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path, dwqs=2, swqs=1, shares=3, swq_size=SIZE, swq_threshold=THRESHOLD)
    yield lab
    lab.close()


class Pair:
    """Two clients, each of a VDEV of its own, on one shared work queue."""

    def __init__(self, lab: Lab, portals: str = "intercepted") -> None:
        self.lab = lab
        self.vdevs = [lab.vdev("dsa-1swq", portals=portals) for _ in range(2)]
        self.clients = [lab.client(vdev) for vdev in self.vdevs]
        for pasid, dsa in enumerate(self.clients):
            dsa.start(pasid=10 + pasid)

    @property
    def adis(self) -> list[Adi]:
        return [vdev.adis[0] for vdev in self.vdevs]

    def suspend(self) -> None:
        """What is accepted stays in the queue."""
        for adi in self.adis:
            self.lab.host.run(adi.driver.suspend, adi)

    def resume(self, index: int) -> None:
        adi = self.adis[index]
        self.lab.host.run(adi.driver.resume, adi)

    def submit(self, index: int, portal: int = UNLIMITED) -> int | None:
        """Where the completion record will be; None: retry."""
        data, record = self.clients[index].prepare(NOOP, pasid=10 + index)
        return record if self.clients[index].submit(0, data, portal) else None


@pytest.mark.conformance("R2.3-1", "R2.3-2", "R2.3-3", "R2.3-5")
def test_a_full_queue_answers_retry_to_all_who_share_it(lab: Lab) -> None:
    pair = Pair(lab)
    pair.suspend()
    mine = [pair.submit(0) for _ in range(3)]
    theirs = [pair.submit(1) for _ in range(SIZE - 3)]
    assert None not in mine + theirs
    assert [dsa.occupancy(0) for dsa in pair.clients] == [SIZE, SIZE]
    assert pair.submit(0) is None
    assert pair.submit(1) is None
    pair.resume(1)
    assert [pair.clients[1].wait(at or 0).status for at in theirs] == [1] * (SIZE - 3)
    assert pair.clients[0].occupancy(0) == 3, "this one's work is not the other's"
    again = pair.submit(0)
    assert again is not None
    pair.resume(0)
    assert [pair.clients[0].wait(at or 0).status for at in [*mine, again]] == [1] * 4
    assert pair.clients[0].read(0xC0, 8) == 0, "retry is no error"


@pytest.mark.parametrize("observed", [False, True])
def test_stores_of_one_message_are_told_of_a_retry_by_their_count(lab: Lab, observed: bool) -> None:
    """Of a descriptor's eight stores the last one is deferred; posted ones can be told nothing, and
    what they made is lost. Nothing of either is left in the slot."""
    pair = Pair(lab)
    pair.suspend()
    if observed:
        lab.host.run(pair.vdevs[0].observe, lambda _event: None)
    dsa = pair.clients[0]
    data, record = dsa.prepare(NOOP, pasid=10)
    words = [int.from_bytes(data[at : at + 8], "little") for at in range(0, 64, 8)]
    stores = [(int(Region.BAR2), 8 * i, 8, word) for i, word in enumerate(words)]
    (adi, _) = pair.adis
    while pair.submit(0) is not None:
        pass
    before = lab.run(lambda: adi.driver.counters(adi))
    assert dsa.client.write_multi(stores * 2) == 7
    dsa.client.write_multi(stores * 2, post=True)
    assert dsa.occupancy(0)  # an answer behind them
    after = lab.run(lambda: adi.driver.counters(adi))
    assert (after["accepted"], after["retried"]) == (before["accepted"], before["retried"] + 3)
    pair.resume(0)
    while dsa.occupancy(0):
        pass
    assert dsa.client.write_multi(stores) == 8
    assert dsa.wait(record).status == 1


def test_limited_portals_leave_room(lab: Lab) -> None:
    pair = Pair(lab)
    pair.suspend()
    assert [pair.submit(0, LIMITED) is not None for _ in range(7)] == [True] * 5 + [False] * 2
    assert pair.submit(1, LIMITED) is None
    assert [pair.submit(1) is not None for _ in range(4)] == [True] * 3 + [False]


def test_retry_through_direct_portals(lab: Lab) -> None:
    """The slot reads all ones when a descriptor is deferred, and takes it when there is room."""
    pair = Pair(lab, "direct")
    one, other = pair.clients
    records = []
    retried = 0
    for _ in range(300):
        for index, dsa in enumerate(pair.clients):
            data, record = dsa.prepare(NOOP, pasid=10 + index)
            while not dsa.submit(0, data, LIMITED):
                retried += 1
            records.append((dsa, record))
    assert [dsa.wait(record).status for dsa, record in records] == [1] * 600
    counters = [lab.run(lambda v=v: v.adis[0].driver.counters(v.adis[0])) for v in pair.vdevs]
    assert sum(counter["retried"] for counter in counters) == retried
    assert one.occupancy(0) == other.occupancy(0) == 0


@pytest.mark.conformance("R2.7-1", "R2.7-2", "R2.7-3")
@pytest.mark.parametrize("how", ["function", "device", "wq"])
def test_a_reset_of_one_takes_only_its_own_work(lab: Lab, how: str) -> None:
    pair = Pair(lab)
    pair.suspend()
    mine = [pair.submit(0) for _ in range(4)]
    theirs = [pair.submit(1) for _ in range(3)]
    one, other = pair.clients
    if how == "function":
        one.client.reset()
    else:
        commands = {"device": (Command.RESET_DEVICE, 0), "wq": (Command.RESET_WQ, 1)}
        assert one.command(*commands[how]) == 0
    assert other.occupancy(0) == 3, "the queue itself is not reset"
    pair.resume(1)
    assert [other.wait(at or 0).status for at in theirs] == [1] * 3
    assert [one.completion(at or 0).status for at in mine] == [0] * 4
    one.start(pasid=10)
    assert one.run(0, NOOP, pasid=10).status == 1


@pytest.mark.conformance("R2.3-4", "R2.3-6")
@pytest.mark.parametrize("portals", PORTALS)
def test_the_pasid_in_the_work_is_translated_and_checked(lab: Lab, portals: str) -> None:
    pair = Pair(lab, portals)
    one, other = pair.clients
    target = one.memory.take(64)
    assert other.memory.take(64) == target, "the same addresses in both guests"
    data = [bytes([index + 1]) * 64 for index in range(2)]
    for index, dsa in enumerate(pair.clients):
        source = dsa.memory.put(data[index])
        done = dsa.run(0, MOVE, source=source, destination=target, size=64, pasid=10 + index)
        assert done.status == 1
    assert [dsa.memory.read(target, 64) for dsa in pair.clients] == data
    # The other guest's PASID is nothing here: not even its completion record can be written.
    stray, record = one.prepare(MOVE, source=target, destination=target + 8, size=4, pasid=11)
    assert one.submit(0, stray)
    assert one.run(0, NOOP, pasid=10).status == 1
    first, _, address = one.software_error()
    assert (first & 0x0D, first >> 8 & 0xFF, first >> 40 & 0xFFFFF) == (0xD, 0x1A, 11)
    assert address & ~0xFFF == record & ~0xFFF
    assert other.read(0xC0, 8) == 0, "the error is its own (2.6)"
    assert [dsa.memory.read(target, 64) for dsa in pair.clients] == data


def test_a_shared_queue_needs_pasids(lab: Lab) -> None:
    dsa = lab.client(lab.vdev("dsa-1swq"))
    dsa.set_bus_master()
    dsa.configure([Wq(4, WqMode.SHARED, pasid=1)])
    assert dsa.command(Command.ENABLE_DEVICE) == 0
    assert dsa.command(Command.ENABLE_WQ, 0) == CommandError.PASID_ENABLE
    data, _ = dsa.prepare(NOOP)
    assert not dsa.submit(0, data), "a shared work queue that is not enabled says retry"
    assert dsa.command(Command.DISABLE_DEVICE) == 0
    dsa.configure([Wq(4, WqMode.DEDICATED)])
    dsa.command(Command.ENABLE_DEVICE)
    assert dsa.command(Command.ENABLE_WQ, 0) == CommandError.WQ_MODE


# The channel


def refusal(dsa: DsaClient, opcode: int, value: int) -> MailboxCode:
    with pytest.raises(MailboxRefusal) as caught:
        dsa.ask(opcode, value)
    return MailboxCode(caught.value.code)


@pytest.mark.conformance("R4.4-7", "R4.4.3-1")
@pytest.mark.parametrize("portals", PORTALS)
def test_a_guest_asks_for_adis_and_gives_them_back(lab: Lab, portals: str) -> None:
    dsa = lab.client(lab.vdev("dsa-dynamic", portals=portals, queues=4))
    assert dsa.wqs == 4
    dsa.set_bus_master()
    dsa.enable_pasid()
    assert [dsa.ask(ALLOCATE_ADI, 0), dsa.ask(ALLOCATE_ADI, 1), dsa.ask(ALLOCATE_ADI, 0)] == [
        0,
        1,
        2,
    ]
    assert refusal(dsa, ALLOCATE_ADI, 0) is MailboxCode.NO_RESOURCES, "the parent has two"
    assert refusal(dsa, ALLOCATE_ADI, 2) is MailboxCode.BAD_REQUEST
    dsa.ask(BIND_PASID, 77)
    dsa.configure([Wq(8), Wq(8, WqMode.SHARED, pasid=77), Wq(8), Wq(8)])
    assert dsa.command(Command.ENABLE_DEVICE) == 0
    for wq in range(3):
        assert dsa.command(Command.ENABLE_WQ, wq) == 0
    assert dsa.command(Command.ENABLE_WQ, 3) == CommandError.WQ_MODE, "nothing is behind it"
    dsa.find_rings()
    for wq in range(3):
        assert dsa.run(wq, NOOP, pasid=77).status == 1
    assert refusal(dsa, RELEASE_ADI, 0) is MailboxCode.WRONG_STATE
    assert dsa.command(Command.DISABLE_WQ, 1) == 0
    assert dsa.ask(RELEASE_ADI, 0) == 0
    assert refusal(dsa, RELEASE_ADI, 0) is MailboxCode.WRONG_STATE
    assert refusal(dsa, RELEASE_ADI, 4) is MailboxCode.BAD_REQUEST
    assert lab.parent.driver.available("dwq") == 1
    assert dsa.ask(ALLOCATE_ADI, 1) == 0, "the place is free, for another kind too"
    assert dsa.command(Command.ENABLE_WQ, 0) == CommandError.WQ_MODE
    dsa.client.reset()
    assert lab.parent.driver.adis == {}, "a reset takes them back"
    assert len(PASIDS) == 1, "and the PASIDs"


@pytest.mark.conformance("R4.1-10")
def test_the_host_driver_opens_and_closes_the_channel(lab: Lab) -> None:
    vdev, driver = lab.vdev("dsa-dynamic"), lab.parent.driver
    dsa = lab.client(vdev)
    assert dsa.ask(ALLOCATE_ADI, 0) == 0
    lab.run(lambda: driver.disable_channel(vdev.name))
    assert refusal(dsa, ALLOCATE_ADI, 0) is MailboxCode.NOT_OPEN
    lab.run(lambda: driver.enable_channel(vdev.name))
    assert dsa.ask(ALLOCATE_ADI, 0) == 1


def test_dynamic_vdevs_get_what_is_free(lab: Lab) -> None:
    """Over-provisioned: more of them than the parent has ADIs."""
    many = [lab.client(lab.vdev("dsa-dynamic"), 1 << 20) for _ in range(4)]
    got = [dsa for dsa in many if _allocated(dsa)]
    assert len(got) == 2
    got[0].client.close()
    lab.host.run(lambda: None)
    assert _allocated(many[3])


def _allocated(dsa: DsaClient) -> bool:
    try:
        dsa.ask(ALLOCATE_ADI, 0)
    except MailboxRefusal as error:
        assert error.code == MailboxCode.NO_RESOURCES
        return False
    return True


def test_static_vdevs_keep_what_they_have(lab: Lab) -> None:
    dsa = lab.client(lab.vdev("dsa-1dwq"))
    assert refusal(dsa, ALLOCATE_ADI, 0) is MailboxCode.BAD_REQUEST
    assert refusal(dsa, RELEASE_ADI, 0) is MailboxCode.BAD_REQUEST


def test_pasids_of_a_dedicated_queue(lab: Lab) -> None:
    dsa = lab.client(lab.vdev("dsa-1dwq"))
    dsa.set_bus_master()
    dsa.enable_pasid()
    assert refusal(dsa, UNBIND_PASID, 5) is MailboxCode.BAD_REQUEST
    dsa.ask(BIND_PASID, 5)
    assert refusal(dsa, BIND_PASID, 5) is MailboxCode.BAD_REQUEST
    assert refusal(dsa, BIND_PASID, 1 << 20) is MailboxCode.BAD_REQUEST
    dsa.configure([Wq(8, pasid=6)])
    assert dsa.command(Command.ENABLE_DEVICE) == 0
    assert dsa.command(Command.ENABLE_WQ, 0) == CommandError.PASID_ENABLE, "6 is not bound"
    dsa.configure([Wq(8, pasid=5)])
    assert dsa.command(Command.ENABLE_WQ, 0) == 0
    assert dsa.run(0, NOOP).status == 1
    assert refusal(dsa, UNBIND_PASID, 5) is MailboxCode.WRONG_STATE
    assert dsa.command(Command.DISABLE_WQ, 1) == 0
    before = len(PASIDS)
    assert dsa.ask(UNBIND_PASID, 5) == 0
    assert len(PASIDS) == before - 1
    assert dsa.command(Command.ENABLE_WQ, 0) == CommandError.PASID_ENABLE
    assert dsa.wq_state(0) == WqState.DISABLED


def test_unbinding_waits_for_the_work_of_a_shared_queue(lab: Lab) -> None:
    pair = Pair(lab)
    one = pair.clients[0]
    size = 1 << 20
    source, target = one.memory.take(size), one.memory.take(size)
    records = []
    for _ in range(4):
        data, record = one.prepare(MOVE, source=source, destination=target, size=size, pasid=10)
        assert one.submit(0, data)
        records.append(record)
    assert one.ask(UNBIND_PASID, 10) == 0
    assert [one.completion(record).status for record in records] == [1] * 4
    stray, _ = one.prepare(NOOP, pasid=10)
    assert one.submit(0, stray)
    assert one.command(Command.DRAIN_ALL) == 0
    assert one.software_error()[0] >> 8 & 0xFF == 0x1A


def test_vdevs_of_one_process_are_all_different(lab: Lab) -> None:
    vdevs: list[DsaVdev] = [lab.vdev(kind) for kind in ("dsa-1swq", "dsa-1swq", "dsa-1dwq")]
    assert len({vdev.pasid for vdev in vdevs}) == 3
    assert len({vdev.adis[0].name for vdev in vdevs}) == 3
