"""Registers: what is refused, how each access kind behaves, and a bitwise reference model."""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import IntEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdcm.errors import DeclarationError, VdcmError
from vdcm.registers import (
    Access,
    AccessRecord,
    Field,
    Register,
    RegisterError,
    RegisterMap,
    RegisterSpace,
)


class Speed(IntEnum):
    SLOW = 0
    FAST = 1


class Sample(RegisterMap):
    """Every access kind, every width, an array whose gaps hold other registers, holes."""

    BYTE = Register(0x0, 8, reset=0x5A)
    READ_ONLY = Register(0x1, 8, Access.RO, 0xA5)
    HALF = Register(0x2, 16, Access.W1C, 0xFFFF)
    CTRL = Register(
        0x4,
        32,
        fields={
            "EN": Field(0),
            "SPEED": Field(1, 2, reset=1, values=Speed),
            "ERROR": Field(8, 4, Access.W1C, reset=0xF),
            "EVENTS": Field(12, 8, Access.RC, reset=0xFF),
            "COMMAND": Field(24, 4, Access.WO),
            "VERSION": Field(28, 4, Access.RO, reset=3, sticky=True),
        },
    )
    WIDE = Register(0x8, 64, reset=0x0123_4567_89AB_CDEF)
    COUNTER = Register(0x10, 32, Access.RC, 0xFFFF_FFFF)
    PORTAL = Register(0x14, 32, Access.WO)
    QUEUE = Register(0x20, 16, count=4, stride=8)
    TAIL = Register(0x22, 16, Access.WO, count=4, stride=8)
    OPEN = Register(0x40, 16, fields={"LOW": Field(0, 4)}, reserved=Access.RW)


SPACE_SIZE = 0x60
BASE = 0x8


def sample_space() -> tuple[Sample, RegisterSpace]:
    registers = Sample()
    space = RegisterSpace("BAR0", SPACE_SIZE, unmapped=0xEE)
    space.place(BASE, registers)
    return registers, space


