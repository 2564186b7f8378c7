"""The software DSA's registers by name, what it checks before it enables something, and its
portals. What each bit of a register is: test_dsa_register_table.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdcm.bars import PagePolicy
from vdcm.errors import DeclarationError
from vdcm.registers import RegisterSpace
from vdcm_devices.dsa.checks import device_enable_error, wq_enable_error
from vdcm_devices.dsa.codes import CommandError, DeviceState, WqMode, WqState
from vdcm_devices.dsa.portals import MOST_PARTS, PAGE, PortalBar
from vdcm_devices.dsa.registers import BAR0_SIZE, Capabilities, DsaRegisters, registers_class

OPERATIONS = 0x1_003F_03FF
WQS, GROUPS, ENGINES = 3, 2, 2


def capabilities(**changes: int) -> Capabilities:
    values = {
        "wqs": WQS,
        "total_wq_size": 64,
        "dedicated": True,
        "shared": True,
        "groups": GROUPS,
        "engines": ENGINES,
        "operations": OPERATIONS,
        "max_transfer": 21,
        "max_batch": 10,
        **changes,
    }
    return Capabilities(**values)


def registers() -> DsaRegisters:
    made = registers_class(WQS, GROUPS, ENGINES)()
    made.tell(capabilities())
    return made


def space() -> tuple[DsaRegisters, RegisterSpace]:
    made, bar = registers(), RegisterSpace("BAR0", BAR0_SIZE)
    bar.place(0, made)
    return made, bar


def configured() -> DsaRegisters:
    """Two groups: work queues 0 and 1 with engine 0, work queue 2 with engine 1; all is right."""
    made = registers()
    for wq, size in enumerate((16, 16, 32)):
        made.WQSIZE[wq].SIZE = size
        made.WQTHRESHOLD[wq].THRESHOLD = size
        made.WQMODE[wq].MODE = WqMode.DEDICATED
        made.WQMODE[wq].PRIORITY = 10
        made.WQLIMITS[wq].MAX_TRANSFER = 21
        made.WQLIMITS[wq].MAX_BATCH = 10
    made.GRPWQS[0].WQS, made.GRPENGINES[0].ENGINES = 0b011, 0b01
    made.GRPWQS[1].WQS, made.GRPENGINES[1].ENGINES = 0b100, 0b10
    return made


# What the guest reads


def test_the_tables_are_laid_out_as_the_driver_expects() -> None:
    made, bar = space()
    for wq in range(WQS):
        at = 0x800 + 64 * wq
        bar.write(at, 4, 16)
        bar.write(at + 4, 4, 8)
        bar.write(at + 8, 4, 1 | 5 << 4 | 0x12345 << 8 | 1 << 28)
        bar.write(at + 12, 4, 20 | 9 << 5)
        assert made.WQSIZE[wq].SIZE == 16
        assert made.WQTHRESHOLD[wq].THRESHOLD == 8
        assert (made.WQMODE[wq].MODE, made.WQMODE[wq].PRIORITY) == (WqMode.DEDICATED, 5)
        assert (made.WQMODE[wq].PASID, made.WQMODE[wq].PASID_ENABLE) == (0x12345, 1)
        assert (made.WQLIMITS[wq].MAX_TRANSFER, made.WQLIMITS[wq].MAX_BATCH) == (20, 9)
        made.WQSTATE[wq].STATE = WqState.ENABLED
        assert bar.read(at + 24, 4) >> 30 == 1
        bar.write(at + 24, 4, 0)
        assert made.WQSTATE[wq].STATE == WqState.ENABLED, "the state is not the guest's to write"
        assert bar.read(at + 32, 8) == OPERATIONS
    for group in range(GROUPS):
        at = 0x600 + 64 * group
        bar.write(at, 8, 0xFFFF_FFFF_FFFF_FFFF)
        bar.write(at + 32, 8, 0xFFFF_FFFF_FFFF_FFFF)
        assert bar.read(at, 8) == (1 << WQS) - 1, "work queues that there are not"
        assert bar.read(at + 32, 8) == (1 << ENGINES) - 1
        bar.write(at + 8, 8, 1)
        assert bar.read(at + 8, 8) == 0
    bar.write(0x400 + 8 * WQS, 4, 0xABCDE << 12 | 1 << 3 | 0xFF7)
    permission = made.MSIXPERM[WQS]
    assert (permission.PASID, permission.PASID_ENABLE, permission.IGNORE) == (0xABCDE, 1, 1)


def test_a_generation_without_operations_per_queue_allows_what_there_is() -> None:
    made = registers_class(WQS, GROUPS, ENGINES)()
    made.tell(capabilities(version=0x100, wq_operations=False, fault_info=False))
    assert made.allowed_operations(0) == [OPERATIONS, 0, 0, 0]


@pytest.mark.parametrize("wrong", [{"wqs": 0}, {"wqs": 64}, {"groups": 9}, {"engines": 64}])
def test_a_composition_that_the_tables_do_not_hold_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(DeclarationError):
        capabilities(**wrong)


@given(st.data())
def test_writes_leave_everything_readable_and_reserved_bits_zero(data: st.DataObject) -> None:
    """No sequence of guest writes sets a bit that is not declared as the guest's."""
    made, bar = space()
    before = {offset: bar.read(offset, 4) for offset in range(0, 0x1000, 4)}
    offsets = st.integers(0, 0x1000 - 8)
    for _ in range(data.draw(st.integers(1, 30))):
        width = data.draw(st.sampled_from([1, 2, 4, 8]))
        bar.write(data.draw(offsets), width, data.draw(st.integers(0, (1 << 64) - 1)))
    for offset in (*range(0x00, 0x80, 4), 0x90, 0xA0, 0xA8, 0xB0, 0xB4, *range(0xC8, 0x400, 4)):
        assert bar.read(offset, 4) == before[offset], hex(offset)
    assert bar.read(0x88, 4) & ~3 == 0
    for wq in range(WQS):
        assert made.WQMODE[wq].value & ~0x3FFF_FFF7 == 0
        assert made.WQSTATE[wq].value == 0


