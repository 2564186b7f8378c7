"""The software DSA through the native client: every operation on every VDEV type, both kinds of
portal, commands, interrupts, and what configuration may be written when."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from dsa_client import (
    ALLOCATE_ADI,
    DRAIN,
    INTERRUPT,
    LIMITED,
    MOVE,
    NOOP,
    PAGE,
    UNLIMITED,
    DsaClient,
    Wq,
)
from dsa_lab import PORTALS, TYPES, Lab
from dsa_machine import descriptor
from dsa_program import PASID, Outcome, check_program, run_program

from vdcm.errors import ResourceError
from vdcm_devices.dsa.codes import Cause, Command, CommandError, DeviceState, ResetType, WqState


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path, dwqs=16)
    yield lab
    lab.close()


@pytest.fixture
def dsa(lab: Lab) -> DsaClient:
    return lab.started()


@pytest.mark.conformance("R4.2-2", "R4.3-1", "R4.4.1-1", "R4.4.1-3", "R4.4-5")
def test_every_operation_on_every_type_and_portal_has_equal_results(lab: Lab) -> None:
    first: list[Outcome] = []
    for kind in TYPES:
        for portals in PORTALS:
            dsa = lab.client(lab.vdev(kind, portals=portals))
            if kind == "dsa-dynamic":
                assert [dsa.ask(ALLOCATE_ADI, adi) for adi in (0, 0, 0, 1)] == [0, 1, 2, 3]
            dsa.start(pasid=PASID)
            assert dsa.direct == (portals == "direct")
            for wq in range(dsa.wqs):
                outcomes = run_program(dsa, wq)
                check_program(outcomes)
                first = first or outcomes
                assert outcomes == first, f"{kind}, WQ {wq}, {portals}"
            dsa.client.close()


@pytest.mark.parametrize("portals", PORTALS)
def test_both_portals_of_a_dedicated_work_queue_take_work(lab: Lab, portals: str) -> None:
    dsa = lab.started(portals=portals)
    for portal in (UNLIMITED, LIMITED, LIMITED, UNLIMITED):
        source, target = dsa.memory.put(bytes(range(200))), dsa.memory.take(200)
        done = dsa.run(0, MOVE, portal=portal, source=source, destination=target, size=200)
        assert done.status == 1
        assert dsa.memory.read(target, 200) == bytes(range(200))


def test_intercepted_portals_need_python_only_while_somebody_watches(lab: Lab) -> None:
    vdev = lab.vdev(portals="intercepted")
    dsa = lab.client(vdev)
    dsa.start()
    lines: list[str] = []

    def hear(event: object) -> None:
        lines.append(str(event))

    for observer in (None, hear, None):
        lab.host.run(vdev.observe, observer)
        assert dsa.run(0, NOOP).status == 1
        # The halves of one slot, seen and unseen.
        data, record = dsa.prepare(NOOP)
        dsa.client.write_bytes(2, 0x1000, data[:32])
        lab.host.run(vdev.observe, hear if observer is None else None)
        dsa.client.write_bytes(2, 0x1020, data[32:])
        assert dsa.wait(record).status == 1
    accepted = [line for line in lines if "accepted" in line]
    assert len(accepted) == 3, "of six"
    (adi,) = vdev.adis
    assert lab.run(lambda: adi.driver.counters(adi))["accepted"] == 6


def test_half_a_slot_is_forgotten_by_a_reset(lab: Lab) -> None:
    vdev = lab.vdev(portals="intercepted")
    dsa = lab.client(vdev)
    dsa.start()
    (adi,) = vdev.adis
    data, _ = dsa.prepare(NOOP)

    def disable() -> None:
        assert dsa.command(Command.DISABLE_WQ, 1) == 0
        assert dsa.command(Command.ENABLE_WQ, 0) == 0

    def reset() -> None:
        dsa.client.reset()
        dsa.start()

    for slot, undo in ((0x1000, disable), (0x1040, reset)):
        dsa.client.write_bytes(2, slot, data[:56])
        undo()
        dsa.client.write_bytes(2, slot + 56, data[56:])
        assert dsa.run(0, NOOP, portal=UNLIMITED).status == 1
    assert lab.run(lambda: adi.driver.counters(adi))["accepted"] == 2


def test_what_the_host_has_taken_out_of_use_takes_no_descriptors(lab: Lab) -> None:
    vdev = lab.vdev(portals="intercepted")
    dsa = lab.client(vdev)
    dsa.start()
    (adi,) = vdev.adis
    assert dsa.run(0, NOOP).status == 1
    lab.host.run(adi.driver.disable, adi)
    assert dsa.submit(0, dsa.prepare(NOOP)[0])
    assert lab.run(lambda: adi.driver.counters(adi))["accepted"] == 1
    lab.host.run(adi.driver.enable, adi)
    assert dsa.run(0, NOOP).status == 1


def test_a_direct_ring_goes_round(lab: Lab) -> None:
    dsa = lab.started(portals="direct")
    records = []
    for _ in range(3 * 64 + 5):
        data, record = dsa.prepare(NOOP)
        dsa.rings[0, LIMITED].post(data)
        records.append(record)
    assert [dsa.wait(record).status for record in records] == [1] * len(records)
    assert dsa.command(Command.DISABLE_WQ, 1) == 0
    assert dsa.command(Command.ENABLE_WQ, 0) == 0
    dsa.find_rings()
    assert dsa.run(0, NOOP).status == 1, "slot 0 comes first again"


def test_a_direct_slot_that_was_not_taken_is_empty_when_the_queue_is_enabled_again(
    lab: Lab,
) -> None:
    vdev = lab.vdev(portals="direct")
    dsa = lab.client(vdev)
    dsa.start()
    (adi,) = vdev.adis
    lab.host.run(adi.driver.suspend, adi)
    stale = []
    for _ in range(3):
        data, record = dsa.prepare(NOOP)
        dsa.rings[0, LIMITED].post(data)
        stale.append(record)
    assert dsa.command(Command.RESET_DEVICE) == 0
    dsa.start()
    for _ in range(5):
        assert dsa.run(0, NOOP).status == 1
    assert [dsa.completion(record).status for record in stale] == [0] * 3


def test_stores_of_two_cpus_interleave(dsa: DsaClient) -> None:
    """Eight stores make a descriptor; those to other slots come between."""
    prepared = [dsa.prepare(NOOP) for _ in range(4)]
    for word in (1, 2, 3, 4, 5, 6, 7, 0):
        for slot, (data, _) in enumerate(prepared):
            value = int.from_bytes(data[8 * word : 8 * word + 8], "little")
            dsa.client.write(2, 0x1000 + 64 * slot + 8 * word, 8, value)
    assert [dsa.wait(record).status for _, record in prepared] == [1] * 4


# Commands


def test_the_state_machine_of_device_and_work_queue(lab: Lab) -> None:
    dsa = lab.client(lab.vdev("dsa-2dwq-1swq"))
    assert dsa.command(Command.ENABLE_DEVICE) == CommandError.BUS_MASTER
    dsa.set_bus_master()
    assert dsa.command(Command.ENABLE_WQ, 0) == CommandError.DEVICE_NOT_ENABLED
    dsa.configure([Wq(16), Wq(16), None])
    assert dsa.command(Command.ENABLE_DEVICE) == 0
    assert dsa.state == DeviceState.ENABLED
    assert dsa.command(Command.ENABLE_DEVICE) == CommandError.DEVICE_NOT_DISABLED
    assert dsa.command(Command.ENABLE_WQ, 2) == CommandError.WQ_SIZE
    assert dsa.command(Command.ENABLE_WQ, 3) == CommandError.WQ_INDEX
    assert dsa.command(Command.ENABLE_WQ, 0) == 0
    assert dsa.command(Command.ENABLE_WQ, 0) == CommandError.WQ_NOT_DISABLED
    assert dsa.command(Command.DRAIN_WQ, 0b10) == CommandError.WQ_NOT_ENABLED
    assert [dsa.wq_state(wq) for wq in range(3)] == [WqState.ENABLED, 0, 0]
    assert dsa.run(0, NOOP).status == 1
    for command, operand in (
        (Command.DRAIN_WQ, 1),
        (Command.ABORT_WQ, 1),
        (Command.DRAIN_ALL, 0),
        (Command.ABORT_ALL, 0),
        (Command.DRAIN_PASID, 0),
        (Command.ABORT_PASID, 0),
    ):
        assert dsa.command(command, operand) == 0
        assert dsa.run(0, NOOP).status == 1, "it goes on"
    assert dsa.command(Command.DISABLE_WQ, 1) == 0
    assert dsa.wq_state(0) == WqState.DISABLED
    assert dsa.command(Command.ENABLE_WQ, 0) == 0, "what was configured is so still"
    assert dsa.command(Command.DISABLE_DEVICE) == 0
    assert (dsa.state, dsa.wq_state(0)) == (DeviceState.DISABLED, WqState.DISABLED)
    assert dsa.command(Command.DISABLE_DEVICE) == CommandError.DISABLE_NOT_ENABLED
    assert dsa.read(0x800) == 16
    assert dsa.command(Command.RESET_DEVICE) == 0
    assert dsa.read(0x800) == dsa.read(0x808) == dsa.read(0x600) == 0


def test_configuration_in_use_is_read_only(dsa: DsaClient) -> None:
    before = {at: dsa.read(at) for at in (0x80, 0x600, 0x620, 0x628, 0x800, 0x808, 0x80C, 0x820)}
    for at in before:
        dsa.write(at, 0xFFFF_FFFF)
    assert {at: dsa.read(at) for at in before} == before
    dsa.write(0x804, 3)
    assert dsa.read(0x804) == 3, "the threshold may always be written"
    assert dsa.command(Command.DISABLE_WQ, 1) == 0
    dsa.write(0x808, 1 | 3 << 4)
    assert dsa.read(0x808) == 1 | 3 << 4
    dsa.write(0x800, 1)
    assert dsa.read(0x800) == before[0x800], "the size, while the device is disabled"
    assert dsa.command(Command.DISABLE_DEVICE) == 0
    dsa.write(0x800, 1)
    dsa.write(0x600, 0)
    assert (dsa.read(0x800), dsa.read(0x600)) == (1, 0)


def test_limits_of_a_work_queue_hold(lab: Lab) -> None:
    dsa = lab.client(lab.vdev())
    dsa.start([Wq(16, max_transfer=10, max_batch=1)])
    source, target = dsa.memory.take(2048), dsa.memory.take(2048)
    assert dsa.run(0, MOVE, source=source, destination=target, size=1024).status == 1
    assert dsa.run(0, MOVE, source=source, destination=target, size=1025).status == 0x13
    assert dsa.command(Command.DISABLE_WQ, 1) == 0
    dsa.write(0x820, 1 << NOOP | 1 << DRAIN, 8)
    assert dsa.command(Command.ENABLE_WQ, 0) == 0
    assert dsa.run(0, NOOP).status == 1
    assert dsa.run(0, MOVE, source=source, destination=target, size=10).status == 0x10


def test_disabled_work_queues_ignore_work(dsa: DsaClient) -> None:
    assert dsa.command(Command.DISABLE_WQ, 1) == 0
    data, record = dsa.prepare(NOOP)
    assert dsa.submit(0, data), "a posted write has no answer"
    assert dsa.command(Command.ENABLE_WQ, 0) == 0
    assert dsa.run(0, NOOP).status == 1
    assert dsa.completion(record).status == 0
    assert dsa.read(0xC0) == 0, "nobody is told (5.3)"


def test_a_halted_device_needs_a_function_reset(dsa: DsaClient) -> None:
    dsa.enable_interrupts()
    dsa.write(0x88, 3)
    dsa.set_bus_master(False)
    assert dsa.state == DeviceState.HALT | 1 << 2
    assert dsa.read(0x98) == Cause.SOFTWARE_ERROR | Cause.HALT
    assert dsa.software_error()[0] >> 8 & 0xFF == 0x51
    assert dsa.events[0].wait(0.0) == 0, "without bus mastering there are no messages"
    dsa.set_bus_master()
    assert dsa.command(Command.RESET_DEVICE) == CommandError.HALTED
    data, record = dsa.prepare(NOOP)
    assert dsa.submit(0, data)
    dsa.client.reset()
    assert dsa.state == DeviceState.DISABLED
    dsa.start()
    assert dsa.run(0, NOOP).status == 1
    assert dsa.completion(record).status == 0


@pytest.mark.parametrize("kind", ["software", "function"])
def test_a_fault_of_the_hardware_halts_it(lab: Lab, kind: str) -> None:
    vdev = lab.vdev("dsa-2dwq-1swq")
    dsa = lab.client(vdev)
    dsa.start()
    dsa.enable_interrupts()
    dsa.write(0x88, 3)
    lab.run(lambda: setattr(vdev, "halt", kind))
    reset = {"software": ResetType.SOFTWARE, "function": ResetType.FUNCTION}[kind]
    assert dsa.state == DeviceState.HALT | reset << 2
    assert dsa.events[0].wait(5.0) == 1
    assert dsa.read(0x98) == Cause.HALT
    assert dsa.read(0xC0) == 0
    data, record = dsa.prepare(NOOP)
    dsa.submit(0, data)
    assert dsa.command(Command.ENABLE_WQ, 0) == CommandError.HALTED
    if kind == "software":
        assert dsa.command(Command.RESET_DEVICE) == CommandError.SUCCESS
    else:
        assert dsa.command(Command.RESET_DEVICE) == CommandError.HALTED
        dsa.client.reset()
    assert dsa.state == DeviceState.DISABLED
    assert vdev.halt == "no"
    dsa.start()
    for wq in range(dsa.wqs):
        assert dsa.run(wq, NOOP, pasid=1).status == 1
    assert dsa.completion(record).status == 0


# Interrupts


@pytest.mark.conformance("R2.5.1-14", "R4.4.2-3", "R4.4.2-4")
@pytest.mark.parametrize("portals", PORTALS)
def test_completions_and_commands_interrupt(lab: Lab, portals: str) -> None:
    dsa = lab.client(lab.vdev("dsa-2dwq-1swq", portals=portals))
    dsa.set_bus_master()
    dsa.start([Wq(16), Wq(16), None])
    dsa.enable_interrupts()
    assert len(dsa.events) == 4, "MSI-X entries: work queues and one"
    for wq, handle in ((0, 1), (1, 2), (0, 3), (1, 1)):
        assert dsa.run(wq, NOOP, INTERRUPT, handle=handle).status == 1
        assert dsa.events[handle].wait(5.0) == 1
    assert dsa.command(Command.DRAIN_ALL, interrupt=True) == 0
    assert dsa.events[0].wait(5.0) == 1
    assert dsa.read(0x98) == Cause.COMMAND
    dsa.write(0x98, Cause.COMMAND)
    assert dsa.read(0x98) == 0
    assert [event.wait(0) for event in dsa.events] == [0] * 4


def test_only_handles_that_were_given_are_good(dsa: DsaClient) -> None:
    """The Request Interrupt Handle command is there, so it is needed (5.4, table 5-2)."""
    bad = dsa.run(0, NOOP, INTERRUPT, handle=1)
    assert bad.status == 0x19
    dsa.enable_interrupts()
    assert dsa.run(0, NOOP, INTERRUPT, handle=1).status == 1
    assert dsa.events[1].wait(5.0) == 1
    assert dsa.run(0, NOOP, INTERRUPT, handle=2).status == 0x19, "there is no such entry"
    dsa.write(0x408, 1 << 3)
    assert dsa.run(0, NOOP, INTERRUPT, handle=1).status == 0x19, "for work with a PASID"
    dsa.write(0x408, 0)
    assert dsa.run(0, NOOP, INTERRUPT, handle=1).status == 1
    assert dsa.command(Command.RELEASE_INTERRUPT_HANDLE, 1) == 0
    assert dsa.run(0, NOOP, INTERRUPT, handle=1).status == 0x19
    assert dsa.command(Command.REQUEST_INTERRUPT_HANDLE, 1) == 1 << 8
    dsa.client.reset()
    dsa.start()
    assert dsa.run(0, NOOP, INTERRUPT, handle=1).status == 0x19, "a handle of before the reset"


def test_a_masked_completion_is_delivered_once_on_unmask(dsa: DsaClient) -> None:
    dsa.enable_interrupts()
    dsa.write(0x4000 + 16 + 12, 1)
    for _ in range(3):
        assert dsa.run(0, NOOP, INTERRUPT, handle=1).status == 1
    assert dsa.events[1].wait(0.05) == 0
    assert dsa.read(0x5000, 8) == 0b10, "pending"
    dsa.write(0x4000 + 16 + 12, 0)
    assert dsa.events[1].wait(5.0) == 1
    assert dsa.read(0x5000, 8) == 0


def test_an_ignored_completion_interrupts_nobody_and_is_not_pending(dsa: DsaClient) -> None:
    dsa.enable_interrupts()
    dsa.write(0x4000 + 16 + 12, 1)
    dsa.write(0x408, 1 << 2)
    assert dsa.run(0, NOOP, INTERRUPT, handle=1).status == 1
    assert dsa.command(Command.DRAIN_ALL) == 0
    assert dsa.read(0x5000, 8) == 0
    dsa.write(0x408, 0)
    assert dsa.run(0, NOOP, INTERRUPT, handle=1).status == 1
    assert dsa.command(Command.DRAIN_ALL) == 0
    assert dsa.read(0x5000, 8) == 0b10
    dsa.write(0x408, 1 << 2)
    dsa.write(0x4000 + 16 + 12, 0)
    assert dsa.events[1].wait(5.0) == 1, "what is pending is delivered all the same (9.2.22)"


def test_reset_device_forgets_what_is_pending_and_keeps_the_msix_table(dsa: DsaClient) -> None:
    """Table 9-3."""
    dsa.enable_interrupts()
    dsa.write(0x4000 + 16 + 8, 0x1234)
    for vector in (0, 1):
        dsa.write(0x4000 + 16 * vector + 12, 1)
    assert dsa.run(0, NOOP, INTERRUPT, handle=1).status == 1
    assert dsa.command(Command.DRAIN_ALL, interrupt=True) == 0
    assert dsa.read(0x5000, 8) == 0b11
    assert dsa.command(Command.RESET_DEVICE) == 0
    assert (dsa.read(0x5000, 8), dsa.read(0x98)) == (0, 0)
    assert (dsa.read(0x4000 + 16 + 8), dsa.read(0x4000 + 16 + 12)) == (0x1234, 1)
    for vector in (0, 1):
        dsa.write(0x4000 + 16 * vector + 12, 0)
    assert [event.wait(0.05) for event in dsa.events] == [0, 0]


def test_few_messages_make_a_handle_unavailable(tmp_path: Path) -> None:
    lab = Lab(tmp_path, ims=1)
    try:
        first, second = lab.started(), lab.started()
        assert first.command(Command.REQUEST_INTERRUPT_HANDLE, 1) == 1 << 8
        refused = second.command(Command.REQUEST_INTERRUPT_HANDLE, 1)
        assert refused == CommandError.NO_INTERRUPT_HANDLE
        first.client.reset()
        assert second.command(Command.REQUEST_INTERRUPT_HANDLE, 1) == 1 << 8
    finally:
        lab.close()


# Composition


@pytest.mark.conformance("R4.4-6", "R4.4-8")
def test_over_provisioned_vdevs_fail_cleanly(tmp_path: Path) -> None:
    lab = Lab(tmp_path, dwqs=2, shares=1)
    try:
        vdevs = [lab.vdev(), lab.vdev()]
        with pytest.raises(ResourceError, match="dwq"):
            lab.vdev()
        with pytest.raises(ResourceError):
            lab.vdev("dsa-2dwq-1swq")
        lab.host.run(lab.host.transport.withdraw, vdevs[0].name)
        lab.host.run(vdevs[0].close)
        lab.vdev()
        assert lab.parent.driver.available("swq-share") == 1, "nothing of the failed ones is left"
    finally:
        lab.close()


def test_what_vdcm_shows_of_it(lab: Lab) -> None:
    vdev = lab.vdev("dsa-2dwq-1swq", weight=10)
    dsa = lab.client(vdev)
    dsa.set_bus_master()
    dsa.start([Wq(16, priority=1), Wq(16, priority=3), None])
    assert dsa.run(0, NOOP).status == 1
    shown = lab.run(vdev.describe)
    assert [(wq["state"], wq["modes"]) for wq in shown["work_queues"]] == [
        ("enabled", ["dedicated"]),
        ("enabled", ["dedicated"]),
        ("disabled", ["shared"]),
    ]
    assert shown["adis"][1]["weight"] == 3 * shown["adis"][0]["weight"], "by priority"
    assert shown["adis"][0]["counters"]["succeeded"] == 1


# Both paths


def random_descriptor(known: random.Random, base: int) -> bytes:
    """Mostly right: an operation of those that there are, addresses in 64 KiB at ``base``."""
    operation = known.choice((*range(11), *range(0x10, 0x17), 0x20, 0x21))
    flags = known.choice((0x0C, 0x0C, 0x0C, 0x04, 0x0D, 0x8C, known.getrandbits(24)))
    place = [base + 8 * known.randrange(0x1E00) for _ in range(4)]
    size = known.choice((0, 1, 8, 80, 512, 520, 1024, 1040, 4096, known.randrange(9000)))
    specific = bytearray(24)
    if known.random() < 0.7:
        specific[:8] = known.choice((place[3], known.randrange(256))).to_bytes(8, "little")
        specific[8:12] = known.choice((0, 80, 800)).to_bytes(4, "little")
    return descriptor(
        operation,
        flags,
        completion=base + 0x10000 + 32 * known.randrange(32) + known.choice((0,) * 15 + (8,)),
        source=place[0],
        destination=known.choice((place[1], place[1], place[0] + 100, 1 << 40)),
        size=size,
        handle=known.choice((0, 0, 0, 1, 5)),
        specific=bytes(specific),
        pasid=known.choice((0, 0, 3)),
    )


@pytest.mark.parametrize("seed", range(3))
def test_both_paths_do_the_same_with_any_descriptor(lab: Lab, seed: int) -> None:
    """Random descriptors, one by one: the same memory and the same error register after each."""
    known = random.Random(seed)
    pair = [lab.started(portals=portals) for portals in PORTALS]
    data = known.randbytes(0x10000)
    bases = []
    for dsa in pair:
        dsa.enable_interrupts()
        bases.append(dsa.memory.put(data + bytes(1024), PAGE))
    assert bases[0] == bases[1]
    statuses = set()
    for step in range(250):
        one = random_descriptor(known, bases[0])
        if not int.from_bytes(one[:8], "little"):
            continue  # a direct slot whose first word is zero is empty
        seen = []
        for dsa in pair:
            assert dsa.submit(0, one)
            assert dsa.command(Command.DRAIN_WQ, 1) == 0
            words = [dsa.read(0xC0 + 8 * i, 8) for i in range(3)]
            dsa.write(0xC0, 3, 8)
            seen.append((words, dsa.memory.read(bases[0], 0x10400)))
            if words[0]:
                statuses.add(words[0] >> 8 & 0xFF)
        assert seen[0] == seen[1], f"step {step}: {one.hex()}"
        statuses.update(seen[0][1][0x10000 + 32 * i] for i in range(32))
    assert len(statuses) > 8, "the descriptors are too dull"
