"""What is in BAR2, the portals (DSA specification, 9.3, table 9-11), whoever carries the accesses:
every page of every work queue reads 0, and a write that is not of 64 aligned bytes is ignored."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from dsa_register_walk import Port

PAGE, PORTALS, SLOT = 0x1000, 4, 64
OFFSETS = (0, 0x40, 0x7C0, 0xFC0)
"""Of the portals of a page that are looked at, as any of them has the same effect."""


def portals(wqs: int) -> Iterator[int]:
    """Offsets in BAR2: the first and the last portal of each page, and some between."""
    for page in range(PORTALS * wqs):
        yield from (PAGE * page + at for at in OFFSETS)


def read_portals(port: Port, wqs: int) -> None:
    for portal in portals(wqs):
        for width in (1, 2, 4, 8):
            for at in (0, 1, SLOT - width):  # those at 1 are not aligned
                found = port.read(portal + at, width)
                assert found == 0, f"{portal + at:#x}, {width} bytes: {found:#x}"


def write_parts(port: Port, wqs: int, nothing_happened: Callable[[], bool]) -> None:
    """Writes of every width that leave a portal incomplete, and unaligned ones over all of it. In
    the end ``nothing_happened``, and all portals still read 0."""
    for portal in portals(wqs):
        for width in (2, 4, 8):
            for at in range(1, SLOT - width, width):
                port.write(portal + at, width, (1 << 64) - 1)
        for width in (1, 2, 4, 8):
            for at in range(0, SLOT // 2, width):
                port.write(portal + at, width, 0)
        assert nothing_happened(), f"after writes to parts of the portal at {portal:#x}"
    read_portals(port, wqs)
