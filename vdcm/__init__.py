"""vdcm: a Virtual Device Composition Module that serves PCIe devices to stock QEMU from Python.

These are the names that a device model needs. The native client is ``vdcm.client``.
"""

from vdcm.adi import Adi, AdiState, AdiType
from vdcm.bars import Bar, PagePolicy, Pages
from vdcm.errors import (
    DeclarationError,
    DeferredError,
    DmaError,
    ResourceError,
    StateError,
    VdcmError,
)
from vdcm.events import Observer
from vdcm.function import ParentFunction
from vdcm.host import HostDriver
from vdcm.interrupts import Interrupts
from vdcm.mailbox import (
    Mailbox,
    MailboxCode,
    MailboxError,
    MailboxRequest,
    RequestType,
)
from vdcm.parent import Parent, VdevType, wake_latency
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
from vdcm.surroundings import monotonic_ns, random_bytes
from vdcm.sweep import Report, include_dir, services
from vdcm.vdev import Vdev

__all__ = [
    "Access",
    "Adi",
    "AdiState",
    "AdiType",
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
    "HostDriver",
    "Identity",
    "Interrupts",
    "Mailbox",
    "MailboxCode",
    "MailboxError",
    "MailboxRequest",
    "MaskableMsi",
    "Msi",
    "MsiX",
    "Observer",
    "PagePolicy",
    "Pages",
    "Parent",
    "ParentFunction",
    "Pasid",
    "PciExpress",
    "PowerManagement",
    "Pri",
    "Property",
    "PropertyError",
    "Register",
    "RegisterMap",
    "Report",
    "RequestType",
    "ResourceError",
    "ScalableIov",
    "StateError",
    "VdcmError",
    "Vdev",
    "VdevType",
    "VendorSpecific",
    "VendorSpecificExtended",
    "include_dir",
    "monotonic_ns",
    "random_bytes",
    "serve",
    "services",
    "wake_latency",
]
