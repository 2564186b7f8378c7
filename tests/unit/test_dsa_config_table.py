"""Configuration space of a virtual DSA, bit by bit, is that of the specification's appendix C."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from dsa_config_table import (
    CONFIG_SIZE,
    DEVCTL,
    ConfigImage,
    config_gaps,
    config_rows,
    portal_bar_size,
)
from dsa_register_table import SHAPES, W1C
from dsa_register_walk import Port, Walk

from vdcm.parent import build
from vdcm.protocol import Region
from vdcm_devices.dsa import Dsa
from vdcm_devices.dsa.vdev import DsaVdev

CONFIG = Region.CONFIG


@pytest.fixture(params=SHAPES)
def made(request: pytest.FixtureRequest) -> Iterator[tuple[DsaVdev, Walk[ConfigImage]]]:
    dsa = build(Dsa, "dsa0", {})
    vdev = dsa.create(request.param, "v", {})
    assert isinstance(vdev, DsaVdev)
    port = Port(
        lambda offset, width: vdev.read(CONFIG, offset, width),
        lambda offset, width, value: vdev.write(CONFIG, offset, width, value),
    )
    yield vdev, Walk(port, ConfigImage(SHAPES[request.param]))
    vdev.close()
    dsa.close()


@pytest.mark.parametrize("kind", SHAPES)
def test_the_table_has_every_bit_once(kind: str) -> None:
    covered = bytearray(CONFIG_SIZE)
    for row in config_rows(SHAPES[kind]):
        assert sum(bits.mask for bits in row.bits) == (1 << 8 * row.size) - 1, row.name
        assert sum(bits.high + 1 - bits.low for bits in row.bits) == 8 * row.size, row.name
        for at in range(row.offset, row.offset + row.size):
            covered[at] += 1
    for gap in config_gaps(SHAPES[kind]):
        for at in gap:
            covered[at] += 1
    assert covered == b"\1" * CONFIG_SIZE


def test_configuration_space_after_a_reset(made: tuple[DsaVdev, Walk[ConfigImage]]) -> None:
    vdev, walk = made
    walk.read_all()
    walk.read_widths()
    walk.write_registers()
    walk.write_gaps()
    vdev.reset()
    walk.model.reset()
    walk.read_all()


def test_configuration_space_takes_accesses_in_any_order(
    made: tuple[DsaVdev, Walk[ConfigImage]],
) -> None:
    """Power states and function-level resets among them."""
    vdev, walk = made
    walk.write_randomly(4000, seed=4)
    assert vdev.resets > 0


def test_what_the_guest_clears_by_a_one(made: tuple[DsaVdev, Walk[ConfigImage]]) -> None:
    vdev, walk = made
    vdev.config.header.STATUS.value = 0xF910
    vdev.config.space.write(4, 2, 0)
    express = next(c for c in vdev.config.capabilities if c.offset == 0x40)
    express.DEVICE_STATUS.value = 0xF  # type: ignore[attr-defined]
    for name, count in (("PCISTS", 6), ("DEVSTS", 4)):
        row = next(row for row in walk.model.rows if row.name == name)
        fields = [bits for bits in row.bits if bits.attr is W1C]
        assert len(fields) == count
        for bits in fields:
            walk.model.set(name, bits.name, 1)
        walk.write(row.offset, 2, 0)
        for bits in fields:
            walk.write(row.offset, 2, 1 << bits.low)
    walk.read_all()


def test_the_bars_are_as_large_as_they_say(made: tuple[DsaVdev, Walk[ConfigImage]]) -> None:
    vdev, walk = made
    shape = next(shape for shape in SHAPES.values() if shape.wqs == len(vdev.work_queues))
    for index, at, size in ((0, 0x10, 0x10000), (2, 0x18, portal_bar_size(shape))):
        walk.write(at, 4, 0xFFFF_FFFF)
        walk.write(at + 4, 4, 0xFFFF_FFFF)
        found = walk.port.read(at, 4) | walk.port.read(at + 4, 4) << 32
        assert -(found & ~0xF) & (1 << 64) - 1 == size == vdev.bars[index].size


def test_a_function_level_reset_resets_it(made: tuple[DsaVdev, Walk[ConfigImage]]) -> None:
    _, walk = made
    for offset in (0x04, 0x0C, 0x10, 0x80, 0x94, 0x234):
        walk.write(offset, 4, 0x7FFF_FFFF)
    walk.write(DEVCTL + 1, 1, 0x80)
    walk.read_all()