# What is checked when something is enabled


def change(path: str, index: int | None, field: str, value: int) -> Callable[[DsaRegisters], None]:
    def apply(made: DsaRegisters) -> None:
        register = getattr(made, path)
        setattr(register if index is None else register[index], field, value)

    return apply


def test_a_right_configuration_is_enabled() -> None:
    made = configured()
    assert device_enable_error(made, bus_master=True) is CommandError.SUCCESS
    made.GENSTS.STATE = DeviceState.ENABLED
    for wq in range(WQS):
        error = wq_enable_error(
            made, wq, (WqMode.DEDICATED,), pasid_enabled=False, privileged_mode=False
        )
        assert error is CommandError.SUCCESS


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (change("GENSTS", None, "STATE", DeviceState.ENABLED), 0x10),
        (change("WQSIZE", 2, "SIZE", 33), 0x14),
        (change("GRPENGINES", 0, "ENGINES", 0), 0x15),
        (change("GRPWQS", 1, "WQS", 0), 0x15),
        (change("GRPWQS", 1, "WQS", 0b101), 0x16),
        (change("GRPWQS", 0, "WQS", 0b001), 0x16),
        (change("WQSIZE", 0, "SIZE", 0), 0x16),
        (change("GRPENGINES", 1, "ENGINES", 0b11), 0x17),
        (change("GENCFG", None, "READ_BUFFER_LIMIT", 33), 0x18),
        (change("GRPFLAGS", 0, "READ_BUFFERS_ALLOWED", 3), 0x18),
        (change("GRPFLAGS", 0, "READ_BUFFERS_ALLOWED", 33), 0x18),
        (change("GRPFLAGS", 1, "READ_BUFFERS_RESERVED", 1), 0x18),  # group 0 has all of them
        (change("GRPFLAGS", 1, "READ_BUFFERS_RESERVED", 33), 0x18),
    ],
)
def test_enable_device_says_what_is_wrong(
    wrong: Callable[[DsaRegisters], None], error: int
) -> None:
    made = configured()
    wrong(made)
    assert device_enable_error(made, bus_master=True) == error


