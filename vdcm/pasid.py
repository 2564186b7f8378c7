"""Process Address Space IDs: one table for all parents and VDEVs (Scalable IOV, 3.1 and 3.3).

A PASID is 20 bits wide (PCI Express, "PASID TLP Prefix"). Every access that a device makes to
memory names one; the table says which address space it stands for. The table is in C, where the
sweep looks it up; here is who may enter what into it.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Any, Final, Protocol

from vdcm._native import ffi, lib
from vdcm.errors import DmaError, StateError

log = logging.getLogger("vdcm.pasid")

PASID_BITS: Final = 20
PASID_LIMIT: Final = 1 << PASID_BITS
GUEST_PASID_LIMIT: Final[int] = lib.VDCM_GUEST_PASID_LIMIT
"""Bindings of guest PASIDs that one VDEV can have."""


class Translation(IntEnum):
    """How the addresses of an address space are translated (3.1)."""

    PASS_THROUGH = lib.VDCM_PASS_THROUGH
    SECOND_LEVEL = lib.VDCM_SECOND_LEVEL
    FIRST_LEVEL = lib.VDCM_FIRST_LEVEL
    NESTED = lib.VDCM_NESTED


class Page:
    """A page of memory of our own that C may be given in place of the guest's."""

    SIZE: Final = mmap.PAGESIZE

    def __init__(self) -> None:
        self.data: Final = mmap.mmap(-1, self.SIZE)
        self._keep: Final = ffi.from_buffer(self.data)
        self.address: Final = int(ffi.cast("uintptr_t", self._keep))


class PageSource(Protocol):
    """Where the pages of a domain on tape come from (native/tape.c)."""

    def reach(self, address: int, *, write: bool) -> Page:
        """What stands for the page at ``address``; DmaError if there is none. It is C's until the
        call or step is over that has asked for it."""


@ffi.def_extern(error=errno.EFAULT)  # type: ignore[untyped-decorator]
def vdcm_on_reach(owner: Any, page: int, write: bool, memory: Any) -> int:
    source: PageSource = ffi.from_handle(owner)
    try:
        memory[0] = ffi.cast("void *", source.reach(page, write=write).address)
    except DmaError:
        return errno.EFAULT
    except Exception:
        log.exception("a page at %#x", page)
        return errno.EFAULT
    return 0


class Domain:
    """What C has of an address space of mapped memory: its kind, and the memory itself.

    Second-level and pass-through are of this sort; first-level and nested translation bring a
    domain with a ``reach`` of their own (native/memory.h).
    """

    def __init__(self, kind: Translation) -> None:
        self.kind: Final = kind
        self.native: Final = ffi.gc(lib.vdcm_domain_new(kind), lib.vdcm_domain_free)
        if self.native == ffi.NULL:
            raise MemoryError
        self._tape: Any = None

    def tape(self, source: PageSource) -> None:
        """Have C get its pages from ``source``, for as long as there is this domain; who works with
        it is on a thread that Python may run on. StateError while it has faults."""
        self._tape = ffi.new_handle(source)
        if lib.vdcm_tape_begin(self.native, self._tape):
            raise StateError("the memory has faults (vdcm.testing): clear them first")

    def attach(self, memory: Any) -> None:
        """Stand for ``memory`` (a GuestMemory's ``native``) from now on; None: for none.

        When this returns, no reader is in the memory it stood for before. StateError if ``memory``
        belongs to another domain.
        """
        if lib.vdcm_domain_attach(self.native, ffi.NULL if memory is None else memory):
            raise StateError("the memory is that of another address space: detach it there first")

    def add_fault(
        self, address: int, size: int, *, reads: bool, writes: bool, after: int, times: int
    ) -> int:
        """Have accesses to ``size`` bytes at ``address`` fail, on purpose: ``after`` of them go
        well first, then ``times`` fail (64 bits each; native/memory.h). The fault's number.

        Raises DmaError for a range that is none, and when there are too many.
        """
        if not (0 <= address < 1 << 64 and 0 < size <= (1 << 64) - address):
            raise DmaError(f"{size:#x} bytes at {address:#x}: addresses have 64 bits")
        last = address + size - 1
        rule = ffi.new("vdcm_dma_fault *", (address, last, after, times, reads, writes))
        number = lib.vdcm_fault_add(self.native, rule)
        if number < 0:
            raise DmaError(f"no more than {lib.VDCM_FAULT_MAX} faults: {os.strerror(-number)}")
        return int(number)

    def fault_hits(self, number: int) -> int:
        """How many accesses a fault has made fail."""
        hits = ffi.new("uint64_t *")
        lib.vdcm_fault_hits(self.native, number, hits)
        return int(hits[0])

    def remove_fault(self, number: int) -> None:
        """When this returns, nothing fails by it any more."""
        lib.vdcm_fault_remove(self.native, number)


class AddressSpace(Protocol):
    """What a PASID stands for: pass-through, second-level, first-level or nested translation."""

    @property
    def domain(self) -> Domain:
        """The same address space for C."""

    @property
    def base(self) -> AddressSpace:
        """The address space in whose addresses its own end; a nested one's is second-level.

        One that is not built on another is its own base.
        """

    def read(self, iova: int, length: int) -> bytes:
        """``length`` bytes at ``iova``; DmaError if any of them cannot be read."""

    def write(self, iova: int, data: bytes | bytearray | memoryview) -> None:
        """Write ``data`` at ``iova``; DmaError, and nothing written, if any of it cannot be."""


