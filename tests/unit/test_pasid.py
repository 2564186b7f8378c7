"""The PASID table, and guest PASIDs: what is given out, what comes back, and in which order."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdcm._native import ffi, lib
from vdcm.dma import SecondLevel
from vdcm.errors import DmaError, StateError
from vdcm.pasid import (
    GUEST_PASID_LIMIT,
    PASID_LIMIT,
    PASIDS,
    AddressSpace,
    Domain,
    GuestPasids,
    PasidTable,
    Translation,
)

WINDOW = range(0xF0000, 0xF0006)
"""PASIDs that nobody else is given in these tests; they cross no directory entry."""
NO_PASID = 2**32 - 1


@pytest.fixture
def table() -> Iterator[PasidTable]:
    table = PasidTable(WINDOW)
    yield table
    release_all(table)


def release_all(table: PasidTable) -> None:
    for pasid in WINDOW:
        try:
            table.space(pasid)
        except DmaError:
            continue
        table.release(pasid)


class Nested:
    """An address space that is built on another, for what depends on that alone."""

    def __init__(self, base: SecondLevel) -> None:
        self.domain = Domain(Translation.SECOND_LEVEL)
        self.base: AddressSpace = base

    def read(self, iova: int, length: int) -> bytes:
        return self.base.read(iova, length)

    def write(self, iova: int, data: bytes | bytearray | memoryview) -> None:
        self.base.write(iova, data)


def test_a_pasid_stands_for_its_space(table: PasidTable) -> None:
    spaces = [SecondLevel() for _ in range(3)]
    pasids = [table.allocate(space) for space in spaces]
    assert pasids == [0xF0000, 0xF0001, 0xF0002]
    assert [table.space(pasid) for pasid in pasids] == spaces
    assert len(table) == 3


def test_what_is_not_in_use_stands_for_nothing(table: PasidTable) -> None:
    pasid = table.allocate(SecondLevel())
    table.release(pasid)
    with pytest.raises(DmaError, match="0xf0000 stands for no address space"):
        table.space(pasid)
    with pytest.raises(StateError, match="0xf0000 is not in use"):
        table.release(pasid)
    for other in (0, PASID_LIMIT, -1):
        with pytest.raises(DmaError):
            table.space(other)


def test_all_of_twenty_bits_can_be_had_but_zero() -> None:
    space = SecondLevel()
    before = len(PASIDS)
    pasids = [PASIDS.allocate(space) for _ in range(PASID_LIMIT - 1 - before)]
    try:
        assert len(set(pasids)) == len(pasids)
        assert min(pasids) >= 1
        assert max(pasids) < PASID_LIMIT
        with pytest.raises(StateError, match="stop a VDEV first"):
            PASIDS.allocate(space)
        PASIDS.release(pasids[7])
        assert PASIDS.allocate(space) == pasids[7]
    finally:
        for pasid in pasids:
            PASIDS.release(pasid)
    assert len(PASIDS) == before


def test_what_another_table_has_given_out_is_left_alone(table: PasidTable) -> None:
    first = table.allocate(SecondLevel())
    rival = PasidTable(WINDOW)
    second = rival.allocate(SecondLevel())
    assert second != first
    rival.release(second)
    assert len(table) == 1


@given(st.lists(st.integers(0, 6)))
def test_a_released_pasid_comes_last(choices: list[int]) -> None:
    """Between two times that a number is given out, each other one has been in use."""
    everyone = set(WINDOW)
    table = PasidTable(WINDOW)
    used: list[int] = []
    in_use_since: dict[int, set[int]] = {}
    for choice in choices:
        if choice < len(used):
            table.release(used.pop(choice))
        elif len(used) < len(everyone):
            pasid = table.allocate(SecondLevel())
            assert pasid in everyone.difference(used)
            if pasid in in_use_since:
                assert in_use_since[pasid] == everyone - {pasid}
            for number, others in in_use_since.items():
                others.update({pasid} - {number})
            in_use_since[pasid] = set(used)
            used.append(pasid)
        assert len(table) == len(used)
    release_all(table)


def test_the_native_table_has_its_own_bounds() -> None:
    domain = Domain(Translation.SECOND_LEVEL)
    last = PASID_LIMIT - 1
    assert lib.vdcm_pasid_set(PASID_LIMIT, domain.native) == -errno.EINVAL
    assert lib.vdcm_pasid_set(NO_PASID, ffi.NULL) == -errno.EINVAL
    assert lib.vdcm_pasid_set(last, domain.native) == 0
    assert lib.vdcm_pasid_set(last, domain.native) == -errno.EEXIST
    assert lib.vdcm_pasid_set(last, ffi.NULL) == 0
    assert lib.vdcm_pasid_set(last, ffi.NULL) == 0  # it is out already
    assert lib.vdcm_pasid_set(0xABCDE, ffi.NULL) == 0  # its table was never made


def test_kinds_without_an_implementation_are_refused() -> None:
    for kind in (Translation.FIRST_LEVEL, Translation.NESTED, 4, -1):
        assert lib.vdcm_domain_new(kind) == ffi.NULL
        assert ffi.errno == errno.EINVAL


@pytest.mark.conformance("R2.2-13")
def test_a_guest_pasid_is_translated(table: PasidTable) -> None:
    space = SecondLevel()
    hosts = [table.allocate(space), table.allocate(Nested(space))]
    guests = GuestPasids(space, table=table)
    guests.bind(0, hosts[0])
    guests.bind(PASID_LIMIT - 1, hosts[1])
    guests.bind(7, hosts[1])  # one host PASID may stand behind several
    assert dict(guests.bindings) == {0: hosts[0], PASID_LIMIT - 1: hosts[1], 7: hosts[1]}
    for guest, host in guests.bindings.items():
        assert guests.translate(guest) == host
        assert lib.vdcm_pasid_map_translate(guests.native, guest) == host
    guests.unbind(7)
    assert len(guests) == 2
    with pytest.raises(DmaError, match="guest PASID 0x7 is bound to no PASID"):
        guests.translate(7)
    for guest in (7, 1, PASID_LIMIT, NO_PASID):
        assert lib.vdcm_pasid_map_translate(guests.native, guest) == NO_PASID
    assert lib.vdcm_pasid_map_translate(ffi.NULL, 0) == NO_PASID
    guests.clear()
    assert len(guests) == 0


def test_a_binding_that_cannot_be_is_refused(table: PasidTable) -> None:
    space, stranger = SecondLevel(), SecondLevel()
    host, other = table.allocate(space), table.allocate(stranger)
    guests = GuestPasids(space, limit=2, table=table)
    guests.bind(1, host)
    with pytest.raises(StateError, match="0x1 is bound: unbind it first"):
        guests.bind(1, host)
    with pytest.raises(StateError, match="20 bits"):
        guests.bind(PASID_LIMIT, host)
    with pytest.raises(StateError, match="0xf0001 is not of this VDEV"):
        guests.bind(2, other)
    with pytest.raises(StateError, match="stands for no address space"):
        guests.bind(2, 0xF0005)
    with pytest.raises(StateError, match="0x2 is not bound"):
        guests.unbind(2)
    guests.bind(2, host)
    with pytest.raises(StateError, match="all 2 guest PASIDs are bound"):
        guests.bind(3, host)
    for limit in (0, GUEST_PASID_LIMIT + 1):
        with pytest.raises(StateError, match="can be bound"):
            GuestPasids(space, limit=limit, table=table)
        assert lib.vdcm_pasid_map_new(limit) == ffi.NULL
    guests.clear()


def test_a_bound_pasid_is_not_released(table: PasidTable) -> None:
    space = SecondLevel()
    host = table.allocate(space)
    guests = GuestPasids(space, table=table)
    guests.bind(4, host)
    guests.bind(5, host)
    with pytest.raises(StateError, match="has 2 guest PASIDs: unbind them first"):
        table.release(host)
    guests.unbind(4)
    with pytest.raises(StateError, match="has 1 guest PASIDs"):
        table.release(host)
    guests.unbind(5)
    table.release(host)


def test_the_native_map_has_its_own_bounds() -> None:
    guests = GuestPasids(SecondLevel(), limit=1).native
    assert lib.vdcm_pasid_map_unbind(guests, 1) == -errno.ENOENT
    assert lib.vdcm_pasid_map_bind(guests, PASID_LIMIT, 1) == -errno.EINVAL
    assert lib.vdcm_pasid_map_bind(guests, 1, PASID_LIMIT) == -errno.EINVAL
    assert lib.vdcm_pasid_map_bind(guests, 1, 2) == 0
    assert lib.vdcm_pasid_map_bind(guests, 1, 3) == -errno.EEXIST
    assert lib.vdcm_pasid_map_bind(guests, 2, 3) == -errno.ENOSPC
    assert lib.vdcm_pasid_map_translate(guests, 1) == 2


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 40), st.integers(0, PASID_LIMIT - 1)), max_size=120
    )
)
def test_the_native_map_agrees_with_a_dictionary(steps: list[tuple[bool, int, int]]) -> None:
    guests = GuestPasids(SecondLevel(), limit=32).native
    model: dict[int, int] = {}
    for is_bind, guest, host in steps:
        if is_bind:
            expected = -errno.EEXIST if guest in model else 0 if len(model) < 32 else -errno.ENOSPC
            assert lib.vdcm_pasid_map_bind(guests, guest, host) == expected
            if not expected:
                model[guest] = host
        else:
            expected = 0 if model.pop(guest, None) is not None else -errno.ENOENT
            assert lib.vdcm_pasid_map_unbind(guests, guest) == expected
    found = [lib.vdcm_pasid_map_translate(guests, guest) for guest in range(41)]
    assert found == [model.get(guest, NO_PASID) for guest in range(41)]
