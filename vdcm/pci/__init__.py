"""PCI Express configuration space from declarations.

config = ConfigSpace(
    Identity(vendor=0x1234, device=0x0001, class_code=0xFF0000),
    bars=[BarLayout(0, 0x1000), BarLayout(2, 1 << 20, BarKind.MEMORY64_PREFETCHABLE)],
    capabilities=[
        PowerManagement(),
        PciExpress(),
        MsiX(16, table_bar=0, table_offset=0, pba_bar=0, pba_offset=0x800),
        DeviceSerialNumber(0x0123456789ABCDEF),
    ],
    owner=events,  # a ConfigEvents
)
config.space.read(0, 4)            # the guest's side
config.header.COMMAND.BUS_MASTER   # the device's side
"""

from vdcm.pci.capabilities import (
    MaskableMsi,
    Msi,
    MsiX,
    PciExpress,
    PowerManagement,
    PowerState,
    VendorSpecific,
)
from vdcm.pci.config import ConfigEvents, ConfigSpace
from vdcm.pci.extended import DeviceSerialNumber, Dvsec, VendorSpecificExtended
from vdcm.pci.header import BarKind, BarLayout, Command, Header, Identity
from vdcm.pci.part import Capability, ExtendedCapability, StandardCapability
from vdcm.pci.siov import Ats, Pasid, Pri, ScalableIov

__all__ = [
    "Ats",
    "BarKind",
    "BarLayout",
    "Capability",
    "Command",
    "ConfigEvents",
    "ConfigSpace",
    "DeviceSerialNumber",
    "Dvsec",
    "ExtendedCapability",
    "Header",
    "Identity",
    "MaskableMsi",
    "Msi",
    "MsiX",
    "Pasid",
    "PciExpress",
    "PowerManagement",
    "PowerState",
    "Pri",
    "ScalableIov",
    "StandardCapability",
    "VendorSpecific",
    "VendorSpecificExtended",
]