def refused(body: Callable[[], object], *words: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        body()
    for word in words:
        assert word in str(caught.value)


# What is refused when the class is made


@pytest.mark.parametrize(
    ("registers", "words"),
    [
        ({"A": Register(0, 32), "B": Register(2, 16)}, ["Map.B", "overlaps A", "0x2:0x3"]),
        ({"A": Register(0, 8, count=4, stride=4), "B": Register(8, 16)}, ["overlaps", "A[2]"]),
        ({"A": Register(2, 32)}, ["Map.A", "offset 0x2", "4"]),
        ({"A": Register(-4, 32)}, ["Map.A", "offset"]),
        ({"A": Register(0, 12)}, ["Map.A", "12"]),
        ({"A": Register(0, 0)}, ["Map.A", "not 0"]),
        ({"A": Register(0, 32, count=0)}, ["Map.A", "not 0"]),
        ({"A": Register(0, 32, count=2, stride=2)}, ["Map.A", "stride 0x2"]),
        ({"A": Register(0, 32, count=2, stride=6)}, ["Map.A", "stride 0x6"]),
        ({"A": Register(0, 8, reset=0x100)}, ["Map.A", "reset 0x100"]),
        ({"A": Register(0, 8, reset=-1)}, ["Map.A", "reset"]),
        ({"A": Register(0, 8, fields={"F": Field(7, 2)})}, ["Map.A", "F", "8:7"]),
        ({"A": Register(0, 8, fields={"F": Field(-1)})}, ["Map.A", "F"]),
        ({"A": Register(0, 8, fields={"F": Field(0, 0)})}, ["Map.A", "F"]),
        (
            {"A": Register(0, 8, fields={"F": Field(0, 4), "G": Field(3, 2)})},
            ["Map.A", "G (bits 4:3)", "overlaps field F"],
        ),
        ({"A": Register(0, 8, fields={"F": Field(0, 2, reset=4)})}, ["Map.A", "F", "0x4"]),
        (
            {"A": Register(0, 8, fields={"F": Field(0)}, reset=0x3)},
            ["Map.A", "reserved bits 0x2"],
        ),
        (
            {"A": Register(0, 8, fields={"F": Field(0, reset=1)}, reset=0x1)},
            ["Map.A", "not in both"],
        ),
        ({"A": Register(0, 8, fields={"value": Field(0)})}, ["Map.A", "value"]),
        ({"A": Register(0, 8, fields={"no name": Field(0)})}, ["Map.A", "no name"]),
        ({"reset": Register(0, 8)}, ["Map", "reset"]),
    ],
)
def test_impossible_declarations_are_refused(
    registers: dict[str, Register], words: list[str]
) -> None:
    refused(lambda: type("Map", (RegisterMap,), registers), *words)


def test_size_smaller_than_the_registers_is_refused() -> None:
    def declare() -> None:
        class Small(RegisterMap, size=2):
            A = Register(0, 32)

    refused(declare, "Small", "0x2", "0x4")


def test_subclass_inherits_registers_and_is_checked_with_them() -> None:
    class Base(RegisterMap, size=0x20):
        A = Register(0, 32)

    class More(Base):
        B = Register(4, 32)

    assert list(More.registers) == ["A", "B"]
    assert More.size == 0x20

    def clash() -> None:
        class Clash(Base):
            B = Register(0, 8)

    refused(clash, "Clash", "A", "B")


def test_handler_that_names_no_register_is_refused() -> None:
    class Owner:
        def on_write_CTLR(self, value: int) -> None: ...

    refused(lambda: Sample(Owner()), "Owner.on_write_CTLR", "Sample", "on_write_CTRL?")


class Left(RegisterMap):
    A = Register(0, 8)
    SAME = Register(1, 8)


class Right(RegisterMap):
    B = Register(0, 8)
    SAME = Register(1, 8)


def test_owner_of_two_maps_names_the_other_one() -> None:
    class Owner:
        def __init__(self) -> None:
            self.seen: list[str] = []
            self.left = Left(self, also=[Right])
            self.right = Right(self, also=[Left])

        def on_write_A(self, value: int) -> None:
            self.seen.append(f"A={value}")

        def on_write_B(self, value: int) -> None:
            self.seen.append(f"B={value}")

    owner = Owner()
    space = RegisterSpace("BAR0", 8)
    space.place(0, owner.left)
    space.place(4, owner.right)
    space.write(0, 8, 0x07_0000_0005)
    assert owner.seen == ["A=5", "B=7"]
    refused(lambda: Left(owner), "on_write_B")


def test_handler_for_a_name_in_two_maps_is_refused() -> None:
    class Owner:
        def on_write_SAME(self, value: int) -> None: ...

    refused(lambda: Left(Owner(), also=[Right]), "on_write_SAME", "ambiguous", "Right")


def test_handler_of_map_and_of_owner_for_one_register_is_refused() -> None:
    class WithHandler(Left):
        def on_read_A(self) -> int:
            return 1

    class Owner:
        def on_read_A(self) -> int:
            return 2

    refused(lambda: WithHandler(Owner()), "on_read_A", "WithHandler")


def test_placing_outside_or_over_another_map_is_refused() -> None:
    space = RegisterSpace("BAR0", 8)
    space.place(2, Left())
    refused(lambda: space.place(3, Right()), "Right", "overlaps", "Left at 0x2")
    refused(lambda: space.place(1, Right()), "overlaps")
    refused(lambda: space.place(7, Right()), "BAR0", "0x7")
    refused(lambda: space.place(-1, Right()), "BAR0")
    space.place(4, Right())


# The device's side


def test_device_side_ignores_access_rules_and_checks_range() -> None:
    registers = Sample()
    registers.READ_ONLY.value = 1
    assert registers.READ_ONLY.value == 1
    registers.CTRL.VERSION = 9
    registers.CTRL.EN = True
    assert registers.CTRL.value == 0x900F_FF03
    assert (registers.CTRL.VERSION, registers.CTRL.SPEED) == (9, Speed.FAST)
    registers.QUEUE[3].value = 0xFFFF
    assert [queue.value for queue in registers.QUEUE] == [0, 0, 0, 0xFFFF]
    for wrong in (0x100, -1):
        with pytest.raises(RegisterError, match=r"Sample\.BYTE"):
            registers.BYTE.value = wrong
    with pytest.raises(RegisterError, match=r"Sample\.CTRL\.SPEED"):
        registers.CTRL.SPEED = 4


def test_mistakes_on_the_device_side_are_named() -> None:
    registers = Sample()
    with pytest.raises(AttributeError, match="no field ENABLE"):
        registers.CTRL.ENABLE = 1
    with pytest.raises(AttributeError, match=r"CTRL\.value"):
        registers.CTRL = 1  # type: ignore[assignment]
    with pytest.raises(TypeError, match="array"):
        _ = registers.QUEUE.value
    with pytest.raises(TypeError, match="not an array"):
        _ = registers.BYTE[0]
    for index in (4, -1):
        with pytest.raises(IndexError, match="elements 0 to 3"):
            _ = registers.QUEUE[index]


def test_preset_changes_one_instance_for_good() -> None:
    registers, other = Sample(), Sample()
    registers.BYTE.preset(1)
    registers.CTRL.preset(SPEED=0, VERSION=5)
    registers.BYTE.value = 7
    registers.reset()
    assert (registers.BYTE.value, registers.CTRL.SPEED, registers.CTRL.VERSION) == (1, 0, 5)
    assert registers.CTRL.ERROR == 0xF
    assert (other.BYTE.value, other.CTRL.VERSION) == (0x5A, 3)


def test_narrow_makes_bits_read_only_until_placed() -> None:
    registers = Sample()
    registers.BYTE.narrow(0xF0)
    space = RegisterSpace("BAR0", SPACE_SIZE)
    space.place(0, registers)
    space.write(0, 1, 0xFF)
    assert space.read(0, 1) == 0xFA
    refused(lambda: registers.BYTE.narrow(0), "Sample.BYTE")


def test_sticky_bits_survive_only_the_reset_that_keeps_them() -> None:
    registers = Sample()
    registers.CTRL.VERSION = 7
    registers.CTRL.EN = 1
    registers.reset(keep_sticky=True)
    assert (registers.CTRL.VERSION, registers.CTRL.EN) == (7, 0)
    registers.reset()
    assert registers.CTRL.VERSION == 3


def test_dump_is_json_with_names() -> None:
    dump = json.loads(json.dumps(Sample().dump()))
    assert dump["BYTE"] == {"offset": 0, "value": 0x5A}
    assert dump["CTRL"]["fields"]["SPEED"] == "FAST"
    assert [element["offset"] for element in dump["QUEUE"]] == [0x20, 0x28, 0x30, 0x38]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"EXTRA": 1}, "unknown register EXTRA"),
        ({"BYTE": 0x100}, "BYTE"),
        ({"BYTE": -1}, "BYTE"),
        ({"BYTE": "1"}, "BYTE"),
        ({"BYTE": True}, "BYTE"),
        ({"QUEUE": [1, 2, 3]}, "QUEUE"),
        ({"QUEUE": 1}, "QUEUE"),
        ({"QUEUE": [0, 0, 0x10000, 0]}, r"QUEUE\[2\]"),
    ],
)
def test_restore_refuses_and_changes_nothing(change: dict[str, object], words: str) -> None:
    registers = Sample()
    state = registers.save()
    registers.WIDE.value = 1
    with pytest.raises(VdcmError, match=words):
        registers.restore({**state, **change})
    assert registers.WIDE.value == 1
    with pytest.raises(VdcmError, match="no register BYTE"):
        registers.restore({name: value for name, value in state.items() if name != "BYTE"})


