"""Virtual DSAs without a client: how they are composed, what they share, what they give back."""

from __future__ import annotations

import gc
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vdcm.adi import AdiState
from vdcm.definition import load
from vdcm.errors import DeferredError, ResourceError, VdcmError
from vdcm.mailbox import MailboxCode
from vdcm.parent import build
from vdcm.pasid import PASIDS
from vdcm.properties import PropertyError
from vdcm.protocol import Irq
from vdcm.registers import RegisterSpace
from vdcm_devices.dsa import Dsa
from vdcm_devices.dsa.channel import REQUESTS
from vdcm_devices.dsa.codes import Command, DeviceState, WqMode, WqState
from vdcm_devices.dsa.vdev import DsaVdev, DynamicDsaVdev

KIB = 1024


def parent(**properties: Any) -> Dsa:
    return build(Dsa, "dsa0", properties)


@pytest.fixture
def dsa() -> Iterator[Dsa]:
    made = parent()
    yield made
    made.close()


def create(
    owner: Dsa, kind: str, name: str = "v", spare: tuple[Dsa, ...] = (), **p: Any
) -> DsaVdev:
    vdev = owner.create(kind, name, p, spare)
    assert isinstance(vdev, DsaVdev)
    return vdev


def bar0(vdev: DsaVdev) -> RegisterSpace:
    return vdev.bars[0].space


def enable(vdev: DsaVdev, priorities: dict[int, int]) -> None:
    """Dedicated work queues, as a guest would."""
    registers = bar0(vdev)
    vdev.config.space.write(4, 2, 0x406)
    for wq, priority in priorities.items():
        at = 0x800 + 64 * wq
        registers.write(at, 4, 8)
        registers.write(at + 8, 4, WqMode.DEDICATED | priority << 4)
        registers.write(at + 12, 4, 20 | 4 << 5)
    registers.write(0x600, 8, sum(1 << wq for wq in priorities))
    registers.write(0x620, 8, 1)
    for command in (
        Command.ENABLE_DEVICE << 20,
        *(Command.ENABLE_WQ << 20 | wq for wq in priorities),
    ):
        registers.write(0xA0, 4, command)
        assert registers.read(0xA8, 4) == 0


# Composition


@pytest.mark.conformance("R2.1-6", "R4.4-5", "R4.4-6")
def test_each_type_has_the_adis_that_it_says(dsa: Dsa) -> None:
    for kind, types in (
        ("dsa-1dwq", ["dwq"]),
        ("dsa-1swq", ["swq-share"]),
        ("dsa-2dwq-1swq", ["dwq", "dwq", "swq-share"]),
        ("dsa-dynamic", []),
    ):
        vdev = create(dsa, kind)
        assert [adi.type.name for adi in vdev.adis] == types
        assert {adi.pasid for adi in vdev.adis} <= {vdev.pasid}
        wqcap = bar0(vdev).read(0x20, 8)
        assert wqcap >> 16 & 0xFF == len(types) or kind == "dsa-dynamic"
        assert bool(wqcap >> 49 & 1) == ("dwq" in types or not types)
        assert bool(wqcap >> 48 & 1) == ("swq-share" in types or not types)
        assert vdev.config.capabilities[-1] is not None
        vdev.close()
        assert dsa.driver.adis == {}
    assert len(PASIDS) == 0


def test_what_cannot_be_composed_leaves_nothing(dsa: Dsa) -> None:
    small = parent(dwqs=1)
    with pytest.raises(ResourceError, match="dwq"):
        create(small, "dsa-2dwq-1swq")
    assert small.driver.adis == {}
    assert len(PASIDS) == 0
    with pytest.raises(PropertyError, match="intercepted or direct"):
        create(dsa, "dsa-1dwq", portals="both")
    with pytest.raises(VdcmError):
        create(dsa, "dsa-9dwq")
    small.close()


@pytest.mark.parametrize("portals", ["intercepted", "direct"])
def test_as_many_places_as_there_may_be(dsa: Dsa, portals: str) -> None:
    vdev = create(dsa, "dsa-dynamic", queues=DynamicDsaVdev.queues.maximum, portals=portals)
    assert len(vdev.work_queues) == DynamicDsaVdev.queues.maximum
    assert vdev.interrupts.counts[Irq.MSIX] == DynamicDsaVdev.queues.maximum + 1
    vdev.close()


@pytest.mark.conformance("R4.4-3")
def test_adis_of_a_spare_parent(dsa: Dsa) -> None:
    small = build(Dsa, "small", {"dwqs": 1})
    vdev = create(small, "dsa-2dwq-1swq", spare=(dsa,))
    assert [adi.driver.name for adi in vdev.adis] == ["small", "dsa0", "small"]
    enable(vdev, {0: 1, 1: 1})
    vdev.close()
    assert (small.driver.adis, dsa.driver.adis) == ({}, {})
    small.close()


