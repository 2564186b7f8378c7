"""Interrupt Message Storage: the messages of a parent's ADIs (Scalable IOV, 2.5.1 and 2.5.2).

It belongs to the host driver. A guest cannot see it: of an entry that is routed to a vector of its
VDEV it sees the interrupts, and the vector's pending bit (4.4.2). An ADI cannot see it either: the
engine has the list of each ADI's messages, and generates those only.
"""

from __future__ import annotations

import errno
import os
from typing import Any, Final

from vdcm._native import ffi, lib
from vdcm.errors import DeclarationError, ResourceError, StateError, VdcmError
from vdcm.interrupts import Interrupts

MAX_ENTRIES: Final[int] = lib.VDCM_IMS_MAX
_INDEX: Final = MAX_ENTRIES - 1
_MESSAGES: Final = range(0xFEE0_0000, 0xFEF0_0000, 4)
"""Where a write of four bytes is an interrupt on Intel 64 (2.5.2)."""


def remappable_address(index: int) -> int:
    """The address of a message that names entry ``index`` (0 to 65535) of the interrupt remapping
    table, which says where it goes (VT-d, 5.1.2.2). Its data is 0: there is no sub-handle."""
    return _MESSAGES.start | (index & 0x7FFF) << 5 | 1 << 4 | (index >> 15) << 2


class ImsEntry:
    """One message of an ADI, made by ``ImsStorage.allocate``.

    ``index`` is its place in the storage; ``handle`` (32 bits) is what the engine calls it, other
    for each allocation, so that a former owner raises nothing.

    ``raise_`` may be called by any thread, everything else by the event loop's only. Everything
    raises StateError once it has been released.
    """

    def __init__(self, storage: ImsStorage, handle: int) -> None:
        self.index: Final = handle & _INDEX
        self.handle: Final = handle
        self.vector: int | None = None
        """The MSI-X vector of the VDEV that it is routed to."""
        self._storage = storage
        self._interrupts: Interrupts | None = None

    def __repr__(self) -> str:
        return f"{self._storage.name} IMS entry {self.index}"

    def _check(self, result: int) -> int:
        if result == -errno.ENOENT:
            raise StateError(f"{self!r} has been released: allocate another one")
        if result == -errno.EMFILE:
            raise StateError(
                f"{self!r}: no file descriptor is left for its eventfd: raise the limit of open "
                "files (ulimit -n; systemd: LimitNOFILE=)"
            )
        if result < 0:
            raise VdcmError(f"{self!r}: {os.strerror(-result)}")
        return result

    @property
    def _state(self) -> Any:
        state = ffi.new("vdcm_ims_state *")
        self._check(lib.vdcm_ims_look(self._storage.native, self.handle, state))
        return state

    @property
    def address(self) -> int:
        """Where the message is written, 64 bits."""
        return int(self._state.address)

    @property
    def data(self) -> int:
        """What is written, 32 bits."""
        return int(self._state.data)

    @property
    def masked(self) -> bool:
        """By the host driver; the guest's masks are those of the vector."""
        return bool(self._state.masked)

    @property
    def pending(self) -> bool:
        """Raised while something held it back, and not delivered since."""
        return bool(self._state.pending)

    @property
    def raised(self) -> int:
        """How many times it has been raised."""
        return int(self._state.raised)

    @property
    def delivered(self) -> int:
        """Signals that it has given to the client's eventfd. What it shared with others of its
        vector when a mask ended is counted there (``Interrupts.delivered``)."""
        return int(self._state.delivered)

    def program(self, address: int, data: int) -> None:
        """Set the message: ``address`` in 0xFEE00000 to 0xFEEFFFFC, ``data`` 32 bits (2.5.2).

        Raises DeclarationError for what is no interrupt message.
        """
        if address not in _MESSAGES or not 0 <= data < 1 << 32:
            raise DeclarationError(
                f"{self!r}: {data:#x} to {address:#x} is no interrupt message: the address is a "
                f"multiple of 4 from {_MESSAGES[0]:#x} to {_MESSAGES[-1]:#x}, the data has 32 bits"
            )
        self._check(lib.vdcm_ims_program(self._storage.native, self.handle, address, data))

    def mask(self, masked: bool) -> None:
        """Hold it back, or no longer: then it is delivered once if it is pending."""
        self._check(lib.vdcm_ims_mask(self._storage.native, self.handle, masked))

    def route(self, interrupts: Interrupts, vector: int) -> None:
        """Make it an interrupt of MSI-X ``vector`` of a VDEV, and program it so.

        What is pending goes along to another vector of the same VDEV. Raises VdcmError, and leaves
        it unrouted, for a vector that there is not.
        """
        if interrupts is not self._interrupts:
            self.unroute()
        self._disconnect()
        self.program(remappable_address(self.index), 0)
        interrupts.connect(vector, self)
        self._interrupts, self.vector = interrupts, vector

    def unroute(self) -> None:
        """Take it from its vector, if it has one; what is pending is forgotten."""
        self._disconnect()
        self.clear()

    def _disconnect(self) -> None:
        if self._interrupts is not None and self.vector is not None:
            self._interrupts.disconnect(self.vector, self)
        self._interrupts = self.vector = None

    def raise_(self) -> None:
        """Generate the message, as its ADI would."""
        self._check(lib.vdcm_ims_raise(self._storage.native, self.handle))

    def release(self) -> None:
        """Give it back. A raise in progress is finished first, none comes after."""
        self.unroute()
        self._check(lib.vdcm_ims_release(self._storage.native, self.handle))
        self._storage._released(self)

    def describe(self) -> dict[str, Any]:
        """What it holds, JSON-able."""
        state = self._state
        return {
            "index": self.index,
            "address": state.address,
            "data": state.data,
            "vector": self.vector,
            "masked": state.masked,
            "pending": state.pending,
            "raised": state.raised,
            "delivered": state.delivered,
        }

    # What Interrupts calls (interrupts.MessageSource).

    def bind(self, eventfd: int) -> None:
        self._check(lib.vdcm_ims_route(self._storage.native, self.handle, eventfd))

    def block(self, blocked: bool) -> None:
        self._check(lib.vdcm_ims_block(self._storage.native, self.handle, blocked))

    def take(self) -> bool:
        return bool(self._check(lib.vdcm_ims_take(self._storage.native, self.handle)))

    def clear(self) -> None:
        self._check(lib.vdcm_ims_clear(self._storage.native, self.handle))


