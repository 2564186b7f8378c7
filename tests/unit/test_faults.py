"""When faults hit: those of memory, in C, and those of accesses, bit by bit."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from native_reader import Reader

from vdcm.dma import PassThrough
from vdcm.errors import DmaError
from vdcm.pasid import PASIDS
from vdcm.testing.rules import ALWAYS, AccessRule, Place, Rule

SIZE = 0x3000
ADDRESSES = st.integers(0, SIZE - 64)


@pytest.fixture
def space() -> Iterator[PassThrough]:
    fd = os.memfd_create("faults")
    os.ftruncate(fd, SIZE)
    space = PassThrough(fd, SIZE)
    os.close(fd)
    yield space


@dataclass
class Model:
    first: int
    last: int
    reads: bool
    writes: bool
    after: int
    times: int
    seen: int = 0
    hits: int = 0

    def hit(self, address: int, length: int, *, write: bool) -> bool:
        if not (self.writes if write else self.reads):
            return False
        if not length or address > self.last or address + length <= self.first:
            return False
        self.seen += 1
        hit = self.after < self.seen <= self.after + self.times
        self.hits += hit
        return hit


RULES = st.builds(
    lambda first, size, reads, after, times: Model(
        first, first + size, reads, not reads, after, times
    ),
    *(ADDRESSES, st.integers(0, 100), st.booleans()),
    *(st.integers(0, 3), st.sampled_from([1, 2, ALWAYS])),
)


@given(
    rules=st.lists(RULES, max_size=4),
    accesses=st.lists(st.tuples(st.booleans(), ADDRESSES, st.integers(0, 64)), max_size=20),
)
def test_what_the_control_side_meets(
    rules: list[Model], accesses: list[tuple[bool, int, int]]
) -> None:
    fd = os.memfd_create("faults")
    os.ftruncate(fd, SIZE)
    space = PassThrough(fd, SIZE)
    os.close(fd)
    numbers = [
        space.domain.add_fault(
            *(one.first, one.last - one.first + 1),
            reads=one.reads,
            writes=one.writes,
            after=one.after,
            times=one.times,
        )
        for one in rules
    ]
    for write, address, length in accesses:
        expected = sum(one.hit(address, length, write=write) for one in rules) > 0  # all are asked
        try:
            if write:
                space.write(address, bytes(length))
            else:
                space.read(address, length)
        except DmaError as error:
            assert expected and "injected" in str(error)
        else:
            assert not expected
    assert [space.domain.fault_hits(number) for number in numbers] == [one.hits for one in rules]
    for number in numbers:
        space.domain.remove_fault(number)
    space.read(0, SIZE)


def test_a_reader_comes_as_far_as_the_fault(space: PassThrough) -> None:
    pasid = PASIDS.allocate(space)
    reader = Reader()
    try:
        number = space.domain.add_fault(0x100, 0x10, reads=True, writes=False, after=1, times=1)
        assert reader.reach(pasid, 0, 0x200) == (0, 0x100)
        assert reader.reach(pasid, 0x100, 0x200) == (0, 0x200)
        assert reader.reach(pasid, 0x108, 1, write=True) == (0, 1)
        assert reader.reach(pasid, 0x108, 1) == (-errno.EFAULT, 0)
        assert reader.reach(pasid, 0x108, 1) == (0, 1)
        assert space.domain.fault_hits(number) == 1
        reader.leave()
        space.domain.remove_fault(number)
        assert reader.reach(pasid, 0, 0x200) == (0, 0x200)
    finally:
        reader.close()
        PASIDS.release(pasid)


def test_there_are_not_too_many(space: PassThrough) -> None:
    always = {"reads": True, "writes": True, "after": 0, "times": 1}
    for _ in range(16):
        space.domain.add_fault(0, 1, **always)
    with pytest.raises(DmaError, match="no more than 16"):
        space.domain.add_fault(0, 1, **always)
    for address, size in ((-1, 1), (1 << 64, 1), (0, 0), (1, 1 << 64)):
        with pytest.raises(DmaError, match="64 bits"):
            space.domain.add_fault(address, size, **always)


@given(after=st.integers(0, 5), times=st.integers(1, 5), count=st.integers(0, 20))
def test_when_a_rule_is_due(after: int, times: int, count: int) -> None:
    rule = Rule(after, times)
    due = [rule.due() for _ in range(count)]
    assert due == [after <= i < after + times for i in range(count)]
    assert rule.hits == sum(due)


@given(
    place=st.builds(
        lambda offset, width, mask: Place(0, offset, width, mask & ((1 << 8 * width) - 1)),
        *(st.integers(0, 16), st.sampled_from([1, 2, 4, 8]), st.integers(0, (1 << 64) - 1)),
    ),
    offset=st.integers(0, 16),
    width=st.sampled_from([1, 2, 4, 8]),
    value=st.integers(0, (1 << 64) - 1),
    effect=st.sampled_from(["flip", "set", "clear"]),
)
def test_which_bits_change(place: Place, offset: int, width: int, value: int, effect: str) -> None:
    """The same as in a memory of bytes."""
    value &= (1 << 8 * width) - 1
    rule = AccessRule(0, 1, effect=effect, place=place, reads=True, writes=False)
    memory = int.from_bytes(bytes(offset) + value.to_bytes(width, "little"), "little")
    bits = place.mask << 8 * place.offset
    changed = {"flip": memory ^ bits, "set": memory | bits, "clear": memory & ~bits}[effect]
    expected = changed >> 8 * offset & ((1 << 8 * width) - 1)
    assert rule.changed(offset, width, value) == expected
    overlap = offset < place.offset + place.width and place.offset < offset + width
    assert rule.means(0, offset, width, write=False) is overlap
    assert not rule.means(0, offset, width, write=True)
    assert not rule.means(1, offset, width, write=False)