def test_space_restore_is_all_or_nothing() -> None:
    registers, space = sample_space()
    other = Left()
    space.place(0, other)
    state = json.loads(json.dumps(space.save()))
    other.A.value = 9
    state[f"Sample@{BASE:x}"]["BYTE"] = 999
    with pytest.raises(RegisterError, match="BYTE"):
        space.restore(state)
    assert other.A.value == 9
    state[f"Sample@{BASE:x}"]["BYTE"] = 1
    space.restore(state)
    assert (other.A.value, registers.BYTE.value) == (0, 1)


def test_mirror_shows_what_a_guest_would_read() -> None:
    memory: dict[int, int] = {}
    registers, space = sample_space()
    registers.mirror(lambda offset, _size, value: memory.update({offset: value}))
    assert memory[0x0] == 0x5A
    space.write(BASE + 0x14, 4, 0xFFFF_FFFF)
    assert memory[0x14] == 0, "write-only bits are not shown"
    space.read(BASE + 0x10, 4)
    assert memory[0x10] == 0, "reading cleared it"
    registers.QUEUE[2].value = 5
    assert memory[0x30] == 5
    registers.reset()
    assert (memory[0x10], memory[0x30]) == (0xFFFF_FFFF, 0)


# Handlers


class Device:
    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.answer = 0x1234
        self.regs = Sample(self)

    def on_write_BYTE(self, value: int) -> None:
        self.calls.append(("BYTE", value, self.regs.BYTE.value))

    def on_write_CTRL(self, value: int) -> None:
        self.calls.append(("CTRL", value))

    def on_write_QUEUE(self, index: int, value: int) -> None:
        self.calls.append(("QUEUE", index, value))

    def on_read_QUEUE(self, index: int) -> int:
        self.calls.append(("read QUEUE", index))
        return self.answer + index

    def on_read_HALF(self) -> int:
        self.calls.append(("read HALF",))
        return self.answer


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def space(device: Device) -> RegisterSpace:
    space = RegisterSpace("BAR0", SPACE_SIZE)
    space.place(0, device.regs)
    return space


