"""The device that the benchmarks read: ``python bench_server.py SOCKET``.

The same as ``baseline_server.c``, written the way a device model is: one counter, one direct page.
"""

from __future__ import annotations

import sys
from pathlib import Path

from vdcm import Access, Bar, Identity, PagePolicy, Pages, Register, RegisterMap, Vdev, serve


class Registers(RegisterMap):
    COUNTER = Register(0x0, 32, Access.RO, doc="Counts its own reads.")


class Counter(Vdev):
    identity = Identity(vendor=0x1234, device=0xBE7D, class_code=0xFF0000)

    def __init__(self, name: str) -> None:
        self.reads = 0
        self.registers = Registers(self)
        bar = Bar(0, 0x2000, pages=[Pages(0x1000, 0x1000, PagePolicy.DIRECT)])
        bar.place(0, self.registers)
        super().__init__(name, bars=[bar])

    def on_read_COUNTER(self) -> int:
        self.reads += 1
        return self.reads & 0xFFFF_FFFF


if __name__ == "__main__":
    serve(Counter("counter"), path=Path(sys.argv[1]))
