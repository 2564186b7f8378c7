"""The configuration space of a VDEV, as a driver sees it: registers and the capability chains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vdcm.errors import ProtocolError
from vdcm.protocol import Region

if TYPE_CHECKING:
    from vdcm.client.client import Client

LEGACY_SIZE = 0x100  # bytes that every PCI function has; PCI Express adds the rest up to 4096


class ConfigSpace:
    """The VDEV's configuration space. Offsets are in bytes, widths 1, 2, 4 or 8."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def read(self, offset: int, width: int) -> int:
        return self._client.read(Region.CONFIG, offset, width)

    def write(self, offset: int, width: int, value: int) -> None:
        self._client.write(Region.CONFIG, offset, width, value)

    def dump(self) -> bytes:
        """The whole space, 256 or 4096 bytes."""
        return self._client.read_bytes(Region.CONFIG, 0, self._client.regions[Region.CONFIG].size)

    def capabilities(self) -> list[tuple[int, int]]:
        """(id, offset) of each capability in the chain's order (PCI 3.0, 6.7). Empty if none.

        Raises ProtocolError for a chain that loops or points into the header.
        """
        if not self.read(0x06, 2) & 0x10:  # Status, Capabilities List
            return []
        found: list[tuple[int, int]] = []
        at = self.read(0x34, 1) & ~3
        while at:
            self._check_link(at, 0x40, [offset for _, offset in found])
            word = self.read(at, 2)
            found.append((word & 0xFF, at))
            at = word >> 8 & ~3
        return found

    def extended_capabilities(self) -> list[tuple[int, int]]:
        """(id, offset) of each extended capability (PCIe Base Specification, 7.6). Empty if none.

        Raises ProtocolError for a chain that loops or points below 0x100.
        """
        found: list[tuple[int, int]] = []
        at = LEGACY_SIZE if self._client.regions[Region.CONFIG].size > LEGACY_SIZE else 0
        while at:
            self._check_link(at, LEGACY_SIZE, [offset for _, offset in found])
            word = self.read(at, 4)
            if word in (0, 0xFFFFFFFF):
                break
            found.append((word & 0xFFFF, at))
            at = word >> 20 & ~3
        return found

    def find(self, capability: int, extended: bool = False) -> int | None:
        """The offset of the first capability with this id, None if there is none."""
        chain = self.extended_capabilities() if extended else self.capabilities()
        return dict(reversed(chain)).get(capability)

    def _check_link(self, at: int, least: int, seen: Sequence[int]) -> None:
        if at < least or at in seen:
            fault = "loops" if at in seen else "points below where it may"
            raise ProtocolError(f"config space: the capability chain {fault} at {at:#x}")