def test_write_handler_runs_after_the_value_is_in_place(
    device: Device, space: RegisterSpace
) -> None:
    for _ in range(2):  # the second time by the quick way
        space.write(0, 1, 7)
    assert device.calls == [("BYTE", 7, 7)] * 2


def test_partial_write_is_merged_before_its_handler(device: Device, space: RegisterSpace) -> None:
    space.write(0x28, 2, 0xAABB)
    space.write(0x29, 1, 0xCC)
    assert device.calls == [("QUEUE", 1, 0xAABB), ("QUEUE", 1, 0xCCBB)]


def test_straddling_write_is_split_in_ascending_order(device: Device, space: RegisterSpace) -> None:
    space.write(0x0, 8, 0x0000_0001_0000_0007)
    assert device.calls == [("BYTE", 7, 7), ("CTRL", 0x300F_FF01)]


def test_read_handlers_run_once_per_register(device: Device, space: RegisterSpace) -> None:
    for _ in range(2):
        device.calls.clear()
        assert space.read(0x30, 2) == 0x1236
        assert space.read(0x3, 1) == 0x12
        assert device.calls == [("read QUEUE", 2), ("read HALF",)]


def test_read_handler_out_of_range_is_an_error_that_names_it(
    device: Device, space: RegisterSpace
) -> None:
    for device.answer in (0x10000, -1):
        with pytest.raises(RegisterError, match="on_read_HALF"):
            space.read(2, 2)


def test_command_bits_are_given_once(device: Device, space: RegisterSpace) -> None:
    space.write(0x4, 4, 0x0300_0000)
    assert device.regs.CTRL.COMMAND == 3
    space.write(0x4, 1, 1)  # another byte of the register
    commands = [call[1] >> 24 & 0xF for call in device.calls if isinstance(call[1], int)]
    assert commands == [3, 0]


def test_a_command_that_is_taken_whole_is_not_torn() -> None:
    class Commands(RegisterMap):
        BEFORE = Register(0, 32)
        COMMAND = Register(4, 32, Access.WO, whole=True)
        AFTER = Register(8, 32)

    taken: list[int] = []

    class Owner:
        def on_write_COMMAND(self, value: int) -> None:
            taken.append(value)

    space = RegisterSpace("BAR0", 0x10)
    registers = Commands(Owner())
    space.place(0, registers)
    traced: list[str] = []
    space.observer = lambda access: traced.append(str(access))
    for offset, width in ((4, 1), (7, 1), (4, 2), (6, 2), (2, 4), (6, 4), (7, 8)):
        space.write(offset, width, 0x1111_1111_1111_1111)
    assert (taken, registers.COMMAND.value) == ([], 0)
    assert traced[0] == "BAR0+0x04 COMMAND ignored (not the whole register) (write 0x11)"
    space.write(4, 4, 5)
    space.write(0, 8, 7 << 32)
    space.write(4, 8, 9)
    assert taken == [5, 7, 9]


# Accesses that are not wholly inside, and wrong ones


@pytest.mark.parametrize("offset", [-1, -8, SPACE_SIZE - 1, SPACE_SIZE, 1 << 64])
def test_out_of_range_reads_ones_and_ignores_writes(offset: int) -> None:
    registers, space = sample_space()
    before = registers.save()
    space.write(offset, 4, 0)
    assert space.read(offset, 4) == 0xFFFF_FFFF
    assert registers.save() == before


@pytest.mark.parametrize("width", [0, 3, 16, -1])
def test_other_widths_are_refused(width: int) -> None:
    _, space = sample_space()
    with pytest.raises(RegisterError, match="1, 2, 4 or 8"):
        space.read(0, width)
    with pytest.raises(RegisterError, match="1, 2, 4 or 8"):
        space.write(0, width, 0)


