"""Control of a running server: JSON-RPC 2.0 over a UNIX socket, one JSON text per line.

docs/control.md describes it for those who use it.
"""

from vdcm.control.client import ControlClient
from vdcm.control.server import ControlServer

__all__ = ["ControlClient", "ControlServer"]
