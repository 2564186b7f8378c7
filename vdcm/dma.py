"""Access to memory, always by PASID, and the address space of a VDEV.

``read`` and ``write`` are the only ways from a device model to memory. Rule: there is no function
that touches guest memory without naming a PASID (Scalable IOV, 3.3).
"""

from __future__ import annotations

from vdcm.errors import DmaError
from vdcm.pasid import PASIDS
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


class SecondLevel:
    """The guest-physical address space of one VDEV: what its client has mapped for DMA.

    Second-level translation (Scalable IOV, 3.3): the PASID selects the table that the VMM fills,
    here by vfio-user DMA_MAP. Without a client there is no memory, and every access fails.
    """

    def __init__(self) -> None:
        self._memory: GuestMemory | None = None

    def attach(self, memory: GuestMemory) -> None:
        """Take the memory of the client that has connected."""
        self._memory = memory

    def detach(self) -> None:
        """The client has gone, and its memory with it."""
        self._memory = None

    @property
    def ranges(self) -> list[DmaRange]:
        """What the client has announced, in ascending order; empty without a client."""
        return self._memory.ranges if self._memory is not None else []

    def read(self, iova: int, length: int) -> bytes:
        return self._attached().read(iova, length)

    def write(self, iova: int, data: bytes | bytearray | memoryview) -> None:
        self._attached().write(iova, data)

    def _attached(self) -> GuestMemory:
        if self._memory is None:
            raise DmaError("no client is connected, so there is no guest memory")
        return self._memory