def test_a_parent_can_pass_for_the_first_generation() -> None:
    old = build(Dsa, "old", {"generation": "1.0"})
    vdev = create(old, "dsa-1dwq")
    assert bar0(vdev).read(0, 4) == 0x100
    assert not bar0(vdev).read(0x20, 8) >> 54 & 1
    enable(vdev, {0: 1})
    vdev.close()
    old.close()


def test_what_a_vdev_has_is_divided_by_priority(dsa: Dsa) -> None:
    vdev = create(dsa, "dsa-2dwq-1swq", weight=20, rate=1 << 20)
    (group,) = {adi.path.group for adi in vdev.adis}
    assert group is not None and (group.weight, group.rate) == (20, 1 << 20)
    enable(vdev, {0: 1, 1: 4})
    first, second = (adi.weight for adi in vdev.adis[:2])
    assert second == 4 * first
    vdev.weight, vdev.rate = 255, 7
    assert (group.weight, group.rate) == (255, 7)
    assert [adi.weight for adi in vdev.adis[:2]] == [first, second]
    vdev.close()


# Life


@pytest.mark.conformance("R2.7-4")
def test_a_reset_of_the_function_is_one_of_each_adi(dsa: Dsa) -> None:
    vdev = create(dsa, "dsa-2dwq-1swq")
    enable(vdev, {0: 1, 1: 1})
    bar0(vdev).write(0xA0, 4, Command.REQUEST_INTERRUPT_HANDLE << 20 | 2)
    assert dsa.driver.ims.free == dsa.driver.ims.size - 3, "a message of each ADI"
    vdev.config.space.write(0x48, 2, 0x8000)  # Initiate Function Level Reset
    assert [adi.state for adi in vdev.adis] == [AdiState.ALLOCATED] * 3
    assert [adi.resets for adi in vdev.adis] == [1] * 3
    assert dsa.driver.ims.free == dsa.driver.ims.size
    assert vdev.registers.GENSTS.STATE == DeviceState.DISABLED
    assert bar0(vdev).read(0x808, 4) == 0
    enable(vdev, {0: 1})
    vdev.close()


@pytest.mark.conformance("R2.7-14")
def test_accepted_work_is_saved_and_restored(dsa: Dsa) -> None:
    """What was accepted by one ADI is in the queue of another after its state was moved."""
    vdev = create(dsa, "dsa-1dwq")
    enable(vdev, {0: 1})
    (adi,) = vdev.adis
    dsa.driver.suspend(adi)
    for slot in range(3):
        for word in range(8):
            vdev.write(2, 0x1000 + 64 * slot + 8 * word, 8, 1 if word == 0 else 0)
    assert bar0(vdev).read(0x818, 4) & 0xFFFF == 3
    state = dsa.driver.save(adi)
    other = dsa.driver.allocate("dwq", "elsewhere")
    dsa.driver.set_pasid(other, vdev.pasid)
    dsa.driver.restore(other, state)
    assert other.state is AdiState.SUSPENDED
    assert dsa.driver.occupancy(other) == 3
    dsa.driver.abort(other)
    assert dsa.driver.occupancy(other) == 0
    dsa.driver.release(other)
    vdev.close()


@pytest.mark.parametrize("bad", [b"", b"junk" * 100])
def test_a_state_of_something_else_is_refused(dsa: Dsa, bad: bytes) -> None:
    adi = dsa.driver.allocate("dwq", "v")
    with pytest.raises(VdcmError):
        dsa.driver.restore(adi, bad)
    dsa.driver.release(adi)


def test_portals_without_an_enabled_queue(dsa: Dsa) -> None:
    vdev = create(dsa, "dsa-2dwq-1swq")
    for page in range(12):
        for word in range(7):
            vdev.write(2, 0x1000 * page + 8 * word, 8, 1)
    for page in range(8):
        vdev.write(2, 0x1000 * page + 56, 8, 1)
    for page in range(8, 12):
        with pytest.raises(DeferredError):
            vdev.write(2, 0x1000 * page + 56, 8, 1)
    assert bar0(vdev).read(0xC0, 8) == 0
    vdev.close()


def test_ims_portals_do_not_exist(dsa: Dsa) -> None:
    """Without IMS a descriptor that is written there is discarded (DSA specification, 3.3)."""
    vdev = create(dsa, "dsa-1dwq")
    enable(vdev, {0: 1})
    dsa.driver.suspend(vdev.adis[0])
    for page, occupancy in ((0, 1), (1, 2), (2, 2), (3, 2)):
        for word in range(8):
            vdev.write(2, 0x1000 * page + 8 * word, 8, 1)
        assert bar0(vdev).read(0x818, 4) & 0xFFFF == occupancy
    vdev.close()


