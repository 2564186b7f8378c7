"""The host driver of NVMe controllers: its ADIs are I/O queues, and the controllers themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

from vdcm import Adi, AdiType, HostDriver, ParentFunction, VdcmError
from vdcm_devices.nvme.datapath import (
    ADMIN_FASTPATH,
    FASTPATH,
    NativeController,
    SubmissionQueue,
)
from vdcm_devices.nvme.jobs import when
from vdcm_devices.nvme.storage import Store

QUEUE_PAIR: Final = "queue-pair"
CONTROLLER: Final = "controller"


class NvmeDriver(HostDriver):
    """``queue_pairs`` and ``controllers``: how many there are; ``workers``: sweep threads.

    Settings of a queue pair: ``controller``, the index of its controller's ADI; ``sqid``,
    ``address`` and ``entries`` of the submission queue; ``cqid``, of the completion queue; and
    ``doorbells``: they are in shared memory. A controller has that last one only.
    """

    adi_types: ClassVar[Mapping[str, AdiType]] = {
        QUEUE_PAIR: AdiType(
            QUEUE_PAIR,
            {QUEUE_PAIR: 1},
            messages=1,
            doc="An I/O submission queue, and its part of a completion queue.",
        ),
        CONTROLLER: AdiType(
            CONTROLLER,
            {CONTROLLER: 1},
            doc="The doorbells of an admin queue, and what all "
            "queues of a controller have in common.",
        ),
    }
    together: ClassVar[bool] = True

    def __init__(
        self,
        name: str,
        function: ParentFunction,
        store: Store,
        *,
        queue_pairs: int,
        controllers: int,
        workers: int,
    ) -> None:
        super().__init__(
            name,
            function,
            {QUEUE_PAIR: queue_pairs, CONTROLLER: controllers},
            messages=queue_pairs,
            workers=workers,
        )
        self.store: Final = store
        self._left: Final[dict[str, list[NativeController]]] = {}

    # What an ADI is.

    def on_allocate(self, adi: Adi) -> None:
        if adi.type.name == CONTROLLER:
            adi.resource = NativeController()

    def on_configure(self, adi: Adi, settings: Mapping[str, Any]) -> None:
        wanted = dict(settings)
        doorbells = wanted.pop("doorbells", False)
        if adi.type.name == CONTROLLER:
            if wanted:
                raise VdcmError(f"{adi.name} has no setting {', '.join(wanted)}")
            if not adi.path.queues:
                address = native(adi).admin_address
                adi.path.queue(ADMIN_FASTPATH, address, doorbells=doorbells)
            return
        if adi.resource is not None:
            raise VdcmError(f"{adi.name} is made: release it, and allocate another")
        try:
            controller = native(self.adis[wanted.pop("controller")])
            queue = SubmissionQueue(controller, **wanted)
        except (KeyError, TypeError) as error:
            raise VdcmError(f"no settings of an NVMe queue: {error}") from error
        adi.resource = queue
        queue.set_engine(adi.path.queue(FASTPATH, queue.address, doorbells=doorbells).address)

    def on_release(self, adi: Adi) -> None:
        if adi.resource is None:
            return
        adi.resource.close()
        if adi.type.name == CONTROLLER:
            self._left.setdefault(adi.owner, []).append(adi.resource)
            when(lambda: self.drained(adi.owner), lambda: None)

    def drained(self, owner: str) -> bool:
        """No controller that VDEV ``owner`` had before has something under way in the store: what
        it writes now, or somebody else in its place, cannot be overwritten by that."""
        left = [one for one in self._left.pop(owner, []) if not one.close()]
        if left:
            self._left[owner] = left
        return not left

    def forget(self, owner: str) -> None:
        """A VDEV is no more: its slices are erased, and free."""
        given_up = self.store.give_up(owner)
        when(lambda: self.drained(owner), lambda: self.store.clear(given_up))

    def on_counters(self, adi: Adi) -> dict[str, int]:
        return adi.resource.counters() if adi.resource is not None else {}

    def describe(self) -> dict[str, Any]:
        store = self.store
        return {
            **super().describe(),
            "store": {
                "name": store.name,
                "engine": store.native.engine,
                "bytes": store.slices.room,
                "free": store.slices.free,
                "slices": [
                    {"vdev": one.owner, "number": one.number, "bytes": one.bytes}
                    for one in store.slices
                    if one.owner
                ],
            },
        }

    def close(self) -> None:
        super().close()
        for controller in [one for left in self._left.values() for one in left]:
            controller.close(wait=True)
        self.store.close()


def native(adi: Adi) -> NativeController:
    """What is behind the ADI of a controller."""
    if not isinstance(adi.resource, NativeController):
        raise VdcmError(f"{adi.name} is no controller")
    return adi.resource
