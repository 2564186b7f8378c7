"""Every register of a virtual DSA, bit by bit, is what chapter 9 of the specification says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from dsa_portal_walk import read_portals, write_parts
from dsa_register_table import BAR0_SIZE, SHAPES, Shape, gaps, rows
from dsa_register_walk import BarWalk, Model, Port

from vdcm.parent import build
from vdcm_devices.dsa import Dsa
from vdcm_devices.dsa.vdev import DsaVdev

KINDS = [(kind, "2.0") for kind in SHAPES] + [("dsa-2dwq-1swq", "1.0")]
DEDICATED, SHARED = 1, 0
ENABLE_DEVICE, RESET_DEVICE, ENABLE_WQ = 1, 5, 6
MODES = {
    "dsa-1dwq": [DEDICATED],
    "dsa-1swq": [SHARED],
    "dsa-2dwq-1swq": [DEDICATED, DEDICATED, SHARED],
    "dsa-dynamic": [DEDICATED, SHARED, SHARED, DEDICATED],
}


def shape_of(kind: str, generation: str) -> Shape:
    return replace(SHAPES[kind], generation=int(generation[0]))


@pytest.fixture(params=KINDS, ids="-".join)
def made(request: pytest.FixtureRequest) -> Iterator[tuple[str, DsaVdev, BarWalk]]:
    kind, generation = request.param
    dsa = build(Dsa, "dsa0", {"generation": generation})
    vdev = dsa.create(kind, "v", {})
    assert isinstance(vdev, DsaVdev)
    port = Port(
        lambda offset, width: vdev.read(0, offset, width),
        lambda offset, width, value: vdev.write(0, offset, width, value),
    )
    yield kind, vdev, BarWalk(port, Model(shape_of(kind, generation)))
    vdev.close()
    dsa.close()


@pytest.mark.parametrize("kind", SHAPES)
def test_the_table_has_every_bit_once(kind: str) -> None:
    covered = bytearray(BAR0_SIZE)
    for row in rows(SHAPES[kind]):
        assert sum(bits.mask for bits in row.bits) == (1 << 8 * row.size) - 1, row.name
        assert sum(bits.high + 1 - bits.low for bits in row.bits) == 8 * row.size, row.name
        for at in range(row.offset, row.offset + row.size):
            covered[at] += 1
    for gap in gaps(SHAPES[kind]):
        for at in gap:
            covered[at] += 1
    assert covered == b"\1" * BAR0_SIZE


def test_registers_after_a_reset(made: tuple[str, DsaVdev, BarWalk]) -> None:
    _, vdev, walk = made
    walk.read_all()
    walk.read_widths()
    walk.write_registers()
    walk.write_gaps()
    vdev.reset()
    walk.model.reset()
    walk.read_all()


def test_registers_of_a_disabled_device(made: tuple[str, DsaVdev, BarWalk]) -> None:
    _, _, walk = made
    walk.write_randomly(4000, seed=1)


def ready(kind: str, vdev: DsaVdev, walk: BarWalk) -> None:
    """Configured, and nothing in the way of Enable Device."""
    vdev.config.space.write(4, 2, 0x406)
    pasid = next(c for c in vdev.config.capabilities if type(c).__name__ == "VdevPasid")
    vdev.config.space.write(pasid.offset + 6, 2, 1)
    if kind == "dsa-dynamic":
        for queue, mode in zip(vdev.work_queues, MODES[kind], strict=True):
            vdev.back(queue, "dwq" if mode == DEDICATED else "swq-share")
    walk.configure(MODES[kind])


def test_registers_of_an_enabled_device(made: tuple[str, DsaVdev, BarWalk]) -> None:
    """What is locked while the device or a work queue is enabled; the others are not."""
    kind, vdev, walk = made
    ready(kind, vdev, walk)
    walk.command(ENABLE_DEVICE)
    walk.model.state(device_enabled=True)
    walk.write_registers()
    walk.write_randomly(2000, seed=2)
    walk.model.state(device_enabled=True)
    wqs = list(range(len(MODES[kind])))
    walk.configure(MODES[kind])
    for last in wqs:
        walk.command(ENABLE_WQ, last)
        walk.model.state(device_enabled=True, enabled_wqs=wqs[: last + 1])
        walk.read_registers(f"after Enable WQ {last}")
        walk.write_registers()
        walk.write_randomly(500, seed=last)
        walk.model.state(device_enabled=True, enabled_wqs=wqs[: last + 1])
        walk.configure(MODES[kind])  # what can still be written
    walk.command(RESET_DEVICE)
    walk.model.reset_device()
    walk.read_all()


def test_what_the_guest_clears_by_a_one(made: tuple[str, DsaVdev, BarWalk]) -> None:
    """Each by itself, and nothing else of the register."""
    _, vdev, walk = made
    assert vdev.registers.INTCAUSE.value == 0
    vdev.registers.INTCAUSE.value = 0x8000_003F
    for bit in (31, 5, 4, 3, 2, 1, 0):
        walk.model.set("INTCAUSE", CAUSES[bit], 1)
    walk.write(0x98, 4, 0)
    walk.write(0x98, 4, 0x7FFF_FFC0)
    for bit in (5, 0, 31, 2, 4, 1, 3):
        walk.write(0x98, 4, 1 << bit)
    vdev.registers.SWERROR.value = 0x0ABC_DE12_00FF_FFFF
    for field, value in ERROR.items():
        walk.model.set("SWERROR", field, value)
    walk.write(0xC0, 8, 0)
    walk.write(0xC0, 8, 0xFFFF_FFFF_FFFF_FFFC)
    walk.write(0xC0, 1, 2)
    walk.write(0xC0, 4, 1)


def test_portals_of_work_queues(made: tuple[str, DsaVdev, BarWalk]) -> None:
    """Disabled, and enabled: what is incomplete is no descriptor."""
    kind, vdev, walk = made
    port = Port(
        lambda offset, width: vdev.read(2, offset, width),
        lambda offset, width, value: vdev.write(2, offset, width, value),
    )
    wqs = len(MODES[kind])

    def untouched() -> bool:
        words = [vdev.read(0, 0x818 + 0x40 * wq, 4) & 0xFFFF for wq in range(wqs)]
        return not any(words) and not vdev.read(0, 0xC0, 8)

    read_portals(port, wqs)
    write_parts(port, wqs, untouched)
    ready(kind, vdev, walk)
    walk.command(ENABLE_DEVICE)
    for wq in range(wqs):
        walk.model.state(device_enabled=True, enabled_wqs=range(wq))
        walk.command(ENABLE_WQ, wq)
    write_parts(port, wqs, untouched)


def test_a_command_is_written_whole(made: tuple[str, DsaVdev, BarWalk]) -> None:
    """Of 4 bytes, or of 8 with what is beside it; a part of one, which might be another command
    (0x50 in the third byte is Reset Device), is none."""
    kind, vdev, walk = made
    ready(kind, vdev, walk)
    for offset in range(0xA0, 0xA4):
        for width in (1, 2):
            if offset % width == 0:
                for value in (0, 0x10, 0x50, 0xFFFF):
                    walk.port.write(offset, width, value)
    walk.read_registers("after writes to parts of CMD")
    walk.port.write(0xA0, 8, 0xFFFF_FFFF << 32 | ENABLE_DEVICE << 20)
    walk.model.state(device_enabled=True)
    walk.read_registers("after Enable Device, 8 bytes wide")


CAUSES = {
    31: "Interrupt Handles Revoked",
    5: "Event Log",
    4: "Halt State",
    3: "Perfmon Counter Overflow",
    2: "WQ Occupancy Below Limit",
    1: "Command Completion",
    0: "Software Error",
}
ERROR = {
    "PASID": 0xABCDE,
    "Operation": 0x12,
    "WQ Index": 0xFF,
    "Error code": 0xFF,
    "Error Information Valid": 1,
    "Priv": 1,
    "R/W": 1,
    "Batch Member": 1,
    "WQ Index Valid": 1,
    "Descriptor Valid": 1,
    "Overflow": 1,
    "Valid": 1,
}
