"""A machine for the data path of the NVMe controller: queues in guest memory, and a driver for them
that knows what the specification says and nothing of the C.
"""

from __future__ import annotations

import mmap
import struct
import time
from dataclasses import dataclass
from typing import Any, Final

from guest_machine import PAGE, PRIMARY, SECONDARY, GuestMachine, ffi

from vdcm_devices.nvme._fastpath import ffi as nvme_ffi
from vdcm_devices.nvme._fastpath import lib

FLUSH, WRITE, READ, COMPARE, ZEROES, DSM, VERIFY = 0x00, 0x01, 0x02, 0x05, 0x08, 0x09, 0x0C
FUA: Final = 1 << 30

SUCCESS = 0
INVALID_OPCODE, INVALID_FIELD, DATA_TRANSFER = 0x001, 0x002, 0x004
INVALID_NAMESPACE, INVALID_SEGMENT, DESCRIPTOR_COUNT = 0x00B, 0x00D, 0x00E
SGL_LENGTH, SGL_TYPE, PRP_OFFSET, WRITE_PROTECTED = 0x00F, 0x011, 0x013, 0x020
LBA_RANGE, CAPACITY, WRITE_FAULT, READ_ERROR, COMPARE_FAILURE = 0x080, 0x081, 0x280, 0x281, 0x285

SQ, CQ = 0x10_0000, 0x20_0000
SHADOW, EVENTIDX = 0x30_0000, 0x31_0000
PATIENCE = 20.0


def command(
    opcode: int,
    *,
    nsid: int = 1,
    prp1: int = 0,
    prp2: int = 0,
    slba: int = 0,
    blocks: int = 1,
    flags: int = 0,
    cdw12: int = 0,
    cid: int = 0,
    **words: int,
) -> bytes:
    """64 bytes of a submission queue entry (4.2); ``words``: cdw10 and so on, instead of LBAs."""
    cdw10 = words.get("cdw10", slba & 0xFFFF_FFFF)
    cdw11 = words.get("cdw11", slba >> 32)
    return struct.pack(
        "<BBHIQQQQIIIIII",
        opcode,
        flags,
        cid,
        nsid,
        0,
        0,
        prp1,
        prp2,
        cdw10,
        cdw11,
        cdw12 | ((blocks - 1) & 0xFFFF),
        0,
        0,
        0,
    )


@dataclass(frozen=True)
class Completion:
    """A completion queue entry (4.6); ``status``: type and code, without More and DNR."""

    status: int
    retry: bool
    more: bool
    cid: int
    sqid: int
    sqhd: int

    @classmethod
    def parse(cls, entry: bytes) -> Completion:
        _, _, sqhd, sqid, cid, status = struct.unpack("<IIHHHH", entry)
        return cls(status >> 1 & 0x7FF, not status & 0x8000, bool(status & 0x4000), cid, sqid, sqhd)


