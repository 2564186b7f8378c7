"""What a guest driver asks the VDCM for: ADIs, and PASIDs of its own (Scalable IOV, 4.4 and 3.3).

The mailbox (4.4.3) lies in BAR2 behind the portals; a vendor-specific capability says where. Its
requests and answers are little-endian 32-bit numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from vdcm import (
    Bar,
    Interrupts,
    Mailbox,
    MailboxCode,
    MailboxError,
    MailboxRequest,
    Observer,
    Pasid,
    RequestType,
    ResourceError,
    StateError,
    VendorSpecificExtended,
)
from vdcm_devices.dsa.codes import WqMode, WqState
from vdcm_devices.dsa.driver import DWQ, SHARE
from vdcm_devices.dsa.workqueue import WorkQueue

if TYPE_CHECKING:
    from vdcm_devices.dsa.vdev import DsaVdev

PAGE: Final = 0x1000
CHANNEL_SIZE: Final = 2 * PAGE
"""Bytes: a page of registers, a page of data."""
DATA_SIZE: Final = 64
MOST_PASIDS: Final = 256
"""PASIDs that one guest may have bound."""


class AdiKind(IntEnum):
    """What ALLOCATE_ADI takes."""

    DEDICATED = 0
    SHARED = 1


REQUESTS: Final = {
    "ALLOCATE_ADI": RequestType(
        1, 4, doc="An AdiKind. Answer: the work queue that has it. dsa-dynamic only."
    ),
    "RELEASE_ADI": RequestType(2, 4, doc="A work queue, disabled. dsa-dynamic only."),
    "BIND_PASID": RequestType(
        3, 4, doc="A PASID of the guest's choice: work that names it is in its own memory."
    ),
    "UNBIND_PASID": RequestType(
        4, 4, doc="A PASID; answered when the shared work queues have no work with it."
    ),
}


class ChannelPointer(VendorSpecificExtended):
    """Where the mailbox is: its BAR and the offset in it, 32 bits each."""

    ID: Final = 1

    def __init__(self, bar: int, offset: int) -> None:
        data = bar.to_bytes(4, "little") + offset.to_bytes(4, "little")
        super().__init__(self.ID, data=data, at=0x100)


class VdevPasid(Pasid):
    """The VDEV's PASID capability, which tells when the guest changes it."""

    def __init__(self, changed: Callable[[], None]) -> None:
        super().__init__(privileged=True, at=0x230)
        self._changed = changed

    def notify(self) -> None:
        super().notify()
        self._changed()


class Channel:
    """The mailbox of a VDEV and what its requests do. It is the mailbox's owner."""

    def __init__(self, vdev: DsaVdev, bar: Bar, at: int) -> None:
        self._vdev: Final = vdev
        self.mailbox: Final = Mailbox(
            self,
            REQUESTS,
            bar,
            at,
            data=at + PAGE,
            size=DATA_SIZE,
            vector=0,
            enabled=lambda: vdev.drivers[0].channel_enabled(vdev.name),
        )

    # What the mailbox uses.

    @property
    def name(self) -> str:
        return self._vdev.name

    @property
    def interrupts(self) -> Interrupts:
        return self._vdev.interrupts

    @property
    def observer(self) -> Observer | None:
        return self._vdev.observer

    # Requests.

    def on_request_ALLOCATE_ADI(self, request: MailboxRequest) -> bytes:
        vdev, kind = self._vdev, _number(request)
        if not vdev.dynamic or kind not in tuple(AdiKind):
            raise MailboxError(f"{vdev.name} composes no ADI of kind {kind} on request")
        queue = next((queue for queue in vdev.work_queues if queue.adi is None), None)
        if queue is None:
            raise MailboxError("all work queues have an ADI", MailboxCode.NO_RESOURCES)
        try:
            vdev.back(queue, DWQ if kind == AdiKind.DEDICATED else SHARE)
        except ResourceError as error:
            raise MailboxError(str(error), MailboxCode.NO_RESOURCES) from error
        return queue.index.to_bytes(4, "little")

    def on_request_RELEASE_ADI(self, request: MailboxRequest) -> bytes:
        vdev, index = self._vdev, _number(request)
        if not vdev.dynamic or index >= len(vdev.work_queues):
            raise MailboxError(f"{vdev.name} has no work queue {index} to give back")
        queue = vdev.work_queues[index]
        if queue.adi is None or queue.state is not WqState.DISABLED:
            raise MailboxError(f"WQ {index} is in use or has no ADI", MailboxCode.WRONG_STATE)
        vdev.unback(queue)
        return b""

    def on_request_BIND_PASID(self, request: MailboxRequest) -> bytes:
        if len(self._vdev.guest_pasids.bindings) >= MOST_PASIDS:
            raise MailboxError(f"{MOST_PASIDS} PASIDs are bound", MailboxCode.NO_RESOURCES)
        try:
            self._vdev.bind_pasid(_number(request))
        except StateError as error:
            raise MailboxError(str(error)) from error
        return b""

    def on_request_UNBIND_PASID(self, request: MailboxRequest) -> None:
        guest = _number(request)
        if guest not in self._vdev.guest_pasids.bindings:
            raise MailboxError(f"guest PASID {guest:#x} is not bound")
        busy = self._users(guest)
        if any(WqMode.DEDICATED in queue.modes for queue in busy):
            raise MailboxError(
                f"an enabled work queue has PASID {guest:#x}: disable it", MailboxCode.WRONG_STATE
            )
        left = len(busy) + 1

        def done() -> None:
            nonlocal left
            left -= 1
            if not left and request.pending:
                self._vdev.unbind_pasid(guest)
                request.complete()

        for queue in busy:
            queue.drain(done)
        done()

    def _users(self, guest: int) -> Sequence[WorkQueue]:
        """Enabled work queues that may have work with a guest's PASID."""
        found = []
        for queue, config in zip(self._vdev.work_queues, self._vdev.registers.WQMODE, strict=True):
            named = config.PASID_ENABLE and guest == config.PASID
            if queue.state is not WqState.DISABLED and (named or WqMode.SHARED in queue.modes):
                found.append(queue)
        return found


def _number(request: MailboxRequest) -> int:
    return int.from_bytes(request.data, "little")
