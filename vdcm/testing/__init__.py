"""For tests of device models and of drivers: VDEVs served, guests booted, faults injected.

``vdcm.testing.plugin`` has the fixtures of pytest; the classes work without it.
"""

from vdcm.testing.compiled import build_module, build_program
from vdcm.testing.faults import Fault, Faults
from vdcm.testing.guest import GuestDevice, address_of, bars_of, interrupts_of, root_port
from vdcm.testing.host import Host, Served, retry_while_busy, wait_until_ready
from vdcm.testing.machine import Machine, Result, vfio_user
from vdcm.testing.prepared import prepared
from vdcm.testing.qmp import GuestError, Qmp
from vdcm.testing.rules import Place
from vdcm.testing.server import DEADLINE, Server, ServerError

__all__ = [
    "DEADLINE",
    "Fault",
    "Faults",
    "GuestDevice",
    "GuestError",
    "Host",
    "Machine",
    "Place",
    "Qmp",
    "Result",
    "Served",
    "Server",
    "ServerError",
    "address_of",
    "bars_of",
    "build_module",
    "build_program",
    "interrupts_of",
    "prepared",
    "retry_while_busy",
    "root_port",
    "vfio_user",
    "wait_until_ready",
]