class ImsStorage:
    """The Interrupt Message Storage of parent ``name``: 1 to 65536 ``entries``.

    ``native`` is its ``vdcm_ims *``; keep the storage for as long as a sweep may raise from it.
    """

    def __init__(self, entries: int, name: str) -> None:
        if not 0 < entries <= MAX_ENTRIES:
            raise DeclarationError(f"{name}: IMS has 1 to {MAX_ENTRIES} entries, not {entries}")
        self.name: Final = name
        self.size: Final = entries
        native = lib.vdcm_ims_new(entries)
        if native == ffi.NULL:
            raise VdcmError(f"{name}: IMS of {entries} entries: {os.strerror(ffi.errno)}")
        self.native: Final = ffi.gc(native, lib.vdcm_ims_free)
        self._entries: dict[int, ImsEntry] = {}

    @property
    def free(self) -> int:
        """How many entries can be allocated."""
        return self.size - len(self._entries)

    def allocate(self) -> ImsEntry:
        """An entry that is routed nowhere; ResourceError if all are in use."""
        handle = ffi.new("uint32_t *")
        result = lib.vdcm_ims_allocate(self.native, handle)
        if result == -errno.ENOSPC:
            raise ResourceError(
                f"{self.name}: all {self.size} IMS entries are in use: release ADIs, or define the "
                "parent with more entries"
            )
        if result < 0:
            raise VdcmError(f"{self.name}: IMS entry: {os.strerror(-result)}")
        entry = ImsEntry(self, handle[0])
        self._entries[entry.index] = entry
        return entry

    def _released(self, entry: ImsEntry) -> None:
        del self._entries[entry.index]

    def describe(self) -> dict[str, Any]:
        """Its size and the entries in use, JSON-able."""
        used = (self._entries[index] for index in sorted(self._entries))
        return {
            "size": self.size,
            "free": self.free,
            "entries": [entry.describe() for entry in used],
        }
