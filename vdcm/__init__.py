"""vdcm: a Virtual Device Composition Module that serves PCIe devices to stock QEMU from Python.

These are the names that a device model needs. The native client is ``vdcm.client``.
"""

from vdcm.bars import Bar, PagePolicy, Pages
from vdcm.errors import DeclarationError, DeferredError, DmaError, StateError, VdcmError
from vdcm.mailbox import (
    Mailbox,
    MailboxCode,
    MailboxError,
    MailboxRequest,
    RequestType,
)
from vdcm.parent import Parent
from vdcm.pci import (
    Ats,
    BarKind,
    Capability,
    DeviceSerialNumber,
    Dvsec,
    Identity,
    MaskableMsi,
    Msi,
    MsiX,
    Pasid,
    PciExpress,
    PowerManagement,
    Pri,
    ScalableIov,
    VendorSpecific,
    VendorSpecificExtended,
)
from vdcm.properties import Property, PropertyError
from vdcm.registers import Access, BoundRegister, Field, Register, RegisterMap
from vdcm.serving import serve
from vdcm.vdev import Vdev

__all__ = [
    "Access",
    "Ats",
    "Bar",
    "BarKind",
    "BoundRegister",
    "Capability",
    "DeclarationError",
    "DeferredError",
    "DeviceSerialNumber",
    "DmaError",
    "Dvsec",
    "Field",
    "Identity",
    "Mailbox",
    "MailboxCode",
    "MailboxError",
    "MailboxRequest",
    "MaskableMsi",
    "Msi",
    "MsiX",
    "PagePolicy",
    "Pages",
    "Parent",
    "Pasid",
    "PciExpress",
    "PowerManagement",
    "Pri",
    "Property",
    "PropertyError",
    "Register",
    "RegisterMap",
    "RequestType",
    "ScalableIov",
    "StateError",
    "VdcmError",
    "Vdev",
    "VendorSpecific",
    "VendorSpecificExtended",
    "serve",
]
