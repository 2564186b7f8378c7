"""A small driver of an Adaptive Virtual Function: admin queues and virtchnl messages as bytes.

It knows the numbers by itself, from the structures that drivers use, and none of the device's
declarations. What it drives is behind a ``Bus``: a VDEV of this process, or a served one.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from vdcm.transport import GuestMemory
from vdcm_devices.avf.vdev import AvfVdev

ATQBAH, ATQBAL, ATQLEN, ATQH, ATQT = 0x7800, 0x7C00, 0x6800, 0x6400, 0x8400
ARQBAH, ARQBAL, ARQLEN, ARQH, ARQT = 0x6000, 0x6C00, 0x8000, 0x7400, 0x7000
RSTAT, DYN_CTL0, ICR0, ICR0_ENA = 0x8800, 0x5C00, 0x4800, 0x5000
ENABLE, CRITICAL, OVERFLOW = 1 << 31, 1 << 30, 1 << 29
ADMINQ = 1 << 30
SUCCESS, PARAMETER, NO_MEMORY, LENGTH, NOT_SUPPORTED = 0, -5, -18, -38, -64
IN_PROGRESS, COMPLETED, ACTIVE = range(3)

VERSION, RESET_VF, GET_RESOURCES = 1, 2, 3
CONFIG_TX, CONFIG_RX, CONFIG_QUEUES, CONFIG_IRQS, ENABLE_QUEUES, DISABLE_QUEUES = range(4, 10)
ADD_ADDRESS, DEL_ADDRESS, ADD_VLAN, DEL_VLAN, PROMISCUOUS, GET_STATS = range(10, 16)
EVENT = 17
RSS_KEY, RSS_LUT, HENA_CAPS, SET_HENA, STRIP_ON, STRIP_OFF, REQUEST_QUEUES = range(23, 30)
VLAN_CAPS, ADD_VLAN_V2, DEL_VLAN_V2 = 51, 52, 53
STRIP_ON_V2, STRIP_OFF_V2, INSERT_ON_V2, INSERT_OFF_V2 = range(54, 58)
RXDIDS = 63
OPCODES = (*range(1, 16), *range(23, 30), *range(51, 58), RXDIDS)

L2, RSS_PF, VLAN_V1, VLAN_V2 = 1 << 0, 1 << 19, 1 << 16, 1 << 15
REQ_QUEUES, ADV_SPEED, RXDID_CAP = 1 << 6, 1 << 7, 1 << 26
LINUX = L2 | 1 << 3 | 1 << 4 | 1 << 5 | REQ_QUEUES | ADV_SPEED | VLAN_V2 | VLAN_V1 | RSS_PF
"""Roughly what Linux's driver asks for."""

ARENA = 0x1000_0000
ARENA_SIZE = 1 << 20
ENTRIES = 32
BUFFER = 4096
SEND_RING, RECEIVE_RING = ARENA, ARENA + 0x1000
SEND_BUFFERS, RECEIVE_BUFFERS = ARENA + 0x2000, ARENA + 0x2000 + ENTRIES * BUFFER
FREE = RECEIVE_BUFFERS + ENTRIES * BUFFER


class Bus(Protocol):
    def read(self, offset: int) -> int: ...
    def write(self, offset: int, value: int) -> None: ...
    def load(self, address: int, size: int) -> bytes: ...
    def store(self, address: int, data: bytes) -> None: ...
    def wait(self, what: str, condition: Callable[[], Any]) -> Any:
        """What ``condition`` gives, once that is true."""


class LocalBus:
    """A VDEV of this process, with memory of its own at ARENA."""

    def __init__(self, vdev: AvfVdev) -> None:
        self.vdev = vdev
        self._fd = os.memfd_create("avf-machine")
        os.ftruncate(self._fd, ARENA_SIZE)
        self.memory = GuestMemory()
        self.memory.map(ARENA, ARENA_SIZE, self._fd)
        vdev.address_space.attach(self.memory)
        self.set_bus_master(True)

    def set_bus_master(self, on: bool) -> None:
        self.vdev.config.space.write(4, 2, 0x406 if on else 0x402)

    def read(self, offset: int) -> int:
        return self.vdev.read(0, offset, 4)

    def write(self, offset: int, value: int) -> None:
        self.vdev.write(0, offset, 4, value)

    def load(self, address: int, size: int) -> bytes:
        return self.memory.read(address, size)

    def store(self, address: int, data: bytes) -> None:
        self.memory.write(address, data)

    def wait(self, what: str, condition: Callable[[], Any]) -> Any:
        found = condition()
        assert found, what
        return found

    def close(self) -> None:
        self.vdev.address_space.detach()
        self.memory.disconnect()
        os.close(self._fd)


