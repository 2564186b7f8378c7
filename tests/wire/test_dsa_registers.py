"""Every register of a virtual DSA through the native client, against the specification's table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from dsa_client import ALLOCATE_ADI
from dsa_config_table import ConfigImage
from dsa_lab import TYPES, Lab
from dsa_portal_walk import read_portals, write_parts
from dsa_register_table import SHAPES
from dsa_register_walk import BarWalk, Model, Port, Walk

from vdcm.client import Client, Region
from vdcm_devices.dsa.codes import Command


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path, dwqs=16)
    yield lab
    lab.close()


@pytest.mark.parametrize("kind", TYPES)
def test_registers_over_the_wire(lab: Lab, kind: str) -> None:
    dsa = lab.client(lab.vdev(kind))
    model = Model(SHAPES[kind])
    walk = BarWalk(port_of(dsa.client, Region.BAR0), model)
    walk.read_all()
    walk.read_widths()
    walk.write_registers()
    walk.write_randomly(500, seed=3)
    dsa.set_bus_master()
    dsa.enable_pasid()
    if kind == "dsa-dynamic":
        assert [dsa.ask(ALLOCATE_ADI, adi) for adi in (0, 0, 0, 1)] == [0, 1, 2, 3]
    walk.configure([int(mode) for mode in dsa.modes()])
    walk.command(Command.ENABLE_DEVICE)
    model.state(device_enabled=True)
    walk.read_registers("after Enable Device")
    for wq in range(dsa.wqs):
        walk.command(Command.ENABLE_WQ, wq)
    model.state(device_enabled=True, enabled_wqs=range(dsa.wqs))
    walk.write_registers()
    dsa.client.reset()
    model.reset()
    walk.read_all()


def port_of(client: Client, region: Region) -> Port:
    return Port(
        lambda offset, width: client.read(region, offset, width),
        lambda offset, width, value: client.write(region, offset, width, value),
    )


@pytest.mark.parametrize("kind", TYPES)
def test_configuration_space_over_the_wire(lab: Lab, kind: str) -> None:
    client = lab.client(lab.vdev(kind)).client
    walk = Walk(port_of(client, Region.CONFIG), ConfigImage(SHAPES[kind]))
    walk.read_all()
    walk.read_widths()
    walk.write_registers()
    walk.write_randomly(500, seed=5)
    client.reset()
    walk.model.reset()
    walk.read_all()


@pytest.mark.parametrize("kind", TYPES)
def test_portals_over_the_wire(lab: Lab, kind: str) -> None:
    dsa = lab.client(lab.vdev(kind))
    read_portals(port_of(dsa.client, Region.BAR2), dsa.wqs)

    def untouched() -> bool:
        return not any(dsa.occupancy(wq) for wq in range(dsa.wqs)) and not dsa.read(0xC0, 8)

    write_parts(port_of(dsa.client, Region.BAR2), dsa.wqs, untouched)


def test_the_dummy_portal_takes_nothing(lab: Lab) -> None:
    dsa = lab.started()
    for at in (0xF000, 0xF040, 0xFFC0):
        dsa.client.write_bytes(Region.BAR0, at, b"\xff" * 64)
        assert dsa.client.read(Region.BAR0, at, 8) == 0
    assert (dsa.occupancy(0), dsa.read(0xC0, 8)) == (0, 0)
