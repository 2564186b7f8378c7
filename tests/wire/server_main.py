"""A server process for the wire tests: ``python server_main.py FOLDER COUNT [PATIENCE]``.

Serves COUNT devices on FOLDER/vdev0.sock and so on, prints ``ready``, stops on SIGTERM.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from wire_registers import ID, MSIX_VECTORS, SLEEP_KEY, Bar, Page, Reg

from vdcm.errors import DmaError, VdcmError
from vdcm.protocol import Area, Irq, Region
from vdcm.transport import IrqAction, RegionDescription, Session, Transport, Written


class WireDevice:
    """A device that shows what the transport tells it, through registers."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._session: Session | None = None
        self._words: dict[int, int] = {Reg.ID: ID}
        self._buffer = bytearray(0x100)
        self._scratch = bytearray(8)
        self._ports = bytearray(64)
        self._config = bytearray(4096)
        self._config[0:4] = ID.to_bytes(4, "little")
        self._fd = os.memfd_create(name)
        os.ftruncate(self._fd, Page.END)
        self._pages = mmap.mmap(self._fd, Page.END)

    observed = False

    @property
    def name(self) -> str:
        return self._name

    def regions(self) -> Sequence[RegionDescription]:
        shared = [Area(Page.DIRECT, mmap.PAGESIZE), Area(Page.MEMORY, mmap.PAGESIZE)]
        read_only = [Area(Page.WRITE_INTERCEPTED, mmap.PAGESIZE)]
        return [
            RegionDescription(Bar.REGISTERS, 4096),
            RegionDescription(Bar.PORTS, 64),
            RegionDescription(Bar.PAGES, Page.END, fd=self._fd, areas=shared, read_only=read_only),
            RegionDescription(Region.CONFIG, 4096),
        ]

    def vectors(self) -> Mapping[Irq, int]:
        return {Irq.INTX: 1, Irq.MSI: 8, Irq.MSIX: MSIX_VECTORS}

    def attached(self, session: Session) -> None:
        self._session = session
        self._count(Reg.ATTACHES)

    def detached(self) -> None:
        self._session = None

    def reset(self) -> None:
        self._count(Reg.RESETS)

    def dma_changed(self, iova: int, size: int, *, mapped: bool, shared: bool) -> None:
        """RANGES asks the transport instead."""

    def repeated(self, *_what: object) -> None:
        """Nothing is made of it."""

    def silent(self, written: Written) -> None:
        """Nor of this."""

    def irqs_changed(self, kind: Irq, action: IrqAction, start: int, count: int) -> None:
        self._words[Reg.IRQ_CHANGE] = action << 24 | kind << 16 | start << 8 | count

    def read(self, region: int, offset: int, width: int) -> int:
        if region == Bar.PAGES:
            self._count(Reg.INTERCEPTED)
            if offset >= Page.INTERCEPTED:
                return offset
        if region == Bar.REGISTERS:
            if offset == Reg.RANGES:
                return len(self._client().memory.ranges)
            if offset == Reg.PEEK:
                at = self._words.get(Reg.PEEK_OFFSET, 0)
                return int.from_bytes(self._pages[at : at + width], "little")
        space, at = self._space(region, offset)
        if space is None:
            return self._words.get(offset, 0) & ((1 << 8 * width) - 1)
        return int.from_bytes(space[at : at + width], "little")

    def write(self, region: int, offset: int, width: int, value: int) -> None:
        if region == Bar.PAGES:
            self._count(Reg.INTERCEPTED)
        space, at = self._space(region, offset)
        if space is not None:
            width = min(width, len(space) - at)
            space[at : at + width] = value.to_bytes(8, "little")[:width]
        elif offset in (Reg.ID, Reg.RESETS, Reg.ATTACHES, Reg.INTERCEPTED, Reg.RESULT):
            pass
        else:
            self._words[offset] = value
            self._react(offset, value)

    def _space(self, region: int, offset: int) -> tuple[bytearray | mmap.mmap | None, int]:
        """The bytes behind an access, or None where it meets a register."""
        if region == Bar.REGISTERS:
            if Reg.SCRATCH <= offset < Reg.SCRATCH + 8:
                return self._scratch, offset - Reg.SCRATCH
            if Reg.BUFFER <= offset < Reg.BUFFER + 0x100:
                return self._buffer, offset - Reg.BUFFER
            return None, offset
        spaces: dict[int, bytearray | mmap.mmap] = {
            Bar.PORTS: self._ports,
            Bar.PAGES: self._pages,
            Region.CONFIG: self._config,
        }
        return spaces[region], offset

    def _react(self, offset: int, value: int) -> None:
        if offset == Reg.TRIGGER:
            bound = self._client().trigger(Irq(value >> 16), value & 0xFFFF)
            self._words[Reg.RESULT] = int(bound)
        elif offset == Reg.DMA_COMMAND:
            self._words[Reg.RESULT] = int(not self._dma(value))
        elif offset == Reg.SLEEP and value >> 32 == SLEEP_KEY:
            time.sleep((value & 0xFFFFFFFF) / 1000)
        elif offset == Reg.PEEK:
            at = min(self._words.get(Reg.PEEK_OFFSET, 0), Page.END - 4)
            self._pages[at : at + 4] = (value & 0xFFFFFFFF).to_bytes(4, "little")
        elif offset == Reg.FAULT and value == 1:
            raise RuntimeError("a bug of the device model, as ordered")
        elif offset == Reg.FAULT and value == 2:
            raise VdcmError("an error of the device model, as ordered")

    def _dma(self, command: int) -> bool:
        address = self._words.get(Reg.DMA_ADDRESS, 0)
        length = min(self._words.get(Reg.DMA_LENGTH, 0), len(self._buffer))
        memory = self._client().memory
        try:
            if command == 1:
                self._buffer[:length] = memory.read(address, length)
            else:
                memory.write(address, bytes(self._buffer[:length]))
        except DmaError as error:
            logging.error("%s: %s", self._name, error)
            return False
        return True

    def _client(self) -> Session:
        if self._session is None:
            raise VdcmError("no client is attached")
        return self._session

    def _count(self, register: Reg) -> None:
        self._words[register] = self._words.get(register, 0) + 1


async def main(folder: Path, count: int, patience: float) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = Transport(patience)
    try:
        for index in range(count):
            server.serve(WireDevice(f"vdev{index}"), folder / f"vdev{index}.sock")
        print("ready", flush=True)
        await stop.wait()
    finally:
        server.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    # A silent client is given up after seconds that suit a test.
    patience = float(sys.argv[3]) if len(sys.argv) > 3 else 5.0
    try:
        asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), patience))
    except VdcmError as error:
        sys.exit(f"server_main: {error}")