class PasidTable:
    """PASIDs in use and the address space behind each.

    PASID 0 is never given out: it is what requests without a PASID commonly mean. A released PASID
    is not given out again before all others have been, so that a stale one fails instead of
    reaching somebody else's memory.

    There is one table in C; ``pasids`` are those of it that this object gives out.
    """

    def __init__(self, pasids: range = range(1, PASID_LIMIT)) -> None:
        self._pasids = pasids
        self._next = 0
        self._spaces: dict[int, AddressSpace] = {}
        self._guests: dict[int, int] = {}  # guest PASIDs that stand for it, if any do

    def allocate(self, space: AddressSpace) -> int:
        """A PASID that stands for ``space``; StateError if all (2**20 - 1) are in use."""
        tries = len(self._pasids) if len(self._spaces) < len(self._pasids) else 0
        for _ in range(tries):
            pasid = self._pasids[self._next]
            self._next = (self._next + 1) % len(self._pasids)
            result = lib.vdcm_pasid_set(pasid, space.domain.native)
            if result == 0:
                self._spaces[pasid] = space
                return pasid
            if result != -errno.EEXIST:
                raise MemoryError(os.strerror(-result))
        raise StateError(f"all {len(self._pasids)} PASIDs are in use: stop a VDEV first")

    def release(self, pasid: int) -> None:
        """Take ``pasid`` out of use; when this returns, nothing is reached by it any more.

        StateError if it is not in use, or a guest PASID still stands for it.
        """
        if pasid not in self._spaces:
            raise StateError(f"PASID {pasid:#x} is not in use")
        if pasid in self._guests:
            raise StateError(
                f"PASID {pasid:#x} has {self._guests[pasid]} guest PASIDs: unbind them first"
            )
        lib.vdcm_pasid_set(pasid, ffi.NULL)
        del self._spaces[pasid]

    def space(self, pasid: int) -> AddressSpace:
        """The address space of ``pasid``; DmaError if it stands for none."""
        try:
            return self._spaces[pasid]
        except KeyError:
            raise DmaError(f"PASID {pasid:#x} stands for no address space") from None

    def keep(self, pasid: int) -> None:
        """A guest PASID stands for ``pasid`` from now on, which is not released meanwhile."""
        self._guests[pasid] = self._guests.get(pasid, 0) + 1

    def let_go(self, pasid: int) -> None:
        """A guest PASID no longer stands for ``pasid``."""
        self._guests[pasid] -= 1
        if not self._guests[pasid]:
            del self._guests[pasid]

    def __len__(self) -> int:
        return len(self._spaces)


PASIDS: Final = PasidTable()
"""The system-wide table: there is one host, so there is one."""


class GuestPasids:
    """Guest PASID -> host PASID of one VDEV: the PASID translation table (3.3).

    Only host PASIDs of the VDEV's own memory can be bound: those whose address space has ``base``
    at its bottom. A host PASID stays in use for as long as it is bound, so a translation cannot
    lead to a PASID that has become somebody else's.
    """

    def __init__(
        self,
        base: AddressSpace,
        *,
        limit: int = GUEST_PASID_LIMIT,
        table: PasidTable = PASIDS,
    ) -> None:
        if not 1 <= limit <= GUEST_PASID_LIMIT:
            raise StateError(f"1 to {GUEST_PASID_LIMIT} guest PASIDs can be bound, not {limit}")
        self.limit: Final = limit
        self.native: Final = ffi.gc(lib.vdcm_pasid_map_new(limit), lib.vdcm_pasid_map_free)
        """For the sweep, which must be done with it before this object goes."""
        if self.native == ffi.NULL:
            raise MemoryError
        self._base = base
        self._table = table
        self._hosts: dict[int, int] = {}

    def bind(self, guest: int, host: int) -> None:
        """Translate ``guest`` to ``host`` from now on.

        StateError if ``guest`` is bound or has more than 20 bits, if ``limit`` are bound, or if
        ``host`` is no PASID of this VDEV's memory.
        """
        if not 0 <= guest < PASID_LIMIT:
            raise StateError(f"guest PASID {guest:#x}: a PASID has {PASID_BITS} bits")
        if guest in self._hosts:
            raise StateError(f"guest PASID {guest:#x} is bound: unbind it first")
        if len(self._hosts) == self.limit:
            raise StateError(f"all {self.limit} guest PASIDs are bound: unbind one first")
        try:
            own = self._table.space(host).base is self._base
        except DmaError as error:
            raise StateError(f"guest PASID {guest:#x} cannot be bound: {error}") from error
        if not own:
            raise StateError(
                f"guest PASID {guest:#x} cannot be bound: PASID {host:#x} is not of this VDEV"
            )
        result = lib.vdcm_pasid_map_bind(self.native, guest, host)
        if result:
            raise MemoryError(os.strerror(-result))
        self._hosts[guest] = host
        self._table.keep(host)

    def unbind(self, guest: int) -> None:
        """``guest`` stands for nothing from now on; StateError if it is not bound."""
        if guest not in self._hosts:
            raise StateError(f"guest PASID {guest:#x} is not bound")
        lib.vdcm_pasid_map_unbind(self.native, guest)
        self._table.let_go(self._hosts.pop(guest))

    def clear(self) -> None:
        """Unbind all, as a reset of the VDEV does."""
        for guest in list(self._hosts):
            self.unbind(guest)

    def translate(self, guest: int) -> int:
        """The host PASID behind ``guest``; DmaError if there is none."""
        try:
            return self._hosts[guest]
        except KeyError:
            raise DmaError(f"guest PASID {guest:#x} is bound to no PASID") from None

    @property
    def bindings(self) -> Mapping[int, int]:
        """Host PASID by guest PASID, as it is now."""
        return MappingProxyType(self._hosts)

    def __len__(self) -> int:
        return len(self._hosts)
