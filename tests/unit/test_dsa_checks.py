"""The checks of descriptors (5.4, 5.5): flags, reserved fields and values, each with its status."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from dsa_machine import GENCAP, PAGE, SECONDARY, Machine, descriptor
from hypothesis import given, settings
from hypothesis import strategies as st

from vdcm_devices.dsa._fastpath import lib

RECORD = lib.DSA_FLAG_COMPLETION_VALID | lib.DSA_FLAG_REQUEST_COMPLETION
COMPLETION, A, B, C = 0x100000, 0x10000, 0x20000, 0x30000
MAX_TRANSFER = 0x40000

# Table 5-3, as the specification has it: flags by letter, and the reserved bytes.
# b Block on Fault, r Check Result, c cache control, s Strict Ordering, 1 2 3 TC selectors
TABLE: dict[str, tuple[str, list[tuple[int, int]]]] = {
    "NOOP": ("", [(16, 35), (38, 63)]),
    "BATCH": ("1", [(24, 31), (38, 63)]),
    "DRAIN": ("", [(32, 35), (38, 63)]),
    "MEMORY_MOVE": ("bcs12", [(38, 63)]),
    "FILL": ("bcs2", [(38, 63)]),
    "COMPARE": ("br12", [(38, 39), (41, 63)]),
    "COMPARE_PATTERN": ("br1", [(38, 39), (41, 63)]),
    "CREATE_DELTA": ("brcs123", [(38, 39), (52, 55), (57, 63)]),
    "APPLY_DELTA": ("bcs12", [(38, 39), (44, 63)]),
    "DUALCAST": ("bcs123", [(38, 39), (48, 63)]),
    "CRC": ("b1", [(24, 31), (38, 39), (44, 63)]),
    "COPY_CRC": ("bcs12", [(38, 39), (44, 63)]),
    "DIF_CHECK": ("b1", [(24, 31), (38, 39), (41, 41), (43, 47), (56, 63)]),
    "DIF_INSERT": ("bcs12", [(38, 39), (40, 40), (43, 55)]),
    "DIF_STRIP": ("bcs12", [(38, 39), (41, 41), (43, 47), (56, 63)]),
    "DIF_UPDATE": ("bcs12", [(38, 39), (43, 47)]),
    "CACHE_FLUSH": ("bcs2", [(16, 23), (38, 63)]),
}
BITS = {"b": 1 << 1, "r": 1 << 7, "c": 1 << 8 | 1 << 14, "s": 1 << 13, "1": 1 << 9, "2": 1 << 10}
BITS["3"] = 1 << 11
SPECIFIC_FLAGS = {"DRAIN": 0xF0000, "CRC": 0x70000, "COPY_CRC": 0x70000}


@pytest.fixture
def machine() -> Iterator[Machine]:
    m = ready()
    yield m
    m.close()


def ready(**settings: int) -> Machine:
    flags = lib.DSA_WQ_BLOCK_ON_FAULT | lib.DSA_WQ_PASID | lib.DSA_USER_INTERRUPTS
    m = Machine(**({"flags": flags, "max_transfer": MAX_TRANSFER} | settings))
    for address in (A, B, C):
        m.map(address, 4 * PAGE)
    m.map(COMPLETION, 16 * PAGE, pasid=SECONDARY)
    lib.dsa_queue_handle(m.queue, 0, 0, 0xFFFF_FFFF)
    return m


def valid(name: str, flags: int = 0) -> bytearray:
    """A descriptor of this operation with nothing wrong in it."""
    specific = {
        "CREATE_DELTA": struct.pack("<QI", C, 80),
        "APPLY_DELTA": struct.pack("<I", 10),
        "DUALCAST": struct.pack("<Q", C),
    }.get(name, b"")
    size = {"NOOP": 0, "DRAIN": 0, "BATCH": 2, "DIF_INSERT": 512}.get(
        name, 520 if name.startswith("DIF") else 64
    )
    return bytearray(
        descriptor(
            getattr(lib, f"DSA_OP_{name}"),
            RECORD | flags,
            completion=COMPLETION,
            source=0 if name in ("NOOP", "DRAIN", "CACHE_FLUSH") else A,
            destination=0 if name in ("NOOP", "DRAIN", "BATCH", "CRC", "DIF_CHECK") else B,
            size=size,
            specific=specific,
        )
    )


def status_of(machine: Machine, raw: bytes) -> int:
    if raw[7] == lib.DSA_OP_BATCH:  # a list of no-ops
        machine.map(A, bytes(2 * 64), pasid=SECONDARY)
    machine.execute(bytes(raw))
    return machine.completion(COMPLETION).status


def invalid_flags(machine: Machine) -> int:
    return int.from_bytes(machine.completion(COMPLETION).specific[:4], "little")


# A zeroed block has no DIF: 0 is its guard and its application tag, and its reference tag.
@pytest.mark.parametrize("name", TABLE)
def test_a_valid_descriptor_succeeds(machine: Machine, name: str) -> None:
    assert status_of(machine, valid(name)) == lib.DSA_STATUS_SUCCESS


@pytest.mark.parametrize("bit", range(24))
@pytest.mark.parametrize("name", TABLE)
def test_each_flag_is_allowed_where_the_table_says_so(
    machine: Machine, name: str, bit: int
) -> None:
    flag = 1 << bit
    letters, _ = TABLE[name]
    allowed = SPECIFIC_FLAGS.get(name, 0) | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 12
    for letter in letters:
        allowed |= BITS[letter]
    raw = valid(name, flag)
    if name in ("CRC", "COPY_CRC") and flag == lib.DSA_FLAG_READ_SEED:
        raw[48:56] = struct.pack("<Q", A)
    if name == "DRAIN" and flag in (lib.DSA_FLAG_READBACK1, lib.DSA_FLAG_READBACK2):
        raw[16:32] = struct.pack("<QQ", *((A, 0) if flag == lib.DSA_FLAG_READBACK1 else (0, B)))
    status = status_of(machine, raw)
    if flag & allowed:
        assert status in (lib.DSA_STATUS_SUCCESS, lib.DSA_STATUS_FALSE_PREDICATE)
    else:
        assert status == lib.DSA_STATUS_BAD_FLAGS
        assert invalid_flags(machine) == flag


@pytest.mark.parametrize(
    ("name", "flag", "gencap"),
    [
        ("MEMORY_MOVE", "CACHE_CONTROL", "CACHE_CONTROL_MEMORY"),
        ("CACHE_FLUSH", "CACHE_CONTROL", "CACHE_CONTROL_FLUSH"),
        ("FILL", "READBACK", "DESTINATION_READBACK"),
        ("DRAIN", "READBACK1", "DRAIN_READBACK"),
        ("DRAIN", "READBACK2", "DRAIN_READBACK"),
    ],
)
def test_a_flag_without_its_capability_is_reserved(name: str, flag: str, gencap: str) -> None:
    machine = ready(gencap=GENCAP & ~getattr(lib, f"DSA_CAP_{gencap}"))
    assert status_of(machine, valid(name, getattr(lib, f"DSA_FLAG_{flag}"))) == (
        lib.DSA_STATUS_BAD_FLAGS
    )
    machine.close()


def test_block_on_fault_needs_the_wq_to_allow_it() -> None:
    machine = ready(flags=0)
    assert status_of(machine, valid("FILL", lib.DSA_FLAG_BLOCK_ON_FAULT)) == (
        lib.DSA_STATUS_BAD_FLAGS
    )
    machine.close()


@pytest.mark.parametrize(
    ("flags", "allowed"),
    [
        (0, True),  # no PASID: nobody is a user
        (lib.DSA_WQ_PASID, False),
        (lib.DSA_WQ_PASID | lib.DSA_USER_INTERRUPTS, True),
        (lib.DSA_WQ_PASID | lib.DSA_WQ_PRIVILEGED, True),
    ],
)
def test_who_may_ask_for_an_interrupt(flags: int, allowed: bool) -> None:
    machine = ready(flags=flags)
    status = status_of(machine, valid("NOOP", lib.DSA_FLAG_REQUEST_INTERRUPT))
    assert status == (lib.DSA_STATUS_SUCCESS if allowed else lib.DSA_STATUS_BAD_FLAGS)
    assert machine.raised == ([0] if allowed else [])
    machine.close()


@pytest.mark.parametrize("name", [n for n in TABLE if n != "DRAIN"])
def test_required_flags(machine: Machine, name: str) -> None:
    required = name in (
        "COMPARE",
        "COMPARE_PATTERN",
        "CREATE_DELTA",
        "CRC",
        "COPY_CRC",
        "DIF_CHECK",
    )
    raw = valid(name)
    raw[4] &= ~lib.DSA_FLAG_REQUEST_COMPLETION
    assert status_of(machine, raw) == (lib.DSA_STATUS_BAD_FLAGS if required else 0)


def test_a_drain_asks_for_a_record_or_an_interrupt(machine: Machine) -> None:
    raw = valid("DRAIN")
    raw[4] &= ~lib.DSA_FLAG_REQUEST_COMPLETION
    assert status_of(machine, raw) == lib.DSA_STATUS_BAD_FLAGS
    machine.execute(descriptor(lib.DSA_OP_DRAIN, lib.DSA_FLAG_REQUEST_INTERRUPT))
    assert machine.raised == [0]


def test_flags_of_the_record_need_its_address(machine: Machine) -> None:
    machine.execute(descriptor(lib.DSA_OP_NOOP, lib.DSA_FLAG_REQUEST_COMPLETION))
    machine.execute(descriptor(lib.DSA_OP_NOOP, lib.DSA_FLAG_COMPLETION_TC))
    words = [struct.unpack("<4Q", data) for _, data in machine.reports]
    assert [w[0] >> 8 & 0xFF for w in words] == [lib.DSA_STATUS_BAD_FLAGS] * 2
    assert [w[1] >> 32 for w in words] == [
        lib.DSA_FLAG_REQUEST_COMPLETION,
        lib.DSA_FLAG_COMPLETION_TC,
    ]


@pytest.mark.parametrize("name", TABLE)
def test_each_reserved_byte_must_be_0(name: str) -> None:
    _, spans = TABLE[name]
    reserved = {byte for first, last in spans for byte in range(first, last + 1)}
    machine = ready()
    for byte in reserved:
        raw = valid(name)
        raw[byte] |= 0x80
        assert status_of(machine, raw) == lib.DSA_STATUS_RESERVED_FIELD, byte
    machine.close()


@pytest.mark.parametrize("name", TABLE)
def test_an_unused_handle_or_completion_address_is_reserved(machine: Machine, name: str) -> None:
    raw = valid(name)
    raw[36] = 1
    assert status_of(machine, raw) == lib.DSA_STATUS_RESERVED_FIELD
    machine.execute(descriptor(lib.DSA_OP_FILL, destination=B, size=8, completion=COMPLETION))
    first, *_ = struct.unpack("<4Q", machine.reports[0][1])
    assert first >> 8 & 0xFF == lib.DSA_STATUS_RESERVED_FIELD


@settings(deadline=None)
@given(st.integers(0, 255))
def test_operations_that_there_are_not(code: int) -> None:
    known = {getattr(lib, f"DSA_OP_{name}") for name in TABLE}
    machine = ready()
    raw = valid("NOOP")
    raw[7] = code
    if code not in known:
        assert status_of(machine, raw) == lib.DSA_STATUS_BAD_OPERATION
    machine.close()


@pytest.mark.parametrize("name", TABLE)
def test_an_operation_that_the_wq_does_not_allow(name: str) -> None:
    code = getattr(lib, f"DSA_OP_{name}")
    machine = ready()
    machine.configure(
        max_transfer=MAX_TRANSFER,
        operations=[~(1 << code) & 2**64 - 1, 0, 0, 0],  # type: ignore[arg-type]
    )
    assert status_of(machine, valid(name)) == lib.DSA_STATUS_BAD_OPERATION
    machine.close()


SIZED = [name for name in TABLE if name not in ("NOOP", "BATCH", "DRAIN")]


@pytest.mark.parametrize("name", SIZED)
@pytest.mark.parametrize("size", [0, MAX_TRANSFER + 8, 0xFFFF_FFF8])
def test_transfer_sizes_out_of_range(machine: Machine, name: str, size: int) -> None:
    raw = valid(name)
    raw[32:36] = struct.pack("<I", size)
    assert status_of(machine, raw) == lib.DSA_STATUS_BAD_SIZE


@pytest.mark.parametrize("name", ["DIF_CHECK", "DIF_INSERT", "DIF_STRIP", "DIF_UPDATE"])
@pytest.mark.parametrize("size", [1, 519, 521, 1000])
def test_dif_wants_whole_blocks(machine: Machine, name: str, size: int) -> None:
    raw = valid(name)
    raw[32:36] = struct.pack("<I", size)
    assert status_of(machine, raw) == lib.DSA_STATUS_BAD_SIZE


@pytest.mark.parametrize(
    ("name", "byte", "value"),
    [("DIF_UPDATE", 42, 0x10), ("DIF_CHECK", 42, 0x80), ("DIF_INSERT", 41, 1)],
)
def test_reserved_bits_of_dif_flags(machine: Machine, name: str, byte: int, value: int) -> None:
    raw = valid(name)
    raw[byte] = value
    assert status_of(machine, raw) == lib.DSA_STATUS_RESERVED_FIELD


FIELDS = {"source": 16, "destination": 24, "size": 32, "specific": 40, "max": 48}


@pytest.mark.parametrize(
    ("name", "field", "value", "status"),
    [
        ("CREATE_DELTA", "source", A + 4, "MISALIGNED"),
        ("CREATE_DELTA", "destination", B + 1, "MISALIGNED"),
        ("CREATE_DELTA", "size", 68, "MISALIGNED"),
        ("CREATE_DELTA", "max", 79, "BAD_FIELD"),
        ("CREATE_DELTA", "max", MAX_TRANSFER + 1, "BAD_FIELD"),
        ("CREATE_DELTA", "specific", A + 63, "OVERLAP"),
        ("CREATE_DELTA", "specific", A - 79, "OVERLAP"),
        ("CREATE_DELTA", "specific", B, "OVERLAP"),
        ("APPLY_DELTA", "destination", B + 4, "MISALIGNED"),
        ("APPLY_DELTA", "size", 60, "MISALIGNED"),
        ("APPLY_DELTA", "specific", 9, "BAD_FIELD"),
        ("APPLY_DELTA", "specific", MAX_TRANSFER + 1, "BAD_FIELD"),
        ("APPLY_DELTA", "source", B - 9, "OVERLAP"),
        ("DUALCAST", "specific", C + 8, "DUALCAST_MISMATCH"),
        ("DUALCAST", "specific", A, "OVERLAP"),
        ("DUALCAST", "specific", B, "OVERLAP"),
        ("DUALCAST", "source", B + 63, "OVERLAP"),
        ("COPY_CRC", "source", B - 63, "OVERLAP"),
        ("DIF_INSERT", "source", B + 519, "OVERLAP"),
        ("DIF_STRIP", "source", B + 511, "OVERLAP"),
        ("DIF_UPDATE", "source", B - 519, "OVERLAP"),
        ("BATCH", "source", A + 32, "LIST_MISALIGNED"),
        ("BATCH", "size", 0, "BAD_COUNT"),
        ("BATCH", "size", 1, "BAD_COUNT"),
        ("BATCH", "size", 65, "BAD_COUNT"),
    ],
)
def test_values_out_of_range(
    machine: Machine, name: str, field: str, value: int, status: str
) -> None:
    raw = valid(name)
    wide = field in ("source", "destination") or (
        field == "specific" and name in ("CREATE_DELTA", "DUALCAST")
    )
    packed = struct.pack("<Q" if wide else "<I", value)
    raw[FIELDS[field] : FIELDS[field] + len(packed)] = packed
    assert status_of(machine, raw) == getattr(lib, f"DSA_STATUS_{status}")


@pytest.mark.parametrize("name", ["CREATE_DELTA", "APPLY_DELTA"])
def test_a_delta_record_covers_512_kib(name: str) -> None:
    machine = ready(max_transfer=1 << 21)
    raw = valid(name)
    raw[32:36] = struct.pack("<I", 0x80008)
    assert status_of(machine, raw) == lib.DSA_STATUS_BAD_SIZE
    machine.close()


@pytest.mark.parametrize("destination", [A - 63, A - 1, A, A + 1, A + 63])
def test_overlapping_copies_need_the_capability(destination: int) -> None:
    machine = ready(gencap=GENCAP & ~lib.DSA_CAP_OVERLAPPING_COPY)
    raw = valid("MEMORY_MOVE")
    raw[24:32] = struct.pack("<Q", destination)
    assert status_of(machine, raw) == lib.DSA_STATUS_OVERLAP
    machine.close()


def test_crc_seed(machine: Machine) -> None:
    read = lib.DSA_FLAG_READ_SEED
    for seed, address, flags, status in [
        (1, 0, 0, lib.DSA_STATUS_SUCCESS),
        (0, A, read, lib.DSA_STATUS_SUCCESS),
        (0, A, read | lib.DSA_FLAG_ADDRESS3_TC, lib.DSA_STATUS_SUCCESS),
        (1, 0, lib.DSA_FLAG_ADDRESS3_TC, lib.DSA_STATUS_BAD_FLAGS),
        (1, A, read, lib.DSA_STATUS_RESERVED_FIELD),
        (0, A, 0, lib.DSA_STATUS_RESERVED_FIELD),
        (0, A + 2, read, lib.DSA_STATUS_MISALIGNED),
        (0, 0x5000, read, lib.DSA_STATUS_PAGE_FAULT),
    ]:
        raw = valid("CRC", flags)
        raw[40:56] = struct.pack("<IIQ", seed, 0, address)
        assert status_of(machine, raw) == status


def test_drain_readbacks(machine: Machine) -> None:
    first, second = lib.DSA_FLAG_READBACK1, lib.DSA_FLAG_READBACK2
    tc1, tc2 = lib.DSA_FLAG_ADDRESS1_TC, lib.DSA_FLAG_ADDRESS2_TC
    for one, two, flags, status in [
        (A, B, first | second | tc1 | tc2, lib.DSA_STATUS_SUCCESS),
        (A, 0, 0, lib.DSA_STATUS_RESERVED_FIELD),
        (0, B, first, lib.DSA_STATUS_RESERVED_FIELD),
        (0, 0, tc1, lib.DSA_STATUS_BAD_FLAGS),
        (0, 0, tc2, lib.DSA_STATUS_BAD_FLAGS),
        (0x5000, 0, first, lib.DSA_STATUS_READBACK_FAULT),
        (A, 0x6000, first | second, lib.DSA_STATUS_READBACK_FAULT),
    ]:
        raw = valid("DRAIN", flags)
        raw[16:32] = struct.pack("<QQ", one, two)
        assert status_of(machine, raw) == status
    assert machine.completion(COMPLETION).fault_address == 0x6000


@settings(deadline=None)
@given(st.binary(min_size=64, max_size=64))
def test_garbage_ends(raw: bytes) -> None:
    """Whatever the bytes are, the queue gets to the end of them and says something or nothing."""
    machine = ready()
    machine.execute(raw)
    counters = machine.counters()
    assert counters.succeeded + counters.failed == 1
    assert not machine.pending
    machine.close()


@settings(deadline=None)
@given(st.sampled_from(list(TABLE)), st.data())
def test_almost_valid_descriptors_end(name: str, data: st.DataObject) -> None:
    machine = ready()
    raw = valid(name)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, 63))] = data.draw(st.sampled_from([0, 1, 0x80, 0xFF]))
    machine.execute(bytes(raw), budget=data.draw(st.integers(1, 10000)))
    assert not machine.pending
    machine.close()