def test_read_buffers_may_be_reserved_and_limited() -> None:
    made = configured()
    for group, (reserved, allowed) in enumerate(((10, 25), (7, 22))):
        made.GRPFLAGS[group].READ_BUFFERS_RESERVED = reserved
        made.GRPFLAGS[group].READ_BUFFERS_ALLOWED = allowed
        made.GRPFLAGS[group].USE_READ_BUFFER_LIMIT = 1
    made.GENCFG.READ_BUFFER_LIMIT = 8
    assert device_enable_error(made, bus_master=True) is CommandError.SUCCESS
    made.GENCFG.READ_BUFFER_LIMIT = 7
    assert device_enable_error(made, bus_master=True) == 0x18
    made.GRPFLAGS[1].USE_READ_BUFFER_LIMIT = 0
    assert device_enable_error(made, bus_master=True) is CommandError.SUCCESS
    made.GRPFLAGS[0].READ_BUFFERS_RESERVED = 11  # of 32 there are 14 left for whoever is first
    made.GRPFLAGS[1].READ_BUFFERS_ALLOWED = 21
    assert device_enable_error(made, bus_master=True) is CommandError.SUCCESS
    made.GRPFLAGS[1].READ_BUFFERS_ALLOWED = 22
    assert device_enable_error(made, bus_master=True) == 0x18


def test_a_group_without_engines_has_no_read_buffers() -> None:
    made = configured()
    made.WQSIZE[2].SIZE = made.GRPWQS[1].WQS = made.GRPENGINES[1].ENGINES = 0
    made.GRPFLAGS[1].READ_BUFFERS_RESERVED = 33
    assert device_enable_error(made, bus_master=True) is CommandError.SUCCESS


def test_enable_device_needs_a_bus_master() -> None:
    assert device_enable_error(configured(), bus_master=False) == 0x12


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (change("GENSTS", None, "STATE", DeviceState.DISABLED), 0x20),
        (change("WQSTATE", 0, "STATE", WqState.ENABLED), 0x21),
        (change("WQSTATE", 0, "STATE", WqState.DRAINING), 0x21),
        (change("WQSIZE", 0, "SIZE", 0), 0x22),
        (change("WQMODE", 0, "PRIORITY", 0), 0x23),
        (change("WQMODE", 0, "MODE", WqMode.SHARED), 0x24),
        (change("WQMODE", 0, "BLOCK_ON_FAULT", 1), 0x25),
        (change("WQMODE", 0, "PASID_ENABLE", 1), 0x26),
        (change("WQLIMITS", 0, "MAX_BATCH", 0), 0x27),
        (change("WQLIMITS", 0, "MAX_BATCH", 11), 0x27),
        (change("WQLIMITS", 0, "MAX_TRANSFER", 22), 0x28),
        (change("WQOPERATIONS0", 0, "value", 1 << 10), 0x2D),
        (change("WQOPERATIONS3", 0, "value", 1), 0x2D),
    ],
)
def test_enable_wq_says_what_is_wrong(wrong: Callable[[DsaRegisters], None], error: int) -> None:
    made = configured()
    made.GENSTS.STATE = DeviceState.ENABLED
    wrong(made)
    found = wq_enable_error(
        made, 0, (WqMode.DEDICATED,), pasid_enabled=False, privileged_mode=False
    )
    assert found == error


@pytest.mark.parametrize(
    ("mode", "config", "pasid_enabled", "privileged_mode", "error"),
    [
        (WqMode.SHARED, {"PASID_ENABLE": 1}, True, False, 0),
        (WqMode.SHARED, {"PASID_ENABLE": 0}, True, False, 0x26),
        (WqMode.SHARED, {"PASID_ENABLE": 1}, False, False, 0x26),
        (WqMode.SHARED, {"PASID_ENABLE": 1, "PRIVILEGE": 1}, True, False, 0),
        (WqMode.DEDICATED, {"PASID_ENABLE": 1}, True, False, 0),
        (WqMode.DEDICATED, {"PASID_ENABLE": 0, "PRIVILEGE": 1}, True, False, 0),
        (WqMode.DEDICATED, {"PASID_ENABLE": 1, "PRIVILEGE": 1}, True, False, 0x2A),
        (WqMode.DEDICATED, {"PASID_ENABLE": 1, "PRIVILEGE": 1}, True, True, 0),
    ],
)
def test_pasid_and_privilege_depend_on_the_mode(
    mode: WqMode, config: dict[str, int], pasid_enabled: bool, privileged_mode: bool, error: int
) -> None:
    made = configured()
    made.GENSTS.STATE = DeviceState.ENABLED
    made.WQMODE[0].MODE = mode
    for name, value in config.items():
        setattr(made.WQMODE[0], name, value)
    found = wq_enable_error(
        made, 0, (mode,), pasid_enabled=pasid_enabled, privileged_mode=privileged_mode
    )
    assert found == error


