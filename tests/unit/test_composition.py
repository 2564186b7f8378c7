"""VDEVs composed of ADIs: from one parent or several, one or many, at the start or later."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from probe_driver import ProbeParent, ProbeVdev

from vdcm.adi import Adi, AdiState
from vdcm.errors import DeclarationError, DmaError, ResourceError
from vdcm.ims import ImsEntry
from vdcm.pasid import PASIDS
from vdcm.pci import Command
from vdcm.protocol import Irq, Region


@pytest.fixture
def parent() -> Iterator[ProbeParent]:
    made = ProbeParent("probe0")
    yield made
    made.close()


def start(parent: ProbeParent, kind: str, name: str = "vdev0", *spare: ProbeParent) -> ProbeVdev:
    vdev = parent.create(kind, name, {}, spare)
    assert isinstance(vdev, ProbeVdev)
    return vdev


@pytest.mark.conformance("R2.1-6", "R2.5-4", "R4.2-1", "R4.4-2", "R4.4-5", "R4.4-6")
def test_one_vdev_of_adis_of_two_types(parent: ProbeParent) -> None:
    vdev = start(parent, "both")
    assert [adi.type.name for adi in vdev.adis] == ["small", "large"]
    assert {adi.pasid for adi in vdev.adis} == {vdev.pasid}
    assert [entry.vector for adi in vdev.adis for entry in adi.messages] == [0, 0, 1]
    found = vdev.describe()["adis"]
    assert [(adi["type"], adi["parent"], adi["state"]) for adi in found] == [
        ("small", "probe0", "allocated"),
        ("large", "probe0", "allocated"),
    ]
    vdev.close()
    assert parent.driver.available("small") == 8


@pytest.mark.conformance("R2.2-11")
def test_every_vdev_has_a_pasid_of_its_own(parent: ProbeParent) -> None:
    vdevs = [start(parent, "one", f"v{i}") for i in range(3)]
    assert len({vdev.pasid for vdev in vdevs}) == 3
    for vdev in vdevs:
        vdev.close()


@pytest.mark.conformance("R4.4-6", "R4.4-8")
def test_more_vdevs_than_resources(parent: ProbeParent) -> None:
    assert parent.available("three") == 2
    vdevs = [start(parent, "three", f"v{i}") for i in range(2)]
    pasids = len(PASIDS)
    with pytest.raises(ResourceError, match="no small left for v2: 8 of 8 slots are in use"):
        start(parent, "three", "v2")
    assert (len(PASIDS), parent.driver.available("small")) == (pasids, 2)
    vdevs.pop().close()
    vdevs.append(start(parent, "three", "v2"))
    for vdev in vdevs:
        vdev.close()


@pytest.mark.conformance("R4.4-3", "R4.4-8")
def test_adis_of_several_parents(parent: ProbeParent) -> None:
    """4.4: for load balancing, or when the first has none left."""
    spare = ProbeParent("probe1", slots=2)
    first = start(parent, "three", "v0")
    second = start(parent, "three", "v1", spare)
    third = start(parent, "three", "v2", spare)
    assert [adi.driver.name for adi in third.adis] == ["probe0", "probe0", "probe1"]
    with pytest.raises(ResourceError, match=r"probe0 has no small left.*; probe1 has no small"):
        start(parent, "three", "v3", spare)
    for vdev in (first, second, third):
        vdev.close()
    assert (parent.available("three"), spare.available("one")) == (2, 2)
    spare.close()


def test_adis_come_and_go_while_the_vdev_is_there(parent: ProbeParent) -> None:
    vdev = start(parent, "one")
    more = [vdev.add_adi("small", [2]) for _ in range(7)]
    with pytest.raises(ResourceError):
        vdev.add_adi("small", [2])
    vdev.remove_adi(more.pop())
    vdev.add_adi("small", [2])
    vdev.close()
    assert parent.driver.available("small") == 8


def test_as_many_vectors_as_messages(parent: ProbeParent) -> None:
    vdev = start(parent, "one")
    with pytest.raises(DeclarationError, match="has 2 messages, and there are 1 vectors"):
        vdev.add_adi("large", [0])
    assert parent.driver.available("large") == 2
    vdev.close()


@pytest.mark.conformance("R2.7-1", "R2.7-4")
def test_a_reset_of_the_vdev_resets_each_adi_of_it(parent: ProbeParent) -> None:
    """2.7: virtual FLR."""
    vdev, other = start(parent, "both", "v0"), start(parent, "both", "v1")
    for adi in (*vdev.adis, *other.adis):
        parent.driver.enable(adi)
    assert vdev.guest_pasids is not None
    vdev.guest_pasids.bind(5, vdev.pasid)
    vdev.reset()
    assert {adi.state for adi in vdev.adis} == {AdiState.ALLOCATED}
    assert {adi.state for adi in other.adis} == {AdiState.ENABLED}
    assert [adi.resets for adi in (*vdev.adis, *other.adis)] == [1, 1, 0, 0]
    with pytest.raises(DmaError):
        vdev.guest_pasids.translate(5)
    for each in (vdev, other):
        each.close()


def test_bus_master_enable_is_the_adis_too(parent: ProbeParent) -> None:
    vdev = start(parent, "both")
    assert not any(adi.bus_master for adi in vdev.adis)
    vdev.write(Region.CONFIG, 0x4, 2, Command.BUS_MASTER)
    assert all(adi.bus_master for adi in vdev.adis)
    later = vdev.add_adi("small", [3])
    assert later.bus_master
    vdev.reset()
    assert not any(adi.bus_master for adi in vdev.adis)
    vdev.close()


@pytest.mark.conformance("R4.4.2-4", "R4.4.2-5")
def test_an_adis_interrupt_and_the_vdcms_own_share_a_vector(parent: ProbeParent) -> None:
    """4.4.2: both sources; a masked one is delivered once on unmask."""
    vdev = start(parent, "one")
    entry: ImsEntry = vdev.adis[0].messages[0]
    signalled: list[tuple[Irq, int]] = []
    vdev.interrupts.attach(lambda kind, vector: not signalled.append((kind, vector)))
    entry.raise_()
    assert entry.pending and not signalled
    assert vdev.read(0, 0x3000, 8) == 1  # the guest sees it in the pending bits
    vdev.reset()
    assert not entry.pending
    vdev.interrupts.detach()
    vdev.close()


@pytest.mark.conformance("R2.6-10")
def test_reports_reach_the_vdev_of_the_adi(parent: ProbeParent) -> None:
    vdev, other = start(parent, "one", "v0"), start(parent, "one", "v1")
    adi: Adi = vdev.adis[0]
    parent.driver.configure(adi, report=77)
    parent.driver.enable(adi)
    adi.resource.ring()
    while not vdev.heard:
        for sweep in parent.driver._sweeps:
            sweep.look()
    assert vdev.heard == [(adi, 77)] and not other.heard
    for each in (vdev, other):
        each.close()