# Trace


def trace(action: Callable[[RegisterSpace], object]) -> str:
    class Uart(RegisterMap):
        IN_LOW = Register(0x1, 8, reset=0x5A)
        CC = Register(
            0x14,
            32,
            fields={
                "EN": Field(0),
                "SPEED": Field(1, values=Speed),
                "GO": Field(8, access=Access.WO),
                "QUEUES": Field(16, 8, reset=0x46),
            },
        )
        WQ = Register(0x20, 32, count=4)
        RING = Register(0x30, 64, fields={"LENGTH": Field(0, 12), "BASE": Field(12, 52)})

    space = RegisterSpace("BAR0", 0x100)
    space.place(0, Uart())
    records: list[AccessRecord] = []
    space.observer = records.append
    action(space)
    return str(records[-1])


@pytest.mark.parametrize(
    ("action", "line"),
    [
        (lambda s: s.read(1, 1), "BAR0+0x01 IN_LOW = 0x5a (read)"),
        (lambda s: s.write(0x14, 4, 0x460001), "BAR0+0x14 CC.EN 0→1 (write 0x460001)"),
        (
            lambda s: s.write(0x14, 4, 0x460103),
            "BAR0+0x14 CC.EN 0→1, CC.SPEED SLOW→FAST, CC.GO=1 (write 0x460103)",
        ),
        (lambda s: s.write(0x14, 4, 0x460000), "BAR0+0x14 CC unchanged (write 0x460000)"),
        (lambda s: s.read(0x14, 4), "BAR0+0x14 CC = 0x460000 (read: QUEUES=70)"),
        (lambda s: s.read(0x16, 1), "BAR0+0x16 CC = 0x46 (read: QUEUES=70)"),
        (lambda s: s.read(0x14, 1), "BAR0+0x14 CC = 0x0 (read)"),
        (
            lambda s: s.write(0x30, 8, 0x12345678_00FF),
            "BAR0+0x30 RING.LENGTH 0→255, RING.BASE 0→0x123456780 (write 0x1234567800ff)",
        ),
        (lambda s: s.write(0x28, 4, 9), "BAR0+0x28 WQ[2] 0x0→0x9 (write 0x9)"),
        (
            lambda s: s.write(0x20, 8, 0x5_0000_0000),
            "BAR0+0x20 WQ[0] unchanged, WQ[1] 0x0→0x5 (write 0x500000000)",
        ),
        (lambda s: s.read(0x20, 8), "BAR0+0x20 WQ[0], WQ[1] = 0x0 (read)"),
        (lambda s: s.read(0x80, 2), "BAR0+0x80 no register = 0x0 (read)"),
        (lambda s: s.write(0x100, 2, 1), "BAR0+0x100 no register (write 0x1)"),
    ],
)
def test_trace_lines(action: Callable[[RegisterSpace], object], line: str) -> None:
    assert trace(action) == line


# A reference model: a list of bits, each with its rule


class Model:
    """The sample space bit by bit, with none of the masks, maps or shortcuts."""

    def __init__(self) -> None:
        self.kind: list[Access | None] = [None] * (8 * SPACE_SIZE)  # None: not a register's
        self.bits = [0xEE >> i % 8 & 1 for i in range(8 * SPACE_SIZE)]
        self.owner: list[int] = [-1] * (8 * SPACE_SIZE)  # where the bit's register begins
        for register in Sample.registers.values():
            for i in range(register.count or 1):
                start = 8 * (BASE + register.offset + i * register.stride)
                for bit in range(register.width):
                    kind = register.reserved if register.fields else register.access
                    for field in register.fields.values():
                        if field.lsb <= bit < field.lsb + field.width:
                            kind = field.access or register.access
                    self.kind[start + bit] = kind
                    self.bits[start + bit] = register.reset >> bit & 1
                    self.owner[start + bit] = start

    def read(self, offset: int, width: int) -> int:
        if offset < 0 or offset + width > SPACE_SIZE:
            return (1 << 8 * width) - 1
        result = 0
        for i in range(8 * width):
            at = 8 * offset + i
            if self.kind[at] is not Access.WO:
                result |= self.bits[at] << i
            if self.kind[at] is Access.RC:
                self.bits[at] = 0
        return result

    def write(self, offset: int, width: int, value: int) -> None:
        if offset < 0 or offset + width > SPACE_SIZE:
            return
        covered = range(8 * offset, 8 * (offset + width))
        touched = {self.owner[at] for at in covered} - {-1}
        for at, owner in enumerate(self.owner):
            if owner in touched and self.kind[at] is Access.WO:
                self.bits[at] = 0
        for i, at in enumerate(covered):
            bit = value >> i & 1
            if self.kind[at] in (Access.RW, Access.WO):
                self.bits[at] = bit
            elif self.kind[at] is Access.W1C and bit:
                self.bits[at] = 0

    def stored(self, start: int, width: int) -> int:
        return sum(self.bits[8 * start + i] << i for i in range(width))