def test_a_work_queue_without_an_adi_has_no_valid_mode() -> None:
    made = configured()
    made.GENSTS.STATE = DeviceState.ENABLED
    error = wq_enable_error(made, 0, (), pasid_enabled=True, privileged_mode=True)
    assert error is CommandError.WQ_MODE


# Portals


class Submitted:
    def __init__(self, wqs: int = 2, **arguments: int) -> None:
        self.got: list[tuple[int, int, bytes]] = []
        self.bar = PortalBar(wqs, lambda *what: self.got.append(what), direct=False, **arguments)

    def store(self, offset: int, data: bytes, width: int = 8) -> None:
        for at in range(0, len(data), width):
            self.bar.write(offset + at, width, int.from_bytes(data[at : at + width], "little"))


def descriptor(seed: int) -> bytes:
    return bytes((seed + i) % 256 for i in range(64))


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_a_slot_is_submitted_when_it_is_complete(width: int) -> None:
    submitted = Submitted()
    submitted.store(0x5000 + 0x40, descriptor(1)[:-width], width)
    assert submitted.got == []
    submitted.store(0x5000 + 0x80 - width, descriptor(1)[-width:], width)
    assert submitted.got == [(1, 1, descriptor(1))]
    submitted.store(0x5000 + 0x40, descriptor(2), width)
    assert submitted.got[1:] == [(1, 1, descriptor(2))], "the slot is new again"


@given(st.lists(st.integers(0, 2 * 4 * 64 - 1), min_size=1, max_size=12, unique=True), st.randoms())
def test_stores_of_many_cpus_interleave(slots: list[int], random: st.DataObject) -> None:
    """Words of one slot come in any order, between those of others; each slot comes once, whole."""
    submitted = Submitted()
    stores = [(slot, word) for slot in slots for word in range(8)]
    random.shuffle(stores)  # type: ignore[attr-defined]
    for slot, word in stores:
        data = descriptor(slot)[8 * word : 8 * word + 8]
        submitted.store(64 * slot + 8 * word, data)
    expected = [(slot // 256, slot // 64 % 4, descriptor(slot)) for slot in slots]
    assert sorted(submitted.got) == sorted(expected)


def test_what_is_no_store_to_a_portal_is_ignored() -> None:
    submitted = Submitted(wqs=3)
    assert submitted.bar.size == 16 * PAGE
    submitted.store(12 * PAGE, descriptor(0))  # behind the portals
    for at in range(1, 57):
        submitted.bar.write(at, 8, 0x1111)  # not aligned, most of them
    assert submitted.got == []
    assert submitted.bar.read(0, 8) == 0
    submitted.bar.reset()
    submitted.store(0, descriptor(3)[:56])
    submitted.bar.forget(0)
    submitted.store(56, descriptor(3)[56:])
    assert submitted.got == [], "half a descriptor from before is forgotten"


def test_incomplete_slots_are_bounded() -> None:
    submitted = Submitted()
    for slot in range(MOST_PARTS + 1):
        submitted.bar.write(64 * slot, 8, slot)
    assert submitted.bar.incomplete == MOST_PARTS
    submitted.store(64 * MOST_PARTS + 8, descriptor(0)[8:])
    assert len(submitted.got) == 1, "the newest has lost nothing"
    submitted.store(8, descriptor(0)[8:])
    assert len(submitted.got) == 1, "the oldest has"


def test_direct_portals_are_shared_memory_and_submit_nothing_here() -> None:
    got: list[object] = []
    bar = PortalBar(1, lambda *what: got.append(what), direct=True, extra=2 * PAGE, memory=PAGE)
    assert [(p.offset, p.size, p.policy) for p in bar.pages] == [
        (0, 2 * PAGE, PagePolicy.DIRECT),
        (5 * PAGE, PAGE, PagePolicy.MEMORY),
    ]
    for word in range(8):
        bar.write(8 * word, 8, word + 1)
    assert got == []
    assert bytes(bar.view(8, 8)) == (2).to_bytes(8, "little")
    for word in range(8):
        bar.write(3 * PAGE + 8 * word, 8, word + 1)
    assert len(got) == 1, "the IMS portals are intercepted"
    bar.close()
