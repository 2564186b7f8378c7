"""The PASID table: what is given out, what comes back, and in which order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vdcm.pasid
from vdcm.errors import DmaError, StateError
from vdcm.pasid import PASID_LIMIT, PasidTable


class Space:
    def read(self, iova: int, length: int) -> bytes:
        return iova.to_bytes(length, "little")

    def write(self, iova: int, data: bytes | bytearray | memoryview) -> None:
        """Kept nowhere."""


def test_a_pasid_stands_for_its_space() -> None:
    table = PasidTable()
    spaces = [Space() for _ in range(3)]
    pasids = [table.allocate(space) for space in spaces]
    assert pasids == [1, 2, 3]  # never 0
    assert [table.space(pasid) for pasid in pasids] == spaces
    assert len(table) == 3


def test_what_is_not_in_use_stands_for_nothing() -> None:
    table = PasidTable()
    pasid = table.allocate(Space())
    table.release(pasid)
    with pytest.raises(DmaError, match="0x1 stands for no address space"):
        table.space(pasid)
    with pytest.raises(StateError, match="0x1 is not in use"):
        table.release(pasid)
    with pytest.raises(DmaError):
        table.space(0)
    with pytest.raises(DmaError):
        table.space(PASID_LIMIT)


def test_all_of_twenty_bits_can_be_had() -> None:
    table = PasidTable()
    space = Space()
    assert {table.allocate(space) for _ in range(PASID_LIMIT - 1)} == set(range(1, PASID_LIMIT))
    with pytest.raises(StateError, match="stop a VDEV first"):
        table.allocate(space)
    table.release(7)
    assert table.allocate(space) == 7


@given(st.lists(st.integers(0, 6)))
def test_a_released_pasid_comes_last(choices: list[int]) -> None:
    """Between two times that a number is given out, each other one has been in use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vdcm.pasid, "PASID_LIMIT", 6)
        table = PasidTable()
        used: list[int] = []
        in_use_since: dict[int, set[int]] = {}
        for choice in choices:
            if choice < len(used):
                table.release(used.pop(choice))
            elif len(used) < 5:
                pasid = table.allocate(Space())
                assert 1 <= pasid <= 5
                assert pasid not in used
                if pasid in in_use_since:
                    assert in_use_since[pasid] == {1, 2, 3, 4, 5} - {pasid}
                for number, others in in_use_since.items():
                    others.update({pasid} - {number})
                in_use_since[pasid] = set(used)
                used.append(pasid)
            assert len(table) == len(used)
