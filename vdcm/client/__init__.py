"""A native vfio-user client: a user-space driver's way to a VDEV, without a VMM.

    with Client("/run/vdcm/gpio0.sock") as device:
        device.write(Region.BAR0, 0x0, 1, 0xFF)
        (line,) = device.irq_enable(Irq.MSIX, count=1)
        buffer = device.dma_memory(iova=0x10000, size=8192)
        line.wait(timeout=1.0)

Pure Python, standard library only. Calls are synchronous, each with a deadline. A client is used
from one thread at a time; eventfds and mapped memory may be used from any.

Source: the vfio-user protocol specification, version 0.1 (layouts in ``vdcm.protocol``).
"""

from vdcm.client.client import Client, DeviceInfo, IrqInfo, RegionInfo
from vdcm.client.config import ConfigSpace
from vdcm.client.memory import DmaBuffer, Eventfd, MappedArea, MappedMemory
from vdcm.protocol import Irq, Region

__all__ = [
    "Client",
    "ConfigSpace",
    "DeviceInfo",
    "DmaBuffer",
    "Eventfd",
    "Irq",
    "IrqInfo",
    "MappedArea",
    "MappedMemory",
    "Region",
    "RegionInfo",
]
