"""Access to memory, always by PASID, and the address spaces there are.

``read`` and ``write`` are the only ways from a device model to memory. Rule: there is no function
that touches guest memory without naming a PASID (Scalable IOV, 3.3).
"""

from __future__ import annotations

from typing import Final

from vdcm.errors import DmaError
from vdcm.pasid import PASIDS, AddressSpace, Domain, Translation
from vdcm.transport import DmaRange, GuestMemory


def read(pasid: int, iova: int, length: int) -> bytes:
    """``length`` bytes of the address space of ``pasid``; DmaError if they cannot be read."""
    try:
        return PASIDS.space(pasid).read(iova, length)
    except DmaError as error:
        raise DmaError(f"PASID {pasid:#x}: {error}") from error


def write(pasid: int, iova: int, data: bytes | bytearray | memoryview) -> None:
    """Write to the address space of ``pasid``; DmaError, and nothing written, if that fails."""
    try:
        PASIDS.space(pasid).write(iova, data)
    except DmaError as error:
        raise DmaError(f"PASID {pasid:#x}: {error}") from error


class _Mapped:
    """An address space of memory that is mapped here, and not built on another one."""

    def __init__(self, kind: Translation) -> None:
        self.domain: Final = Domain(kind)
        self._memory: GuestMemory | None = None

    @property
    def base(self) -> AddressSpace:
        return self

    def _attach(self, memory: GuestMemory | None) -> None:
        self.domain.attach(memory.native if memory is not None else None)
        self._memory = memory

    def read(self, iova: int, length: int) -> bytes:
        return self._attached().read(iova, length)

    def write(self, iova: int, data: bytes | bytearray | memoryview) -> None:
        self._attached().write(iova, data)

    def _attached(self) -> GuestMemory:
        if self._memory is None:
            raise DmaError("no client is connected, so there is no guest memory")
        return self._memory


class SecondLevel(_Mapped):
    """The guest-physical address space of one VDEV: what its client has mapped for DMA.

    Second-level translation (Scalable IOV, 3.1): the PASID selects the table that the VMM fills,
    here by vfio-user DMA_MAP. Without a client there is no memory, and every access fails.
    """

    def __init__(self) -> None:
        super().__init__(Translation.SECOND_LEVEL)

    def attach(self, memory: GuestMemory) -> None:
        """Take the memory of the client that has connected; StateError if it is another's."""
        self._attach(memory)

    def detach(self) -> None:
        """The client has gone, and its memory with it: nothing is in it any more."""
        self._attach(None)

    @property
    def ranges(self) -> list[DmaRange]:
        """What the client has announced, in ascending order; empty without a client."""
        return self._memory.ranges if self._memory is not None else []


class PassThrough(_Mapped):
    """Memory of the host that the VDCM itself owns, at its own addresses (Scalable IOV, 3.1).

    The host's memory is the arena ``fd``, a memfd of at least ``size`` bytes (whole pages); an
    address is the offset in it. Never is it the memory of this process. The descriptor is not kept.
    DmaError if it cannot be mapped.
    """

    def __init__(self, fd: int, size: int) -> None:
        super().__init__(Translation.PASS_THROUGH)
        memory = GuestMemory()
        memory.map(0, size, fd)
        self._attach(memory)
