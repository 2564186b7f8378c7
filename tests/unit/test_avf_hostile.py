"""An Adaptive Virtual Function whose driver does what it likes: it harms itself, nobody else."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import avf_machine as avf
import pytest
from avf_machine import Driver, LocalBus
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vdcm.parent import build
from vdcm_devices.avf import Avf
from vdcm_devices.avf.messages import MESSAGES
from vdcm_devices.avf.vdev import AvfVdev

RELAXED = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Two:
    """A driver that does what it likes, and a neighbour that is at work."""

    def __init__(self) -> None:
        self.parent = build(Avf, "nic", {"queue_pairs": 20})
        self.offender, self.neighbour = (Driver(self._bus(name)) for name in ("o", "n"))
        self.offender.start()
        self.neighbour.start()
        self.neighbour.configure(2)
        self.neighbour.select(avf.ENABLE_QUEUES, 3, 3)
        self.neighbour.receive()
        self.neighbour.events.clear()
        self.before = self._state()

    def _bus(self, name: str) -> LocalBus:
        vdev = self.parent.create("avf", name, {"queues": 2})
        assert isinstance(vdev, AvfVdev)
        return LocalBus(vdev)

    def _state(self) -> dict[str, Any]:
        described = vdev_of(self.neighbour).describe()
        return {
            key: described[key]
            for key in ("state", "registers", "vsi", "channel", "adis", "counters")
        }

    def check(self) -> None:
        """The neighbour has noticed nothing, and the offender can begin again."""
        assert self._state() == self.before
        vdev = vdev_of(self.offender)
        vdev.reset()
        assert isinstance(self.offender.bus, LocalBus)
        self.offender.bus.set_bus_master(True)
        self.offender.start()
        self.offender.configure(1)
        assert self.offender.select(avf.ENABLE_QUEUES, 1, 1).status == avf.SUCCESS
        self.offender.receive()
        self.offender.events.clear()

    def close(self) -> None:
        for driver in (self.offender, self.neighbour):
            assert isinstance(driver.bus, LocalBus)
            driver.bus.close()
            driver.bus.vdev.close()
        self.parent.close()


@pytest.fixture
def two() -> Iterator[Two]:
    made = Two()
    yield made
    made.close()


def vdev_of(driver: Driver) -> AvfVdev:
    assert isinstance(driver.bus, LocalBus)
    return driver.bus.vdev


@st.composite
def messages(draw: st.DrawFn) -> tuple[int, bytes]:
    """An opcode and a payload: of any length, or of the right one and with small numbers."""
    opcode = draw(st.sampled_from(avf.OPCODES) | st.integers(0, 0xFFFF_FFFF))
    declared = MESSAGES.get(opcode)
    if declared is None or draw(st.booleans()):
        return opcode, draw(st.binary(max_size=300))
    small = st.integers(0, 4) | st.sampled_from([64, 0xFF, 0xFFFF, 0x8100])
    head = bytearray()
    while len(head) < declared.head.size:
        head += draw(small).to_bytes(2, "little")
    data = bytes(head[: declared.head.size])
    if data[:2] and "vsi_id" in declared.head.names[:1]:
        data = struct.pack("<H", 1) + data[2:]
    if declared.element is not None:
        elements = draw(st.integers(0, 3))
        body = b"".join(draw(small).to_bytes(2, "little") for _ in range(40 * elements))
        data += body[: elements * declared.element.size]
    return opcode, data


@given(sent=st.lists(messages(), max_size=12))
@RELAXED
def test_each_message_is_answered_or_resets_the_offender(
    two: Two, sent: list[tuple[int, bytes]]
) -> None:
    vdev = vdev_of(two.offender)
    for opcode, data in sent:
        resets, complaints = vdev.resets, vdev.complaints
        two.offender.post(opcode, data)
        if vdev.resets > resets:
            assert opcode in (avf.RESET_VF, avf.REQUEST_QUEUES)
            two.offender.start()
            continue
        answers = [a for a in two.offender.receive() if a.opcode == opcode]
        assert answers, f"message {opcode} has not been answered"
        answer = answers[0]
        if answer.status:
            assert vdev.complaints > complaints
            assert vdev.last_complaint
            assert answer.data == b""
    two.check()


ADMIN = (avf.ATQBAH, avf.ATQBAL, avf.ATQLEN, avf.ATQH, avf.ATQT, avf.ARQBAH, avf.ARQBAL)
CONTROL = st.sampled_from(
    (*ADMIN, avf.ARQLEN, avf.ARQH, avf.ARQT, avf.RSTAT, avf.DYN_CTL0, avf.ICR0, avf.ICR0_ENA)
) | st.sampled_from(
    (0x0000, 0x003C, 0x2000, 0x203C, 0x2800, 0x3800, 0x383C, 0x3840, 0x8804, 0xC400, 0xCC00, 0xD03C)
)
VALUES = st.sampled_from([0, 1, 2, 31, 32, 63, 64, 1023, 1 << 31, 0xFFFF_FFFF]) | st.integers(
    0, 0xFFFF_FFFF
)


@given(
    writes=st.lists(st.tuples(CONTROL, VALUES), max_size=30),
    ring=st.binary(max_size=1024),
)
@RELAXED
def test_registers_and_rings_of_any_content(
    two: Two, writes: list[tuple[int, int]], ring: bytes
) -> None:
    bus = two.offender.bus
    bus.store(avf.SEND_RING, ring)
    bus.store(avf.RECEIVE_RING, ring[::-1])
    bus.store(avf.tx_ring(0), ring)
    for offset, value in writes:
        bus.write(offset, value)
        bus.read(offset)
    two.check()


@given(flags=st.integers(0, 0xFFFF), command=st.integers(0, 0xFFFF), data=st.binary(max_size=64))
@RELAXED
def test_admin_descriptors_of_any_kind(two: Two, flags: int, command: int, data: bytes) -> None:
    index = two.offender.post(avf.GET_STATS, data, flags, command)
    written, result = two.offender.sent(index)
    assert written & 3 == 3
    assert bool(written & 4) >= bool(result)
    two.check()


def test_a_flood_of_messages_does_not_keep_the_others_waiting(two: Two) -> None:
    """More than AT_ONCE of them are taken in several turns."""
    vdev = vdev_of(two.offender)
    turns: list[Any] = []
    vdev.later = lambda _seconds, do: turns.append(do)  # type: ignore[method-assign]
    bus = two.offender.bus
    bus.write(avf.ATQLEN, 0)
    bus.write(avf.ATQBAL, avf.FREE)
    bus.write(avf.ATQH, 0)
    bus.write(avf.ATQT, 0)
    bus.write(avf.ATQLEN, 1023 | avf.ENABLE)
    bus.write(avf.ATQT, 1000)
    assert bus.read(avf.ATQH) == 32
    taken = 1
    while turns:
        turns.pop(0)()
        taken += 1
    assert bus.read(avf.ATQH) == 1000
    assert taken == 1 + 1000 // 32
    del vdev.later
    two.check()
