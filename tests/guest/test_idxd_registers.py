"""Every register of a DSA as a guest finds it, through QEMU: no driver, the files of sysfs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
from dsa_config_table import ConfigImage
from dsa_portal_walk import PAGE, PORTALS
from dsa_register_table import RW, SHAPES, Bits
from dsa_register_walk import PATTERNS, Image, Model

from tests.guest import idxd
from vdcm.testing import Machine

# The VDEVs of the shared guest.
DEVICES = {"0000:00:01.0": "dsa-2dwq-1swq", "0000:00:02.0": "dsa-1dwq"}
MSIX_TABLE = 0x4000


class Function:
    """A DSA that no driver has, after a function-level reset."""

    def __init__(self, machine: Machine, address: str) -> None:
        self.machine = machine
        self.files = f"/sys/bus/pci/devices/{address}"
        self.shape = SHAPES[DEVICES[address]]

    def reset(self) -> None:
        self.machine.check(f"echo 1 >{self.files}/reset")

    def run(self, file: str, operations: Iterable[str]) -> list[dict[int, int]]:
        """What the program ``regwalk`` reads, by offset, for each operation that reads."""
        command = f"/regwalk {self.files}/{file} {' '.join(operations)}"
        return [
            {
                int(at, 16): int(value, 16)
                for at, value in (word.split("=") for word in line.split())
            }
            for line in self.machine.check(command, 100).split("\n")[:-1]
        ]

    def compare(self, file: str, image: Image, first: int, end: int) -> None:
        """Each word of 4 bytes, and of 8 in a BAR."""
        widths = (4, 8) if file != "config" else (4,)
        found = self.run(file, [f"r:{width}:{first:x}:{end:x}" for width in widths])
        for width, values in zip(widths, found, strict=True):
            expected = {at: image.read(at, width) for at in range(first, end, width)}
            wrong = [
                f"{image.name(at)}, {width} bytes: {values.get(at, 0):#x} is not {value:#x}"
                for at, value in expected.items()
                if values.get(at, 0) != value
            ]
            assert not wrong, "\n".join(wrong)


@pytest.fixture(params=DEVICES)
def function(request: pytest.FixtureRequest, idxd_lab: idxd.IdxdLab) -> Iterator[Function]:
    idxd.unload(idxd_lab.machine)
    function = Function(idxd_lab.machine, request.param)
    idxd_lab.machine.check(f"echo 1 >{function.files}/enable")
    function.reset()
    yield function
    function.reset()
    idxd_lab.machine.check(f"echo 0 >{function.files}/enable")


def test_registers_of_bar0(function: Function) -> None:
    """The MSI-X table is QEMU's own; all other bytes of BAR0 are the device's."""
    model = Model(function.shape)
    table = range(MSIX_TABLE, MSIX_TABLE + 16 * (function.shape.wqs + 1))

    def compare() -> None:
        function.compare("resource0", model, 0, table.start)
        function.compare("resource0", model, -(-table.stop // 8) * 8, model.size)

    compare()
    words = [at for at in model.words if at not in model.actions and at not in table]
    for pattern in PATTERNS:
        for at in words:
            model.write(at, 4, pattern)
        function.run("resource0", (f"w:4:{a:x}:{b:x}:{pattern:x}" for a, b in runs(words)))
        compare()
    function.reset()
    model.reset()
    compare()


def runs(words: Iterable[int]) -> list[tuple[int, int]]:
    """Words of 4 bytes, ascending, as ranges."""
    found: list[tuple[int, int]] = []
    for at in words:
        if found and found[-1][1] == at:
            found[-1] = (found[-1][0], at + 4)
        else:
            found.append((at, at + 4))
    return found


def test_what_is_read_only_in_configuration_space(function: Function) -> None:
    """Linux and QEMU set what can be set; the rest is as the table says, whatever is written."""
    image = ConfigImage(function.shape)
    fixed = [0xFFFF_FFFF] * (image.size // 4)
    for row in image.rows:
        for bits in row.bits:
            if bits.attr is RW:
                clear(fixed, 8 * row.offset, bits)
    for _ in range(2):
        (found,) = function.run("config", [f"r:4:0:{image.size:x}"])
        for at in range(0, image.size, 4):
            value, expected = (
                word & fixed[at // 4] for word in (found.get(at, 0), image.read(at, 4))
            )
            assert value == expected, f"{image.name(at)}: {value:#x} is not {expected:#x}"
        whole = [at for at in range(0, image.size, 4) if fixed[at // 4] == 0xFFFF_FFFF]
        function.run("config", (f"w:4:{a:x}:{b:x}:ffffffff" for a, b in runs(whole)))


def clear(masks: list[int], first: int, bits: Bits) -> None:
    """Those of the bits, of which bit 0 is bit ``first`` of all."""
    for bit in range(first + bits.low, first + bits.high + 1):
        masks[bit // 32] &= ~(1 << bit % 32)


def test_portals_read_as_zero(function: Function) -> None:
    """Before and after writes of a part of each, in every page of every work queue."""
    pages = range(PORTALS * function.shape.wqs)
    reads = [f"r:{width}:0:{PAGE * len(pages):x}" for width in (4, 8)]
    writes = [f"w:4:{PAGE * page:x}:{PAGE * page + 32:x}:ffffffff" for page in pages]
    assert function.run("resource2", [*reads, *writes, *reads]) == [{}] * 4
