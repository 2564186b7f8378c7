"""The register map of the wire tests' device: what the server serves and the tests address."""

from __future__ import annotations

import mmap
from enum import IntEnum

PAGE = mmap.PAGESIZE
ID = 0x6D636476

SLEEP_KEY = 0x736C6565  # what the fuzzer writes by chance must not put the server to sleep

MSIX_VECTORS = 40  # more than one message can carry descriptors for


class Bar(IntEnum):
    """Regions: registers, an I/O BAR of plain bytes, four pages of one policy each."""

    REGISTERS = 0
    PORTS = 1
    PAGES = 2


class Reg(IntEnum):
    """Offsets in ``Bar.REGISTERS``; 4 bytes each unless said otherwise."""

    ID = 0x00
    SCRATCH = 0x08  # 8 bytes, any width
    TRIGGER = 0x10  # write kind << 16 | vector; RESULT: 1 if an eventfd was bound
    RESULT = 0x14
    DMA_ADDRESS = 0x18  # 8 bytes
    DMA_LENGTH = 0x20
    DMA_COMMAND = 0x24  # 1 guest -> BUFFER, 2 BUFFER -> guest; RESULT: 0, or 1 after a DmaError
    RESETS = 0x28
    ATTACHES = 0x2C
    FAULT = 0x30  # write 1: the model raises a bug, 2: an error of the tree
    RANGES = 0x38  # DMA ranges announced now
    IRQ_CHANGE = 0x3C  # the last one: action << 24 | kind << 16 | start << 8 | count
    PEEK_OFFSET = 0x40  # PEEK reads and writes the server's own view of Bar.PAGES there
    PEEK = 0x44
    INTERCEPTED = 0x48  # accesses to Bar.PAGES that came as a message
    SLEEP = 0x50  # 8 bytes: write SLEEP_KEY << 32 | milliseconds: the access takes that long
    BUFFER = 0x100  # 256 bytes, any width


class Page(IntEnum):
    """Offsets in ``Bar.PAGES``."""

    DIRECT = 0 * PAGE
    MEMORY = 1 * PAGE
    WRITE_INTERCEPTED = 2 * PAGE
    INTERCEPTED = 3 * PAGE
    END = 4 * PAGE
