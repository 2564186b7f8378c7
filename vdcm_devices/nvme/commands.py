"""Admin commands (NVM Express 1.4, 5)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from vdcm_devices.nvme import identify
from vdcm_devices.nvme.codes import (
    ALL_NAMESPACES,
    Cns,
    LogPage,
    NvmeError,
    Opcode,
    Status,
)
from vdcm_devices.nvme.command import PRP1, PRP2, Command, Pointer
from vdcm_devices.nvme.datapath import MAX_TRANSFER

if TYPE_CHECKING:
    from vdcm_devices.nvme.controller import Controller

NSID: Final = 4
CDW10, CDW11, CDW12, CDW14 = 40, 44, 48, 56
FUSE_AND_POINTER: Final = 0xC3
"""Bits of byte 1: fused operations and SGLs, neither of which admin commands have (4.2, 4.3)."""


class Commands:
    """What the admin queue of ``controller`` asks for."""

    def __init__(self, controller: Controller) -> None:
        self._controller: Final = controller
        self._handlers: Final[Mapping[int, Callable[[Command], int | None]]] = {
            Opcode.DELETE_SQ: self._delete_sq,
            Opcode.CREATE_SQ: self._create_sq,
            Opcode.GET_LOG_PAGE: self._get_log_page,
            Opcode.DELETE_CQ: self._delete_cq,
            Opcode.CREATE_CQ: self._create_cq,
            Opcode.IDENTIFY: self._identify,
            Opcode.ABORT: self._abort,
            Opcode.SET_FEATURES: self._set_features,
            Opcode.GET_FEATURES: self._get_features,
            Opcode.ASYNC_EVENT: self._async_event,
            Opcode.DOORBELL_BUFFER: self._doorbell_buffer,
            Opcode.FORMAT: self._format,
        }

    @property
    def opcodes(self) -> list[Opcode]:
        """What there is on this controller."""
        missing = () if self._controller.host.shadow else (Opcode.DOORBELL_BUFFER,)
        return [opcode for opcode in Opcode if opcode not in missing]

    def execute(self, command: Command) -> int | None:
        """Dword 0 of the completion; None if it comes later. NvmeError for any other status."""
        if command.opcode not in self.opcodes:
            raise NvmeError(Status.INVALID_OPCODE, 0)
        if command.flags & FUSE_AND_POINTER:
            raise NvmeError(Status.INVALID_FIELD, 1)
        return self._handlers[command.opcode](command)

    def _pointer(self, command: Command, length: int) -> Pointer:
        return Pointer(self._controller.host, command, length, self._controller.page)

    # Queues.

    def _create_cq(self, command: Command) -> int:
        controller = self._controller
        controller.host.io_queues.create_completion(
            command, controller.page, controller.entry_sizes
        )
        controller.apply_features()
        return 0

    def _create_sq(self, command: Command) -> int:
        controller = self._controller
        controller.host.io_queues.create_submission(
            command, controller.page, controller.entry_sizes
        )
        return 0

    def _delete_sq(self, command: Command) -> None:
        self._controller.host.io_queues.delete_submission(command, self._controller.later(command))

    def _delete_cq(self, command: Command) -> int:
        self._controller.host.io_queues.delete_completion(command)
        return 0

    # What there is.

    def _identify(self, command: Command) -> int:
        self._pointer(command, identify.SIZE).write(self._structure(command))
        return 0

    def _structure(self, command: Command) -> bytes:
        namespaces, nsid = self._controller.host.all_namespaces, command.nsid
        try:
            cns = Cns(command.cdw10 & 0xFF)
        except ValueError:
            raise NvmeError(Status.INVALID_FIELD, CDW10) from None
        if cns is Cns.CONTROLLER:
            return identify.controller(self._controller.host.facts())
        if cns in (Cns.ACTIVE_NAMESPACES, Cns.ALLOCATED_NAMESPACES):
            if nsid >= ALL_NAMESPACES - 1:
                raise NvmeError(Status.INVALID_NAMESPACE, NSID)
            return identify.namespace_list(namespaces, nsid)
        if cns is Cns.CONTROLLERS:
            return identify.controller_list(command.cdw10 >> 16)
        # The others are of one namespace, and those that there may be all are (6.1).
        if nsid not in namespaces:
            raise NvmeError(Status.INVALID_NAMESPACE, NSID)
        if cns is Cns.CONTROLLERS_OF_NAMESPACE:
            return identify.controller_list(command.cdw10 >> 16)
        facts = namespaces.facts(nsid)
        if cns is Cns.DESCRIPTORS:
            return identify.descriptors(facts)
        return identify.namespace(facts)

    def _get_log_page(self, command: Command) -> int:
        try:
            page = LogPage(command.cdw10 & 0xFF)
        except ValueError:
            raise NvmeError(Status.INVALID_LOG_PAGE, CDW10) from None
        if command.nsid not in (0, ALL_NAMESPACES):  # all are of the controller (LPA, bit 0)
            raise NvmeError(Status.INVALID_FIELD, NSID)
        if command.cdw14 & 0x7F:  # a UUID list there is not
            raise NvmeError(Status.INVALID_FIELD, CDW14)
        length = 4 * ((command.cdw10 >> 16 | (command.cdw11 & 0xFFFF) << 16) + 1)
        offset = command.cdw12 | command.cdw13 << 32
        if length > MAX_TRANSFER:
            raise NvmeError(Status.INVALID_FIELD, CDW10 + 2)
        data = self._controller.log_page(page)
        if offset % 4 or offset > len(data):
            raise NvmeError(Status.INVALID_FIELD, CDW12)
        part = data[offset : offset + length]
        self._pointer(command, length).write(part.ljust(length, b"\0"))
        if not command.cdw10 >> 15 & 1:  # Retain Asynchronous Event
            self._controller.acknowledge(page)
        return 0

    # Features.

    def _set_features(self, command: Command) -> int:
        return self._controller.features.set(
            command, lambda size: self._pointer(command, size).read()
        )

    def _get_features(self, command: Command) -> int:
        result, data = self._controller.features.get(command)
        if data:
            self._pointer(command, len(data)).write(data)
        return result

    # The rest.

    def _abort(self, command: Command) -> int:
        """Of what the admin queue holds only event requests last; what an I/O queue has taken it
        finishes. Bit 0: not aborted (5.1)."""
        sqid, cid = command.cdw10 & 0xFFFF, command.cdw10 >> 16
        if sqid and sqid not in self._controller.host.io_queues.submission:
            raise NvmeError(Status.INVALID_FIELD, CDW10)
        return int(sqid != 0 or not self._controller.events.abort(cid))

    def _async_event(self, command: Command) -> None:
        self._controller.events.request(command.cid)

    def _doorbell_buffer(self, command: Command) -> int:
        """5.7: shadow doorbells, and how far they were looked at."""
        for address, at in ((command.prp1, PRP1), (command.prp2, PRP2)):
            if not address or address % self._controller.page:
                raise NvmeError(Status.INVALID_FIELD, at)
        with self._controller.host.io_queues.still():
            self._controller.host.native.set_shadow(command.prp1, command.prp2)
        return 0

    def _format(self, command: Command) -> None:
        self._controller.host.all_namespaces.format(command, self._controller.later(command))
