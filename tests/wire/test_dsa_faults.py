"""What a guest of the software DSA can do wrong costs its own ADI at most (Scalable IOV, 2.6)."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dsa_client import ARENA, FILL, INTERRUPT, LIMITED, MOVE, NOOP, PAGE, TIMEOUT, DsaClient
from dsa_lab import PORTALS, Lab
from dsa_machine import descriptor

from vdcm.client import Region
from vdcm_devices.dsa.codes import Cause, Command, CommandError, DeviceState

MIB = 1 << 20
NOWHERE = 0x7000_0000


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.close()


class Bystander:
    """Another guest of the same parent, whose work goes on whatever happens."""

    def __init__(self, lab: Lab, kind: str = "dsa-1dwq") -> None:
        self.dsa = lab.started(kind, pasid=1)
        self.dsa.enable_interrupts()
        self.data = bytes(range(256)) * 64
        self.source = self.dsa.memory.put(self.data)
        self.target = self.dsa.memory.take(len(self.data))

    def works(self) -> None:
        self.dsa.memory.write(self.target, bytes(len(self.data)))
        done = self.dsa.run(
            0,
            MOVE,
            INTERRUPT,
            handle=1,
            source=self.source,
            destination=self.target,
            size=len(self.data),
            pasid=1,
        )
        assert done.status == 1
        assert self.dsa.memory.read(self.target, len(self.data)) == self.data
        assert self.dsa.events[1].wait(5.0) == 1
        assert self.dsa.read(0xC0) == 0
        assert self.dsa.state == DeviceState.ENABLED


@pytest.mark.conformance("R2.6-1", "R2.6-9")
@pytest.mark.parametrize("portals", PORTALS)
def test_garbage_descriptors(lab: Lab, portals: str) -> None:
    """Random bytes, half of them with plausible addresses: no other guest sees anything of it."""
    known = random.Random(11)
    bystander = Bystander(lab)
    dsa = lab.started(portals=portals)
    for step in range(400):
        data = bytearray(known.randbytes(64))
        data[0] |= 1  # the first word says that a direct slot is full
        if step % 2:
            data[7] = known.choice((*range(10), *range(0x10, 0x16), 0x20))
            for field in (8, 16, 24, 40):
                address = ARENA + known.randrange(16 * MIB)
                data[field : field + 8] = address.to_bytes(8, "little")
            data[32:36] = known.randrange(3 * MIB).to_bytes(4, "little")
        dsa.submit(0, bytes(data))
        if step % 100 == 0:
            bystander.works()
    assert dsa.command(Command.DRAIN_ALL) == 0
    bystander.works()
    dsa.write(0xC0, 3, 8)
    assert dsa.run(0, NOOP).status == 1


@pytest.mark.conformance("R2.6-10")
@pytest.mark.parametrize("portals", PORTALS)
def test_addresses_outside_the_map(lab: Lab, portals: str) -> None:
    dsa = lab.started(portals=portals)
    end = ARENA + 16 * MIB
    source = dsa.memory.put(b"x" * 8192)
    for address, size in ((NOWHERE, 100), (ARENA - 50, 100), ((1 << 64) - 64, 64)):
        done = dsa.run(0, MOVE, source=address, destination=source, size=size)
        assert (done.status, done.completed) == (0x03, 0)
        assert done.fault_address & ~0xFFF == address & ~0xFFF
        done = dsa.run(0, MOVE, source=source, destination=address, size=size)
        assert done.status == 0x83, "a write"
    done = dsa.run(0, FILL, source=0, destination=end - 4096, size=8192)
    assert (done.status, done.fault_address) == (0x83, end)
    assert done.completed == 4096, "up to there it is done"
    assert dsa.read(0xC0) == 0, "the completion record says it all"


@pytest.mark.conformance("R2.6-9", "R2.6-10")
@pytest.mark.parametrize("portals", PORTALS)
def test_a_completion_record_that_cannot_be_written(lab: Lab, portals: str) -> None:
    bystander = Bystander(lab)
    dsa = lab.started(portals=portals)
    dsa.client.dma_memory(0x5000_0000, PAGE, write=False)
    dsa.enable_interrupts()
    dsa.write(0x88, 1)
    for address, code in ((0x5000_0000, 0x1A), (NOWHERE, 0x1A), (ARENA + 8, 0x1B)):
        assert dsa.submit(0, descriptor(NOOP, 0xC, completion=address))
        assert dsa.events[0].wait(5.0) == 1
        assert dsa.read(0x98) == Cause.SOFTWARE_ERROR
        dsa.write(0x98, Cause.SOFTWARE_ERROR)
        word, _, fault = dsa.software_error()
        assert word >> 8 & 0xFF == code
        assert (word >> 16 & 0xFF, word >> 32 & 0xFF) == (0, NOOP)
        if code == 0x1A:
            assert word >> 5 & 1, "it was a write"
            assert fault & ~0xFFF == address & ~0xFFF
        bystander.works()
    assert dsa.run(0, NOOP).status == 1


def test_the_first_error_stays_and_others_overflow(lab: Lab) -> None:
    dsa = lab.started()
    dsa.submit(0, descriptor(0x77, 0))
    assert dsa.command(Command.DRAIN_ALL) == 0
    dsa.submit(0, descriptor(NOOP, 0xC, completion=NOWHERE))
    assert dsa.command(Command.DRAIN_ALL) == 0
    word = dsa.read(0xC0, 8)
    assert (word & 3, word >> 8 & 0xFF, word >> 32 & 0xFF) == (3, 0x10, 0x77)
    dsa.write(0xC0, 2, 8)
    assert dsa.read(0xC0) & 3 == 1
    dsa.write(0xC0, 1, 8)
    assert dsa.read(0xC0) & 3 == 0
    for _ in range(2):
        dsa.submit(0, descriptor(0x77, 0))
    assert dsa.command(Command.DRAIN_ALL) == 0
    dsa.write(0xC0, 1)
    assert dsa.read(0xC0) & 3 == 2, "Overflow stays until it is cleared itself (9.2.15)"
    dsa.submit(0, descriptor(0x78, 0))
    assert dsa.command(Command.DRAIN_ALL) == 0
    word = dsa.read(0xC0, 8)
    assert (word & 3, word >> 32 & 0xFF) == (3, 0x78)


def test_a_dedicated_queue_that_is_full(lab: Lab) -> None:
    """Intercepted stores are posted: the error register says that one was lost (5.3)."""
    vdev = lab.vdev()
    dsa = lab.client(vdev)
    dsa.start()
    (adi,) = vdev.adis
    lab.host.run(adi.driver.suspend, adi)
    records = []
    for _ in range(dsa.total_size + 1):
        data, record = dsa.prepare(NOOP)
        assert dsa.submit(0, data)
        records.append(record)
    word, _, _ = dsa.software_error()
    assert (word >> 8 & 0xFF, word >> 16 & 0xFF, word & 0xD) == (0x53, 0, 0x9)
    lab.host.run(adi.driver.resume, adi)
    assert [dsa.wait(record).status for record in records[:-1]] == [1] * dsa.total_size
    assert dsa.completion(records[-1]).status == 0
    # A direct portal waits instead: nothing is lost.
    other = lab.started(portals="direct")
    prepared = [other.prepare(NOOP) for _ in range(3 * other.total_size)]
    for data, _ in prepared:
        other.rings[0, LIMITED].post(data)
    assert {other.wait(record).status for _, record in prepared} == {1}
    assert other.read(0xC0) == 0


@pytest.mark.parametrize("portals", PORTALS)
@pytest.mark.parametrize("gone", ["source", "target"])
def test_unmap_in_the_middle_of_a_move(lab: Lab, portals: str, gone: str) -> None:
    """Once the unmap is answered the device touches that memory no more. The rate limit sees to it
    that the move is under way: 1 MiB takes a quarter of a second."""
    bystander = Bystander(lab)
    dsa = lab.started(portals=portals, rate=4 * MIB)
    source = dsa.client.dma_memory(0x4000_0000, MIB)
    target = dsa.client.dma_memory(0x4800_0000, MIB)
    source.view[:] = b"\x5a" * MIB
    data, record = dsa.prepare(MOVE, source=source.iova, destination=target.iova, size=MIB)
    assert dsa.submit(0, data)
    assert _eventually(lambda: target.view[0] == 0x5A)
    {"source": source, "target": target}[gone].close()
    seen = bytes(target.view) if gone == "source" else b""
    bystander.works()
    done = dsa.wait(record)
    assert done.status == (0x03 if gone == "source" else 0x83)
    assert 0 < done.completed < MIB
    if gone == "source":
        assert seen == bytes(target.view), "nothing came after the unmap"
        assert seen == b"\x5a" * done.completed + bytes(MIB - done.completed)
    assert dsa.run(0, NOOP).status == 1


def test_unmap_and_map_again_at_any_time(lab: Lab) -> None:
    """As fast as it goes: each move is done, or ends at a byte that the record names."""
    dsa = lab.started(portals="direct")
    for step in range(40):
        source = dsa.client.dma_memory(0x4000_0000, 2 * MIB)
        target = dsa.client.dma_memory(0x4800_0000, 2 * MIB)
        source.view[:] = b"\x5a" * source.size
        data, record = dsa.prepare(MOVE, source=source.iova, destination=target.iova, size=2 * MIB)
        assert dsa.submit(0, data)
        source.close() if step % 2 else target.close()
        done = dsa.wait(record)
        assert done.status in (0x01, 0x03 if step % 2 else 0x83)
        if done.status == 0x01:
            assert step % 2 == 0 or bytes(target.view) == b"\x5a" * target.size
        else:
            assert done.completed < 2 * MIB
        source.close()
        target.close()


@pytest.mark.conformance("R2.7-4", "R2.7-5", "R2.7-6")
@pytest.mark.parametrize("portals", PORTALS)
@pytest.mark.parametrize("how", ["flr", "device", "hangup"])
def test_a_reset_with_work_in_flight(lab: Lab, portals: str, how: str) -> None:
    """When it is over the memory is the guest's own again: nothing more is read or written."""
    bystander = Bystander(lab)
    vdev = lab.vdev(portals=portals)
    for _ in range(4):
        dsa = lab.client(vdev)
        dsa.start()
        size = 2 * MIB
        source, target = dsa.memory.put(b"\x11" * size), dsa.memory.take(size)
        for _ in range(8):
            data, _ = dsa.prepare(MOVE, source=source, destination=target, size=size)
            assert dsa.submit(0, data)
        if how == "flr":
            dsa.client.config.write(dsa.capability(0x10) + 8, 2, 0x8000)
        elif how == "device":
            assert dsa.command(Command.RESET_DEVICE) == 0
        else:
            dsa.client.close()
            lab.host.run(vdev.describe)
            assert _eventually(lambda: vdev.session is None)
            bystander.works()
            continue
        assert dsa.state == DeviceState.DISABLED
        # What was read before would show as 0x11, what is read from now on as 0x77.
        dsa.memory.write(source, b"\x77" * size)
        dsa.memory.write(target, b"\x33" * size)
        bystander.works()  # the sweep has gone round meanwhile
        assert dsa.memory.read(target, size) == b"\x33" * size
        dsa.start()
        assert dsa.run(0, NOOP).status == 1
        dsa.client.close()
        assert _eventually(lambda: vdev.session is None)
    bystander.works()


