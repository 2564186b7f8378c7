"""Every operation of the software DSA against the reference: unaligned buffers, sizes that cross
mappings, faults in the middle, and budgets that interrupt it anywhere."""

from __future__ import annotations

import random
import struct
from typing import Any

import dsa_reference as reference
import pytest
from dsa_machine import PAGE, PRIMARY, SECONDARY, Machine, descriptor
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vdcm_devices.dsa._fastpath import ffi, lib

RECORD = lib.DSA_FLAG_COMPLETION_VALID | lib.DSA_FLAG_REQUEST_COMPLETION
COMPLETION = 0x100000
BASE = 0x10000
PAGES = 12

# How a page of guest memory is: a mapping of its own, one with the page before it, not mapped, or
# not to be written.
KINDS = st.sampled_from(["own", "own", "joined", "joined", "joined", "hole", "read-only"])
LAYOUTS = st.one_of(st.just(["joined"] * PAGES), st.lists(KINDS, min_size=PAGES, max_size=PAGES))
BUDGETS = st.one_of(st.none(), st.integers(1, 3 * PAGE))
SIZES = st.one_of(st.integers(1, 100), st.integers(1, 3 * PAGE))


def addresses(align: int = 1) -> st.SearchStrategy[int]:
    """Anywhere in the memory, often close to the end of a page."""
    near = st.builds(
        lambda page, offset: BASE + page * PAGE + offset,
        st.integers(1, PAGES - 1),
        st.integers(-40, 40),
    )
    return st.one_of(near, st.integers(BASE, BASE + PAGES * PAGE - 1)).map(lambda a: a - a % align)


def pieces(layout: list[str], content: bytes) -> list[tuple[int, bytes, bool]]:
    out: list[tuple[int, bytes, bool]] = []
    before = ""
    for page, kind in enumerate(layout):
        start = BASE + page * PAGE
        data = content[page * PAGE : (page + 1) * PAGE]
        if kind == "joined" and before in ("own", "joined"):
            address, earlier, _ = out[-1]
            out[-1] = (address, earlier + data, True)
        elif kind != "hole":
            out.append((start, data, kind != "read-only"))
        before = kind
    return out


def check(
    raw: bytes, layout: list[str], content: bytes, budget: int | None, **configured: int
) -> reference.Outcome:
    """The queue and the reference do the same to the same memory."""
    parts = pieces(layout, content)
    image = reference.Image(parts)
    expected = reference.execute(raw, image)
    machine = Machine(flags=lib.DSA_WQ_BLOCK_ON_FAULT, **configured)
    try:
        for address, data, writable in parts:
            machine.map(address, data, writable=writable)
        machine.map(COMPLETION, PAGE, pasid=SECONDARY)
        machine.execute(raw, budget=budget)
        done = machine.completion(COMPLETION)
        assert done.status == expected.status
        if expected.result is not None:
            assert done.result == expected.result
        if expected.completed is not None:
            assert done.completed == expected.completed
        if expected.fault_address is not None:
            assert (done.fault_address, done.fault_info >> 1) == (
                expected.fault_address,
                expected.operand,
            )
        for offset, data in expected.specific.items():
            assert done.specific[offset - 16 : offset - 16 + len(data)] == data
        for (address, memory, _), (_, before, _) in zip(image.pieces, parts, strict=True):
            assert len(memory) == len(before)
            assert machine.read(address, len(memory)) == memory
        assert machine.reports == []
        assert not machine.pending
        assert machine.left > 0
    finally:
        machine.close()
    return expected


def noise(seed: int) -> bytes:
    return random.Random(seed).randbytes(PAGES * PAGE)


def build(operation: int, flags: int = 0, specific: bytes = b"", **fields: int) -> bytes:
    return descriptor(operation, RECORD | flags, completion=COMPLETION, specific=specific, **fields)


SEEDS = st.integers(0, 1000)
BLOCKING = st.sampled_from([0, lib.DSA_FLAG_BLOCK_ON_FAULT])


@settings(deadline=None)
@given(LAYOUTS, SEEDS, addresses(), addresses(), SIZES, BUDGETS, BLOCKING)
@example(["joined"] * PAGES, 0, BASE, BASE + 1, 3 * PAGE, 1, 0)
@example(["joined"] * PAGES, 0, BASE + 1, BASE, 3 * PAGE, 1, 0)
@example(["joined"] * PAGES, 0, BASE, BASE, PAGE, None, 0)
@example(["own", "hole", "own"] + ["own"] * 9, 0, BASE + 3 * PAGE, BASE + 5 * PAGE, PAGE, 1, 0)
@example(["own", "hole", *["own"] * 10], 0, BASE + 100, BASE + 5000, 3 * PAGE, 1, 0)
def test_memory_move(
    layout: list[str],
    seed: int,
    source: int,
    destination: int,
    size: int,
    budget: int | None,
    flags: int,
) -> None:
    raw = build(lib.DSA_OP_MEMORY_MOVE, flags, source=source, destination=destination, size=size)
    check(raw, layout, noise(seed), budget)


