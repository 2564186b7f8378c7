"""A small driver for any NVMe controller, written from the specification alone (NVM Express base
1.4): it knows nothing of the model that it is to test. What carries its accesses is a ``Bus``.

    nvme = NvmeHost(bus)
    nvme.enable()
    queue = nvme.create_queue(1)
    nvme.write(queue, 0, b"x" * 512)
    assert nvme.read(queue, 0, 1) == b"x" * 512
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

PAGE = 4096
TIMEOUT = 20.0
CAP, VS, CC, CSTS, NSSR, AQA, ASQ, ACQ = 0x00, 0x08, 0x14, 0x1C, 0x20, 0x24, 0x28, 0x30
DOORBELLS = 0x1000
READY, FATAL = 1, 2
FLUSH, WRITE, READ, COMPARE, WRITE_ZEROES, DATASET, VERIFY = 0, 1, 2, 5, 8, 9, 0xC
DELETE_SQ, CREATE_SQ, LOG, DELETE_CQ, CREATE_CQ, IDENTIFY = 0, 1, 2, 4, 5, 6
ABORT, SET, GET, EVENT, DBBUF, FORMAT = 8, 9, 0xA, 0xC, 0x7C, 0x80


class Bus(Protocol):
    """BAR0, and memory of the host at bus address ``base``."""

    base: int
    memory: memoryview

    def read(self, offset: int, width: int) -> int: ...
    def write(self, offset: int, width: int, value: int) -> None: ...
    def turn(self) -> None:
        """Give the controller time to do something."""


class Completion(NamedTuple):
    """``status``: type and code; ``result``: dword 0."""

    status: int
    result: int
    more: bool
    final: bool
    sqid: int
    head: int


class NvmeFailure(Exception):
    """A command ended with ``status``."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status:#05x}")
        self.status = status


@dataclass
class Pair:
    """A submission and a completion queue, as the host sees them."""

    sqid: int
    cqid: int
    sq: int
    cq: int
    entries: int
    tail: int = 0
    head: int = 0
    phase: int = 1


