"""The host driver of a software DSA: its ADIs are work queues, and shares of shared ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntFlag
from typing import Any, ClassVar, Final

from vdcm import Adi, AdiType, HostDriver, ParentFunction, ResourceError, VdcmError
from vdcm_devices.dsa._fastpath import lib
from vdcm_devices.dsa.datapath import (
    ANY_PASID,
    FASTPATH,
    HANDLES,
    MAX_BATCH,
    MAX_TRANSFER,
    MOST_ENTRIES,
    OPERATIONS,
    Answer,
    Queue,
    SharedWq,
)
from vdcm_devices.dsa.portals import PortalBar
from vdcm_devices.dsa.registers import Capabilities

DWQ: Final = "dwq"
SHARE: Final = "swq-share"


class Flag(IntFlag):
    """``flags`` among the settings of an ADI (queue.h)."""

    WQ_PASID = lib.DSA_WQ_PASID
    WQ_PRIVILEGED = lib.DSA_WQ_PRIVILEGED
    USER_INTERRUPTS = lib.DSA_USER_INTERRUPTS
    PRIVILEGED_MODE = lib.DSA_PRIVILEGED_MODE


@dataclass(frozen=True)
class Geometry:
    """What a parent has: dedicated and shared work queues and their entries, shares of each shared
    one, and how many groups and engines a VDEV shows at most."""

    dwqs: int
    dwq_size: int
    swqs: int
    swq_size: int
    swq_threshold: int
    shares: int
    groups: int
    engines: int


class DsaDriver(HostDriver):
    """``geometry``: what there is; ``messages``: IMS entries; ``workers``: sweep threads.

    Settings of an ADI are the fields of ``dsa_settings`` (queue.h), and ``doorbells``: its portals
    are direct.
    """

    adi_types: ClassVar[Mapping[str, AdiType]] = {
        DWQ: AdiType(DWQ, {DWQ: 1}, doc="A dedicated work queue and an engine."),
        SHARE: AdiType(
            SHARE,
            {SHARE: 1},
            pasid_required=False,
            doc="A share of a shared work queue, and an engine; the work names its PASID.",
        ),
    }
    generations: ClassVar[tuple[str, ...]] = ("2.0", "1.0")
    channel: ClassVar[bool] = True

    def __init__(
        self,
        name: str,
        function: ParentFunction,
        geometry: Geometry,
        *,
        messages: int,
        workers: int,
    ) -> None:
        super().__init__(
            name,
            function,
            {DWQ: geometry.dwqs, SHARE: geometry.swqs * geometry.shares},
            messages=messages,
            workers=workers,
        )
        self.geometry: Final = geometry
        self._shared: list[SharedWq] = []

    def describe_vdev(self, *, dwqs: int, swqs: int, wqs: int) -> Capabilities:
        """What a VDEV of ``wqs`` work queues can do, of which so many are there from the start."""
        geometry = self.geometry
        size = max(dwqs, wqs - swqs) * geometry.dwq_size + swqs * geometry.swq_size
        dynamic = wqs > dwqs + swqs
        major, minor = (int(part) for part in self.generation.split("."))
        return Capabilities(
            version=major << 8 | minor,
            wqs=wqs,
            total_wq_size=min(size, MOST_ENTRIES),
            dedicated=bool(dwqs) or dynamic,
            shared=bool(swqs) or dynamic,
            groups=min(geometry.groups, wqs),
            engines=min(geometry.engines, wqs),
            operations=OPERATIONS,
            max_transfer=MAX_TRANSFER,
            max_batch=MAX_BATCH,
            wq_operations=major >= 2,
            fault_info=major >= 2,
        )

    # What an ADI is.

    def on_allocate(self, adi: Adi) -> None:
        adi.resource = Queue(self._shared_wq() if adi.type.name == SHARE else None)

    def _shared_wq(self) -> SharedWq:
        """The one with the fewest shares."""
        geometry = self.geometry
        if len(self._shared) < geometry.swqs and all(wq.shares for wq in self._shared):
            # Half of the entries are for whoever comes first.
            reserved = geometry.swq_size // (2 * geometry.shares)
            self._shared.append(SharedWq(geometry.swq_size, geometry.swq_threshold, reserved))
        wq = min(self._shared, key=lambda wq: wq.shares)
        if wq.shares >= geometry.shares:
            raise ResourceError(f"{self.name}: all {geometry.shares} shares of each SWQ are in use")
        return wq

    def on_configure(self, adi: Adi, settings: Mapping[str, Any]) -> None:
        native = dict(settings)
        doorbells = native.pop("doorbells", False)
        _queue(adi).configure(native)
        if not adi.path.queues:
            adi.path.queue(FASTPATH, _queue(adi).address, doorbells=doorbells)

    def on_disable(self, adi: Adi) -> None:
        _queue(adi).shut()

    def on_reset(self, adi: Adi) -> None:
        _queue(adi).shut()
        for handle in HANDLES:
            _queue(adi).handle(handle, None)

    def on_release(self, adi: Adi) -> None:
        _queue(adi).close()

    def on_save(self, adi: Adi) -> bytes:
        return _queue(adi).save()

    def on_restore(self, adi: Adi, state: bytes) -> None:
        _queue(adi).restore(state)

    def on_counters(self, adi: Adi) -> dict[str, int]:
        return _queue(adi).counters()

    def close(self) -> None:
        super().close()
        for wq in self._shared:
            wq.close()
        self._shared = []

    # What a VDEV asks for besides.

    def set_handle(
        self, adi: Adi, handle: int, message: int | None, pasid: int = ANY_PASID
    ) -> None:
        """Descriptors may name ``handle`` for the ADI's ``message``, or for none (IGNORE); None:
        they may not."""
        if handle not in HANDLES:
            raise VdcmError(f"{adi.name}: interrupt handle {handle} is beyond {HANDLES.stop - 1}")
        _queue(adi).handle(handle, message, pasid)

    def set_perfmon(self, adi: Adi, perfmon: Any) -> None:
        """Before the ADI is enabled: the event counters of its VDEV, a ``dsa_perfmon *``."""
        _queue(adi).set_perfmon(perfmon)

    def set_portal(self, adi: Adi, portal: int, page: int) -> None:
        """Before the ADI is enabled: the address of a direct portal's page, 0 for none."""
        _queue(adi).portal(portal, page)

    def open_portals(self, adi: Adi, bar: PortalBar, wq: int) -> None:
        """Let descriptors for ``wq`` of ``bar`` reach it without Python, until it is disabled."""
        (path,) = adi.path.queues
        bar.open(wq, _queue(adi), path.address)

    def submit(self, adi: Adi, portal: int, descriptor: bytes) -> Answer:
        """A descriptor of 64 bytes that came through an intercepted portal."""
        answer = _queue(adi).submit(portal, descriptor)
        for path in adi.path.queues:
            path.kick()
        return answer

    def occupancy(self, adi: Adi) -> int:
        """Entries in use of its work queue, a shared one's by all who share it."""
        queue = _queue(adi)
        return queue.shared.occupancy if queue.shared is not None else queue.occupancy


def _queue(adi: Adi) -> Queue:
    assert isinstance(adi.resource, Queue)
    return adi.resource
