"""The NIC as a parent: what it has, and the VDEVs that are composed from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from vdcm import (
    Identity,
    Parent,
    ParentFunction,
    Pasid,
    Property,
    ScalableIov,
    VdevType,
    wake_latency,
)
from vdcm_devices.avf.driver import AvfDriver, vsi_type
from vdcm_devices.avf.native import Switch
from vdcm_devices.avf.uplink import Uplink, UplinkProperty
from vdcm_devices.avf.vdev import AvfVdev


class Avf(Parent):
    """A software NIC with a pool of queue pairs, without a bus, with Scalable IOV."""

    types: ClassVar[Mapping[str, VdevType]] = {
        "avf": VdevType(
            AvfVdev,
            adis={vsi_type(AvfVdev.queues.default): 1},
            doc="An Adaptive Virtual Function, for Linux's iavf.",
        ),
    }

    queue_pairs = Property(1024, minimum=1, maximum=65536, live=False, doc="Queue pairs of all.")
    vsis = Property(1024, minimum=1, maximum=65535, live=False, doc="VDEVs at most.")
    ims = Property(
        1024, minimum=1, maximum=65536, live=False, doc="Interrupt messages, one a queue pair."
    )
    wake_us = wake_latency()
    uplink = UplinkProperty(
        "", live=False, doc="tap:NAME, stream:PATH or dgram:PATH,PEER, as QEMU's -netdev has it."
    )

    driver: AvfDriver

    def __init__(self, name: str) -> None:
        super().__init__(name)
        function = ParentFunction(
            name,
            Identity(vendor=0x8086, device=0x1592, class_code=0x020000),
            [ScalableIov(), Pasid()],
        )
        switch = Switch()
        self.driver = AvfDriver(
            name,
            function,
            pairs=self.queue_pairs,
            vsis=self.vsis,
            messages=self.ims,
            workers=1,  # the switch is one thread's
            make=switch.port,
        )
        self.driver.wake_us = self.wake_us
        if self.uplink:
            self.driver.connect(Uplink(switch, self.uplink))