class NvmeHost:
    """``shadow``: addresses of shadow doorbells and event indices, once they are in use."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self._next = 0
        self._cid = 0
        self._done: dict[tuple[int, int], Completion] = {}
        self.shadow: tuple[int, int] | None = None
        self.doorbell_writes = 0
        self.admin_queue: Pair
        self.block_size = 512

    # Memory

    def take(self, size: int, align: int = PAGE) -> int:
        """The address of ``size`` zeros that nobody else has."""
        at = -(-self._next // align) * align
        self._next = at + size
        assert self._next <= len(self.bus.memory), "the host's memory is used up"
        self.poke(self.bus.base + at, bytes(size))
        return self.bus.base + at

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """What is taken meanwhile is nobody's afterwards."""
        before = self._next
        try:
            yield
        finally:
            self._next = before

    def peek(self, address: int, size: int) -> bytes:
        at = address - self.bus.base
        return bytes(self.bus.memory[at : at + size])

    def poke(self, address: int, data: bytes) -> None:
        at = address - self.bus.base
        self.bus.memory[at : at + len(data)] = data

    # Registers

    def register(self, offset: int, width: int = 4) -> int:
        return self.bus.read(offset, width)

    def set_register(self, offset: int, value: int, width: int = 4) -> None:
        self.bus.write(offset, width, value)

    def wait_status(self, mask: int, value: int) -> int:
        deadline = time.monotonic() + TIMEOUT
        while (status := self.register(CSTS)) & mask != value:
            assert time.monotonic() < deadline, f"CSTS stays {status:#x}"
            self.bus.turn()
        return status

    def enable(self, entries: int = 16, page_shift: int = 12) -> None:
        """From reset to ready."""
        self._done.clear()
        self.shadow = None
        align = 1 << page_shift
        self.admin_queue = Pair(
            0, 0, self.take(64 * entries, align), self.take(16 * entries, align), entries
        )
        self.set_register(AQA, (entries - 1) << 16 | (entries - 1))
        self.set_register(ASQ, self.admin_queue.sq, 8)
        self.set_register(ACQ, self.admin_queue.cq, 8)
        self.set_register(CC, 4 << 20 | 6 << 16 | (page_shift - 12) << 7 | 1)
        self.wait_status(READY, READY)

    def disable(self) -> None:
        self.set_register(CC, self.register(CC) & ~1)
        self.wait_status(READY, 0)

    def shut_down(self) -> None:
        self.set_register(CC, self.register(CC) | 1 << 14)
        self.wait_status(3 << 2, 2 << 2)

    # Queues

    def ring(self, doorbell: int, value: int) -> None:
        """Write a doorbell, unless the shadow one says that nobody needs to hear of it (7.13)."""
        if self.shadow is not None and doorbell > 1:
            buffer, events = self.shadow
            old = struct.unpack("<I", self.peek(buffer + 4 * doorbell, 4))[0]
            self.poke(buffer + 4 * doorbell, struct.pack("<I", value))
            event = struct.unpack("<I", self.peek(events + 4 * doorbell, 4))[0]
            if (value - event - 1) & 0xFFFF >= (value - old) & 0xFFFF:
                return
        self.doorbell_writes += 1
        self.bus.write(DOORBELLS + 4 * doorbell, 4, value)

    def submit(self, pair: Pair, opcode: int, **fields: Any) -> int:
        """A command into a queue, and the doorbell; its identifier."""
        cid = self.put(pair, opcode, **fields)
        self.ring(2 * pair.sqid, pair.tail)
        return cid

    def put(
        self,
        pair: Pair,
        opcode: int,
        *,
        nsid: int = 0,
        prp1: int = 0,
        prp2: int = 0,
        flags: int = 0,
        cdw10: int = 0,
        cdw11: int = 0,
        cdw12: int = 0,
        cdw13: int = 0,
        cdw14: int = 0,
        cdw15: int = 0,
        cid: int | None = None,
    ) -> int:
        """The same without the doorbell."""
        if cid is None:
            self._cid = cid = (self._cid + 1) % 0xFFFF
        words = (cdw10, cdw11, cdw12, cdw13, cdw14, cdw15)
        entry = struct.pack("<BBHIQQQQ6I", opcode, flags, cid, nsid, 0, 0, prp1, prp2, *words)
        self.poke(pair.sq + 64 * pair.tail, entry)
        pair.tail = (pair.tail + 1) % pair.entries
        return cid

    def reap(self, pair: Pair) -> int:
        """Take the completions that are there; how many."""
        count = 0
        while True:
            data = self.peek(pair.cq + 16 * pair.head, 16)
            result, _, head, sqid, cid, status = struct.unpack("<IIHHHH", data)
            if status & 1 != pair.phase:
                break
            self._done[sqid, cid] = Completion(
                status >> 1 & 0x7FF, result, bool(status >> 14 & 1), bool(status >> 15), sqid, head
            )
            pair.head = (pair.head + 1) % pair.entries
            pair.phase ^= pair.head == 0
            count += 1
        if count:
            self.ring(2 * pair.cqid + 1, pair.head)
        return count

    def wait(self, pair: Pair, cid: int, timeout: float = TIMEOUT) -> Completion:
        deadline = time.monotonic() + timeout
        while (pair.sqid, cid) not in self._done:
            if not self.reap(pair):
                assert time.monotonic() < deadline, f"command {cid} is not completed"
                self.bus.turn()
        return self._done.pop((pair.sqid, cid))

    def completed(self, pair: Pair, cid: int) -> bool:
        """Without waiting."""
        self.reap(pair)
        return (pair.sqid, cid) in self._done

    # Admin commands

    def admin(self, opcode: int, **fields: Any) -> Completion:
        return self.wait(self.admin_queue, self.submit(self.admin_queue, opcode, **fields))

    def expect(self, opcode: int, **fields: Any) -> int:
        """The result of an admin command that succeeds; NvmeFailure if it does not."""
        completion = self.admin(opcode, **fields)
        if completion.status:
            raise NvmeFailure(completion.status)
        return completion.result

    def data_in(self, opcode: int, size: int, **fields: Any) -> bytes:
        """The data of an admin command that gives up to 2 pages."""
        address = self.take(size)
        self.expect(opcode, prp1=address, prp2=address + PAGE if size > PAGE else 0, **fields)
        return self.peek(address, size)

    def identify(self, cns: int, nsid: int = 0, cdw10: int = 0) -> bytes:
        return self.data_in(IDENTIFY, PAGE, nsid=nsid, cdw10=cns | cdw10)

    def log(self, page: int, size: int, offset: int = 0, *, retain: bool = False) -> bytes:
        dwords = size // 4 - 1
        return self.data_in(
            LOG,
            size,
            nsid=0xFFFF_FFFF,
            cdw10=page | retain << 15 | (dwords & 0xFFFF) << 16,
            cdw11=dwords >> 16,
            cdw12=offset & 0xFFFF_FFFF,
            cdw13=offset >> 32,
        )

    def create_cq(self, cqid: int, entries: int = 16, vector: int = 0, flags: int = 3) -> int:
        """Its address. ``flags``: physically contiguous, interrupts enabled."""
        address = self.take(16 * entries)
        self.expect(
            CREATE_CQ, prp1=address, cdw10=cqid | (entries - 1) << 16, cdw11=flags | vector << 16
        )
        return address

    def create_queue(
        self, qid: int, entries: int = 16, vector: int = 0, cqid: int | None = None
    ) -> Pair:
        """Both queues; with ``cqid`` the submission queue only. Their pairs share no state: who
        reaps a shared completion queue does so by one of them."""
        completion = self.create_cq(qid, entries, vector) if cqid is None else 0
        address = self.take(64 * entries)
        self.expect(
            CREATE_SQ,
            prp1=address,
            cdw10=qid | (entries - 1) << 16,
            cdw11=1 | (cqid or qid) << 16,
        )
        return Pair(qid, cqid or qid, address, completion, entries)

    def delete_queue(self, pair: Pair) -> None:
        self.expect(DELETE_SQ, cdw10=pair.sqid)
        self.expect(DELETE_CQ, cdw10=pair.cqid)

    def use_shadow_doorbells(self) -> None:
        buffers = self.take(PAGE), self.take(PAGE)
        self.expect(DBBUF, prp1=buffers[0], prp2=buffers[1])
        self.shadow = buffers

    # I/O commands

    def io(self, pair: Pair, opcode: int, nsid: int = 1, **fields: Any) -> Completion:
        return self.wait(pair, self.submit(pair, opcode, nsid=nsid, **fields))

    def prps(self, address: int, size: int) -> dict[str, int]:
        """PRP entries of [address, address + size), with a list where it needs one."""
        first = min(size, PAGE - address % PAGE)
        rest = list(range(address + first, address + size, PAGE))
        if len(rest) < 2:
            return {"prp1": address, "prp2": rest[0] if rest else 0}
        table = self.take(8 * len(rest))
        self.poke(table, struct.pack(f"<{len(rest)}Q", *rest))
        return {"prp1": address, "prp2": table}

    def write(self, pair: Pair, block: int, data: bytes, nsid: int = 1, cdw12: int = 0) -> None:
        address = self.take(len(data))
        self.poke(address, data)
        self._move(pair, WRITE, block, len(data), address, nsid, cdw12)

    def read(self, pair: Pair, block: int, blocks: int, nsid: int = 1) -> bytes:
        address = self.take(blocks * self.block_size)
        self._move(pair, READ, block, blocks * self.block_size, address, nsid, 0)
        return self.peek(address, blocks * self.block_size)

    def _move(
        self, pair: Pair, opcode: int, block: int, size: int, address: int, nsid: int, cdw12: int
    ) -> None:
        completion = self.io(
            pair,
            opcode,
            nsid,
            cdw10=block & 0xFFFF_FFFF,
            cdw11=block >> 32,
            cdw12=cdw12 | size // self.block_size - 1,
            **self.prps(address, size),
        )
        if completion.status:
            raise NvmeFailure(completion.status)
