"""A virtual NVMe controller: registers and admin queue in front of the queues it is composed of."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Any, Final
from uuid import UUID

from vdcm import (
    Adi,
    DeviceSerialNumber,
    HostDriver,
    Identity,
    MsiX,
    Property,
    PropertyError,
    Report,
    Vdev,
)
from vdcm_devices.nvme import datapath
from vdcm_devices.nvme.bar import NvmeBar
from vdcm_devices.nvme.codes import ErrorEvent
from vdcm_devices.nvme.controller import Controller
from vdcm_devices.nvme.driver import CONTROLLER, NvmeDriver, native
from vdcm_devices.nvme.identify import BLOCK_SHIFTS, MODEL, ControllerFacts
from vdcm_devices.nvme.ioqueues import IoQueues
from vdcm_devices.nvme.namespaces import Namespaces
from vdcm_devices.nvme.registers import (
    DOORBELLS,
    MOST_QUEUES,
    MSIX_PENDING,
    MSIX_TABLE,
    PAGE,
)
from vdcm_devices.nvme.sizes import Size, parse_size
from vdcm_devices.nvme.slices import UNIT

LONGEST_QUEUE: Final = 4096
"""Entries."""
BLOCK_SIZES: Final = tuple(1 << shift for shift in BLOCK_SHIFTS)


class BlockSize(Property[int]):
    """512 or 4096."""

    def check(self, value: object) -> None:
        super().check(value)
        if value not in BLOCK_SIZES:
            raise PropertyError(f"{self.name} takes 512 or 4096, not {value}")


class NvmeVdev(Vdev):
    """An NVMe controller with its namespaces; its queues are allocated as the guest makes them."""

    # The numbers 10f0h to 10ffh of virtio's vendor are for experiments of anybody, without asking;
    # drivers find NVMe by its class. Who ships a product has numbers of their own.
    identity = Identity(vendor=0x1AF4, device=0x10F0, class_code=0x010802)

    size = Size("1G", unit=UNIT, least=UNIT, doc="Of each namespace: 4096, 512M, 10G.")
    namespaces = Property(
        1, minimum=1, maximum=datapath.MOST_NAMESPACES, live=False, doc="Namespaces."
    )
    block_size = BlockSize(
        BLOCK_SIZES[0], live=False, doc="Bytes of a block, until the guest formats: 512 or 4096."
    )
    queues = Property(8, minimum=1, maximum=MOST_QUEUES, live=False, doc="I/O queue pairs at most.")
    doorbells = Property(
        "shadow",
        choices=("shadow", "direct"),
        live=False,
        doc="shadow: nothing is mapped, busy guests use doorbell buffers, and an idle VDEV costs "
        "nothing. direct: the doorbells are memory that a thread looks at.",
    )
    write_cache = Property(
        True, live=False, doc="Writes may be held back until a flush; false: all are on disk."
    )
    read_only = Property(False, doc="The guest may not write.")
    serial = Property("", live=False, doc="20 characters; none: it follows from the slice.")
    weight = Property(16, minimum=1, maximum=255, doc="Share under contention, of all its queues.")
    rate = Property(0, maximum=(1 << 50) - 1, doc="Bytes a second, of all its queues; 0: no limit.")

    def __init__(self, name: str, drivers: Sequence[HostDriver]) -> None:
        driver = drivers[0]
        assert isinstance(driver, NvmeDriver)
        self._driver: Final = driver
        self._store: Final = driver.store
        slices = self._store.slices.have(
            name, self.namespaces, parse_size(self.size), self.block_size.bit_length() - 1
        )
        self._uuid: Final = UUID(slices[0].uuid)
        self._read_only = self.read_only
        vectors = self.queues + 1
        self.io_queues: Final = IoQueues(self, self.queues, LONGEST_QUEUE, vectors)
        kept = self._store.slices.counts.get(name, {})
        self.controller: Final = Controller(self, LONGEST_QUEUE, kept)
        self._bar: Final = NvmeBar(self._ring, direct=self.direct)
        self._bar.place(0, self.controller.registers)
        super().__init__(
            name,
            bars=[self._bar],
            capabilities=[
                MsiX(
                    vectors,
                    table_bar=0,
                    table_offset=MSIX_TABLE,
                    pba_bar=0,
                    pba_offset=MSIX_PENDING,
                ),
                DeviceSerialNumber(int.from_bytes(self._uuid.bytes[:8])),
            ],
            # Of the others the queues would be on other threads than the controller.
            drivers=[driver],
        )
        try:
            self.controller_adi: Final = self.add_adi(CONTROLLER)
            self.native: Final = native(self.controller_adi)
            self.set_qos(self.weight, self.rate)
            if not self.direct:
                self._bar.give_stores(DOORBELLS, PAGE, datapath.DOORBELL_STORE, self.native.address)
            self.all_namespaces: Final = Namespaces(self, self._store, slices)
        except BaseException:
            self.close()
            raise

    @property
    def direct(self) -> bool:
        """Doorbells are memory."""
        return self.doorbells == "direct"

    @property
    def shadow(self) -> bool:
        """Guests may use doorbell buffers."""
        return not self.direct

    def facts(self) -> ControllerFacts:
        slices = self._store.slices
        return ControllerFacts(
            vendor=self.identity.vendor,
            subsystem_vendor=self.identity.subsystem_vendor,
            serial=self.serial or self._uuid.hex[:20],
            model=MODEL,
            uuid=self._uuid,
            namespaces=len(self.all_namespaces),
            capacity=sum(one.bytes for one in slices.of(self.name)),
            free=0,
            transfer_shift=datapath.MAX_TRANSFER.bit_length() - 1,
            doorbell_buffers=self.shadow,
            write_cache=self.write_cache,
        )

    # What the controller does.

    def begin(self) -> None:
        adi, page = self.controller_adi, None
        if self.direct:
            page = self._bar.view(DOORBELLS, PAGE)
        self.native.set_doorbells(page)
        self.native.look()  # what is 0 now is nothing new
        adi.driver.configure(adi, doorbells=self.direct)
        adi.driver.enable(adi)

    def end(self) -> None:
        self.io_queues.clear()
        self.controller_adi.driver.reset(self.controller_adi)
        self.native.set_shadow(0, 0)

    def interrupt(self) -> None:
        self.interrupts.signal(0)

    def flush(self, done: Callable[[], None]) -> None:
        def synced(error: Exception | None) -> None:
            if error is not None:
                self.say(str(error))
            done()

        self._store.sync(synced)

    @property
    def drained(self) -> bool:
        """Nothing is under way in the store of queues that are gone, this VDEV's or of one of its
        name before."""
        return self.native.drained and self._driver.drained(self.name)

    def keep(self, counts: dict[str, int]) -> None:
        """With the store, for the VDEV of this name that is made next."""
        self._store.keep(self.name, counts)

    def say(self, text: str) -> None:
        if self.observer is not None:
            self.note(text)

    # What the guest does.

    def _ring(self, doorbell: int, value: int) -> None:
        """An intercepted doorbell was written (3.1.24), and C has not taken it."""
        if self.observer is not None:
            kind = ("submission", "completion")[doorbell % 2]
            self.note(f"doorbell of {kind} queue {doorbell // 2}: {value}")
        controller = self.controller
        if controller.admin is None:
            return
        if doorbell == 0:
            controller.submitted(value)
        elif doorbell == 1:
            controller.consumed(value)
        else:
            result = self.native.ring(doorbell, value)
            if result == -errno.ENOENT:
                controller.bad_doorbell(ErrorEvent.INVALID_DOORBELL_REGISTER)
            elif result == -errno.ERANGE:
                controller.bad_doorbell(ErrorEvent.INVALID_DOORBELL_VALUE)
            else:
                self.io_queues.kick(doorbell)

    def collect_errors(self) -> None:
        """What the queues have reported, now: who has seen a completion finds its error logged."""
        for queue in list(self.io_queues.submission.values()):
            for report in queue.adi.path.reports():
                self.on_adi_report(queue.adi, report)

    def on_adi_report(self, adi: Adi, report: Report) -> None:
        controller = self.controller
        if report.code == datapath.REPORT_ADMIN:
            tail, head = self.native.look()
            controller.consumed(head)
            controller.submitted(tail)
        elif report.code == datapath.REPORT_ERROR:
            error = datapath.ReportedError.parse(report.data)
            self.say(f"{adi.name} command {error.cid} status {error.status >> 1 & 0x7FF:#05x}")
            controller.failed(error)
        elif report.code == datapath.REPORT_DOORBELL:
            controller.bad_doorbell(ErrorEvent.INVALID_DOORBELL_VALUE)
        elif report.code == datapath.REPORT_FATAL:
            controller.fatal(f"{adi.name} cannot reach its queues")

    def on_bus_master_change(self, enabled: bool) -> None:
        if enabled:
            self.controller.pump()

    # What the host does.

    def on_set_weight(self, weight: int) -> None:
        self.set_qos(weight, self.rate)

    def on_set_rate(self, rate: int) -> None:
        self.set_qos(self.weight, rate)

    def on_set_read_only(self, value: bool) -> None:
        if value == self._read_only:
            return
        self._read_only = value
        self.all_namespaces.refresh(
            lambda: self.controller.namespaces_changed(set(self.all_namespaces))
        )

    # Life.

    def attached(self, session: Any) -> None:
        super().attached(session)
        self.controller.power_on()

    def detached(self) -> None:
        self.controller.power_off()
        super().detached()

    def on_reset(self) -> None:
        self.controller.reset_function()

    def describe(self) -> dict[str, Any]:
        return {
            **super().describe(),
            "controller": self.controller.describe(),
            "store": {"name": self._store.name, "engine": self._store.native.engine},
            "namespaces": self.all_namespaces.describe(),
            "queues": self.io_queues.describe(),
        }

    def close(self) -> None:
        if self.session is None and hasattr(self, "all_namespaces"):
            self.all_namespaces.close()
            self.controller.reset()
        super().close()
