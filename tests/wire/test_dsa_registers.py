"""Every register of a virtual DSA through the native client, against the specification's table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from dsa_client import ALLOCATE_ADI
from dsa_lab import TYPES, Lab
from dsa_register_table import SHAPES
from dsa_register_walk import Model, Port, Walk

from vdcm.client import Region
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
    walk = Walk(
        Port(
            lambda offset, width: dsa.client.read(Region.BAR0, offset, width),
            lambda offset, width, value: dsa.client.write(Region.BAR0, offset, width, value),
        ),
        model,
    )
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
