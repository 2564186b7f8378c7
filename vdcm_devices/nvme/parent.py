"""NVMe as a parent: a store, queue pairs, and the controllers that are composed from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from vdcm import (
    Parent,
    ParentFunction,
    Pasid,
    Property,
    ScalableIov,
    VdevType,
    wake_latency,
)
from vdcm_devices.nvme.driver import CONTROLLER, NvmeDriver
from vdcm_devices.nvme.sizes import Size, parse_size
from vdcm_devices.nvme.slices import UNIT
from vdcm_devices.nvme.storage import Store, StoreProperty
from vdcm_devices.nvme.vdev import NvmeVdev


class Nvme(Parent):
    """A store of memory, a file or a block device, divided among NVMe controllers."""

    types: ClassVar[Mapping[str, VdevType]] = {
        "nvme": VdevType(
            NvmeVdev, adis={CONTROLLER: 1}, doc="An NVMe controller with a part of the store."
        )
    }

    store = StoreProperty(
        "ram:4G", live=False, doc="ram:SIZE, file:PATH or device:PATH; memory is taken when used."
    )
    size = Size("", unit=UNIT, least=UNIT, doc="Of a file, made as a hole; none: as it is.")
    queue_pairs = Property(
        1024, minimum=1, maximum=65536, live=False, doc="I/O queue pairs of all VDEVs together."
    )
    controllers = Property(256, minimum=1, maximum=4096, live=False, doc="VDEVs, at most.")
    workers = Property(1, minimum=1, maximum=64, live=False, doc="Threads that move the data.")
    wake_us = wake_latency()

    driver: NvmeDriver

    def __init__(self, name: str) -> None:
        super().__init__(name)
        function = ParentFunction(name, NvmeVdev.identity, [ScalableIov(), Pasid()])
        store = Store(self.store, parse_size(self.size) if self.size else 0)
        try:
            self.driver = NvmeDriver(
                name,
                function,
                store,
                queue_pairs=self.queue_pairs,
                controllers=self.controllers,
                workers=self.workers,
            )
        except BaseException:
            store.close()
            raise
        self.driver.wake_us = self.wake_us

    def keeps(self, vdev: str) -> bool:
        return bool(self.driver.store.slices.of(vdev))

    def forget(self, vdev: str) -> None:
        self.driver.forget(vdev)