@dataclass(frozen=True)
class Answer:
    opcode: int
    status: int
    data: bytes


@dataclass(frozen=True)
class Resources:
    pairs: int
    vectors: int
    max_mtu: int
    capabilities: int
    key_size: int
    lut_size: int
    vsi: int
    vsi_type: int
    mac: bytes


class Driver:
    """``start`` first; then ``call``. What the device says by itself is in ``events``."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.events: list[Answer] = []
        self.send_at = self.receive_at = 0
        self.resources: Resources

    def init_queues(self) -> None:
        """Both admin queues, in the order in which Linux's driver writes their registers."""
        bus = self.bus
        self.send_at = self.receive_at = 0
        for head, tail, length, low, high, ring in (
            (ATQH, ATQT, ATQLEN, ATQBAL, ATQBAH, SEND_RING),
            (ARQH, ARQT, ARQLEN, ARQBAL, ARQBAH, RECEIVE_RING),
        ):
            bus.write(head, 0)
            bus.write(tail, 0)
            bus.write(length, ENTRIES | ENABLE)
            bus.write(low, ring & 0xFFFF_FFFF)
            bus.write(high, ring >> 32)
            assert bus.read(low) == ring
        for index in range(ENTRIES):
            self._give(index)
        bus.write(ARQT, ENTRIES - 1)

    def shut_down_queues(self) -> None:
        for base in ((ATQH, ATQT, ATQLEN, ATQBAL, ATQBAH), (ARQH, ARQT, ARQLEN, ARQBAL, ARQBAH)):
            for register in base:
                self.bus.write(register, 0)

    def _give(self, index: int) -> None:
        address = RECEIVE_BUFFERS + BUFFER * index
        raw = struct.pack("<HHHHIIIIII", 0x1200, 0, BUFFER, 0, 0, 0, 0, 0, 0, address)
        self.bus.store(RECEIVE_RING + 32 * index, raw)

    def post(
        self, opcode: int, data: bytes = b"", flags: int | None = None, command: int = 0x0801
    ) -> int:
        """Send a message; the index of its descriptor."""
        index = self.send_at
        address = SEND_BUFFERS + BUFFER * index
        if flags is None:
            flags = 1 << 13
            if data:
                flags |= 1 << 12 | 1 << 10 | (1 << 9 if len(data) > 512 else 0)
        self.bus.store(address, data[:BUFFER])
        raw = struct.pack(
            "<HHHHIIIIII", flags, command, len(data), 0, opcode, 0, 0, 0, address >> 32, address
        )
        self.bus.store(SEND_RING + 32 * index, raw)
        self.send_at = (index + 1) % ENTRIES
        self.bus.write(ATQT, self.send_at)
        return index

    def sent(self, index: int) -> tuple[int, int]:
        """Flags and return value of a descriptor that was sent."""
        flags, _, _, result = struct.unpack("<HHHH", self.bus.load(SEND_RING + 32 * index, 8))
        return flags, result

    def receive(self) -> list[Answer]:
        """What has come."""
        found = []
        while self.bus.read(ARQH) != self.receive_at:
            at = RECEIVE_RING + 32 * self.receive_at
            flags, command, size, result, opcode, status, *_, high, low = struct.unpack(
                "<HHHHIiIIII", self.bus.load(at, 32)
            )
            assert (command, result) == (0x0802, 0)
            assert flags & 3 == 3 and bool(flags & 1 << 12) == bool(size)
            found.append(Answer(opcode, status, self.bus.load(high << 32 | low, size)))
            self._give(self.receive_at)
            self.bus.write(ARQT, self.receive_at)
            self.receive_at = (self.receive_at + 1) % ENTRIES
        return found

    def call(self, opcode: int, data: bytes = b"") -> Answer:
        """Send a message and wait for its answer."""
        self.post(opcode, data)

        def answered() -> Answer | None:
            mine = None
            for answer in self.receive():
                if answer.opcode == EVENT or answer.opcode != opcode:
                    self.events.append(answer)
                else:
                    mine = answer
            return mine

        answer = self.bus.wait(f"an answer to {opcode}", answered)
        assert isinstance(answer, Answer)
        return answer

    def check(self, opcode: int, data: bytes = b"") -> bytes:
        answer = self.call(opcode, data)
        assert answer.status == SUCCESS, answer
        return answer.data

    def wait_active(self) -> None:
        self.bus.wait("the end of the reset", lambda: self.bus.read(RSTAT) == ACTIVE)

    def start(self, capabilities: int = LINUX) -> Resources:
        """From reset to resources."""
        self.wait_active()
        self.init_queues()
        assert self.check(VERSION, struct.pack("<II", 1, 1)) == struct.pack("<II", 1, 1)
        self.resources = parse_resources(self.check(GET_RESOURCES, struct.pack("<I", capabilities)))
        return self.resources

    def reset(self) -> None:
        self.post(RESET_VF)
        self.bus.wait("the reset", lambda: not self.bus.read(ARQLEN) & ENABLE)
        self.wait_active()

    def configure(self, pairs: int, vectors: Sequence[int] | None = None) -> None:
        """Queues with rings in the arena, and an interrupt vector for each pair."""
        vsi = self.resources.vsi
        message = struct.pack("<HHI", vsi, pairs, 0)
        for queue in range(pairs):
            message += queue_pair(vsi, queue)
        self.check(CONFIG_QUEUES, message + bytes(64))
        chosen = vectors or range(1, pairs + 1)
        message = struct.pack("<H", pairs)
        for queue, vector in enumerate(chosen):
            message += struct.pack("<HHHHHH", vsi, vector, 1 << queue, 1 << queue, 0, 1)
        self.check(CONFIG_IRQS, message + bytes(12))

    def select(self, opcode: int, tx: int, rx: int) -> Answer:
        return self.call(opcode, struct.pack("<HHII", self.resources.vsi, 0, rx, tx))

    def addresses(self, opcode: int, *addresses: bytes) -> Answer:
        message = struct.pack("<HH", self.resources.vsi, len(addresses))
        message += b"".join(address + bytes(2) for address in addresses)
        return self.call(opcode, message + bytes(8))

    def vlans(self, opcode: int, *vlans: int) -> Answer:
        message = struct.pack("<HH", self.resources.vsi, len(vlans))
        return self.call(opcode, message + struct.pack(f"<{len(vlans)}H", *vlans) + bytes(2))

    def vlans_v2(self, opcode: int, *vlans: int, tpid: int = 0x8100) -> Answer:
        message = struct.pack("<HHI", self.resources.vsi, len(vlans), 0)
        for vlan in vlans:
            message += struct.pack("<HHHH", vlan, 0, tpid, 0) + bytes(24)
        return self.call(opcode, message)


