"""A switch of the NIC on a sweep that is stepped, and stations with memory of their own.

What frames, descriptors, checksums, segments and hashes are is said here again, in plain Python.
"""

from __future__ import annotations

import itertools
import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vdcm.dma import SecondLevel
from vdcm.ims import ImsStorage
from vdcm.pasid import PASIDS
from vdcm.sweep import AdiPath, QueueState, Report, Sweep
from vdcm.transport import GuestMemory
from vdcm_devices.avf.datapath import Filters, Offloads, Rss, RxQueue, TxQueue
from vdcm_devices.avf.native import FASTPATH, Port, Switch

BASE = 0x4000_0000
SIZE = 1 << 22
ALL_TYPES = (1 << 64) - 1
BROADCAST = b"\xff" * 6
EOP, RS, TAGGED = 1 << 4, 1 << 5, 1 << 7
IPV6, IPV4, IPV4_SUM = 1 << 9, 2 << 9, 3 << 9
TCP_SUM, SCTP_SUM, UDP_SUM = 1 << 12, 2 << 12, 3 << 12
TCP, UDP, SCTP = 6, 17, 132


def mac(number: int) -> bytes:
    return bytes([2, 0, 0, 0, 0, number])


# Frames.


def ones_sum(data: bytes) -> int:
    """RFC 1071."""
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def crc32c(data: bytes) -> int:
    crc = 0xFFFF_FFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F6_3B78 if crc & 1 else 0)
    return ~crc & 0xFFFF_FFFF


def ethernet(
    to: bytes, source: bytes, payload: bytes, type_: int = 0x88B5, tag: int | None = None
) -> bytes:
    between = b"" if tag is None else struct.pack(">HH", 0x8100, tag)
    return to + source + between + struct.pack(">H", type_) + payload


def ip(source: bytes, to: bytes, protocol: int, payload: bytes, ident: int = 7) -> bytes:
    """A packet of version 4 or 6, as the addresses are, with a right header checksum."""
    if len(source) == 16:
        return struct.pack(">IHBB", 6 << 28, len(payload), protocol, 64) + source + to + payload
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), ident, 0, 64, protocol, 0)
    header += source + to
    header = header[:10] + struct.pack(">H", 0xFFFF ^ ones_sum(header)) + header[12:]
    return header + payload


def pseudo(source: bytes, to: bytes, protocol: int, length: int) -> bytes:
    if len(source) == 16:
        return source + to + struct.pack(">II", length, protocol)
    return source + to + struct.pack(">BBH", 0, protocol, length)


def udp(
    source: bytes, to: bytes, data: bytes, ports: tuple[int, int] = (1000, 2000), *, seed: bool
) -> bytes:
    """With its checksum; with ``seed`` the pseudo header's sum in its place, for the device."""
    length = 8 + len(data)
    start = pseudo(source, to, UDP, length)
    raw = struct.pack(">HHHH", *ports, length, 0) + data
    value = ones_sum(start) if seed else (0xFFFF ^ ones_sum(start + raw)) or 0xFFFF
    return raw[:6] + struct.pack(">H", value) + raw[8:]


def tcp(
    source: bytes,
    to: bytes,
    data: bytes,
    *,
    sequence: int = 100,
    flags: int = 0x18,
    seed: int | None = None,
) -> bytes:
    """With its checksum, or ``seed`` in its place."""
    raw = struct.pack(">HHIIBBHHH", 1000, 2000, sequence, 5, 0x50, flags, 512, 0, 0) + data
    if seed is None:
        seed = 0xFFFF ^ ones_sum(pseudo(source, to, TCP, len(raw)) + raw)
    return raw[:16] + struct.pack(">H", seed) + raw[18:]