def test_what_is_halted_stays_so_until_it_is_reset(dsa: Dsa) -> None:
    vdev = create(dsa, "dsa-1dwq")
    enable(vdev, {0: 1})
    pasid = next(c for c in vdev.config.capabilities if type(c).__name__ == "VdevPasid")
    vdev.config.space.write(pasid.offset + 6, 2, 1)
    assert vdev.registers.GENSTS.STATE == DeviceState.HALT
    assert vdev.registers.SWERROR.ERROR == 0x51
    assert [adi.state for adi in vdev.adis] == [AdiState.ALLOCATED]
    vdev.reset()
    assert vdev.registers.GENSTS.STATE == DeviceState.DISABLED
    assert vdev.work_queues[0].state is WqState.DISABLED
    vdev.config.space.write(pasid.offset + 6, 2, 1)
    assert vdev.registers.GENSTS.STATE == DeviceState.DISABLED, "it may change while disabled"
    vdev.close()


def test_a_second_fault_does_not_make_the_first_one_less(dsa: Dsa) -> None:
    """The host halts it in any state; what it needs is the stronger reset of those asked for."""
    vdev = create(dsa, "dsa-1dwq")
    status = vdev.registers.GENSTS
    for halt, reset in (("software", 0), ("function", 1), ("software", 1), ("no", 1)):
        vdev.halt = halt
        assert (DeviceState.HALT, reset) == (status.STATE, status.RESET)
    vdev.reset()
    assert (status.STATE, status.RESET, vdev.halt) == (DeviceState.DISABLED, 0, "no")
    vdev.close()


@pytest.mark.parametrize("how", ["close", "reset"])
def test_an_end_while_a_command_waits(dsa: Dsa, how: str) -> None:
    """The event loop has not come to it, so the command is active; nobody is told of its end."""
    vdev = create(dsa, "dsa-2dwq-1swq")
    enable(vdev, {0: 1, 1: 1})
    bar0(vdev).write(0xA0, 4, 1 << 31 | Command.DISABLE_DEVICE << 20)
    assert vdev.commands.active
    if how == "reset":
        vdev.reset()
        assert not vdev.commands.active
        assert bar0(vdev).read(0xA8, 4) == 0
        assert bar0(vdev).read(0x98, 4) == 0
        enable(vdev, {0: 1})
    vdev.close()
    assert dsa.driver.adis == {}
    assert len(PASIDS) == 0


def test_the_host_closes_the_channel(dsa: Dsa) -> None:
    vdev = create(dsa, "dsa-dynamic")
    at = vdev.bars[2].size // 2
    for enabled, code in ((True, 0), (False, MailboxCode.NOT_OPEN)):
        if not enabled:
            dsa.driver.disable_channel("v")
        vdev.write(2, at + 0xC, 4, 1 | 4 << 16)
        assert vdev.read(2, at + 0x10, 4) >> 8 & 0xFF == code
    vdev.close()


def test_a_vdev_is_small() -> None:
    """1,024 of them are in one process; the aim is 256 KiB each, of which this is Python's part."""
    many = parent(dwqs=64)
    kept = [create(many, "dsa-1dwq", f"w{i}") for i in range(4)]
    gc.collect()
    tracemalloc.start()
    kept += [create(many, "dsa-1dwq", f"v{i}") for i in range(32)]
    gc.collect()
    each = tracemalloc.get_traced_memory()[0] / 32
    tracemalloc.stop()
    for vdev in kept:
        vdev.close()
    many.close()
    assert each < 96 * KIB


def test_nothing_is_left_of_a_vdev(dsa: Dsa) -> None:
    def lives(count: int) -> None:
        for number in range(count):
            create(dsa, "dsa-2dwq-1swq", f"v{number}").close()
        gc.collect()

    lives(10)  # what is made once for all
    tracemalloc.start()
    lives(50)
    left = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert left < 50 * 512


def test_the_document_has_a_definition_that_loads(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "dsa.md").read_text()
    file = tmp_path / "dsa.yaml"
    file.write_text(text.partition("```yaml\n")[2].partition("```")[0])
    definition = load(file)
    assert [vdev.type for vdev in definition.vdevs] == ["dsa-1dwq", "dsa-2dwq-1swq", "dsa-1dwq"]
    listed = re.findall(r"^\| `(dsa-\w+(?:-\w+)?)` ", text, re.M)
    assert listed == list(Dsa.types)
    requests = re.findall(r"^\| (\d) \| `(\w+)`", text, re.M)
    assert [(name, kind.opcode) for name, kind in REQUESTS.items()] == [
        (name, int(opcode)) for opcode, name in requests
    ]
