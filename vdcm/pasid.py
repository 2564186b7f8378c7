"""Process Address Space IDs: one allocator for all parents and VDEVs (Scalable IOV, 3.1).

A PASID is 20 bits wide (PCI Express, "PASID TLP Prefix"). Every access that a device makes to
memory names one; the table says which address space it stands for.
"""

from __future__ import annotations

from typing import Final, Protocol

from vdcm.errors import DmaError, StateError

PASID_BITS: Final = 20
PASID_LIMIT: Final = 1 << PASID_BITS


class AddressSpace(Protocol):
    """What a PASID stands for: pass-through, second-level, first-level or nested translation."""

    def read(self, iova: int, length: int) -> bytes:
        """``length`` bytes at ``iova``; DmaError if any of them cannot be read."""

    def write(self, iova: int, data: bytes | bytearray | memoryview) -> None:
        """Write ``data`` at ``iova``; DmaError, and nothing written, if any of it cannot be."""


class PasidTable:
    """PASIDs in use and the address space behind each.

    PASID 0 is never given out: it is what requests without a PASID commonly mean. A released PASID
    is not given out again before all others have been, so that a stale one fails instead of
    reaching somebody else's memory.
    """

    def __init__(self) -> None:
        self._spaces: dict[int, AddressSpace] = {}
        self._next = 1

    def allocate(self, space: AddressSpace) -> int:
        """A PASID that stands for ``space``; StateError if all 2**20 - 1 are in use."""
        if len(self._spaces) >= PASID_LIMIT - 1:
            raise StateError(f"all {PASID_LIMIT - 1} PASIDs are in use: stop a VDEV first")
        while self._next in self._spaces:
            self._advance()
        pasid = self._next
        self._advance()
        self._spaces[pasid] = space
        return pasid

    def _advance(self) -> None:
        self._next = self._next % (PASID_LIMIT - 1) + 1

    def release(self, pasid: int) -> None:
        """Take ``pasid`` out of use; StateError if it is not in use."""
        if self._spaces.pop(pasid, None) is None:
            raise StateError(f"PASID {pasid:#x} is not in use")

    def space(self, pasid: int) -> AddressSpace:
        """The address space of ``pasid``; DmaError if it stands for none."""
        try:
            return self._spaces[pasid]
        except KeyError:
            raise DmaError(f"PASID {pasid:#x} stands for no address space") from None

    def __len__(self) -> int:
        return len(self._spaces)


PASIDS: Final = PasidTable()
"""The system-wide table: there is one host, so there is one."""
