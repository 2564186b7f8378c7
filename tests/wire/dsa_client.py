"""A user-space driver for the software DSA, over the native client.

    with DsaClient(path) as dsa:
        dsa.start()                                    # all work queues, in one group
        source, target = dsa.memory.put(b"x" * 100), dsa.memory.take(100)
        done = dsa.run(0, MOVE, source=source, destination=target, size=100)
        assert done.status == 1 and dsa.memory.read(target, 100) == b"x" * 100

Whether portals are direct, it sees from what the VDEV lets it map.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from dsa_machine import Completion, descriptor

from vdcm.client import Client, DmaBuffer, Eventfd, Irq, MappedArea, Region
from vdcm.errors import ProtocolError
from vdcm.mailbox import MailboxCode
from vdcm_devices.dsa._fastpath import lib
from vdcm_devices.dsa.codes import Command, WqMode

NOOP, BATCH, DRAIN, MOVE, FILL = 0x00, 0x01, 0x02, 0x03, 0x04
VALID, REQUEST, INTERRUPT = 0x04, 0x08, 0x10
ARENA = 0x1000_0000
PAGE = 0x1000
UNLIMITED, LIMITED = 0, 1
TIMEOUT = 20.0
RETRY = (1 << 64) - 1


@dataclass
class Wq:
    """What a driver writes into WQCFG."""

    size: int = 16
    mode: int = WqMode.DEDICATED
    threshold: int | None = None
    priority: int = 10
    pasid: int | None = None
    max_transfer: int = 21
    max_batch: int = 8


class Arena:
    """Memory of the guest at ``base``, taken from the front and never given back."""

    def __init__(self, buffer: DmaBuffer) -> None:
        self.buffer = buffer
        self.base = buffer.iova
        self._next = 0

    def take(self, size: int, align: int = 64) -> int:
        at = -(-self._next // align) * align
        self._next = at + size
        assert self._next <= self.buffer.size, "the arena is used up: make it larger"
        self.write(self.base + at, bytes(size))
        return self.base + at

    def put(self, data: bytes, align: int = 64) -> int:
        address = self.take(len(data), align)
        self.write(address, data)
        return address

    def read(self, address: int, size: int) -> bytes:
        at = address - self.base
        return bytes(self.buffer.view[at : at + size])

    def write(self, address: int, data: bytes) -> None:
        at = address - self.base
        self.buffer.view[at : at + len(data)] = data

    def rewind(self) -> None:
        """Begin again; what was taken is nobody's."""
        self._next = 0


class Ring:
    """A direct portal: 64 slots in turn (queue.h)."""

    def __init__(self, area: MappedArea | Messages, offset: int) -> None:
        self._area = area
        self._offset = offset
        self.next = 0

    def _word(self, slot: int) -> int:
        return self._offset + 64 * slot

    def submit(self, data: bytes) -> bool:
        """False: to be submitted again."""
        at = self._word(self.next)
        self._wait_for_room(at)
        self._area.view[at + 8 : at + 64] = data[8:]
        word = int.from_bytes(data[:8], "little")
        assert 0 < word < RETRY
        self._area.write(at, 8, word)
        deadline = time.monotonic() + TIMEOUT
        while self._area.read(at, 8) == word:
            assert time.monotonic() < deadline, "the portal does not take a descriptor"
            time.sleep(0)
        if self._area.read(at, 8) == RETRY:
            return False
        self.next = (self.next + 1) % 64
        return True

    def _wait_for_room(self, at: int) -> None:
        deadline = time.monotonic() + TIMEOUT
        while self._area.read(at, 8) not in (0, RETRY):
            assert time.monotonic() < deadline, "the portal's slot is not given back"
            time.sleep(0)

    def post(self, data: bytes) -> None:
        """Store without waiting for an answer; the queue must be a dedicated one."""
        self._wait_for_room(self._word(self.next))
        self.store(data)

    def store(self, data: bytes) -> None:
        """Store whatever is there."""
        at = self._word(self.next)
        self._area.view[at + 8 : at + 64] = data[8:]
        self._area.write(at, 8, int.from_bytes(data[:8], "little"))
        self.next = (self.next + 1) % 64