def toeplitz(key: bytes, data: bytes) -> int:
    """As Microsoft's specification of RSS has it: a 32-bit window of the key for each bit."""
    window, result = int.from_bytes(key, "big"), 0
    for index in range(8 * len(data)):
        if data[index // 8] >> (7 - index % 8) & 1:
            result ^= window >> (8 * len(key) - 32 - index) & 0xFFFF_FFFF
    return result


# Descriptors.


def offsets(l2: int, l3: int, l4: int) -> int:
    """Of the three headers' lengths, in bytes."""
    return (l2 // 2 | l3 // 4 << 7 | l4 // 4 << 14) << 16


def context(payload: int, mss: int, *, command: int = 1) -> tuple[int, int]:
    """A context descriptor for segmentation."""
    return 0, 1 | command << 4 | payload << 30 | mss << 50


@dataclass(frozen=True)
class Received:
    """A frame, and what its last descriptor says of it."""

    frame: bytes
    status: int
    errors: int
    packet_type: int
    hash: int
    tag: int
    descriptors: int

    @property
    def summed(self) -> tuple[bool, bool, bool]:
        """Have checksums been looked at; is that of IP wrong, of layer 4?"""
        return bool(self.status & 8), bool(self.errors & 8), bool(self.errors & 16)


class Station:
    """A driver at a port: rings are from BASE on, transmit buffers from 1 MiB behind it, receive
    buffers from 2 MiB."""

    def __init__(self, net: Net, number: int, queues: int, filters: dict[str, Any]) -> None:
        self.net = net
        self.mac = mac(number)
        self.memory = GuestMemory()
        self.fd = os.memfd_create("station")
        os.ftruncate(self.fd, SIZE)
        self.memory.map(BASE, SIZE, self.fd)
        self.view = mmap.mmap(self.fd, SIZE)
        self.space = SecondLevel()
        self.space.attach(self.memory)
        self.pasid = PASIDS.allocate(self.space)
        self.path: AdiPath = net.sweep.adi(lambda _path: None)
        self.path.set_pasids(self.pasid, None)
        self.path.set_bus_master(True)
        self.messages = [net.ims.allocate() for _ in range(queues)]
        self.path.set_messages(net.ims, self.messages)
        self.pages = mmap.mmap(-1, 0x4000)
        self.port = Port(net.switch)
        self.queue = self.path.queue(FASTPATH, self.port.address, doorbells=True, keep=self.port)
        self.port.attach(memoryview(self.pages))
        self.port.set_link(True)
        self.port.set_offloads(Offloads())
        self.filter(**filters)
        self.rss = Rss(bytes(range(1, 53)), bytes(i % queues for i in range(64)), ALL_TYPES)
        self.port.set_rss(self.rss)
        self.queues = queues
        self.start()

    def filter(self, **changes: Any) -> None:
        values: dict[str, Any] = {"mac": self.mac, "addresses": frozenset({self.mac}), **changes}
        self.port.set_filters(Filters(**values))

    def start(self, *, length: int = 64, buffer: int = 2048, max_frame: int = 9728) -> None:
        """All queues, with all receive buffers but one given."""
        self.length, self.buffer = length, buffer
        self.sent = [0] * self.queues
        self.seen = [0] * self.queues
        mask = (1 << self.queues) - 1
        for n in range(self.queues):
            self.port.configure_tx(TxQueue(n, self.ring(n, True), length, n, 3))
            self.port.configure_rx(RxQueue(n, self.ring(n, False), length, buffer, max_frame, n, 3))
            for index in range(length):
                self.give(n, index)
            self.tail(n, length - 1, transmit=False)
        self.port.enable(mask, mask)
        self.queue.state = QueueState.RUNNING

    def ring(self, n: int, transmit: bool) -> int:
        return BASE + 0x20000 * n + (0 if transmit else 0x10000)

    def give(self, n: int, index: int) -> None:
        at = 0x20_0000 + (n * self.length + index) * self.buffer
        self.store(self.ring(n, False) + 32 * index, struct.pack("<4Q", BASE + at, 0, 0, 0))

    def store(self, address: int, data: bytes) -> None:
        self.view[address - BASE : address - BASE + len(data)] = data

    def load(self, address: int, size: int) -> bytes:
        return self.view[address - BASE : address - BASE + size]

    def register(self, offset: int, value: int | None = None) -> int:
        if value is not None:
            self.pages[offset : offset + 4] = struct.pack("<I", value)
        return int.from_bytes(self.pages[offset : offset + 4], "little")

    def tail(self, n: int, value: int, *, transmit: bool) -> None:
        self.register((0 if transmit else 0x2000) + 4 * n, value)

    # sending

    def post(self, *descriptors: tuple[int, int], n: int = 0, ring: bool = True) -> list[int]:
        """The descriptors as they are; their places."""
        places = []
        for first, second in descriptors:
            places.append(self.sent[n])
            self.store(self.ring(n, True) + 16 * self.sent[n], struct.pack("<QQ", first, second))
            self.sent[n] = (self.sent[n] + 1) % self.length
        if ring:
            self.tail(n, self.sent[n], transmit=True)
        return places

    def frame(
        self,
        frame: bytes,
        flags: int = 0,
        *,
        pieces: Sequence[int] = (),
        before: Sequence[tuple[int, int]] = (),
        tag: int = 0,
        n: int = 0,
    ) -> list[int]:
        """Put a frame into buffers, cut at ``pieces``, and its descriptors into the ring."""
        cuts = [0, *sorted(cut for cut in set(pieces) if 0 < cut < len(frame)), len(frame)]
        found = [*before]
        address = BASE + 0x10_0000 + 0x8000 * n
        for start, end in itertools.pairwise(cuts):
            self.store(address, frame[start:end])
            last = EOP | RS if end == len(frame) else 0
            found.append((address, flags | last | (end - start) << 34 | tag << 48))
            address += end - start + 3
        return self.post(*found, n=n)

    def send(self, frame: bytes, flags: int = 0, **how: Any) -> None:
        """The same, until the device is done with it."""
        last = self.frame(frame, flags, **how)[-1]
        self.net.run()
        assert self.done(last, how.get("n", 0)), self.reports()

    def done(self, place: int, n: int = 0) -> bool:
        return self.load(self.ring(n, True) + 16 * place + 8, 1)[0] & 15 == 15

    # receiving

    def receive(self, n: int = 0) -> list[Received]:
        """What has come, and its buffers given again."""
        return list(self._receive(n))

    def _receive(self, n: int) -> Iterator[Received]:
        data, count = b"", 0
        while True:
            at = self.ring(n, False) + 32 * self.seen[n]
            first, word, _, _ = struct.unpack("<4Q", self.load(at, 32))
            if not word & 1:
                assert not data, "a frame that does not end"
                return
            buffer = BASE + 0x20_0000 + (n * self.length + self.seen[n]) * self.buffer
            length = word >> 38 & 0x3FFF
            assert length <= self.buffer
            data += self.load(buffer, length)
            count += 1
            self.give(n, self.seen[n])
            self.tail(n, self.seen[n], transmit=False)
            self.seen[n] = (self.seen[n] + 1) % self.length
            if word & 2:
                yield Received(
                    data,
                    word & 0x7FFFF,
                    word >> 19 & 0xFF,
                    word >> 30 & 0xFF,
                    first >> 32,
                    first >> 16 & 0xFFFF,
                    count,
                )
                data, count = b"", 0

    def frames(self, n: int = 0) -> list[bytes]:
        return [received.frame for received in self.receive(n)]

    def reports(self) -> list[str]:
        """What the host driver is told."""
        found: list[Report] = self.path.reports()
        return [self.port.explain(report) for report in found]

    def interrupts(self, n: int = 0) -> int:
        return self.messages[n].raised

    def counted(self, name: str) -> int:
        value: int = getattr(self.port.statistics(), name)
        return value

    def close(self) -> None:
        self.path.close()
        self.port.close()
        for message in self.messages:
            message.release()
        PASIDS.release(self.pasid)
        self.space.detach()
        self.memory.disconnect()
        self.view.close()
        os.close(self.fd)


class Net:
    """``station(n)`` has the address ``mac(n)``."""

    def __init__(self) -> None:
        self.sweep = Sweep(stepped=True)
        self.ims = ImsStorage(64, "net")
        self.switch = Switch()
        self.stations: list[Station] = []
        self.now = 10**12

    def station(self, number: int, queues: int = 1, **filters: Any) -> Station:
        station = Station(self, number, queues, filters)
        self.stations.append(station)
        return station

    def run(self, steps: int = 400) -> None:
        """Until nothing more is done."""
        idle = 0
        while steps and idle < 3:
            done, _ = self.sweep.step(self.now)
            self.now += 20_000
            idle = 0 if done else idle + 1
            steps -= 1

    def close(self) -> None:
        for station in self.stations:
            station.close()
        self.sweep.close()
