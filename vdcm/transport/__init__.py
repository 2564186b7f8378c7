"""The server's side of vfio-user: sockets, clients and the callbacks of the native module.

This is the only package that touches ``native/``. A ``Transport`` serves any number of VDEVs, each
on a UNIX socket of its own (an ``Endpoint``), on one asyncio event loop. A client is a ``Session``:
it exists once its version message has been checked, and the libvfio-user context behind it lives
and dies with it.

What keeps one client from costing the others anything:

* a connection that has not finished its version message holds nothing but a descriptor, and is
  closed after ``patience`` seconds; the same holds for a message of which the rest does not come;
* ``native/guard.c`` looks at every message before anybody acts on it;
* a client that does not read its answers is disconnected, not waited for;
* no exception crosses into C (``session._failed``), and log lines per client are limited.
"""

from vdcm.transport.endpoint import Endpoint, Transport
from vdcm.transport.memory import DmaRange, GuestMemory
from vdcm.transport.servable import (
    LIBVFIO_USER_GENERATION,
    MAX_AREAS,
    IrqAction,
    RegionDescription,
    Servable,
    Stores,
    Written,
)
from vdcm.transport.session import Session
from vdcm.transport.socket_path import claim_socket

__all__ = [
    "LIBVFIO_USER_GENERATION",
    "MAX_AREAS",
    "DmaRange",
    "Endpoint",
    "GuestMemory",
    "IrqAction",
    "RegionDescription",
    "Servable",
    "Session",
    "Stores",
    "Transport",
    "Written",
    "claim_socket",
]
