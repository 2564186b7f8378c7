"""The uplink of a switch: its property, and the file or socket that is behind it."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from vdcm import Adi, Property, PropertyError, VdcmError
from vdcm_devices.avf._fastpath import ffi, lib
from vdcm_devices.avf.native import Switch

TUNSETIFF: Final = 0x400454CA
IFF_TAP_NO_PI: Final = 0x0002 | 0x1000
LONGEST_PATH: Final = 107
"""Bytes of a UNIX socket's path (unix(7))."""
_WAYS: Final = "tap:NAME, stream:PATH or dgram:PATH,PEER"


class UplinkProperty(Property[str]):
    """``tap:NAME``, ``stream:PATH``, ``dgram:PATH,PEER``, or nothing; paths begin with /."""

    def check(self, value: object) -> None:
        super().check(value)
        kind, _, rest = str(value).partition(":")
        if kind == "tap":
            if not re.fullmatch(r"[^\s/:%]{1,15}", rest):
                raise PropertyError(f"{self.name}: no interface can be called {rest[:40]!r}")
            return
        paths = rest.split(",") if kind == "dgram" else [rest]
        if value and (kind not in ("stream", "dgram") or len(paths) != 1 + (kind == "dgram")):
            raise PropertyError(f"{self.name} takes {_WAYS}, not {str(value)[:80]!r}")
        for path in paths if value else ():
            if not path.startswith("/") or "\0" in path or len(path.encode()) > LONGEST_PATH:
                raise PropertyError(
                    f"{self.name} takes whole paths of at most {LONGEST_PATH} bytes, not {path!r}"
                )


class Uplink:
    """What ``uplink`` (as the property has it) says, open; it runs from ``start`` on."""

    def __init__(self, switch: Switch, uplink: str) -> None:
        kind, _, rest = uplink.partition(":")
        self._path: Path | None = None
        self._switch: Final = switch  # is there as long as its uplink
        self._native: Any = None
        self._counted: dict[str, int] = {}
        peer = ""
        try:
            if kind == "tap":
                self._file, number = _open_tap(rest), lib.AVF_INTERFACE
            elif kind == "stream":
                self._file, number = self._bind(rest, socket.SOCK_STREAM), lib.AVF_STREAM
            else:
                here, peer = rest.split(",")
                self._file, number = self._bind(here, socket.SOCK_DGRAM), lib.AVF_DATAGRAM
        except OSError as error:
            raise VdcmError(f"uplink {uplink}: {error.strerror}{_advice(kind)}") from error
        native = lib.avf_uplink_new(switch.native, number, self._file, peer.encode())
        if native == ffi.NULL:
            self._close_file()
            raise VdcmError(f"uplink {uplink}: {os.strerror(ffi.errno)}")
        self._native = native

    def _bind(self, path: str, kind: socket.SocketKind) -> int:
        with socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK) as made:
            made.bind(path)
            self._path = Path(path)
            if kind is socket.SOCK_STREAM:
                made.listen(1)
            return made.detach()

    def start(self, adi: Adi) -> None:
        """Let ``adi``, which is the host's own, run it."""
        address = int(ffi.cast("uintptr_t", self._native))
        queue = adi.path.queue(lib.avf_uplink_fastpath(), address, doorbells=False, keep=self)
        error = lib.avf_uplink_start(self._native, queue.address)
        if error:
            raise VdcmError(f"no thread for the uplink: {os.strerror(-error)}")

    def counters(self) -> dict[str, int]:
        """Frames and bytes since it is there."""
        if self._native is not None:
            found = ffi.new("avf_uplink_counters *")
            lib.avf_uplink_count(self._native, found)
            fields = ffi.typeof("avf_uplink_counters").fields
            self._counted = {name: int(getattr(found, name)) for name, _ in fields}
        return self._counted

    def close(self) -> None:
        """The sweep has let go of it. Twice is harmless."""
        if self._native is not None:
            self.counters()
            lib.avf_uplink_free(self._native)
            self._native = None
            self._close_file()

    def _close_file(self) -> None:
        os.close(self._file)
        if self._path is not None:
            with suppress(OSError):
                self._path.unlink()


def _open_tap(name: str) -> int:
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP_NO_PI))
    except OSError:
        os.close(file)
        raise
    return file


def _advice(kind: str) -> str:
    if kind == "tap":
        return ": as root, ip tuntap add NAME mode tap user USER lets a user have it"
    return ": name a path that is not there yet, in a folder that you may write to"
