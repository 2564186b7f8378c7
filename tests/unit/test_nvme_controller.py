"""The virtual NVMe controller's registers, states and queues (NVM Express 1.4, 3.1, 4.1 and 7)."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from nvme_host import (
    ACQ,
    AQA,
    ASQ,
    CAP,
    CC,
    CREATE_SQ,
    CSTS,
    EVENT,
    FATAL,
    GET,
    IDENTIFY,
    NSSR,
    PAGE,
    READY,
    SET,
)
from nvme_vdev import RAM, SIZE, Machine

from vdcm.adi import AdiState
from vdcm.parent import build
from vdcm.protocol import Irq
from vdcm.transport import IrqAction
from vdcm_devices.nvme import Nvme
from vdcm_devices.nvme.driver import QUEUE_PAIR

MODES = ("shadow", "direct")


@pytest.fixture(params=MODES)
def nvme(request: pytest.FixtureRequest) -> Iterator[Machine]:
    machine = Machine(doorbells=request.param)
    yield machine
    machine.close()


def queues(machine: Machine) -> int:
    """ADIs of I/O queues."""
    return sum(adi.type.name == QUEUE_PAIR for adi in machine.vdev.adis)


# What is there


def test_the_function(nvme: Machine) -> None:
    config = nvme.vdev.config.space
    assert config.read(0x9, 1) | config.read(0xA, 2) << 8 == 0x010802
    assert config.read(0x10, 4) & 0xF == 0x4  # memory, 64 bits
    assert {c.capability_id for c in nvme.vdev.config.capabilities} == {0x01, 0x10, 0x11, 0x03}
    assert nvme.vdev.vectors()[Irq.MSIX] == 9
    areas = [area for region in nvme.vdev.regions() for area in region.areas]
    direct = nvme.vdev.doorbells == "direct"
    assert [(area.offset, area.size) for area in areas] == [(0x1000, 0x1000)] * direct


def test_capabilities(nvme: Machine) -> None:
    cap = nvme.register(CAP, 8)
    assert cap & 0xFFFF == 4095
    assert cap >> 16 & 1  # queues in one piece
    assert cap >> 24 & 0xFF
    assert cap >> 32 & 0xF == 0  # doorbells of 4 bytes each
    assert cap >> 36 & 1  # NVM subsystem reset
    assert cap >> 37 & 0xFF == 1
    assert (cap >> 48 & 0xF, cap >> 52 & 0xF) == (0, 4)
    for offset in range(0x38, 0x60, 4):  # buffers, boot partitions: none
        assert nvme.register(offset) == 0
    nvme.set_register(CAP, 0, 8)
    assert nvme.register(CAP, 8) == cap


def test_registers_of_64_bits_in_halves(nvme: Machine) -> None:
    nvme.set_register(ASQ, 0x1234_5FFF)
    nvme.set_register(ASQ + 4, 0x77)
    assert nvme.register(ASQ, 8) == 0x77_1234_5000
    nvme.set_register(ACQ, 0xFFFF_FFFF_FFFF_FFFF, 8)
    assert nvme.register(ACQ + 4) == 0xFFFF_FFFF
    assert nvme.register(ACQ) == 0xFFFF_F000


def test_the_interrupt_mask_is_set_and_cleared(nvme: Machine) -> None:
    nvme.set_register(0x0C, 0b1110)
    nvme.set_register(0x0C, 0b0001)
    nvme.set_register(0x10, 0b0110)
    assert nvme.register(0x0C) == nvme.register(0x10) == 0b1001


# Enable, reset, shut down


def test_a_life(nvme: Machine) -> None:
    assert nvme.register(CSTS) == 0
    for _ in range(3):
        nvme.enable()
        first, second = nvme.create_queue(1, vector=1), nvme.create_queue(8, vector=8)
        assert queues(nvme) == 2
        nvme.delete_queue(first)
        assert queues(nvme) == 1
        nvme.delete_queue(second)
        nvme.create_queue(3)
        nvme.shut_down()
        nvme.disable()
        assert nvme.register(CSTS) == 0
        assert queues(nvme) == 0
        # The admin queue's registers stay (7.3.2).
        assert nvme.register(ASQ, 8) == nvme.admin_queue.sq
        assert nvme.register(AQA)


def test_a_reset_forgets_what_went_on(nvme: Machine) -> None:
    nvme.enable()
    nvme.submit(nvme.admin_queue, EVENT)
    nvme.expect(SET, cdw10=0x0B, cdw11=0xFF)
    nvme.expect(SET, cdw10=4, cdw11=100)
    nvme.disable()
    nvme.enable()
    assert nvme.expect(GET, cdw10=0x0B) == 0
    nvme.create_queue(1)
    request = nvme.submit(nvme.admin_queue, EVENT)
    nvme.identify(1)
    assert not nvme.completed(nvme.admin_queue, request)


@pytest.mark.parametrize("how", ["function", "detach", "subsystem"])
def test_other_resets(nvme: Machine, how: str) -> None:
    nvme.enable()
    nvme.create_queue(1)
    nvme.submit(nvme.admin_queue, EVENT)
    if how == "function":
        nvme.vdev.reset()
        nvme.enable_function()
    elif how == "detach":
        nvme.vdev.detached()
        assert nvme.register(CSTS) == 0
        nvme.attach()
    else:
        nvme.set_register(NSSR, 0x4E564D64)
        assert nvme.register(CSTS) == READY
        nvme.set_register(NSSR, 0x4E564D65)
    assert nvme.register(CSTS) == (1 << 4 if how == "subsystem" else 0)
    nvme.set_register(CSTS, 1 << 4)
    assert nvme.register(CSTS) == 0
    assert nvme.register(CC) == nvme.register(ASQ, 8) == nvme.register(AQA) == 0
    assert queues(nvme) == 0
    nvme.enable()
    nvme.create_queue(1)
    assert nvme.identify(1)


def test_function_level_reset_by_the_guest(nvme: Machine) -> None:
    nvme.enable()
    nvme.create_queue(1)
    express = next(c for c in nvme.vdev.config.capabilities if c.capability_id == 0x10)
    assert nvme.vdev.config.space.read(express.offset + 4, 4) >> 28 & 1
    nvme.vdev.config.space.write(express.offset + 8, 2, 1 << 15)
    assert nvme.register(CSTS) == 0 and queues(nvme) == 0
    assert nvme.vdev.resets == 1


@pytest.mark.parametrize(
    ("register", "value", "width"),
    [
        (AQA, 0x000F_0000, 4),  # a submission queue of one entry
        (AQA, 0x0000_000F, 4),
        (CC, 5 << 7, 4),  # pages of 128 KiB
        (CC, 1 << 4, 4),  # another command set
        (CC, 1 << 11, 4),  # weighted round robin
        (ASQ, RAM + PAGE, 8),  # not on a page of 8 KiB, see below
    ],
)
def test_a_configuration_that_cannot_be_is_fatal(
    nvme: Machine, register: int, value: int, width: int
) -> None:
    for other, good, size in ((AQA, 0x000F_000F, 4), (ASQ, RAM, 8), (ACQ, RAM + 0x2000, 8)):
        nvme.set_register(other, good, size)
    nvme.set_register(register, value, width)
    nvme.set_register(CC, nvme.register(CC) | (1 << 7 if register == ASQ else 0) | 1)
    assert nvme.register(CSTS) == FATAL
    nvme.set_register(CC, 0)
    assert nvme.register(CSTS) == 0
    nvme.enable()


def test_larger_pages(nvme: Machine) -> None:
    nvme.enable(page_shift=16)
    assert nvme.admin(IDENTIFY, cdw10=1, prp1=nvme.take(PAGE)).status == 0
    # Up to the end of a page of 64 KiB one pointer is enough.
    address = nvme.take(0x10000, 0x10000)
    nvme.expect(IDENTIFY, cdw10=1, prp1=address + 0xF000, prp2=3)
    assert nvme.peek(address + 0xF000, 2) == b"\xf4\x1a"


def test_an_admin_queue_out_of_reach_is_fatal_until_a_reset(nvme: Machine) -> None:
    nvme.enable()
    nvme.create_queue(1)
    nvme.disable()
    for register, bad in ((ASQ, RAM + SIZE), (ACQ, RAM + SIZE)):
        nvme.enable()
        nvme.create_queue(1)
        nvme.set_register(CC, 0)
        nvme.set_register(register, bad, 8)
        nvme.set_register(CC, 4 << 20 | 6 << 16 | 1)
        assert nvme.register(CSTS) == READY
        nvme.ring(0, 1)
        assert nvme.wait_status(FATAL, FATAL) & FATAL
        assert queues(nvme) == 0
        nvme.ring(0, 2)  # nothing comes of it
        nvme.disable()
    nvme.enable()
    assert nvme.identify(1)


def test_nothing_is_fetched_before_bus_master_is_enabled(nvme: Machine) -> None:
    nvme.enable()
    nvme.vdev.config.space.write(4, 2, 0x2)
    cid = nvme.submit(nvme.admin_queue, IDENTIFY, cdw10=1, prp1=nvme.take(PAGE))
    nvme.bus.turn()
    assert not nvme.completed(nvme.admin_queue, cid)
    nvme.vdev.config.space.write(4, 2, 0x6)
    assert nvme.wait(nvme.admin_queue, cid).status == 0
    assert nvme.register(CSTS) == READY


# The admin queue


def test_more_commands_than_a_turn_and_many_rounds(nvme: Machine) -> None:
    nvme.enable(entries=64)
    queue, address = nvme.admin_queue, nvme.take(PAGE)
    for _ in range(5):
        cids = [nvme.put(queue, IDENTIFY, cdw10=1, prp1=address) for _ in range(63)]
        nvme.ring(0, queue.tail)
        assert all(nvme.wait(queue, cid).status == 0 for cid in cids)
        assert queue.tail == queue.head


def test_completions_wait_for_a_place(nvme: Machine) -> None:
    nvme.enable(entries=4)
    queue, address = nvme.admin_queue, nvme.take(PAGE)
    cids = [nvme.put(queue, IDENTIFY, cdw10=1, prp1=address) for _ in range(3)]
    nvme.ring(0, queue.tail)
    deadline = 200
    while nvme.peek(queue.cq + 12 + 16 * 2, 4) == bytes(4) and deadline:
        nvme.bus.turn()
        deadline -= 1
    # All places are taken, and the host has said nothing.
    queue.tail = 3
    more = nvme.put(queue, IDENTIFY, cdw10=1, prp1=address)
    nvme.ring(0, queue.tail)
    nvme.bus.turn()
    assert nvme.peek(queue.cq + 48, 16) == bytes(16)
    assert all(nvme.wait(queue, cid).status == 0 for cid in [*cids, more])


def test_interrupts_go_to_vector_0(nvme: Machine) -> None:
    nvme.enable()
    nvme.signals.clear()
    nvme.identify(1)
    assert set(nvme.signals) == {0}
    nvme.signals.clear()
    nvme.vdev.irqs_changed(Irq.MSIX, IrqAction.MASKED, 0, 1)
    nvme.identify(1)
    assert nvme.signals == []
    nvme.vdev.irqs_changed(Irq.MSIX, IrqAction.UNMASKED, 0, 1)
    assert nvme.signals == [0]


@pytest.mark.parametrize("doorbell", [0, 1])
def test_a_bad_admin_doorbell_is_told_of_and_has_no_effect(nvme: Machine, doorbell: int) -> None:
    nvme.enable()
    nvme.ring(doorbell, 999)
    while not nvme.vdev.controller.events.waiting:
        nvme.bus.turn()
    completion = nvme.admin(EVENT)
    assert completion.result == 0 | 1 << 8 | 1 << 16
    assert nvme.identify(1)


def test_a_flood_of_commands_leaves_room_for_others() -> None:
    async def flood() -> int:
        nvme = Machine()
        nvme.enable(entries=1024)
        queue, address = nvme.admin_queue, nvme.take(PAGE)
        cids = [nvme.put(queue, IDENTIFY, cdw10=1, prp1=address) for _ in range(1000)]
        nvme.ring(0, queue.tail)
        turns = 0
        while not nvme.completed(queue, cids[-1]):
            turns += 1
            await asyncio.sleep(0)
        nvme.close()
        return turns

    assert asyncio.run(flood()) >= 20


def test_a_reset_between_two_turns() -> None:
    async def run() -> None:
        nvme = Machine()
        nvme.enable(entries=64)
        queue, address = nvme.admin_queue, nvme.take(PAGE)
        cids = [nvme.put(queue, IDENTIFY, cdw10=1, prp1=address) for _ in range(60)]
        nvme.ring(0, queue.tail)
        nvme.disable()
        for _ in range(10):
            await asyncio.sleep(0)
        assert not nvme.completed(queue, cids[-1])
        nvme.close()

    asyncio.run(run())


# I/O queues are ADIs


def test_queues_take_adis_and_give_them_back() -> None:
    parent = build(Nvme, "nvme0", {"store": "ram:64M", "queue_pairs": 3})
    first, second = (Machine(parent, name, queues=4) for name in ("a", "b"))
    for machine in (first, second):
        machine.enable()
    assert first.expect(SET, cdw10=7) == 2 << 16 | 2
    pairs = [first.create_queue(qid, vector=qid) for qid in (1, 2)]
    for adi in first.vdev.adis[1:]:
        assert adi.state is AdiState.ENABLED
        assert adi.pasid == first.vdev.pasid
    assert [adi.messages[0].vector for adi in first.vdev.adis[1:]] == [1, 2]
    assert second.expect(SET, cdw10=7) == 0
    second.create_queue(1)
    # There is none left: the guest is told in a way that it may try again.
    second.create_cq(2)
    refused = second.admin(CREATE_SQ, prp1=second.take(PAGE), cdw10=2 | 15 << 16, cdw11=1 | 2 << 16)
    assert (refused.status, refused.final) == (0x006, False)
    first.delete_queue(pairs[0])
    second.create_queue(2, cqid=2)
    # Whoever goes gives all of them back.
    second.vdev.detached()
    assert parent.driver.available(QUEUE_PAIR) == 2
    first.close()
    assert parent.driver.available(QUEUE_PAIR) == 3
    second.close()
    parent.close()


def test_all_queues_of_a_vdev_are_on_one_thread() -> None:
    parent = build(Nvme, "nvme0", {"store": "ram:64M", "workers": 2})
    machines = [Machine(parent, name) for name in "abcd"]
    for machine in machines:
        machine.enable()
        for qid in (1, 2, 3):
            machine.create_queue(qid)
        sweeps = {id(adi.path.sweep) for adi in machine.vdev.adis}
        assert len(sweeps) == 1
    assert len({id(machine.vdev.controller_adi.path.sweep) for machine in machines}) == 2
    for machine in machines:
        machine.close()
    parent.close()


def test_weight_and_rate_are_those_of_all_queues_together(nvme: Machine) -> None:
    nvme.enable()
    nvme.vdev.weight, nvme.vdev.rate = 30, 1000
    nvme.create_queue(1)
    nvme.create_queue(2)
    groups = {adi.path.group for adi in nvme.vdev.adis}
    (group,) = groups
    assert group is not None and (group.weight, group.rate) == (30, 1000)
    nvme.vdev.weight = 1
    assert (group.weight, group.rate) == (1, 1000)
    assert len({adi.weight for adi in nvme.vdev.adis}) == 1


def test_queues_may_share_a_completion_queue(nvme: Machine) -> None:
    nvme.enable()
    nvme.create_cq(1, vector=5)
    for qid in (1, 2, 7):
        nvme.create_queue(qid, cqid=1)
    assert [adi.messages[0].vector for adi in nvme.vdev.adis[1:]] == [5, 5, 5]
    described = nvme.vdev.describe()
    assert [queue["completion_queue"] for queue in described["queues"]] == [1, 1, 1]
    assert described["namespaces"][0]["blocks"] == 2048
    assert [queue["completed"] for queue in described["queues"]] == [0, 0, 0]


def test_what_is_shown_of_a_controller(nvme: Machine) -> None:
    def shown() -> dict[str, Any]:
        controller: dict[str, Any] = nvme.vdev.describe()["controller"]
        return controller

    assert shown()["state"] == "disabled"
    nvme.enable()
    queue = nvme.create_queue(1)
    nvme.write(queue, 0, bytes(4096))
    nvme.io(queue, 0x7F)
    nvme.bus.turn()  # its report may be on the way yet
    assert (shown()["state"], shown()["bytes_written"], shown()["errors"]) == ("ready", 4096, 1)
    assert nvme.vdev.describe()["namespaces"][0]["room"] == "1M"
    assert nvme.vdev.describe()["store"] == {"name": "ram:64M", "engine": "memory"}
    nvme.shut_down()
    assert shown()["state"] == "shut down"
    nvme.disable()
    nvme.set_register(CC, 15 << 7 | 1)
    assert shown()["state"].startswith("fatal until the guest resets it: a configuration")


@pytest.mark.parametrize("sizes", [0, 4 << 20 | 5 << 16, 3 << 20 | 6 << 16])
def test_queues_of_other_entries_there_are_not(nvme: Machine, sizes: int) -> None:
    nvme.enable()
    nvme.set_register(CC, sizes | 1)
    completions = nvme.take(PAGE)
    for opcode, size, right in ((5, sizes >> 20, 4), (CREATE_SQ, sizes >> 16 & 0xF, 6)):
        status = nvme.admin(
            opcode, prp1=completions, cdw10=1 | 15 << 16, cdw11=1 | (opcode == CREATE_SQ) << 16
        ).status
        if size != right:
            assert status == 0x102


# Doorbells of what there is not


def test_doorbells_of_no_queue(nvme: Machine) -> None:
    nvme.enable()
    for width, offset in ((4, 0x1008), (4, 0x1FFC), (8, 0x1010), (2, 0x1008), (1, 0x1009)):
        nvme.set_register(offset, (1 << 8 * width) - 1, width)
    assert nvme.identify(1)
    if nvme.vdev.shadow:
        assert nvme.admin(EVENT).result == 0 | 0 << 8 | 1 << 16
        assert nvme.register(0x1008) == 0


def test_a_bad_doorbell_of_an_io_queue() -> None:
    nvme = Machine(doorbells="shadow")
    nvme.enable()
    nvme.create_queue(1, entries=8)
    nvme.ring(2, 8)
    assert nvme.admin(EVENT).result == 0 | 1 << 8 | 1 << 16
    nvme.close()


def test_what_an_observer_sees(nvme: Machine) -> None:
    lines: list[str] = []
    nvme.vdev.observe(lambda event: lines.append(str(event)))
    nvme.enable()
    nvme.admin(0x7F)
    nvme.disable()
    text = "\n".join(lines)
    for expected in (
        "controller enabled",
        ": invalid opcode",
        "controller reset",
        "CC.EN 0→1",
    ):
        assert expected in text
    if nvme.vdev.shadow:
        assert "doorbell of submission queue 0: 1" in text


def test_a_completion_has_its_command_and_the_head(nvme: Machine) -> None:
    nvme.enable()
    entry: Any = nvme.admin(IDENTIFY, cdw10=1, prp1=nvme.take(PAGE), cid=0xFFFE)
    assert (entry.sqid, entry.head) == (0, 1)
    data = nvme.peek(nvme.admin_queue.cq, 16)
    assert struct.unpack_from("<H", data, 12)[0] == 0xFFFE
