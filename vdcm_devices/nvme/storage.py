"""A parent's store: memory, a file or a block device, divided into slices."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from vdcm import Property, PropertyError, VdcmError
from vdcm_devices.nvme.datapath import NativeStore
from vdcm_devices.nvme.jobs import Done, Jobs
from vdcm_devices.nvme.sizes import parse_size, say_size
from vdcm_devices.nvme.slices import TABLE_SIZE, Slice, Slices

ERASE_STEP: Final = 256 << 20
"""Bytes that are erased at a time; between two of them it can be given up."""
_KINDS: Final = ("ram", "file", "device")


class StoreProperty(Property[str]):
    """``ram:SIZE``, ``file:PATH`` or ``device:PATH``; paths begin with /."""

    def check(self, value: object) -> None:
        super().check(value)
        kind, _, rest = str(value).partition(":")
        if kind not in _KINDS or not rest:
            raise PropertyError(
                f"{self.name} takes ram:SIZE, file:PATH or device:PATH, not {str(value)[:80]!r}"
            )
        if kind == "ram":
            try:
                size = parse_size(rest)
            except ValueError as error:
                raise PropertyError(f"{self.name}: ram: takes {error}") from None
            if not size:
                raise PropertyError(f"{self.name}: ram: takes a size above 0")
            return
        path = Path(rest)
        if not path.is_absolute() or "\0" in rest:
            raise PropertyError(
                f"{self.name} takes the whole path, beginning with /, not {rest[:80]!r}"
            )
        if kind == "file" and not path.parent.is_dir():
            raise PropertyError(
                f"{self.name}: there is no folder {path.parent}: create it, or name another"
            )
        if kind == "file" and path.exists() and not path.is_file():
            raise PropertyError(f"{self.name}: {path} is no file")
        if kind == "device" and not path.is_block_device():
            raise PropertyError(f"{self.name}: {path} is no block device")

    def outside(self, value: str) -> bool:
        return not value.startswith("ram:")


class Store:
    """``what`` as the property says it; ``size``: bytes of a file's slices together, 0: what is
    there. VdcmError, which names the file, if it cannot be had."""

    def __init__(self, what: str, size: int) -> None:
        self.name: Final = what
        self.jobs: Final = Jobs()
        self._fd = self._table = -1
        kind, _, rest = what.partition(":")
        try:
            if kind == "ram":
                room = parse_size(rest)
                self.native = NativeStore.ram(room)
                self.slices = Slices(what, room)
            else:
                self._fd = _open(Path(rest), create=kind == "file" and size > 0)
                room = self._room(kind == "device", size)
                # With an open file of its own: what the system could not bring to the disk it says
                # once to each of them, and the table's owner is not to hear it for the guests.
                self._table = os.open(f"/proc/self/fd/{self._fd}", os.O_RDWR | os.O_CLOEXEC)
                self.slices = Slices(what, room, self._table)
                self.native = NativeStore.file(self._fd, room + TABLE_SIZE)
        except BaseException:
            self._close_file()
            raise
        self.start: Final = TABLE_SIZE if self._fd >= 0 else 0
        """Where offsets of slices count from."""
        self._keeping = self._again = False
        self.clear([one for one in self.slices if one.erase and not one.owner])

    def _room(self, device: bool, size: int) -> int:
        """Bytes for slices; a file that is shorter is made longer, as a hole."""
        there = os.lseek(self._fd, 0, os.SEEK_END)
        if not size:
            size = there - TABLE_SIZE
            if size <= 0:
                raise VdcmError(
                    f"{self.name} has {there} bytes, which is too small: "
                    + ("name another device" if device else "say how large with size:")
                )
        elif there < size + TABLE_SIZE:
            if device:
                raise VdcmError(
                    f"{self.name} has {there} bytes; size: {say_size(size)} and "
                    f"{say_size(TABLE_SIZE)} for its table do not fit"
                )
            try:
                os.ftruncate(self._fd, size + TABLE_SIZE)
            except OSError as error:
                raise VdcmError(f"{self.name} cannot be {size} bytes long: {error}") from error
        return size

    # Erasing.

    def erase(self, one: Slice, done: Callable[[bool], None]) -> None:
        """Make a slice zeros, a step at a time; ``done`` hears whether it is."""
        begin, end = self.start + one.offset, self.start + one.offset + one.bytes

        def step(at: int) -> None:
            size = min(ERASE_STEP, end - at)

            def ended(error: Exception | None) -> None:
                if error is not None or at + size >= end:
                    done(error is None)
                else:
                    step(at + size)

            self.jobs.start(lambda: self.native.erase(at, size), ended)

        step(begin)

    def give_up(self, owner: str) -> list[Slice]:
        """The slices of a VDEV that is no more: nobody's now, and to be given to ``clear``."""
        given_up = self.slices.give_up(owner)
        if given_up:
            self.save()
        return given_up

    def clear(self, given_up: Iterable[Slice]) -> None:
        """Erase slices that are nobody's, and give their room back."""
        for one in given_up:
            self._clear(one)

    def _clear(self, one: Slice) -> None:
        def done(erased: bool) -> None:
            if erased:
                self.slices.remove(one)
                self.save()

        self.erase(one, done)

    # What is written of the table.

    def save(self, done: Done = lambda _error: None) -> None:
        """Bring the table to the disk, as it is now."""
        self.jobs.start(self.slices.saving(), done)

    def keep(self, owner: str, counts: dict[str, int]) -> None:
        """Have the table hold ``counts`` of a VDEV: soon, and at the end at the latest."""
        self.slices.counts[owner] = counts
        self._again = True
        if not self._keeping:
            self._keep()

    def _keep(self) -> None:
        self._keeping, self._again = True, False

        def ended(_error: Exception | None) -> None:  # it is tried again with what comes next
            self._keeping = False
            if self._again:
                self._keep()

        self.save(ended)

    def sync(self, done: Done) -> None:
        """Bring all that was written to the disk."""
        self.jobs.start(self.native.sync, done)

    def close(self) -> None:
        """No controller uses it any more. Twice is harmless."""
        self.jobs.close()
        if self._keeping and self._fd >= 0:  # which may not have begun
            with suppress(VdcmError):
                self.slices.save()
        self._keeping = False
        self.native.close()
        self._close_file()

    def _close_file(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            if self._table >= 0:
                os.close(self._table)
            self._fd = self._table = -1


def _open(path: Path, *, create: bool) -> int:
    """A descriptor of a file or block device that is ours alone."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_CREAT if create else 0)
    try:
        fd = os.open(path, flags, 0o600)
    except FileNotFoundError as error:
        raise VdcmError(f"{path} is not there: say how large it is to be with size:") from error
    except OSError as error:
        raise VdcmError(f"{path} cannot be opened: {error.strerror}") from error
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise VdcmError(f"{path} is neither a file nor a block device")
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        if error.errno == errno.EWOULDBLOCK:
            raise VdcmError(
                f"{path} is in use by another server or parent: name another, or stop that one"
            ) from error
        raise VdcmError(f"{path} cannot be locked: {error.strerror}") from error
    except BaseException:
        os.close(fd)
        raise
    return fd
