"""Who is at the other end of a socket."""

from __future__ import annotations

import socket
import struct
from typing import Final

_UCRED: Final = struct.Struct("3i")  # pid, uid, gid (SO_PEERCRED, unix(7))


def peer_uid(connection: socket.socket) -> int:
    """The user who made the other end; the kernel says it, not the peer."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return int(_UCRED.unpack(credentials)[1])
