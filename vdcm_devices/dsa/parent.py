"""The software DSA as a parent: what it has, and the VDEVs that are composed from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from vdcm import (
    HostDriver,
    Identity,
    Parent,
    ParentFunction,
    Pasid,
    Property,
    ScalableIov,
    VdevType,
    wake_latency,
)
from vdcm_devices.dsa.datapath import MOST_ENTRIES
from vdcm_devices.dsa.driver import DWQ, SHARE, DsaDriver, Geometry
from vdcm_devices.dsa.vdev import DsaVdev, DynamicDsaVdev


def _static(dwqs: int, swqs: int, doc: str) -> VdevType:
    """A type whose ADIs are all there from the start."""
    return VdevType(DsaVdev, {"dwqs": dwqs, "swqs": swqs}, {DWQ: dwqs, SHARE: swqs}, doc)


class Dsa(Parent):
    """A software Data Streaming Accelerator: 8086:0b25, without a bus, with Scalable IOV."""

    types: ClassVar[Mapping[str, VdevType]] = {
        "dsa-1dwq": _static(1, 0, "One dedicated work queue."),
        "dsa-1swq": _static(0, 1, "A share of a shared work queue."),
        "dsa-2dwq-1swq": _static(2, 1, "Two dedicated work queues and a share of a shared one."),
        "dsa-dynamic": VdevType(
            DynamicDsaVdev, doc="Work queues that the guest asks for, while there are."
        ),
    }

    dwqs = Property(8, maximum=4096, live=False, doc="Dedicated work queues.")
    dwq_size = Property(
        32, minimum=1, maximum=MOST_ENTRIES, live=False, doc="Entries of a dedicated work queue."
    )
    swqs = Property(1, maximum=64, live=False, doc="Shared work queues.")
    swq_size = Property(
        64, minimum=1, maximum=MOST_ENTRIES, live=False, doc="Entries of a shared work queue."
    )
    swq_threshold = Property(
        0, maximum=MOST_ENTRIES, live=False, doc="Of which limited portals fill this many; 0: all."
    )
    shares = Property(16, minimum=1, maximum=4096, live=False, doc="Shares of a shared work queue.")
    groups = Property(4, minimum=1, maximum=8, live=False, doc="Groups of a VDEV, at most.")
    engines = Property(4, minimum=1, maximum=64, live=False, doc="Engines of a VDEV, at most.")
    ims = Property(
        2048, minimum=1, maximum=65536, live=False, doc="Interrupt messages of all ADIs together."
    )
    workers = Property(1, minimum=1, maximum=64, live=False, doc="Threads that do the work.")
    wake_us = wake_latency()
    generation = Property(
        DsaDriver.generations[0],
        choices=DsaDriver.generations,
        live=False,
        doc="Version of the DSA that its VDEVs pass for.",
    )

    driver: HostDriver

    def __init__(self, name: str) -> None:
        super().__init__(name)
        function = ParentFunction(
            name,
            Identity(vendor=0x8086, device=0x0B25, class_code=0x088000),
            [ScalableIov(), Pasid()],
        )
        self.driver = DsaDriver(
            name,
            function,
            Geometry(
                dwqs=self.dwqs,
                dwq_size=self.dwq_size,
                swqs=self.swqs,
                swq_size=self.swq_size,
                swq_threshold=min(self.swq_threshold or self.swq_size, self.swq_size),
                shares=self.shares,
                groups=self.groups,
                engines=self.engines,
            ),
            messages=self.ims,
            workers=self.workers,
        )
        self.driver.wake_us = self.wake_us
        self.driver.set_generation(self.generation)
