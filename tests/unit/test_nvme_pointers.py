"""PRPs and SGLs (NVMe 1.4, 4.3 and 4.4), well-formed and hostile, against a reference in Python
that lists the pieces of the data."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator

import pytest
from guest_machine import PAGE
from hypothesis import given, settings
from hypothesis import strategies as st
from nvme_machine import (
    COMPARE,
    DATA_TRANSFER,
    DESCRIPTOR_COUNT,
    INVALID_SEGMENT,
    PRP_OFFSET,
    READ,
    SGL_LENGTH,
    SGL_TYPE,
    WRITE,
    Machine,
    command,
)

A, LISTS, READ_ONLY, HOLE = 0x800000, 0x400000, 0x600000, 0x700000
PAGES, LIST_PAGES = 64, 8
MIB = 1 << 20
Read = Callable[[int, int], bytes | None]


class Refused(Exception):
    """A status."""

    def __init__(self, status: int) -> None:
        self.status = status


def prp_bytes(
    read: Read, prp1: int, prp2: int, length: int, page: int
) -> Iterator[tuple[int | None, int]]:
    """(address, bytes) of each page of the data; Refused where the specification says so."""
    if prp1 % 4:
        raise Refused(PRP_OFFSET)
    first = min(length, page - prp1 % page)
    rest = length - first
    if rest > page and prp2 % 8:
        raise Refused(PRP_OFFSET)
    yield prp1, first
    if rest == 0:
        return
    if rest <= page:
        if prp2 % page:
            raise Refused(PRP_OFFSET)
        yield prp2, rest
        return
    at = prp2
    while rest > 0:
        entry = read(at, 8)
        if entry is None:
            raise Refused(DATA_TRANSFER)
        value = int.from_bytes(entry, "little")
        if at % page == page - 8 and rest > page:
            if value % page:
                raise Refused(PRP_OFFSET)
            at = value
            continue
        if value % page:
            raise Refused(PRP_OFFSET)
        yield value, min(rest, page)
        rest -= page
        at += 8


def sgl_bytes(
    read: Read, first: bytes, length: int, to_host: bool
) -> Iterator[tuple[int | None, int]]:
    """The same of an SGL; None is where bits are dropped."""
    segment: list[bytes | None] = [first]
    last, walked = False, 0
    while True:
        following: list[bytes | None] | None = None
        for index, entry in enumerate(segment):
            if entry is None:
                raise Refused(DATA_TRANSFER)
            address, size, kind = struct.unpack("<QI3xB", entry)
            walked += 1
            if walked > 4096:
                raise Refused(DESCRIPTOR_COUNT)
            if kind & 0xF or kind >> 4 > 3:
                raise Refused(SGL_TYPE)
            if kind >> 4 < 2:
                here = min(size, length)
                if kind >> 4 == 1 and not to_host:
                    here = 0
                if here:
                    yield (None if kind >> 4 == 1 else address), here
                length -= here
                if length == 0:
                    return
                continue
            if index != len(segment) - 1:
                raise Refused(DESCRIPTOR_COUNT)
            if last or size == 0 or size % 16:
                raise Refused(INVALID_SEGMENT)
            last = kind >> 4 == 3
            following = [read(address + i, 16) for i in range(0, min(size, 70000), 16)]
        if following is None:
            raise Refused(SGL_LENGTH)
        segment = following


@pytest.fixture(scope="module")
def shared() -> Iterator[Machine]:
    m = Machine(size=MIB)
    m.map(A, PAGES * PAGE)
    m.map(READ_ONLY, 4 * PAGE, writable=False)
    m.map(LISTS, LIST_PAGES * PAGE, pasid=m.secondary)
    yield m
    m.close()


def check(m: Machine, entry: bytes, pieces: Iterator[tuple[int | None, int]], opcode: int) -> None:
    """Runs ``entry`` and the reference; what of the data is moved before a refusal is moved."""
    blocks = (int.from_bytes(entry[48:50], "little") + 1) * 512
    disk = random.Random(1).randbytes(blocks)
    host = random.Random(2).randbytes(PAGES * PAGE)
    m.content()[:blocks] = disk
    m.write_memory(A, host)
    expected = bytearray(host)
    store = bytearray(disk)
    done, status = 0, 0
    try:
        for address, size in pieces:
            if address is not None:
                r = m.find(m.primary, address)
                whole = r is not None and address + size <= r.address + r.size
                if r is None or not whole or (opcode == READ and not r.writable):
                    raise Refused(DATA_TRANSFER)
                if opcode == WRITE:
                    store[done : done + size] = m.read(address, size)
                else:
                    expected[address - A : address - A + size] = disk[done : done + size]
            done += size
    except Refused as refused:
        status = refused.status
    assert m.one(entry) == status
    if status == 0:
        assert m.read(A, len(host)) == expected
        assert bytes(m.content()[:blocks]) == (store if opcode == WRITE else disk)


def list_reader(m: Machine) -> Read:
    def read(address: int, size: int) -> bytes | None:
        if not LISTS <= address <= LISTS + LIST_PAGES * PAGE - size:
            return None
        return m.read(address, size, m.secondary)

    return read


PAGE_ADDRESSES = st.integers(0, PAGES - 1).map(lambda i: A + PAGE * i)
LIST_ADDRESSES = st.integers(0, LIST_PAGES - 1).map(lambda i: LISTS + PAGE * i)
ODD = st.sampled_from([0, HOLE, READ_ONLY, A + 512, A + 4, (1 << 64) - PAGE, LISTS + 8])


@settings(max_examples=300)
@given(data=st.data())
def test_prps(shared: Machine, data: st.DataObject) -> None:
    m = shared
    opcode = data.draw(st.sampled_from([READ, WRITE]))
    blocks = data.draw(st.integers(1, 300))
    offset = data.draw(st.sampled_from([0, 0, 4, 512, 3584, 4092, 2]))
    prp1 = data.draw(PAGE_ADDRESSES) + offset
    wrong = data.draw(st.integers(0, 3)) == 0
    entry_of = st.one_of(PAGE_ADDRESSES, ODD) if wrong else PAGE_ADDRESSES
    entries = data.draw(st.lists(entry_of, min_size=40, max_size=40))
    start = LISTS + data.draw(st.sampled_from([0, 8, 4000, 4080, 4088, 512]))
    at, rest = start, list(entries)
    while rest:  # chained where a page ends, if there is more than one entry left
        if at % PAGE == PAGE - 8 and len(rest) > 1:
            following = data.draw(st.one_of(LIST_ADDRESSES, ODD) if wrong else LIST_ADDRESSES)
            m.write_memory(at, following.to_bytes(8, "little"), m.secondary)
            at = following
            if not LISTS <= at < LISTS + LIST_PAGES * PAGE - 8:
                break
            continue
        if at + 8 > LISTS + LIST_PAGES * PAGE:
            break
        m.write_memory(at, rest.pop(0).to_bytes(8, "little"), m.secondary)
        at += 8
    pages = (prp1 % PAGE + blocks * 512 + PAGE - 1) // PAGE
    prp2 = data.draw(entry_of) if pages <= 2 else start
    if wrong and data.draw(st.booleans()):
        prp2 = data.draw(ODD)
    entry = command(opcode, prp1=prp1, prp2=prp2, blocks=blocks)
    check(m, entry, prp_bytes(list_reader(m), prp1, prp2, blocks * 512, PAGE), opcode)


def descriptor(kind: int, address: int, size: int) -> bytes:
    return struct.pack("<QI3xB", address, size, kind)


@settings(max_examples=300)
@given(data=st.data())
def test_sgls(shared: Machine, data: st.DataObject) -> None:
    m = shared
    opcode = data.draw(st.sampled_from([READ, WRITE]))
    blocks = data.draw(st.integers(1, 100))
    wrong = data.draw(st.integers(0, 3)) == 0
    bad = [0x01, 0x20, 0x30, 0x40, 0xF0] if wrong else []
    kinds = st.sampled_from([0x00] * 8 + [0x10, 0x10] + bad)
    sizes = st.sampled_from([0, 1, 3, 512, 4096, 5000, 20000])
    places = st.integers(0, PAGES * PAGE - 20000).map(lambda i: A + i)
    if wrong:
        places = st.one_of(places, ODD)

    def draw_segment(number: int, room: int) -> tuple[int, int]:
        """Lays out a segment of some descriptors, the last of which may lead on."""
        address = LISTS + 0x800 * number + data.draw(st.sampled_from([0, 4, 1]))
        count = data.draw(st.integers(1, 24))
        entries = [
            descriptor(data.draw(kinds), data.draw(places), data.draw(sizes)) for _ in range(count)
        ]
        if room > 0:
            following, size = draw_segment(number + 1, room - 1)
            kind = 0x30 if room == 1 else 0x20
            if wrong:
                size += data.draw(st.sampled_from([0, 0, 4, -size]))
            entries[-1] = descriptor(kind, following, size)
        else:
            entries.append(descriptor(0x00, A, blocks * 512))
        m.write_memory(address, b"".join(entries), m.secondary)
        return address, 16 * len(entries)

    depth = data.draw(st.integers(0, 3))
    if depth == 0:
        first = descriptor(data.draw(kinds), data.draw(places), blocks * 512)
    else:
        address, size = draw_segment(0, depth - 1)
        first = descriptor(0x30 if depth == 1 else 0x20, address, size)
    pointers = struct.unpack("<QQ", first)
    flags = data.draw(st.sampled_from([0x40, 0x80]))
    entry = command(opcode, prp1=pointers[0], prp2=pointers[1], blocks=blocks, flags=flags)
    check(m, entry, sgl_bytes(list_reader(m), first, blocks * 512, opcode == READ), opcode)


@pytest.mark.parametrize("kind", [0x00, 0x10, 0x20])
def test_an_endless_sgl_ends(shared: Machine, kind: int) -> None:
    """Segments that lead to themselves, or descriptors of nothing for ever."""
    nothing = descriptor(kind, A, 0) * 3 if kind != 0x20 else b""
    loop = nothing + descriptor(0x20, LISTS, len(nothing) + 16)
    shared.write_memory(LISTS, loop, shared.secondary)
    pointers = struct.unpack("<QQ", descriptor(0x20, LISTS, len(loop)))
    for opcode in (READ, WRITE, COMPARE):
        entry = command(opcode, prp1=pointers[0], prp2=pointers[1], flags=0x40)
        assert shared.one(entry) == DESCRIPTOR_COUNT


def test_a_prp_list_that_leads_to_itself_is_of_pages_of_its_own(shared: Machine) -> None:
    """Its pointer names data then: there is no loop to be caught in."""
    shared.write_memory(LISTS, struct.pack("<512Q", *([A] * 511 + [LISTS])), shared.secondary)
    entry = command(READ, prp1=A, prp2=LISTS + PAGE - 8, blocks=2048)
    assert shared.one(entry) == 0


@pytest.mark.parametrize("shift", [13, 16])
def test_larger_memory_pages(shift: int) -> None:
    m = Machine(size=MIB, page_shift=shift)
    page = 1 << shift
    m.map(1 << 24, 16 * page)
    m.map(1 << 28, page, pasid=m.secondary)
    data = random.Random(3).randbytes(256 << 10)
    m.content()[: len(data)] = data
    order = random.Random(4).sample(range(16), 16)
    pages = [(1 << 24) + page * i for i in order][: len(data) // page]
    m.write_memory(1 << 28, struct.pack(f"<{len(pages) - 1}Q", *pages[1:]), m.secondary)
    length = page * len(pages)
    entry = command(READ, prp1=pages[0], prp2=1 << 28, blocks=length // 512)
    assert m.one(entry) == 0
    assert b"".join(m.read(at, page) for at in pages) == data[:length]
    m.close()
