"""Whose a socket's path is: claimed by us, left by the dead, or in use."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import stat
from pathlib import Path
from typing import Final

from vdcm.errors import TransportError

log = logging.getLogger("vdcm.transport")

BACKLOG: Final = 8
"""Connections that may wait to be accepted."""


def claim_socket(path: Path) -> tuple[socket.socket, int]:
    """A socket that listens on ``path`` with mode 0600, and its inode.

    A socket that a dead server has left is removed; anything else in the way is an error. Two
    servers that start at the same time are kept apart by a lock on the folder.
    """
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise TransportError(
            f"{path}: cannot use its folder: {error.strerror}; make it, or choose another path"
        ) from error
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        _clear(path)
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        listener.listen(BACKLOG)
        listener.setblocking(False)
        return listener, path.lstat().st_ino
    except OSError as error:
        listener.close()
        hint = " (a socket's path has 107 characters at most)" if "too long" in str(error) else ""
        raise TransportError(f"{path}: cannot listen: {error.strerror or error}{hint}") from error
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(folder)


def _clear(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise TransportError(f"{path} exists and is not a socket: choose another path or remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            log.info("%s: removed the socket of a server that is gone", path)
            return
        except BlockingIOError:
            pass  # its queue is full: somebody listens
    raise TransportError(f"{path} is being served by another process: stop that or choose another")