accesses = st.lists(
    st.tuples(
        st.booleans(),
        st.integers(-8, SPACE_SIZE + 8),
        st.sampled_from([1, 2, 4, 8]),
        st.integers(0, (1 << 64) - 1),
    ),
    max_size=60,
)


@given(accesses=accesses, observed=st.booleans())
def test_any_accesses_match_the_bitwise_model(
    accesses: list[tuple[bool, int, int, int]], observed: bool
) -> None:
    registers, space = sample_space()
    model = Model()
    records: list[AccessRecord] = []
    if observed:
        space.observer = records.append
    expected: list[tuple[bool, int, int, int]] = []
    for is_write, offset, width, value in accesses:
        value &= (1 << 8 * width) - 1
        if is_write:
            space.write(offset, width, value)
            model.write(offset, width, value)
        else:
            read = space.read(offset, width)
            value = model.read(offset, width)
            assert read == value
        expected.append((is_write, offset, width, value))
    for name, register in Sample.registers.items():
        for i in range(register.count or 1):
            bound = getattr(registers, name)
            bound = bound if register.count is None else bound[i]
            start = BASE + register.offset + i * register.stride
            assert bound.value == model.stored(start, register.width), bound
    if observed:
        assert [(r.write, r.place.offset, r.place.width, r.value) for r in records] == expected
        assert all(str(record) and json.dumps(record.details()) for record in records)


@given(accesses=accesses)
def test_save_and_restore_round_trip_through_json(
    accesses: list[tuple[bool, int, int, int]],
) -> None:
    registers, space = sample_space()
    for is_write, offset, width, value in accesses:
        if is_write:
            space.write(offset, width, value)
        else:
            space.read(offset, width)
    state = json.loads(json.dumps(space.save()))
    other, other_space = sample_space()
    other_space.restore(state)
    assert other.save() == registers.save()
    registers.reset()
    assert registers.save() == Sample().save()


@given(accesses=accesses)
def test_records_say_what_each_write_made_of_its_registers(
    accesses: list[tuple[bool, int, int, int]],
) -> None:
    registers, space = sample_space()
    stored: dict[str, int] = {}

    def observe(record: AccessRecord) -> None:
        if record.write:
            stored.update(zip(record.registers, record.after, strict=True))

    space.observer = observe
    for is_write, offset, width, value in accesses:
        if is_write:
            stored.clear()
            space.write(offset, width, value)
            for name, after in stored.items():
                bare, _, index = name.rstrip("]").partition("[")
                bound = getattr(registers, bare)
                assert (bound[int(index)] if index else bound).value == after


# What is writable at some times only


def test_locked_bits_are_read_only_until_they_are_not() -> None:
    registers, space = sample_space()
    registers.CTRL.lock(0b111)
    space.write(BASE + 4, 4, 0xFFFF_FFFF)
    assert (registers.CTRL.EN, registers.CTRL.SPEED) == (0, 1)
    assert registers.CTRL.ERROR == 0, "write 1 to clear, which was not locked"
    registers.CTRL.lock(0b001)
    space.write(BASE + 4, 4, 0b111)
    assert (registers.CTRL.EN, registers.CTRL.SPEED) == (0, 3)
    registers.QUEUE[1].lock()
    for index in range(4):
        space.write(BASE + 0x20 + 8 * index, 2, 0xBEEF)
    assert [queue.value for queue in registers.QUEUE] == [0xBEEF, 0, 0xBEEF, 0xBEEF]
    registers.QUEUE[1].value = 7
    assert registers.QUEUE[1].value == 7, "the device's side is never restricted"
    registers.reset()
    space.write(BASE + 0x28, 2, 0xCAFE)
    space.write(BASE + 4, 4, 1)
    assert (registers.QUEUE[1].value, registers.CTRL.EN) == (0xCAFE, 1)