class Messages:
    """Direct portals that cannot be mapped, for a Ring: each access is a message."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.view = self

    def __setitem__(self, where: slice, data: bytes) -> None:
        self._client.write_bytes(Region.BAR2, where.start, data)

    def read(self, offset: int, width: int) -> int:
        return self._client.read(Region.BAR2, offset, width)

    def write(self, offset: int, width: int, value: int) -> None:
        self._client.write(Region.BAR2, offset, width, value)


class DsaClient:
    """``arena``: bytes of guest memory, at ``base``."""

    def __init__(
        self,
        path: Path,
        arena: int = 16 << 20,
        client: Client | None = None,
        *,
        base: int = ARENA,
    ) -> None:
        self.client = client or Client(path, timeout=TIMEOUT, wait=5.0)
        self.memory = Arena(self.client.dma_memory(base, arena))
        wqcap = self.read(0x20, 8)
        self.total_size = wqcap & 0xFFFF
        self.wqs = wqcap >> 16 & 0xFF
        self.shared, self.dedicated = bool(wqcap >> 48 & 1), bool(wqcap >> 49 & 1)
        self.areas = self.client.map(Region.BAR2)
        self.rings: dict[tuple[int, int], Ring] = {}
        self.events: list[Eventfd] = []
        self._stage = self.memory.take(64)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    # Registers

    def read(self, offset: int, width: int = 4) -> int:
        return self.client.read(Region.BAR0, offset, width)

    def write(self, offset: int, value: int, width: int = 4) -> None:
        self.client.write(Region.BAR0, offset, width, value)

    def command(
        self, command: int, operand: int = 0, *, interrupt: bool = False, wait: bool = True
    ) -> int:
        """CMDSTATUS when the command has ended."""
        self.write(0xA0, interrupt << 31 | command << 20 | operand)
        return self.finished() if wait else 0

    def finished(self) -> int:
        deadline = time.monotonic() + TIMEOUT
        while True:
            status = self.read(0xA8)
            if not status >> 31:
                return status
            assert time.monotonic() < deadline, "the command does not end"
            time.sleep(0.001)

    @property
    def state(self) -> int:
        return self.read(0x90)

    def wq_state(self, wq: int) -> int:
        return self.read(0x800 + 64 * wq + 24) >> 30

    def occupancy(self, wq: int) -> int:
        return self.read(0x800 + 64 * wq + 24) & 0xFFFF

    def software_error(self) -> tuple[int, int, int]:
        """The three words of SWERROR, once there is an error; it is acknowledged."""
        deadline = time.monotonic() + TIMEOUT
        while not self.read(0xC0) & 1:
            assert time.monotonic() < deadline, "no error is reported"
        words = tuple(self.read(0xC0 + 8 * i, 8) for i in range(3))
        self.write(0xC0, words[0] & 3, 8)
        return words[0], words[1], words[2]

    # Set-up

    def capability(self, number: int) -> int:
        at = self.client.config.find(number)
        assert at is not None
        return at

    def set_bus_master(self, enabled: bool = True) -> None:
        self.client.config.write(0x4, 2, 0x406 if enabled else 0x402)

    def extended(self, number: int) -> int:
        """Where extended capability ``number`` is."""
        at = 0x100
        while at:
            header = self.client.config.read(at, 4)
            if header & 0xFFFF == number:
                return at
            at = header >> 20
        raise AssertionError(f"no extended capability {number:#x}")

    def enable_pasid(self) -> None:
        self.client.config.write(self.extended(0x1B) + 6, 2, 1)

    def enable_interrupts(self) -> None:
        self.events = self.client.irq_enable(Irq.MSIX)
        self.client.config.write(self.capability(0x11) + 2, 2, 0x8000)
        for vector in range(1, len(self.events)):
            assert self.command(Command.REQUEST_INTERRUPT_HANDLE, vector) == vector << 8

    def bind(self, pasid: int) -> None:
        """Have a PASID for shared work queues, if this one is not there already."""
        try:
            self.ask(BIND_PASID, pasid)
        except MailboxRefusal as refusal:
            assert refusal.code == MailboxCode.BAD_REQUEST

    def configure(self, wqs: Sequence[Wq | None]) -> None:
        """WQCFG and GRPCFG: all that are not None, with all engines, in group 0."""
        bitmap = 0
        for index, wq in enumerate(wqs):
            if wq is None:
                continue
            bitmap |= 1 << index
            at = 0x800 + 64 * index
            threshold = wq.size if wq.threshold is None else wq.threshold
            mode = wq.mode | wq.priority << 4
            if wq.pasid is not None:
                mode |= wq.pasid << 8 | 1 << 28
            self.write(at, wq.size)
            self.write(at + 4, threshold)
            self.write(at + 8, mode)
            self.write(at + 12, wq.max_transfer | wq.max_batch << 5)
        self.write(0x600, bitmap, 8)
        self.write(0x620, (1 << (self.read(0x38, 8) & 0xFF)) - 1, 8)

    def start(self, wqs: Sequence[Wq | None] | None = None, pasid: int = 1) -> None:
        """Everything up to enabled work queues. By default dedicated ones as they are, and shared
        ones with ``pasid``, which is bound for them."""
        self.set_bus_master()
        assert self.command(Command.RESET_DEVICE) == 0
        if self.shared:
            self.enable_pasid()
            self.bind(pasid)
            self.write(0x80, 1 << 12)  # GENCFG: work with a PASID may interrupt
        if wqs is None:
            modes = self.modes()
            size = self.total_size // self.wqs
            wqs = [Wq(size, mode, pasid=None if mode else pasid) for mode in modes]
        self.configure(wqs)
        assert self.command(Command.ENABLE_DEVICE) == 0
        for index, wq in enumerate(wqs):
            if wq is not None:
                assert self.command(Command.ENABLE_WQ, index) == 0
        self.find_rings()

    def modes(self) -> list[int]:
        """By the composition: dedicated work queues come first, one shared one last."""
        dedicated = self.wqs - self.shared if self.dedicated else 0
        return [WqMode.DEDICATED] * dedicated + [WqMode.SHARED] * (self.wqs - dedicated)

    # The channel

    def mailbox(self) -> int:
        at = self.extended(0x0B)
        assert self.client.config.read(at + 8, 4) == Region.BAR2
        return self.client.config.read(at + 12, 4)

    def ask(self, opcode: int, value: int) -> int:
        """The number that a request is answered with; MailboxRefusal if it is not."""
        at = self.mailbox()
        data = self.client.read(Region.BAR2, at, 4)
        half = self.client.read(Region.BAR2, at + 4, 4)
        self.client.write(Region.BAR2, data, 4, value)
        self.client.write(Region.BAR2, at + 0xC, 4, opcode | 4 << 16)
        deadline = time.monotonic() + TIMEOUT
        while not (status := self.client.read(Region.BAR2, at + 0x10, 4)) & 2:
            assert time.monotonic() < deadline, "the mailbox does not answer"
            time.sleep(0.001)
        if status >> 8 & 0xFF:
            raise MailboxRefusal(status >> 8 & 0xFF)
        return self.client.read(Region.BAR2, data + half, 4) if status >> 16 else 0

    # Work

    def find_rings(self) -> None:
        """Rings of the direct portals; after a work queue is enabled they begin at slot 0."""
        self.rings = {}
        for area in self.areas:
            for page in range(area.offset, area.offset + area.size, PAGE):
                wq, portal = divmod(page // PAGE, 4)
                if wq < self.wqs:
                    self.rings[wq, portal] = Ring(area, page - area.offset)

    @property
    def direct(self) -> bool:
        return bool(self.rings)

    def submit(self, wq: int, data: bytes, portal: int = LIMITED) -> bool:
        """True: accepted. False: retry (DMWr deferred)."""
        ring = self.rings.get((wq, portal))
        if ring is not None:
            return ring.submit(data)
        try:
            self.client.write_bytes(Region.BAR2, (4 * wq + portal) * PAGE, data)
        except ProtocolError as error:
            if error.errno == errno.EAGAIN:
                return False
            raise
        return True

    def prepare(self, operation: int, flags: int = 0, **fields: Any) -> tuple[bytes, int]:
        """A descriptor with a completion record of its own, and where that is."""
        record = self.memory.take(32, 32)
        return descriptor(operation, flags | VALID | REQUEST, completion=record, **fields), record

    def completion(self, record: int) -> Completion:
        return Completion.parse(self.memory.read(record, 32))

    def wait(self, record: int, timeout: float = TIMEOUT) -> Completion:
        """The completion record, once it is written."""
        deadline = time.monotonic() + timeout
        status = record - self.memory.base
        while not self.memory.buffer.view[status]:
            assert time.monotonic() < deadline, "no completion record is written"
            time.sleep(0)
        return self.completion(record)

    def run(
        self, wq: int, operation: int, flags: int = 0, portal: int = LIMITED, **fields: Any
    ) -> Completion:
        """Submit one descriptor, again while the answer is retry, and wait for it."""
        data, record = self.prepare(operation, flags, **fields)
        deadline = time.monotonic() + TIMEOUT
        while not self.submit(wq, data, portal):
            assert time.monotonic() < deadline, "retry, and no end of it"
        return self.wait(record)


ALLOCATE_ADI, RELEASE_ADI, BIND_PASID, UNBIND_PASID = 1, 2, 3, 4


class MailboxRefusal(Exception):
    """A request was refused with ``code``."""

    def __init__(self, code: int) -> None:
        super().__init__(f"mailbox code {code}")
        self.code = code


OPERATIONS = {
    name.removeprefix("DSA_OP_"): getattr(lib, name)
    for name in dir(lib)
    if name.startswith("DSA_OP_")
}
"""Codes of all operations by name."""