class Machine(GuestMachine):
    """A controller with a submission and a completion queue of ``entries``, and namespace 1.

    ``doorbells``: ``direct`` (a page of them), ``written`` (intercepted), or ``shadow``. ``store``
    makes the store; none: ``bytes`` of memory.
    """

    def __init__(
        self,
        *,
        entries: int = 16,
        cq_entries: int | None = None,
        doorbells: str = "direct",
        store: Any = None,
        size: int = 1 << 20,
        shift: int = 9,
        read_only: bool = False,
        interrupts: bool = True,
        **settings: int,
    ) -> None:
        super().__init__()
        self.doorbells = doorbells
        self.entries = entries
        self.cq_entries = cq_entries or entries
        self.shift = shift
        self.tail = self.head = 0
        self.phase = 1
        self.exits = 0
        self.next_cid = 0
        self.controller = lib.nvme_controller_new(self.services)
        self.store = store if store is not None else lib.nvme_store_ram(size)
        self.configure(**settings)
        self.page = mmap.mmap(-1, PAGE)
        if doorbells == "direct":
            self._keep = nvme_ffi.from_buffer(self.page)
            address = int(nvme_ffi.cast("uintptr_t", self._keep))
            assert lib.nvme_doorbells_set(self.controller, address) == 0
        if doorbells == "shadow":
            self.map(SHADOW, PAGE, pasid=SECONDARY)
            self.map(EVENTIDX, PAGE, pasid=SECONDARY)
            assert lib.nvme_shadow_set(self.controller, SHADOW, EVENTIDX) == 0
        blocks = size >> shift
        assert (
            lib.nvme_namespace_set(self.controller, 1, self.store, 0, blocks, shift, read_only) == 0
        )
        self.map(SQ, (64 * entries + PAGE - 1) & -PAGE, pasid=SECONDARY)
        self.map(CQ, (16 * self.cq_entries + PAGE - 1) & -PAGE, pasid=SECONDARY)
        self.cq = lib.nvme_cq_new(self.controller, 1, CQ, self.cq_entries, interrupts)
        self.sq = lib.nvme_sq_new(self.controller, 1, SQ, entries, self.cq)
        assert nvme_ffi.NULL not in (self.cq, self.sq)
        self.of(lib.nvme_fastpath(), self.sq)

    def of(self, table: int, device: Any) -> None:
        """What the sweep calls from now on."""
        self.fastpath = ffi.cast("vdcm_fastpath *", table)
        self.opaque = ffi.cast("void *", int(nvme_ffi.cast("uintptr_t", device)))

    def configure(self, **settings: int) -> None:
        values = {"page_shift": 12, "max_transfer": 1 << 20, **settings}
        native = nvme_ffi.new("nvme_settings *", values)
        assert lib.nvme_controller_configure(self.controller, native) == 0

    def close(self) -> None:
        if self.sq is not None:
            self.fastpath.closed(self.opaque)
            lib.nvme_sq_free(self.sq)
            assert lib.nvme_cq_free(self.cq) == 0
            lib.nvme_controller_free(self.controller)
            lib.nvme_store_free(self.store)
            self.sq = None

    # the guest's driver

    def write_memory(self, address: int, data: bytes, pasid: int = PRIMARY) -> None:
        r = self.find(pasid, address)
        assert r is not None
        ffi.memmove(r.memory + (address - r.address), data, len(data))

    def word(self, address: int) -> int:
        return int.from_bytes(self.read(address, 4, SECONDARY), "little")

    def ring(self, doorbell: int, value: int) -> None:
        """As the driver does: with doorbell buffers it writes the register only when asked to."""
        if self.doorbells == "direct":
            struct.pack_into("<I", self.page, 4 * doorbell, value)
            return
        if self.doorbells == "shadow":
            old = self.word(SHADOW + 4 * doorbell)
            self.write_memory(SHADOW + 4 * doorbell, value.to_bytes(4, "little"), SECONDARY)
            event = self.word(EVENTIDX + 4 * doorbell)
            if (value - event - 1) & 0xFFFF >= (value - old) & 0xFFFF:
                return
        assert lib.nvme_doorbell_write(self.controller, doorbell, value) == 0
        self.exits += 1

    def submit(self, *commands: bytes) -> list[int]:
        """Queues them and rings; their command identifiers."""
        cids = []
        for entry in commands:
            cids.append(self.next_cid)
            entry = entry[:2] + self.next_cid.to_bytes(2, "little") + entry[4:]
            self.next_cid = (self.next_cid + 1) & 0xFFFF
            self.write_memory(SQ + 64 * self.tail, entry, SECONDARY)
            self.tail = (self.tail + 1) % self.entries
        self.ring(2, self.tail)
        return cids

    def completions(self, *, ring: bool = True) -> list[Completion]:
        """Those that have come; ``ring``: their places are given back."""
        found = []
        while True:
            entry = self.read(CQ + 16 * self.head, 16, SECONDARY)
            if entry[14] & 1 != self.phase:
                break
            found.append(Completion.parse(entry))
            self.head = (self.head + 1) % self.cq_entries
            self.phase ^= self.head == 0
        if found and ring:
            self.ring(3, self.head)
        return found

    # what the sweep does

    @property
    def ready(self) -> bool:
        return bool(self.fastpath.ready(self.opaque))

    def rest(self) -> bool:
        return bool(self.fastpath.rest(self.opaque, ffi.NULL))

    def step(self, budget: int = 1 << 16) -> None:
        self.take()
        while self.ready:
            assert self.run(budget) > 0
            self.take()

    def execute(self, *commands: bytes, budget: int = 1 << 16) -> list[Completion]:
        """Runs them to the end; their completions in the order of submission."""
        cids = self.submit(*commands)
        found: dict[int, Completion] = {}
        deadline = time.monotonic() + PATIENCE
        while len(found) < len(cids):
            self.step(budget)
            for completion in self.completions():
                assert completion.cid not in found
                found[completion.cid] = completion
            assert time.monotonic() < deadline, "a command does not end"
        assert set(found) == set(cids)
        return [found[cid] for cid in cids]

    def one(self, entry: bytes, budget: int = 1 << 16) -> int:
        """Runs one; its status."""
        return self.execute(entry, budget=budget)[0].status

    def counters(self) -> Any:
        out = nvme_ffi.new("nvme_counters *")
        lib.nvme_count(self.controller, out)
        return out

    def look(self) -> Any:
        out = nvme_ffi.new("nvme_sq_state *")
        lib.nvme_sq_look(self.sq, out)
        return out

    def content(self) -> memoryview:
        """The bytes of a store that is memory."""
        address = lib.nvme_store_memory(self.store)
        size = lib.nvme_store_bytes(self.store)
        return memoryview(ffi.buffer(ffi.cast("uint8_t *", address), size))
