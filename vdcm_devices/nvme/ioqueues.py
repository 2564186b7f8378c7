"""The I/O queues of a controller: made and deleted by the guest, each on an ADI (NVM Express 1.4,
5.3 to 5.6)."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from vdcm import Adi, ResourceError
from vdcm_devices.nvme.codes import NvmeError, Status
from vdcm_devices.nvme.command import PRP1, Command
from vdcm_devices.nvme.driver import QUEUE_PAIR
from vdcm_devices.nvme.jobs import when

if TYPE_CHECKING:
    from vdcm_devices.nvme.vdev import NvmeVdev

CDW10, CDW11 = 40, 44
ENTRY_SIZES: Final = 4 << 4 | 6
"""CC.IOCQES and CC.IOSQES: log2 of the only sizes there are, 16 and 64 bytes."""


@dataclass
class CompletionQueue:
    cqid: int
    entries: int
    vector: int
    interrupts: bool


@dataclass
class Queue:
    """A submission queue and its ADI."""

    sqid: int
    entries: int
    cqid: int
    adi: Adi


class IoQueues:
    """``most``: the largest identifier; ``longest``: entries of the longest queue; ``vectors``:
    entries of the MSI-X table. What cannot be is an NvmeError with the specification's status."""

    def __init__(self, host: NvmeVdev, most: int, longest: int, vectors: int) -> None:
        self._host: Final = host
        self.most: Final = most
        self.longest: Final = longest
        self.vectors: Final = vectors
        self.completion: Final[dict[int, CompletionQueue]] = {}
        self.submission: Final[dict[int, Queue]] = {}
        self._deleting: Final[set[int]] = set()

    @property
    def allowed(self) -> int:
        """Pairs that the guest may have: no more than there are ADIs for, and at least one."""
        left = self._host.controller_adi.driver.available(QUEUE_PAIR) + len(self.submission)
        return max(1, min(self.most, left))

    # Commands. ``sizes`` is what CC says of the entries' sizes.

    def create_completion(self, command: Command, page: int, sizes: int) -> None:
        """Create I/O Completion Queue (5.3)."""
        cqid, entries = self._identity(command, self.completion, page, sizes, ENTRY_SIZES >> 4, 4)
        vector = command.cdw11 >> 16
        if vector >= self.vectors:
            raise NvmeError(Status.INVALID_VECTOR, CDW11 + 2)
        interrupts = bool(command.cdw11 >> 1 & 1)
        self._host.native.add_completion_queue(cqid, command.prp1, entries, interrupts)
        coalesced = self._host.controller.features.coalesces(vector)
        self._host.native.set_coalescing(cqid, coalesced)
        self.completion[cqid] = CompletionQueue(cqid, entries, vector, interrupts)

    def create_submission(self, command: Command, page: int, sizes: int) -> None:
        """Create I/O Submission Queue (5.4)."""
        cqid = command.cdw11 >> 16
        there = self.submission.keys() | self._deleting
        sqid, entries = self._identity(command, there, page, sizes, ENTRY_SIZES & 0xF, 0)
        if not 1 <= cqid <= self.most:
            raise NvmeError(Status.INVALID_QUEUE_ID, CDW11 + 2)
        completion = self.completion.get(cqid)
        if completion is None:
            raise NvmeError(Status.CQ_INVALID, CDW11 + 2)
        try:
            adi = self._host.add_adi(QUEUE_PAIR, (completion.vector,))
        except ResourceError as error:  # the host may do with fewer queues
            raise NvmeError(Status.INTERNAL_ERROR) from error
        try:
            adi.driver.configure(
                adi,
                controller=self._host.controller_adi.index,
                sqid=sqid,
                address=command.prp1,
                entries=entries,
                cqid=cqid,
                doorbells=self._host.direct,
            )
            adi.driver.enable(adi)
        except BaseException:
            self._host.remove_adi(adi)
            raise
        self.submission[sqid] = Queue(sqid, entries, cqid, adi)

    def _identity(
        self,
        command: Command,
        there: Container[int],
        page: int,
        sizes: int,
        size: int,
        shift: int,
    ) -> tuple[int, int]:
        """Identifier and entries of a queue to be made, with all that is checked of both kinds."""
        identifier, entries = command.cdw10 & 0xFFFF, (command.cdw10 >> 16) + 1
        if not 1 <= identifier <= self.most or identifier in there:
            raise NvmeError(Status.INVALID_QUEUE_ID, CDW10)
        if not 2 <= entries <= self.longest or sizes >> shift & 0xF != size:
            raise NvmeError(Status.INVALID_QUEUE_SIZE, CDW10 + 2)
        if not command.cdw11 & 1:  # CAP.CQR: in one piece of memory
            raise NvmeError(Status.INVALID_FIELD, CDW11)
        if command.prp1 % page:
            raise NvmeError(Status.PRP_OFFSET_INVALID, PRP1)
        return identifier, entries

    def delete_submission(self, command: Command, done: Callable[[Status], None]) -> None:
        """Delete I/O Submission Queue (5.6): what it has not finished is aborted. ``done`` hears of
        it when nothing of that is under way in files any more."""
        queue = self.submission.pop(command.cdw10 & 0xFFFF, None)
        if queue is None:
            raise NvmeError(Status.INVALID_QUEUE_ID, CDW10)
        self._host.remove_adi(queue.adi)
        self._deleting.add(queue.sqid)

        def drained() -> None:
            self._deleting.discard(queue.sqid)
            done(Status.SUCCESS)

        when(lambda: self._host.native.drained, drained)

    def delete_completion(self, command: Command) -> None:
        """Delete I/O Completion Queue (5.5)."""
        cqid = command.cdw10 & 0xFFFF
        if cqid not in self.completion:
            raise NvmeError(Status.INVALID_QUEUE_ID, CDW10)
        if any(queue.cqid == cqid for queue in self.submission.values()):
            raise NvmeError(Status.INVALID_QUEUE_DELETION, CDW10)
        self._host.native.remove_completion_queue(cqid)
        del self.completion[cqid]

    def clear(self) -> None:
        """The controller is reset: there are none, and their ADIs are given back."""
        for queue in self.submission.values():
            self._host.remove_adi(queue.adi)
        self.submission.clear()
        for cqid in self.completion:
            self._host.native.remove_completion_queue(cqid)
        self.completion.clear()

    # What they are told.

    def kick(self, doorbell: int) -> None:
        """Doorbell ``doorbell`` has been written: look at the queues that it concerns."""
        number, head = divmod(doorbell, 2)
        if not head:
            queues = [self.submission[number]] if number in self.submission else []
        else:
            queues = [queue for queue in self.submission.values() if queue.cqid == number]
        for queue in queues:
            for path in queue.adi.path.queues:
                path.kick()

    @contextmanager
    def still(self) -> Iterator[None]:
        """Nothing is taken or completed meanwhile; what was accepted is kept."""
        stopped = [queue.adi for queue in self.submission.values()]
        for adi in stopped:
            adi.driver.suspend(adi)
        try:
            yield
        finally:
            for adi in stopped:
                adi.driver.resume(adi)

    def describe(self) -> list[dict[str, Any]]:
        """JSON-able."""
        return [
            {
                "queue": queue.sqid,
                "entries": queue.entries,
                "completion_queue": queue.cqid,
                "vector": self.completion[queue.cqid].vector,
                "adi": queue.adi.name,
                **queue.adi.driver.on_counters(queue.adi),
            }
            for queue in self.submission.values()
        ]