def _eventually(condition: object) -> bool:
    deadline = time.monotonic() + TIMEOUT
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


def test_commands_while_one_is_active(lab: Lab) -> None:
    """A drain of much work, and a second command meanwhile: discarded, and reported."""
    vdev = lab.vdev(rate=20 * MIB)
    dsa = lab.client(vdev)
    dsa.start()
    size = 2 * MIB
    source, target = dsa.memory.take(size), dsa.memory.take(size)
    records = []
    for _ in range(2):
        data, record = dsa.prepare(MOVE, source=source, destination=target, size=size)
        assert dsa.submit(0, data)
        records.append(record)
    dsa.command(Command.DRAIN_WQ, 1, wait=False)
    assert dsa.read(0xA8) >> 31
    dsa.command(Command.RESET_DEVICE, wait=False)
    assert dsa.software_error()[0] >> 8 & 0xFF == 0x52
    assert dsa.finished() == CommandError.SUCCESS
    assert [dsa.completion(record).status for record in records] == [1, 1]
    assert dsa.state == DeviceState.ENABLED


def test_strange_writes_to_every_register_and_portal(lab: Lab) -> None:
    """No answer but bytes, whatever is written where; then a reset, and all is well."""
    known = random.Random(3)
    bystander = Bystander(lab)
    dsa = lab.started("dsa-2dwq-1swq", pasid=1)
    hot = [0x80, 0x88, 0x98, 0xA0, 0xC0, 0x400, 0x600, 0x620, 0x800, 0x808, 0x820, 0x4000, 0x5000]
    for _ in range(1500):
        width = known.choice((1, 2, 4, 8))
        value = known.getrandbits(64)
        if known.random() < 0.7:
            at = known.choice(hot) + 4 * known.randrange(16)
            dsa.client.write(Region.BAR0, at, width, value)
            dsa.client.read(Region.BAR0, at, width)
        else:
            at = known.randrange(0x10000 - 8)
            try:
                dsa.client.write(Region.BAR2, at, width, value)
            except Exception as error:
                assert getattr(error, "errno", None) == 11, error  # retry
            dsa.client.read(Region.BAR2, at, width)
    bystander.works()
    dsa.client.reset()
    dsa.start()
    for wq in range(dsa.wqs):
        assert dsa.run(wq, NOOP, pasid=1).status == 1


def test_a_client_that_never_stops_submitting_does_not_keep_others_out(lab: Lab) -> None:
    flood: DsaClient = lab.started(portals="direct")
    bystander = Bystander(lab)
    size = 2 * MIB
    source, target = flood.memory.take(size), flood.memory.take(size)
    data, _ = flood.prepare(MOVE, source=source, destination=target, size=size)
    for _ in range(flood.total_size):
        flood.rings[0, LIMITED].post(data)
    for _ in range(5):
        bystander.works()
