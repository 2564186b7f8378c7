"""The capabilities of a function for Scalable IOV: its DVSEC, PASID, ATS, PRI."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdcm.errors import DeclarationError, StateError
from vdcm.pci import (
    Ats,
    Capability,
    ConfigEvents,
    ConfigSpace,
    Identity,
    Pasid,
    PciExpress,
    Pri,
    ScalableIov,
)
from vdcm.registers import RegisterError

IDENTITY = Identity(0x8086, 0x0B25, 0x088000)
SIZES = 0b1_0011  # 4 KiB, 8 KiB, 64 KiB
MEMORY = 0x2


class Events(ConfigEvents):
    def __init__(self) -> None:
        self.page_sizes: list[int] = []
        self.refused: list[str] = []

    def on_system_page_size(self, bits: int) -> None:
        self.page_sizes.append(bits)

    def on_refused(self, reason: str) -> None:
        self.refused.append(reason)


class Function:
    """A function with one of each, as software sees it: by capability and offset."""

    def __init__(self, *capabilities: Capability) -> None:
        self.events = Events()
        self.config = ConfigSpace(
            IDENTITY, capabilities=[PciExpress(), *capabilities], owner=self.events
        )

    def at(self, kind: type[Capability], offset: int) -> int:
        capability = self.config.find(kind)
        assert capability is not None
        return capability.offset + offset

    def read(self, kind: type[Capability], offset: int, width: int = 4) -> int:
        return self.config.space.read(self.at(kind, offset), width)

    def write(self, kind: type[Capability], offset: int, value: int, width: int = 4) -> None:
        self.config.space.write(self.at(kind, offset), width, value)


# Scalable IOV (SIOV 2.8)


@pytest.mark.conformance(
    "R2.4-4",
    "R2.5.1-2",
    "R2.8-1",
    "R2.8-5",
    "R2.8-6",
    "R2.8-10",
    "R2.8-12",
    "R2.8-18",
    "R2.8-19",
)
def test_dvsec_is_laid_out_as_specified() -> None:
    function = Function(
        ScalableIov(page_sizes=SIZES, dependency=3, homogeneous=True, ims=True, at=0x100)
    )
    words = [function.read(ScalableIov, at) for at in range(0, 0x18, 4)]
    assert words == [0x0001_0023, 0x0180_8086, 0x0103_0005, SIZES, 1, 1]
    assert function.config.space.read(0x118, 4) == 0


@pytest.mark.conformance("R2.5.1-2", "R2.8-4", "R2.8-11", "R2.8-19")
def test_dvsec_of_a_plain_function() -> None:
    function = Function(ScalableIov(ims=False))
    assert function.read(ScalableIov, 0x8) == 0x0000_0005
    assert function.read(ScalableIov, 0xC) == 1
    assert function.read(ScalableIov, 0x14) == 0


@pytest.mark.conformance("R2.8-20")
def test_ims_can_be_hidden_from_the_domain_that_sees_the_dvsec() -> None:
    capability = ScalableIov(ims=True, hide_ims=True)
    function = Function(capability)
    assert function.read(ScalableIov, 0x14) == 0
    assert capability.ims, "the device has it all the same"


@pytest.mark.conformance("R2.8-9")
@pytest.mark.parametrize("offset", [0x0, 0x4, 0x8, 0xC, 0x14])
def test_all_but_system_page_size_is_read_only(offset: int) -> None:
    function = Function(ScalableIov(page_sizes=SIZES))
    before = function.read(ScalableIov, offset)
    function.write(ScalableIov, offset, ~before & 0xFFFF_FFFF)
    assert function.read(ScalableIov, offset) == before


@pytest.mark.conformance("R2.8-10", "R2.8-12", "R2.8-13", "R2.8-18")
def test_system_page_size_takes_a_supported_size_and_says_so() -> None:
    function = Function(ScalableIov(page_sizes=SIZES))
    siov = function.config.find(ScalableIov)
    assert siov is not None
    assert siov.system_page_size == 4096
    function.write(ScalableIov, 0x10, 0x10)
    function.write(ScalableIov, 0x10, 0x10)
    assert siov.system_page_size == 65536
    assert function.events.page_sizes == [0x10]
    function.config.reset()
    assert siov.system_page_size == 4096, "the default value, 1"
    assert function.events.page_sizes == [0x10, 1]
    function.write(ScalableIov, 0x10, 0x2)
    assert siov.system_page_size == 8192
    assert function.events.refused == []


@pytest.mark.conformance("R2.8-13", "R2.8-14")
@given(value=st.integers(0, 0xFFFF_FFFF))
def test_undefined_system_page_size_leaves_the_old_one(value: int) -> None:
    function = Function(ScalableIov(page_sizes=SIZES))
    function.write(ScalableIov, 0x10, 0x2)
    function.write(ScalableIov, 0x10, value)
    good = value in (0x1, 0x2, 0x10)
    assert function.read(ScalableIov, 0x10) == (value if good else 0x2)
    assert len(function.events.refused) == (0 if good else 1)


@pytest.mark.parametrize(
    ("value", "why"),
    [(0, "exactly one bit"), (3, "exactly one bit"), (4, "supported are 0x13")],
)
def test_refusal_says_why(value: int, why: str) -> None:
    function = Function(ScalableIov(page_sizes=SIZES))
    function.write(ScalableIov, 0x10, value)
    assert len(function.events.refused) == 1
    assert f"System Page Size {value:#x}: {why}" in function.events.refused[0]


@pytest.mark.conformance("R2.8-16", "R2.8-17")
def test_system_page_size_stays_once_memory_space_is_enabled() -> None:
    function = Function(ScalableIov(page_sizes=SIZES))
    function.write(ScalableIov, 0x10, 0x2)
    function.config.space.write(0x4, 2, MEMORY)
    function.write(ScalableIov, 0x10, 0x2)
    assert function.events.refused == [], "nothing was modified"
    function.write(ScalableIov, 0x10, 0x10)
    assert function.read(ScalableIov, 0x10) == 0x2
    assert "before Memory Space Enable" in function.events.refused[0]
    function.config.space.write(0x4, 2, 0)
    function.write(ScalableIov, 0x10, 0x10)
    assert function.read(ScalableIov, 0x10) == 0x10


def test_restored_system_page_size_has_to_be_a_supported_one() -> None:
    function = Function(ScalableIov(page_sizes=SIZES))
    function.write(ScalableIov, 0x10, 0x10)
    state = json.loads(json.dumps(function.config.save()))
    function.config.reset()
    function.config.restore(state)
    assert function.read(ScalableIov, 0x10) == 0x10
    function.write(ScalableIov, 0x10, 0)
    assert function.read(ScalableIov, 0x10) == 0x10
    state["ScalableIov@100"]["SYSTEM_PAGE_SIZE"] = 0x4
    with pytest.raises(RegisterError, match="SYSTEM_PAGE_SIZE: 0x4: supported are 0x13"):
        function.config.restore(state)


# PASID (7.8.9)


@pytest.mark.conformance("R2.2-2")
def test_pasid_capability_says_what_is_supported() -> None:
    function = Function(Pasid(20, execute=True, privileged=True))
    assert function.read(Pasid, 0) & 0xF_FFFF == 0x1_001B
    assert function.read(Pasid, 4) == 0x1406
    function.write(Pasid, 4, 0xFFFF_FFFF)
    assert function.read(Pasid, 4) == 0x0007_1406
    assert Function(Pasid(8)).read(Pasid, 4) == 0x0800


@pytest.mark.conformance("R2.2-2")
def test_permissions_that_are_not_supported_cannot_be_enabled() -> None:
    function = Function(Pasid(8))
    pasid = function.config.find(Pasid)
    assert pasid is not None
    assert (pasid.enabled, pasid.limit) == (False, 256)
    function.write(Pasid, 6, 0xFFFF, 2)
    assert function.read(Pasid, 6, 2) == 1
    assert pasid.enabled
    function.config.reset()
    assert not pasid.enabled


@pytest.mark.conformance("R2.2-2")
def test_a_function_with_pasid_takes_end_end_prefixes() -> None:
    plain, tagged = Function(ScalableIov()), Function(Pasid())
    assert plain.read(PciExpress, 0x24) & 0x00F0_0000 == 0
    assert tagged.read(PciExpress, 0x24) & 0x00F0_0000 == 0x0070_0000
    tagged.config.reset(cold=True)
    assert tagged.read(PciExpress, 0x24) & 0x00F0_0000 == 0x0070_0000


@pytest.mark.conformance("R2.2-2")
def test_pasid_control_stays_while_ats_is_enabled() -> None:
    function = Function(Pasid(execute=True), Ats())
    function.write(Pasid, 6, 0x1, 2)
    function.write(Ats, 6, 0x8000, 2)
    for value in (0x0, 0x3):
        function.write(Pasid, 6, value, 2)
        assert function.read(Pasid, 6, 2) == 0x1
    assert len(function.events.refused) == 2
    assert "disable ATS first" in function.events.refused[0]
    function.write(Pasid, 6, 0x1, 2)
    assert len(function.events.refused) == 2, "nothing was modified"
    function.write(Ats, 6, 0, 2)
    function.write(Pasid, 6, 0x3, 2)
    assert function.read(Pasid, 6, 2) == 0x3


# ATS (10.5.1)


def test_ats_capability_and_control() -> None:
    function = Function(
        Ats(invalidate_depth=7, page_aligned=True, global_invalidate=True, relaxed_ordering=True)
    )
    ats = function.config.find(Ats)
    assert ats is not None
    assert function.read(Ats, 0) & 0xF_FFFF == 0x1_000F
    assert function.read(Ats, 4) == 0x00E7
    function.write(Ats, 4, 0xFFFF_FFFF)
    assert function.read(Ats, 4) == 0x801F_00E7
    assert ats.enabled
    function.config.reset()
    assert not ats.enabled
    assert Function(Ats(invalidate_depth=32, page_aligned=False)).read(Ats, 4) == 0


# PRI (10.5.2)


@pytest.fixture
def function() -> Function:
    return Function(Pri(4, pasid_required=True))


@pytest.fixture
def pri(function: Function) -> Pri:
    pri = function.config.find(Pri)
    assert pri is not None
    return pri


def enable(function: Function, allocation: int = 2) -> None:
    function.write(Pri, 0xC, allocation)
    function.write(Pri, 4, 1, 2)


def status(function: Function) -> int:
    return function.read(Pri, 6, 2) & 0x7FFF


def test_pri_after_reset(function: Function, pri: Pri) -> None:
    assert function.read(Pri, 0) & 0xF_FFFF == 0x1_0013
    assert [function.read(Pri, at) for at in (4, 8, 0xC)] == [0x8100_0000, 4, 0]
    with pytest.raises(StateError, match="not enabled"):
        pri.request(1)


def test_no_more_requests_than_allocated(function: Function, pri: Pri) -> None:
    enable(function)
    assert status(function) == 0, "not stopped"
    pri.request(1)
    pri.request(1)
    with pytest.raises(StateError, match="all 2 allocated"):
        pri.request(2)
    assert pri.respond(1)
    assert pri.outstanding == 0
    pri.request(2)


def test_stopped_once_disabled_and_all_answered(function: Function, pri: Pri) -> None:
    enable(function)
    pri.request(1)
    pri.request(2)
    function.write(Pri, 4, 0, 2)
    assert status(function) == 0, "requests are outstanding"
    pri.respond(1)
    assert status(function) == 0
    pri.respond(2)
    assert status(function) == 0x100


def test_reset_forgets_requests_only_when_disabled(function: Function, pri: Pri) -> None:
    enable(function)
    pri.request(1)
    function.write(Pri, 4, 3, 2)
    assert pri.outstanding == 1
    assert function.read(Pri, 4, 2) == 1, "reset reads as 0"
    function.write(Pri, 4, 2, 2)
    assert (pri.outstanding, status(function)) == (0, 0x100)
    assert not pri.respond(1)
    assert status(function) == 0x102, "a response for nothing"


def test_failed_response_ends_it_until_enabled_again(function: Function, pri: Pri) -> None:
    enable(function)
    pri.request(1)
    pri.request(2)
    assert pri.respond(1, failure=True)
    assert (pri.outstanding, status(function)) == (0, 1)
    assert not pri.respond(2)
    assert status(function) == 1, "ignored"
    with pytest.raises(StateError, match="not enabled"):
        pri.request(3)
    function.write(Pri, 4, 0, 2)
    function.write(Pri, 4, 1, 2)
    assert status(function) == 0
    pri.request(3)


def test_status_flags_are_write_one_to_clear(function: Function, pri: Pri) -> None:
    enable(function)
    assert not pri.respond(9)
    function.write(Pri, 6, 0, 2)
    assert status(function) == 2
    function.write(Pri, 6, 0xFFFF, 2)
    assert status(function) == 0


def test_allocation_is_bounded_and_stays_while_enabled(function: Function) -> None:
    function.write(Pri, 0xC, 5)
    assert function.read(Pri, 0xC) == 0
    enable(function, 4)
    function.write(Pri, 0xC, 1)
    function.write(Pri, 0xC, 4)
    assert function.read(Pri, 0xC) == 4
    assert len(function.events.refused) == 2
    function.write(Pri, 4, 0, 2)
    function.write(Pri, 0xC, 1)
    assert function.read(Pri, 0xC) == 1


def test_resets_and_discards_leave_nothing_outstanding(function: Function, pri: Pri) -> None:
    enable(function)
    pri.request(1)
    function.write(Pri, 4, 0, 2)
    pri.discard()
    assert (pri.outstanding, status(function)) == (0, 0x100)
    enable(function)
    pri.request(1)
    function.config.reset()
    assert (pri.outstanding, status(function), function.read(Pri, 0xC)) == (0, 0x100, 0)
    function.write(Pri, 0xC, 3)
    assert function.read(Pri, 0xC) == 3, "it is known to be disabled"


@pytest.mark.conformance("R2.8-11")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ScalableIov(page_sizes=2), "4 KiB"),
        (lambda: ScalableIov(page_sizes=1 << 32 | 1), "bits 31 to 0"),
        (lambda: ScalableIov(dependency=256), "8 bits"),
        (lambda: Pasid(21), "not 21"),
        (lambda: Ats(invalidate_depth=0), "not 0"),
        (lambda: Ats(invalidate_depth=33), "not 33"),
        (lambda: Pri(0), "capacity 0"),
        (lambda: Pri(1 << 32), "capacity"),
    ],
)
def test_impossible_capabilities_are_refused(make: Callable[[], Capability], words: str) -> None:
    with pytest.raises((DeclarationError, RegisterError), match=words):
        make()


everywhere = st.lists(
    st.tuples(st.integers(0x100, 0x170), st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**64 - 1)),
    max_size=40,
)


@pytest.mark.conformance("R2.8-9", "R2.8-14")
@given(writes=everywhere)
def test_no_write_changes_what_is_read_only_or_undefined(
    writes: list[tuple[int, int, int]],
) -> None:
    siov, pasid, ats, pri = ScalableIov(page_sizes=SIZES), Pasid(privileged=True), Ats(), Pri(4)
    function = Function(siov, pasid, ats, pri)
    space = function.config.space
    before = [space.read(at, 1) for at in range(0x100, 0x170)]
    writable = {
        **{siov.offset + 0x10 + i: 0xFF for i in range(4)},
        pasid.offset + 6: 0x5,
        ats.offset + 6: 0x1F,
        ats.offset + 7: 0x80,
        pri.offset + 4: 0x1,
        pri.offset + 7: 0x1,  # Stopped: the device's answer to Enable
        pri.offset + 0xC: 0x7,
    }
    for offset, width, value in writes:
        space.write(offset, width, value)
        assert siov.system_page_size in (4096, 8192, 65536)
        assert pri.ALLOCATION.value <= 4
    after = [space.read(at, 1) for at in range(0x100, 0x170)]
    for at, (old, new) in enumerate(zip(before, after, strict=True), 0x100):
        assert (old ^ new) & ~writable.get(at, 0) == 0, hex(at)