@settings(deadline=None)
@given(LAYOUTS, SEEDS, st.integers(0, 2**64 - 1), addresses(), SIZES, BUDGETS)
def test_fill(
    layout: list[str], seed: int, pattern: int, destination: int, size: int, budget: int | None
) -> None:
    raw = build(lib.DSA_OP_FILL, source=pattern, destination=destination, size=size)
    check(raw, layout, noise(seed), budget)


CHECKS = st.sampled_from([0, lib.DSA_FLAG_CHECK_RESULT])


@settings(deadline=None)
@given(LAYOUTS, SEEDS, addresses(), addresses(), SIZES, BUDGETS, CHECKS, st.data())
def test_compare(
    layout: list[str],
    seed: int,
    one: int,
    two: int,
    size: int,
    budget: int | None,
    flags: int,
    data: st.DataObject,
) -> None:
    content = bytearray(noise(seed))
    a, b = one - BASE, two - BASE
    content[b : b + size] = content[a : a + size][: max(len(content) - b, 0)]
    content = content[: PAGES * PAGE].ljust(PAGES * PAGE, b"\0")
    for _ in range(data.draw(st.integers(0, 2))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 0x10
    expected = bytes([data.draw(st.integers(0, 3))])
    raw = build(
        lib.DSA_OP_COMPARE, flags, source=one, destination=two, size=size, specific=expected
    )
    check(raw, layout, bytes(content), budget)


@settings(deadline=None)
@given(LAYOUTS, st.binary(min_size=8, max_size=8), addresses(), SIZES, BUDGETS, CHECKS, st.data())
def test_compare_pattern(
    layout: list[str],
    pattern: bytes,
    source: int,
    size: int,
    budget: int | None,
    flags: int,
    data: st.DataObject,
) -> None:
    start = (source - BASE) % 8
    repeated = pattern * (PAGES * PAGE // 8 + 2)
    content = bytearray(repeated[8 - start :][: PAGES * PAGE])
    for _ in range(data.draw(st.integers(0, 2))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 0x80
    (value,) = struct.unpack("<Q", pattern)
    raw = build(
        lib.DSA_OP_COMPARE_PATTERN,
        flags,
        source=source,
        destination=value,
        size=size,
        specific=bytes([data.draw(st.integers(0, 1))]),
    )
    check(raw, layout, bytes(content), budget)


def delta_memory(seed: int, one: int, two: int, size: int, changes: list[int]) -> bytes:
    """Two buffers that are equal but for single bits."""
    content = bytearray(noise(seed))
    a, b = one - BASE, two - BASE
    content[b : b + size] = content[a : a + size]
    for change in changes:
        content[b + change % size] ^= 1
    return bytes(content[: PAGES * PAGE].ljust(PAGES * PAGE, b"\0"))


@settings(deadline=None)
@given(
    LAYOUTS,
    SEEDS,
    st.integers(1, 2 * PAGE // 8).map(lambda n: n * 8),
    st.integers(0, 2 * PAGE),
    st.one_of(st.integers(80, 100), st.integers(80, 2000)),
    st.lists(st.integers(0, 2 * PAGE), max_size=300),
    BUDGETS,
    CHECKS,
    st.integers(0, 7),
)
@example(["own"] * PAGES, 2, 8192, 0, 89, list(range(0, 8192, 24)), None, 0, 0)
@example(["own"] * PAGES, 2, 8192, 0, 2050, list(range(0, 8192, 8)), 1, 0, 0)
@example(
    ["own"] * PAGES,
    1,
    8192,
    PAGE - 5,
    20000,
    list(range(0, 8192, 8)),
    1,
    lib.DSA_FLAG_CHECK_RESULT,
    4,
)
def test_create_delta(
    layout: list[str],
    seed: int,
    size: int,
    at: int,
    most: int,
    changes: list[int],
    budget: int | None,
    flags: int,
    mask: int,
) -> None:
    one, two, record = BASE + 16, BASE + 3 * PAGE - 8, BASE + 6 * PAGE + at
    specific = struct.pack("<QIIB", record, most, 0, mask)
    raw = build(
        lib.DSA_OP_CREATE_DELTA, flags, source=one, destination=two, size=size, specific=specific
    )
    check(raw, layout, delta_memory(seed, one, two, size, changes), budget)


@settings(deadline=None)
@given(
    LAYOUTS,
    SEEDS,
    st.integers(1, 512).map(lambda n: n * 8),
    st.integers(0, PAGE),
    st.lists(st.integers(0, 520), max_size=300),
    st.booleans(),
    st.integers(0, 9),
    BUDGETS,
)
def test_apply_delta(
    layout: list[str],
    seed: int,
    size: int,
    at: int,
    offsets: list[int],
    ordered: bool,
    rest: int,
    budget: int | None,
) -> None:
    rng = random.Random(seed)
    chosen = sorted(set(offsets)) if ordered else offsets
    chosen = chosen or [0]
    deltas = b"".join(struct.pack("<H", offset) + rng.randbytes(8) for offset in chosen)
    content = bytearray(noise(seed))
    content[at : at + len(deltas)] = deltas
    raw = build(
        lib.DSA_OP_APPLY_DELTA,
        source=BASE + at,
        destination=BASE + 4 * PAGE - 8,
        size=size,
        specific=struct.pack("<I", len(deltas) + rest),
    )
    check(raw, layout, bytes(content), budget)


@settings(deadline=None)
@given(LAYOUTS, SEEDS, addresses(), st.integers(0, PAGE - 1), SIZES, BUDGETS)
def test_dualcast(
    layout: list[str], seed: int, at: int, offset: int, size: int, budget: int | None
) -> None:
    source = BASE + at % (PAGE // 2)
    raw = build(
        lib.DSA_OP_DUALCAST,
        source=source,
        destination=BASE + 4 * PAGE + offset,
        size=size,
        specific=struct.pack("<Q", BASE + 8 * PAGE + offset),
    )
    check(raw, layout, noise(seed), budget)


CRC_FLAGS = st.sets(
    st.sampled_from(
        [
            lib.DSA_FLAG_READ_SEED,
            lib.DSA_FLAG_BYPASS_INVERSION,
            lib.DSA_FLAG_BYPASS_REFLECTION,
        ]
    )
).map(sum)


@settings(deadline=None)
@given(
    LAYOUTS,
    SEEDS,
    st.sampled_from([lib.DSA_OP_CRC, lib.DSA_OP_COPY_CRC]),
    CRC_FLAGS,
    st.integers(0, 2**32 - 1),
    st.integers(0, PAGE),
    st.integers(0, PAGE),
    SIZES,
    BUDGETS,
)
def test_crc(
    layout: list[str],
    seed: int,
    operation: int,
    flags: int,
    start: int,
    one: int,
    two: int,
    size: int,
    budget: int | None,
) -> None:
    if flags & lib.DSA_FLAG_READ_SEED:
        specific = struct.pack("<IIQ", 0, 0, BASE + 10 * PAGE + start % PAGE // 4 * 4)
    else:
        specific = struct.pack("<IIQ", start, 0, 0)
    raw = build(
        operation,
        flags,
        source=BASE + one,
        destination=BASE + 5 * PAGE + two if operation == lib.DSA_OP_COPY_CRC else 0,
        size=size,
        specific=specific,
    )
    check(raw, layout, noise(seed), budget)


def dif_source(rng: random.Random, size: int, flags: int, tags: Any, blocks: int) -> bytes:
    """Blocks with their fields as the flags of the source want them."""
    source_flags, dif_flags = flags >> 8, flags & 0xFF
    out = bytearray()
    now = reference.Tags(*tags)
    for _ in range(blocks):
        block = rng.randbytes(size)
        value = reference.guard(block, bool(dif_flags & 4), bool(dif_flags & 8))
        out += block + struct.pack(">HHI", value, now.masked, now.ref)
        now.advance(source_flags)
    return bytes(out)


TAGS = st.tuples(
    st.sampled_from([0, 1, 5, 2**32 - 2, 2**32 - 1]),
    st.sampled_from([0, 0xFF00, 0x00FF, 0xFFFF]),
    st.sampled_from([0, 7, 0xFFFE, 0xFFFF]),
)


@settings(deadline=None)
@given(
    LAYOUTS,
    SEEDS,
    st.sampled_from(
        [lib.DSA_OP_DIF_CHECK, lib.DSA_OP_DIF_INSERT, lib.DSA_OP_DIF_STRIP, lib.DSA_OP_DIF_UPDATE]
    ),
    st.integers(0, 255),
    st.integers(0, 31).map(lambda n: n << 3),
    st.integers(0, 15),
    TAGS,
    TAGS,
    st.integers(0, PAGE - 1),
    BUDGETS,
    st.data(),
)
def test_dif(
    layout: list[str],
    seed: int,
    operation: int,
    source_flags: int,
    destination_flags: int,
    flags: int,
    source_tags: tuple[int, int, int],
    destination_tags: tuple[int, int, int],
    at: int,
    budget: int | None,
    data: st.DataObject,
) -> None:
    rng = random.Random(seed)
    size = reference.BLOCK_SIZES[flags & 3]
    inserts = operation == lib.DSA_OP_DIF_INSERT
    blocks = data.draw(st.integers(1, 4 if size < 1000 else 2))
    step = size if inserts else size + 8
    source = bytearray(dif_source(rng, size, source_flags << 8 | flags, source_tags, blocks))
    if inserts:
        source = bytearray(rng.randbytes(step * blocks))
        source_flags, source_tags = 0, (0, 0, 0)
    else:
        for _ in range(data.draw(st.integers(0, 2))):
            block = data.draw(st.integers(0, blocks - 1))
            first, count = data.draw(
                st.sampled_from([(0, 8), (2, 2), (2, 6), (0, 2), (4, 4), (0, 0)])
            )
            field = block * step + size
            source[field + first : field + first + count] = b"\xff" * count
        if data.draw(st.booleans()):
            source[data.draw(st.integers(0, len(source) - 1))] ^= 4
    if operation in (lib.DSA_OP_DIF_CHECK, lib.DSA_OP_DIF_STRIP):
        destination_flags, destination_tags = 0, (0, 0, 0)
    content = bytearray(noise(seed))
    content[at : at + len(source)] = source
    specific = struct.pack(
        "<BBB5xIHHIHH", source_flags, destination_flags, flags, *source_tags, *destination_tags
    )
    raw = build(
        operation,
        source=BASE + at,
        destination=0 if operation == lib.DSA_OP_DIF_CHECK else BASE + 6 * PAGE + at % 1000,
        size=step * blocks,
        specific=specific,
    )
    check(raw, layout, bytes(content), budget)


@settings(deadline=None)
@given(LAYOUTS, addresses(), SIZES, BUDGETS)
def test_cache_flush(layout: list[str], destination: int, size: int, budget: int | None) -> None:
    raw = build(lib.DSA_OP_CACHE_FLUSH, destination=destination, size=size)
    check(raw, layout, bytes(PAGES * PAGE), budget)


def test_noop() -> None:
    check(build(lib.DSA_OP_NOOP), ["hole"] * PAGES, bytes(PAGES * PAGE), None)


@pytest.mark.parametrize("fast", [True, False])
@settings(deadline=None)
@given(data=st.binary(max_size=200), before=st.binary(max_size=20), offset=st.integers(0, 8))
def test_both_ways_of_crc32c(fast: bool, data: bytes, before: bytes, offset: int) -> None:
    start = reference.crc32c(0, before, bypass_inversion=False, bypass_reflection=False)
    whole = reference.crc32c(0, before + data, bypass_inversion=False, bypass_reflection=False)
    buffer = ffi.new("uint8_t[]", b"\0" * offset + data)
    assert lib.dsa_crc32c(start, buffer + offset, len(data), fast) == whole


def test_known_checksums() -> None:
    """RFC 3720 B.4, and the check value of CRC-16/T10-DIF."""
    normal = {"bypass_inversion": False, "bypass_reflection": False}
    assert reference.crc32c(0, bytes(32), **normal) == 0x8A9136AA
    assert reference.crc32c(0, b"\xff" * 32, **normal) == 0x62A8AB43
    assert lib.dsa_crc32c(0, bytes(range(32)), 32, True) == 0x46DD794E
    assert reference.guard(b"123456789", False, False) == 0xD0DB


def test_an_operation_of_2_mib_is_left_and_continued() -> None:
    machine = Machine()
    content = random.Random(1).randbytes(2 << 20)
    machine.map(0x1000000, content)
    machine.map(0x2000000, 2 << 20)
    machine.map(COMPLETION, PAGE, pasid=SECONDARY)
    machine.submit(
        build(lib.DSA_OP_MEMORY_MOVE, source=0x1000000, destination=0x2000000, size=2 << 20)
    )
    turns = 0
    while machine.pending:
        assert machine.run(64 << 10) <= 2 * (64 << 10)
        turns += 1
    assert turns == 32
    assert machine.read(0x2000000, 2 << 20, PRIMARY) == content
    assert machine.completion(COMPLETION).status == lib.DSA_STATUS_SUCCESS
    machine.close()
