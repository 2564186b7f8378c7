"""BAR0: registers, the page of doorbells, MSI-X (NVM Express 1.4, 3.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vdcm import Bar, BarKind, PagePolicy, Pages
from vdcm_devices.nvme.registers import BAR0_SIZE, DOORBELLS, PAGE

Ring = Callable[[int, int], None]
"""Takes the number of a doorbell and its value."""
_END: Final = DOORBELLS + PAGE


class NvmeBar(Bar):
    """``direct``: doorbells are memory; else ``ring`` hears of what is written to them, naturally
    aligned, 4 bytes each (3.1.24), and what is not is ignored. Doorbells read as 0."""

    def __init__(self, ring: Ring, *, direct: bool) -> None:
        self._ring: Final = ring
        self._direct: Final = direct
        pages = [Pages(DOORBELLS, PAGE, PagePolicy.DIRECT)] if direct else []
        super().__init__(0, BAR0_SIZE, BarKind.MEMORY64, pages)

    @property
    def writer(self) -> Callable[[int, int, int], None]:
        return self.write

    def write(self, offset: int, width: int, value: int) -> None:
        if self._direct or not DOORBELLS <= offset < _END:
            super().write(offset, width, value)
            return
        if width < 4 or offset % width:
            return
        for at in range(0, width, 4):
            self._ring((offset + at - DOORBELLS) // 4, value >> 8 * at & 0xFFFF_FFFF)
