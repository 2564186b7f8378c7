"""The client itself: what a driver asks of a VDEV."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from vdcm import protocol
from vdcm.client.config import ConfigSpace
from vdcm.client.connection import MAX_OVERHEAD, Connection, close_all
from vdcm.client.memory import DmaBuffer, Eventfd, MappedArea, serve_dma, writable_parts
from vdcm.errors import DmaError, ProtocolError, TransportError
from vdcm.protocol import (
    Area,
    Command,
    DeviceFlags,
    DmaFlags,
    IrqFlags,
    IrqSet,
    MessageFlags,
    RegionFlags,
    UnmapFlags,
    Version,
    pack,
    unpack,
)

# More regions or interrupt kinds than this are not believed.
_MAX_INDEXES = 256
_WIDTHS = (1, 2, 4, 8)


@dataclass(frozen=True)
class DeviceInfo:
    """What DEVICE_GET_INFO tells: flags, number of regions and of interrupt kinds."""

    flags: DeviceFlags
    regions: int
    irqs: int


@dataclass(frozen=True)
class RegionInfo:
    """One region: size in bytes (0: absent), flags, and the areas that ``fd`` can map.

    ``offset`` is where the region starts in the file of ``fd``; the client owns ``fd``.
    """

    index: int
    size: int
    flags: RegionFlags
    offset: int
    areas: tuple[Area, ...]
    fd: int | None


@dataclass(frozen=True)
class IrqInfo:
    """One interrupt kind: its flags and how many interrupts it has."""

    index: int
    flags: IrqFlags
    count: int


class Client:
    """A connection to one VDEV, with the version negotiated.

    ``path``: the VDEV's socket. ``timeout``: seconds that each call may take. ``capabilities``:
    overrides what the client offers by key (None leaves one out). ``wait``: seconds to keep trying
    while the socket is missing or nobody listens, for a server that is just starting.

    Every method that talks to the server raises TransportError for a lost connection or a missed
    deadline, and its subclass ProtocolError (with ``errno``) for a refusal or a malformed reply.
    """

    def __init__(
        self,
        path: str | Path,
        timeout: float = 5.0,
        capabilities: Mapping[str, Any] | None = None,
        wait: float = 0.0,
    ) -> None:
        self.config = ConfigSpace(self)
        self._regions: tuple[RegionInfo, ...] | None = None
        self._irqs: tuple[IrqInfo, ...] | None = None
        self._buffers: list[DmaBuffer] = []
        self._others: list[Eventfd | MappedArea] = []
        self._connection = Connection(path, timeout, capabilities or {}, wait, self._answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection and give back all that the client made: DMA buffers, eventfds, mapped
        areas, descriptors of regions. Twice is harmless."""
        self._connection.close()
        for owned in (*self._buffers, *self._others):
            owned.close()
        self._others.clear()
        close_all(region.fd for region in self._regions or ())
        self._regions = None

    @property
    def path(self) -> str:
        """The socket's path."""
        return self._connection.path

    @property
    def connected(self) -> bool:
        """Neither side has closed the connection, as far as the last call has shown."""
        return self._connection.connected

    @property
    def version(self) -> Version:
        """What the server answered to VERSION: its limits and capabilities."""
        return self._connection.version

    def fileno(self) -> int:
        """The socket's descriptor, to poll for requests of the server (``serve_requests``)."""
        return self._connection.fileno()

    # Device, regions, interrupt kinds

    def info(self) -> DeviceInfo:
        """DEVICE_GET_INFO."""
        size = protocol.DEVICE_INFO.size
        payload = self.call(Command.DEVICE_GET_INFO, pack(protocol.DEVICE_INFO, size, 0, 0, 0))
        _, flags, regions, irqs = unpack(protocol.DEVICE_INFO, payload, "DEVICE_GET_INFO")
        if max(regions, irqs) > _MAX_INDEXES:
            raise ProtocolError(f"DEVICE_GET_INFO: {regions} regions and {irqs} irqs are too many")
        return DeviceInfo(DeviceFlags(flags), regions, irqs)

    @property
    def regions(self) -> tuple[RegionInfo, ...]:
        """All regions by number; asked for once, then remembered."""
        if self._regions is None:
            found: list[RegionInfo] = []
            try:
                for index in range(self.info().regions):
                    found.append(self._region_info(index))
            except BaseException:
                close_all(region.fd for region in found)
                raise
            self._regions = tuple(found)
        return self._regions

    @property
    def irqs(self) -> tuple[IrqInfo, ...]:
        """All interrupt kinds by number; asked for once, then remembered."""
        if self._irqs is None:
            self._irqs = tuple(self._irq_info(index) for index in range(self.info().irqs))
        return self._irqs

    def reset(self) -> None:
        """DEVICE_RESET."""
        self.call(Command.DEVICE_RESET)

    # Region access

    def read(self, region: int, offset: int, width: int) -> int:
        """Read ``width`` (1, 2, 4 or 8) bytes at ``offset`` of ``region``, in one message."""
        _check_width(width)
        return int.from_bytes(self.read_bytes(region, offset, width), "little")

    def write(self, region: int, offset: int, width: int, value: int) -> None:
        """Write the low ``width`` (1, 2, 4 or 8) bytes of ``value``, in one message."""
        self.write_bytes(region, offset, _word_bytes(width, value))

    def post_write(self, region: int, offset: int, width: int, value: int) -> None:
        """Write like ``write`` but ask for no reply: an error of the server goes unseen.

        Ordered before every later call.
        """
        data = _word_bytes(width, value)
        head = pack(protocol.REGION_ACCESS, offset, region, width)
        self._connection.send(Command.REGION_WRITE, head + data, MessageFlags.NO_REPLY)

    def write_multi(
        self, writes: Sequence[tuple[int, int, int, int]], *, post: bool = False
    ) -> int:
        """Write several times, each (region, offset, width, value) as in ``write``, in order and in
        as few messages as the negotiated limit allows.

        Returns how many were done: none behind one that the server refused. With ``post`` no reply
        is asked for: the refused ones go unseen, the others are done. Raises ProtocolError if
        the very first is refused, or the server does not take such messages (``version`` says).
        """
        if not self.version.write_multiple:
            raise ProtocolError(f"{self.path}: the server does not take REGION_WRITE_MULTI")
        most = max(1, self._connection.max_transfer // protocol.WRITE_ONE.size)
        done = 0
        for at in range(0, len(writes), most):
            part = writes[at : at + most]
            payload = pack(protocol.WRITE_MULTI, len(part)) + b"".join(
                pack(protocol.WRITE_ONE, offset, region, width, _word_bytes(width, value))
                for region, offset, width, value in part
            )
            if post:
                self._connection.send(Command.REGION_WRITE_MULTI, payload, MessageFlags.NO_REPLY)
                done += len(part)
                continue
            reply = self.call(Command.REGION_WRITE_MULTI, payload)
            (count,) = unpack(protocol.WRITE_MULTI, reply, "REGION_WRITE_MULTI")
            if count > len(part):
                raise ProtocolError(f"REGION_WRITE_MULTI: {len(part)} writes sent, {count} done")
            done += count
            if count < len(part):
                break
        return done

    def read_bytes(self, region: int, offset: int, size: int) -> bytes:
        """Read ``size`` bytes, in as many messages as the negotiated limit needs."""
        parts = []
        for at, count in self._pieces(offset, size):
            access = pack(protocol.REGION_ACCESS, at, region, count)
            payload = self.call(Command.REGION_READ, access)
            data = payload[protocol.REGION_ACCESS.size :]
            self._check_access(Command.REGION_READ, payload, count)
            if len(data) != count:
                raise ProtocolError(f"REGION_READ: {count} bytes asked for, {len(data)} came")
            parts.append(data)
        return b"".join(parts)

    def write_bytes(self, region: int, offset: int, data: bytes) -> None:
        """Write ``data``, in as many messages as the negotiated limit needs."""
        for at, count in self._pieces(offset, len(data)):
            head = pack(protocol.REGION_ACCESS, at, region, count)
            piece = data[at - offset : at - offset + count]
            payload = self.call(Command.REGION_WRITE, head + piece)
            self._check_access(Command.REGION_WRITE, payload, count)

    def map(self, region: int) -> list[MappedArea]:
        """Map all mappable areas of ``region``, writable unless the server says read-only.

        Areas are in the server's order, cut where their protection changes; an empty list means
        that every access to the region is a message. Unmapped by ``close``.
        """
        info = self.regions[region]
        areas: list[MappedArea] = []
        for area in info.areas if info.fd is not None else ():
            for part, writable in writable_parts(area, self.version.read_only.get(region, ())):
                areas.append(self._map_part(info, part, writable))
        return areas

    # DMA

    def dma_memory(self, iova: int, size: int, read: bool = True, write: bool = True) -> DmaBuffer:
        """New shared memory of ``size`` bytes (a multiple of the page size) at address ``iova``.

        ``read`` and ``write`` are what the device may do. Raises DmaError for a bad size.
        """
        if size <= 0 or size % mmap.PAGESIZE:
            raise DmaError(f"a DMA buffer is whole pages of {mmap.PAGESIZE} bytes, not {size}")
        flags = DmaFlags(DmaFlags.READ * read | DmaFlags.WRITE * write)
        fd = os.memfd_create("vdcm-client-dma", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, size)
            # The server maps this memory: it must not shrink under it.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
            memory = mmap.mmap(fd, size)
            self.dma_map(iova, size, fd, 0, flags)
        except OSError as error:
            os.close(fd)
            raise DmaError(f"no memory for a DMA buffer of {size} bytes: {error}") from error
        except BaseException:
            os.close(fd)
            raise
        buffer = DmaBuffer(memory, fd, iova, flags, self._unmap)
        self._buffers.append(buffer)
        return buffer

    def dma_map(
        self,
        iova: int,
        size: int,
        fd: int | None = None,
        offset: int = 0,
        flags: int = DmaFlags.READ | DmaFlags.WRITE,
    ) -> None:
        """DMA_MAP: ``size`` bytes at ``iova`` are those of ``fd`` at ``offset``.

        Without ``fd`` the server must ask for each access (it is answered only where a buffer of
        ``dma_memory`` covers the address). Values go out unchecked.
        """
        argsz = protocol.DMA_MAP.size
        payload = pack(protocol.DMA_MAP, argsz, flags, offset, iova, size)
        self.call(Command.DMA_MAP, payload, () if fd is None else (fd,))

    def dma_unmap(self, iova: int, size: int) -> None:
        """DMA_UNMAP of exactly what one DMA_MAP mapped."""
        argsz = protocol.DMA_UNMAP.size
        self.call(Command.DMA_UNMAP, pack(protocol.DMA_UNMAP, argsz, 0, iova, size))

    def dma_unmap_all(self) -> None:
        """DMA_UNMAP of everything. Buffers of ``dma_memory`` keep their memory until closed."""
        argsz = protocol.DMA_UNMAP.size
        self.call(Command.DMA_UNMAP, pack(protocol.DMA_UNMAP, argsz, UnmapFlags.ALL, 0, 0))
        for buffer in self._buffers:
            buffer.mapped = False

    # Interrupts

    def irq_enable(self, index: int, count: int | None = None, start: int = 0) -> list[Eventfd]:
        """Give interrupts ``start`` to ``start + count - 1`` of a kind an eventfd each.

        ``count`` defaults to all from ``start`` on. Closed by ``close``.
        """
        if count is None:
            count = self.irqs[index].count - start
        step = self._connection.max_send_fds
        if step < 1:
            raise ProtocolError("the server takes no descriptors: interrupts cannot be enabled")
        events: list[Eventfd] = []
        try:
            events.extend(Eventfd() for _ in range(count))
            for at in range(0, count, step):
                fds = [event.fileno() for event in events[at : at + step]]
                flags = IrqSet.DATA_EVENTFD | IrqSet.ACTION_TRIGGER
                self.set_irqs(index, flags, start + at, len(fds), fds=fds)
        except BaseException:
            for event in events:
                event.close()
            raise
        self._others.extend(events)
        return events

    def irq_disable(self, index: int, count: int = 0, start: int = 0) -> None:
        """Take the eventfds away; by default of the whole kind."""
        data = IrqSet.DATA_EVENTFD if count else IrqSet.DATA_NONE
        self.set_irqs(index, data | IrqSet.ACTION_TRIGGER, start, count)

    def irq_mask(self, index: int, count: int = 1, start: int = 0) -> None:
        """Mask interrupts of a kind that is MASKABLE."""
        self.set_irqs(index, IrqSet.DATA_NONE | IrqSet.ACTION_MASK, start, count)

    def irq_unmask(self, index: int, count: int = 1, start: int = 0) -> None:
        """Unmask interrupts of a kind that is MASKABLE."""
        self.set_irqs(index, IrqSet.DATA_NONE | IrqSet.ACTION_UNMASK, start, count)

    def irq_trigger(self, index: int, count: int = 1, start: int = 0) -> None:
        """Loopback: have the server signal the interrupts' eventfds as if the device had."""
        self.set_irqs(index, IrqSet.DATA_NONE | IrqSet.ACTION_TRIGGER, start, count)

    def set_irqs(
        self,
        index: int,
        flags: int,
        start: int,
        count: int,
        data: bytes = b"",
        fds: Sequence[int] = (),
    ) -> None:
        """DEVICE_SET_IRQS as it is: ``data`` is one byte per interrupt for DATA_BOOL."""
        argsz = protocol.IRQ_SET.size + len(data)
        payload = pack(protocol.IRQ_SET, argsz, flags, index, start, count) + data
        self.call(Command.DEVICE_SET_IRQS, payload, fds)

    # Messages

    def call(self, command: int, payload: bytes = b"", fds: Sequence[int] = ()) -> bytes:
        """Send any command and return the payload of its reply; descriptors in it are closed."""
        reply, received = self._connection.call(command, payload, fds)
        close_all(received)
        return reply

    def serve_requests(self, timeout: float = 0.0) -> int:
        """Answer the server's DMA_READ and DMA_WRITE for ``timeout`` seconds; how many came.

        Only needed when the server asks while no call is under way: calls answer them too.
        """
        return self._connection.serve_requests(timeout)

    def _answer(self, command: int, payload: bytes) -> bytes:
        return serve_dma(self._buffers, command, payload, self._connection.max_transfer)

    # Helpers of the calls above

    def _region_info(self, index: int) -> RegionInfo:
        argsz = 1024
        while True:
            request = pack(protocol.REGION_INFO, argsz, 0, index, 0, 0, 0)
            payload, fds = self._connection.call(Command.DEVICE_GET_REGION_INFO, request)
            try:
                reply = protocol.parse_region_info(payload)
                if argsz < reply.argsz <= MAX_OVERHEAD:
                    close_all(fds)
                    argsz = reply.argsz
                    continue
                if reply.argsz > argsz or reply.index != index:
                    raise ProtocolError(f"DEVICE_GET_REGION_INFO: no answer for region {index}")
            except BaseException:
                close_all(fds)
                raise
            fd = fds[0] if fds and reply.flags & RegionFlags.MMAP else None
            close_all(other for other in fds if other != fd)
            return RegionInfo(index, reply.size, reply.flags, reply.offset, reply.areas, fd)

    def _irq_info(self, index: int) -> IrqInfo:
        size = protocol.IRQ_INFO.size
        payload = self.call(Command.DEVICE_GET_IRQ_INFO, pack(protocol.IRQ_INFO, size, 0, index, 0))
        _, flags, _, count = unpack(protocol.IRQ_INFO, payload, "DEVICE_GET_IRQ_INFO")
        return IrqInfo(index, IrqFlags(flags), count)

    def _pieces(self, offset: int, size: int) -> Iterable[tuple[int, int]]:
        step = self._connection.max_transfer
        return ((offset + at, min(step, size - at)) for at in range(0, size, step))

    def _check_access(self, command: Command, payload: bytes, count: int) -> None:
        _, _, done = unpack(protocol.REGION_ACCESS, payload, command.name)
        if done != count:
            raise ProtocolError(f"{command.name}: {count} bytes asked for, {done} done")

    def _map_part(self, info: RegionInfo, part: Area, writable: bool) -> MappedArea:
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        try:
            memory = mmap.mmap(
                info.fd if info.fd is not None else -1,
                part.size,
                mmap.MAP_SHARED,
                protection,
                offset=info.offset + part.offset,
            )
        except (OSError, ValueError, OverflowError) as error:
            raise TransportError(
                f"{self.path}: region {info.index}, {part.size:#x} bytes at {part.offset:#x},"
                f" cannot be mapped: {error}"
            ) from None
        area = MappedArea(memory, info.index, part, writable)
        self._others.append(area)
        return area

    def _unmap(self, buffer: DmaBuffer) -> None:
        self._buffers.remove(buffer)
        try:
            if buffer.mapped and self._connection.connected:
                self.dma_unmap(buffer.iova, buffer.size)
        except TransportError:
            if self._connection.connected:
                raise  # else the mapping has gone with the connection


def _check_width(width: int) -> None:
    if width not in _WIDTHS:
        raise ProtocolError(
            f"a register access is 1, 2, 4 or 8 bytes wide, not {width}: use read_bytes"
        )


def _word_bytes(width: int, value: int) -> bytes:
    _check_width(width)
    return (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")
