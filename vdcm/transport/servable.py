"""What a VDEV has to offer to be served, and how it describes its regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from vdcm._native import lib
from vdcm.protocol import Area, Irq

if TYPE_CHECKING:
    from vdcm.transport.session import Session

MAX_AREAS: Final[int] = lib.VDCM_MAX_AREAS
"""Mappable areas of one region."""
LIBVFIO_USER_GENERATION: Final[int] = lib.vdcm_libvfio_user_generation()
"""1: libvfio-user as QEMU carried it (2022); 2: the API of later years."""


class IrqAction(IntEnum):
    """What a client did with the eventfds of a range of vectors."""

    BOUND = lib.VDCM_IRQ_BOUND
    UNBOUND = lib.VDCM_IRQ_UNBOUND
    MASKED = lib.VDCM_IRQ_MASKED
    UNMASKED = lib.VDCM_IRQ_UNMASKED


@dataclass(frozen=True)
class Stores:
    """Guest stores to [offset, offset + size) of a region that a device's C is given ahead of
    Python. ``function``: address of a ``vdcm_store`` (fastpath.h); ``argument``: what it gets. Both
    stay as long as there may be a client."""

    offset: int
    size: int
    function: int
    argument: int


@dataclass(frozen=True)
class RegionDescription:
    """What a client is told of a region.

    ``size`` in bytes. ``areas`` are page-aligned parts that may be mapped from ``fd`` (offset in
    the file = offset in the region); ``read_only`` are further ones for a client that promises to
    map them without write permission. ``stores``: some go to C first, while nobody observes.
    """

    index: int
    size: int
    fd: int = -1
    areas: Sequence[Area] = field(default=())
    read_only: Sequence[Area] = field(default=())
    stores: Stores | None = None


class Written(NamedTuple):
    """A client's write of a BAR: ``at`` a time (time.monotonic), ``seconds`` ago, and how many
    ``interrupts`` the VDCM has signalled since; those of ADIs are not among them."""

    region: int
    offset: int
    width: int
    value: int
    at: float
    seconds: float
    interrupts: int


class Servable(Protocol):
    """What a VDEV offers to be served. All calls come from the event loop, one at a time.

    ``read`` and ``write`` get widths of 1, 2, 4 or 8 bytes at any offset inside the region. An
    exception costs the client an error reply, nothing else.
    """

    @property
    def name(self) -> str: ...
    @property
    def observed(self) -> bool: ...
    def regions(self) -> Sequence[RegionDescription]: ...
    def vectors(self) -> Mapping[Irq, int]: ...
    def read(self, region: int, offset: int, width: int) -> int: ...
    def write(self, region: int, offset: int, width: int, value: int) -> None: ...
    def attached(self, session: Session) -> None: ...
    def detached(self) -> None: ...
    def reset(self) -> None: ...
    def dma_changed(self, iova: int, size: int, *, mapped: bool, shared: bool) -> None: ...
    def irqs_changed(self, kind: Irq, action: IrqAction, start: int, count: int) -> None: ...
    def repeated(
        self,
        region: int,
        where: tuple[int, int, int],
        times: int,
        seconds: float,
        written: Written | None,
    ) -> None:
        """After 4, 8, 16 ... reads of ``where`` (offset, width, value) with nothing in between;
        ``written`` was the last write before."""

    def silent(self, written: Written) -> None:
        """Nothing has followed that write for a second."""