def tx_ring(queue: int) -> int:
    return FREE + 0x4000 * queue


def rx_ring(queue: int) -> int:
    return FREE + 0x4000 * queue + 0x2000


def tx_queue(vsi: int, queue: int, length: int = 64, address: int | None = None) -> bytes:
    address = tx_ring(queue) if address is None else address
    return struct.pack("<HHHHQQ", vsi, queue, length, 0, address, 0)


def rx_queue(
    vsi: int,
    queue: int,
    length: int = 64,
    address: int | None = None,
    buffer: int = 2048,
    frame: int = 1536,
    rxdid: int = 0,
) -> bytes:
    address = rx_ring(queue) if address is None else address
    return struct.pack(
        "<HHIHHIIBBBBQII", vsi, queue, length, 0, 0, buffer, frame, 0, rxdid, 0, 0, address, 0, 0
    )


def queue_pair(vsi: int, queue: int) -> bytes:
    return tx_queue(vsi, queue) + rx_queue(vsi, queue)


def parse_resources(data: bytes) -> Resources:
    _, pairs, vectors, mtu, capabilities, key, lut, vsi, _, kind, _, mac = struct.unpack(
        "<HHHHIIIHHIH6s", data
    )
    return Resources(pairs, vectors, mtu, capabilities, key, lut, vsi, kind, mac)


@dataclass(frozen=True)
class Link:
    event: int
    speed: int
    up: bool
    severity: int


def parse_event(answer: Answer) -> Link:
    assert (answer.opcode, answer.status, len(answer.data)) == (EVENT, SUCCESS, 16)
    event, speed, up, severity = struct.unpack("<IIB3xi", answer.data)
    return Link(event, speed, bool(up), severity)
