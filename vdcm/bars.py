"""BARs: pages with one policy each, registers in the intercepted ones, memory behind the others.

A page belongs to exactly one policy (Scalable IOV, 2.4 and 4.4.1: MMIO composition):

====================  ==============  ==================  ====================================
policy                guest read      guest write         for
====================  ==============  ==================  ====================================
``INTERCEPTED``       Python          Python              control and status registers
``DIRECT``            shared memory   shared memory       doorbells and tail pointers, swept
``MEMORY``            shared memory   shared memory       mailbox data, parameters
``WRITE_INTERCEPTED`` shared memory   Python              status that is read often
====================  ==============  ==================  ====================================

Of intercepted pages a device's C may have the stores first (``Bar.give_stores``).

Shared memory is a sealed memfd that the client maps. A client that does not map it reaches the same
bytes by message, so the behaviour is the same, only slower. Stock QEMU maps the pages of a BAR with
one protection; pages that are only write-intercepted are therefore offered to the native client
alone.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Final

from vdcm.errors import DeclarationError
from vdcm.pci import BarKind, BarLayout
from vdcm.protocol import Area
from vdcm.registers import RegisterMap, RegisterSpace
from vdcm.transport import MAX_AREAS, RegionDescription, Stores

PAGE: Final = os.sysconf("SC_PAGESIZE")
LARGEST: Final = 1 << 31
"""Bytes of the largest BAR, a 64-bit one too."""


class PagePolicy(Enum):
    """Who answers when the guest touches a page; see the table above."""

    INTERCEPTED = "intercepted"
    DIRECT = "direct"
    MEMORY = "memory"
    WRITE_INTERCEPTED = "write-intercepted"

    @property
    def shared(self) -> bool:
        """Guest reads come from shared memory."""
        return self is not PagePolicy.INTERCEPTED


@dataclass(frozen=True)
class Pages:
    """``size`` bytes of a BAR from ``offset`` on (both multiples of the page size), one policy."""

    offset: int
    size: int
    policy: PagePolicy

    @property
    def end(self) -> int:
        return self.offset + self.size


class Bar:
    """One base address register's region.

    ``size`` in bytes, a power of two (PCI 3.0, 6.2.5.1). ``pages`` lists what is not intercepted.
    Raises DeclarationError for a layout that cannot be.
    """

    def __init__(
        self,
        index: int,
        size: int,
        kind: BarKind = BarKind.MEMORY32,
        pages: Sequence[Pages] = (),
    ) -> None:
        self.layout: Final = BarLayout(index, size, kind)
        self.index: Final = index
        self.size: Final = size
        self.space: Final = RegisterSpace(f"BAR{index}", size)
        self.pages: Final = tuple(sorted(pages, key=lambda part: part.offset))
        self._fd = -1
        self._stores: Stores | None = None
        self._check_pages()
        if size > LARGEST:
            raise DeclarationError(
                f"BAR{index}: {size:#x} bytes are too many, at most {LARGEST:#x}"
            )
        # What lies outside needs no closer look, which most intercepted registers do.
        self._shared_from = self.pages[0].offset if self.pages else size
        self._shared_to = self.pages[-1].end if self.pages else 0
        self._memory: mmap.mmap | None = None
        if any(part.policy.shared for part in self.pages):
            self._fd = _sealed_memfd(f"vdcm-bar{index}", size)
            self._memory = mmap.mmap(self._fd, size)

    def _check_pages(self) -> None:
        if self.layout.kind is BarKind.IO and self.pages:
            raise DeclarationError(f"BAR{self.index}: an I/O BAR has no pages that can be mapped")
        end = 0
        for part in self.pages:
            where = f"BAR{self.index}: {part.policy.value} pages at {part.offset:#x}"
            if part.offset % PAGE or part.size % PAGE or part.size <= 0:
                raise DeclarationError(f"{where}: offset and size are multiples of {PAGE:#x}")
            if part.offset < end:
                raise DeclarationError(f"{where} overlap the ones before: a page has one policy")
            end = part.end
            if end > self.size:
                raise DeclarationError(f"{where} end at {end:#x}, beyond the BAR's {self.size:#x}")
        described = self.region()
        areas = len(described.areas) + len(described.read_only)
        if areas > MAX_AREAS:
            raise DeclarationError(
                f"BAR{self.index}: {areas} separate mappable areas, at most {MAX_AREAS}: "
                "put pages of one kind side by side"
            )

    def place(self, offset: int, registers: RegisterMap, prefix: str = "") -> None:
        """Put a register map at byte ``offset``, in pages where Python sees the writes; ``prefix``
        comes before its registers' names in traces.

        In write-intercepted pages the registers' values also appear in the shared memory, without
        running read handlers. Raises DeclarationError if it overlaps or lies in other pages.
        """
        for part in self.pages:
            if part.offset < offset + registers.size and offset < part.end:
                name = type(registers).__name__
                if part.policy is not PagePolicy.WRITE_INTERCEPTED:
                    raise DeclarationError(
                        f"BAR{self.index}: {name} at {offset:#x} lies in {part.policy.value} "
                        f"pages, whose accesses Python does not see"
                    )
                if offset < part.offset or offset + registers.size > part.end:
                    raise DeclarationError(
                        f"BAR{self.index}: {name} at {offset:#x} straddles pages of two policies"
                    )
                if registers.has_read_handlers:
                    raise DeclarationError(
                        f"BAR{self.index}: {type(registers).__name__} at {offset:#x} has on_read_ "
                        "handlers, which nothing runs in write-intercepted pages"
                    )
                registers.mirror(lambda at, size, value: self._store(offset + at, size, value))
        self.space.place(offset, registers, prefix)

    def give_stores(self, offset: int, size: int, function: int, argument: int) -> None:
        """Let the device's C have guest stores to intercepted pages before Python (fastpath.h,
        ``vdcm_store``): ``function`` is its address, ``argument`` what it gets, until ``close``.
        Python gets what it passes on; all of it while the VDEV is observed. One range for a BAR.
        """
        if self._stores is not None or not 0 <= offset < offset + size <= self.size:
            raise DeclarationError(f"BAR{self.index}: stores at {offset:#x}+{size:#x}: one range")
        if self.policy(offset, size) is not PagePolicy.INTERCEPTED:
            raise DeclarationError(
                f"BAR{self.index}: stores at {offset:#x}+{size:#x} are not all intercepted"
            )
        self._stores = Stores(offset, size, function, argument)

    def view(self, offset: int, size: int) -> memoryview:
        """The shared memory of [offset, offset + size), writable.

        Raises DeclarationError if the BAR has no shared memory or the range leaves it.
        """
        if self._memory is None or not 0 <= offset <= offset + size <= self.size:
            raise DeclarationError(f"BAR{self.index} has no shared memory at {offset:#x}+{size:#x}")
        return memoryview(self._memory)[offset : offset + size]

    @property
    def reader(self) -> Callable[[int, int], int]:
        """The quickest function that does what ``read`` does."""
        return self.read if self.pages else self.space.read

    @property
    def writer(self) -> Callable[[int, int, int], None]:
        """The quickest function that does what ``write`` does."""
        return self.write if self.pages else self.space.write

    def read(self, offset: int, width: int) -> int:
        """A guest's read of 1, 2, 4 or 8 bytes that came by message."""
        if offset + width <= self._shared_from or offset >= self._shared_to:
            return self.space.read(offset, width)
        policy = self.policy(offset, width)
        if policy is PagePolicy.INTERCEPTED:
            return self.space.read(offset, width)
        if policy is None:
            return sum(self.read(offset + i, 1) << 8 * i for i in range(width))
        return int.from_bytes(self.view(offset, width), "little")

    def write(self, offset: int, width: int, value: int) -> None:
        """A guest's write of 1, 2, 4 or 8 bytes that came by message."""
        if offset + width <= self._shared_from or offset >= self._shared_to:
            self.space.write(offset, width, value)
            return
        policy = self.policy(offset, width)
        if policy in (PagePolicy.INTERCEPTED, PagePolicy.WRITE_INTERCEPTED):
            self.space.write(offset, width, value)
        elif policy is None:
            for i in range(width):
                self.write(offset + i, 1, value >> 8 * i & 0xFF)
        else:
            self._store(offset, width, value & ((1 << 8 * width) - 1))

    def policy(self, offset: int, size: int) -> PagePolicy | None:
        """The policy of [offset, offset + size); None if that straddles two."""
        for part in self.pages:
            if part.offset < offset + size and offset < part.end:
                return part.policy if part.offset <= offset <= part.end - size else None
        return PagePolicy.INTERCEPTED

    def _store(self, offset: int, width: int, value: int) -> None:
        self.view(offset, width)[:] = value.to_bytes(width, "little")

    def region(self) -> RegionDescription:
        """What clients are told of this BAR."""
        writable = [p for p in self.pages if p.policy in (PagePolicy.DIRECT, PagePolicy.MEMORY)]
        read_only = [p for p in self.pages if p.policy is PagePolicy.WRITE_INTERCEPTED]
        return RegionDescription(
            self.index,
            self.size,
            fd=self._fd,
            areas=self._areas(writable),
            read_only=self._areas(read_only),
            stores=self._stores,
        )

    @staticmethod
    def _areas(pages: Sequence[Pages]) -> list[Area]:
        """Neighbours joined: a client has to map fewer of them."""
        areas: list[Area] = []
        for part in pages:
            if areas and areas[-1].end == part.offset:
                areas[-1] = Area(areas[-1].offset, areas[-1].size + part.size)
            else:
                areas.append(Area(part.offset, part.size))
        return areas

    def reset(self) -> None:
        """Registers to their reset values, shared memory to zero."""
        if self._memory is not None:
            # The pages are given back, not written: a large BAR of which little was used stays so.
            for part in self.pages:
                if part.policy.shared:
                    self._memory.madvise(mmap.MADV_REMOVE, part.offset, part.size)
        self.space.reset()

    def close(self) -> None:
        """Give the memory back; what a model has views of, with the last of them."""
        if self._memory is not None:
            with suppress(BufferError):
                self._memory.close()
            os.close(self._fd)
            self._memory, self._fd = None, -1


def _sealed_memfd(name: str, size: int) -> int:
    """A memfd that nobody, a client neither, can shrink: a touch beyond its end would kill us."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd
