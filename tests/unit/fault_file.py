"""A file whose disk does as it is told: it fails, hangs, and says what has come to it.

It lies in a file system that is served from here (FUSE, linux/fuse.h). The kernel keeps what is
written to it in its cache until it is asked to bring it to the disk, as with any other file.
``content`` is what has come to the disk: all that there would be after a power failure.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import threading
from collections import Counter
from pathlib import Path
from typing import Final, Self

import pytest

_LOOKUP, _GETATTR, _SETATTR, _OPEN, _READ, _WRITE = 1, 3, 4, 14, 15, 16
_FSYNC, _INIT, _OPENDIR, _READDIR, _FALLOCATE = 20, 26, 27, 28, 43
_SILENT: Final = {2, 36, 42}
"""Forget, interrupt, forget many: they are not answered."""
_NAMES: Final = {_READ: "read", _WRITE: "write", _FSYNC: "fsync", _FALLOCATE: "fallocate"}
_IN: Final = struct.Struct("<IIQQIIIHH")
_OUT: Final = struct.Struct("<IiQ")
_ATTRIBUTES: Final = struct.Struct("<6Q10I")
_ROOT, _FILE = 1, 2
_CACHED: Final = 1 << 16  # FUSE_WRITEBACK_CACHE
_BIG_WRITES: Final = 1 << 5
_SIZE: Final = 1 << 3  # FATTR_SIZE
_LARGEST: Final = 128 << 10
_DETACH: Final = 2
LONGEST: Final = 30.0
"""Seconds: who waits for a disk in the kernel does not hear of a test's deadline."""


class FaultFile:
    """``path`` is the file, of ``size`` zeros to begin with. Operations are "read", "write",
    "fsync" and "fallocate": ``done`` counts them, ``fail`` has errno values, and those in ``held``
    hang until ``let_go``, but not for ever. ``cached``: the kernel holds back what is written."""

    def __init__(self, folder: Path, size: int = 0, *, cached: bool = True) -> None:
        self._folder: Final = folder
        self._cached: Final = cached
        self._lock: Final = threading.RLock()
        self._waiting: list[tuple[int, int, bytes]] = []
        self.path: Final = folder / "store"
        self.content: Final = bytearray(size)
        self.done: Final[Counter[str]] = Counter()
        self.fail: Final[dict[str, int]] = {}
        self.held: Final[set[str]] = set()

    def __enter__(self) -> Self:
        self._folder.mkdir(exist_ok=True)
        try:
            self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            pytest.skip(f"no file system of one's own can be made here: {error}")
        options = f"fd={self._fd},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
        if _libc().mount(b"vdcm-test", bytes(self._folder), b"fuse", 0, options.encode()):
            os.close(self._fd)
            pytest.skip(f"only root can mount: {os.strerror(ctypes.get_errno())}")
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self._end = threading.Timer(LONGEST, self.let_go)
        self._end.daemon = True
        self._end.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.cancel()
        self.fail.clear()
        self.let_go()
        _libc().umount2(bytes(self._folder), _DETACH)
        self._thread.join(10)  # it ends with the last who has the file open
        os.close(self._fd)

    def let_go(self) -> None:
        """What hangs is done, and nothing hangs any more."""
        with self._lock:
            self.held.clear()
            waiting, self._waiting = self._waiting, []
            for request in waiting:
                self._answer(*request)

    @property
    def hanging(self) -> int:
        """Operations that wait to be let go."""
        with self._lock:
            return len(self._waiting)

    def _serve(self) -> None:
        while True:
            try:
                data = os.read(self._fd, _LARGEST + (64 << 10))
            except OSError as error:
                if error.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                    continue
                return  # unmounted
            _, opcode, unique, node, *_ = _IN.unpack_from(data)
            body = data[_IN.size :]
            with self._lock:
                if _NAMES.get(opcode) in self.held:
                    self._waiting.append((opcode, unique, body))
                elif opcode not in _SILENT:
                    self._answer(opcode, unique, body, node)

    def _answer(self, opcode: int, unique: int, body: bytes, node: int = _FILE) -> None:
        name = _NAMES.get(opcode, "")
        self.done[name] += 1
        error = self.fail.get(name, 0)
        said = b""
        if not error:
            found = self._perform(opcode, body, node)
            error, said = (found, b"") if isinstance(found, int) else (0, found)
        try:
            os.write(self._fd, _OUT.pack(_OUT.size + len(said), -error, unique) + said)
        except OSError as failed:  # nobody waits for it any more
            if failed.errno not in (errno.ENOENT, errno.ENODEV, errno.EPERM):
                raise

    def _perform(self, opcode: int, body: bytes, node: int) -> bytes | int:
        """The answer, or an errno value."""
        if opcode == _INIT:
            flags = _BIG_WRITES | (_CACHED if self._cached else 0)
            return struct.pack("<4IHHIIHHI28x", 7, 31, 0, flags, 16, 12, _LARGEST, 1, 32, 0, 0)
        if opcode == _LOOKUP:
            if body != b"store\0":
                return errno.ENOENT
            return struct.pack("<4QII", _FILE, 0, 60, 60, 0, 0) + self._attributes(_FILE)
        if opcode == _SETATTR:
            valid, _, _, size = struct.unpack_from("<IIQQ", body)
            if valid & _SIZE:
                self._resize(size)
        if opcode in (_GETATTR, _SETATTR):
            return struct.pack("<QII", 0, 0, 0) + self._attributes(node)
        if opcode in (_OPEN, _OPENDIR):
            return struct.pack("<QII", 0, 0, 0)
        if opcode == _READ:
            _, offset, size = struct.unpack_from("<QQI", body)
            return bytes(self.content[offset : offset + size])
        if opcode == _WRITE:
            _, offset, size = struct.unpack_from("<QQI", body)
            self._resize(max(len(self.content), offset + size))
            self.content[offset : offset + size] = body[40 : 40 + size]
            return struct.pack("<II", size, 0)
        if opcode == _FALLOCATE:
            _, offset, length = struct.unpack_from("<QQQ", body)
            end = min(offset + length, len(self.content))
            self.content[offset:end] = bytes(max(end - offset, 0))
            return b""
        return b"" if opcode in (_FSYNC, _READDIR) else errno.ENOSYS

    def _resize(self, size: int) -> None:
        del self.content[size:]
        self.content.extend(bytes(size - len(self.content)))

    def _attributes(self, node: int) -> bytes:
        mode = stat.S_IFDIR | 0o755 if node == _ROOT else stat.S_IFREG | 0o600
        size = 0 if node == _ROOT else len(self.content)
        words = (mode, 1, os.getuid(), os.getgid(), 0, 4096, 0)
        return _ATTRIBUTES.pack(node, size, size // 512, 0, 0, 0, 0, 0, 0, *words)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
