"""BARs: page policies, what cannot be declared, and every access to a BAR of mixed pages."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vdcm import Access, Bar, BarKind, PagePolicy, Pages, Register, RegisterMap
from vdcm.bars import PAGE
from vdcm.errors import DeclarationError
from vdcm.protocol import Area
from vdcm.transport import Stores


class Block(RegisterMap):
    FIRST = Register(0x0, 32)
    FIXED = Register(0x4, 32, Access.RO, reset=0xF1)
    SECOND = Register(0x8, 64, reset=0x1122334455667788)


@pytest.mark.conformance("R4.4.1-4")
def test_an_intercepted_bar_is_its_registers() -> None:
    bar = Bar(0, 0x1000)
    block = Block()
    bar.place(0x10, block)
    bar.write(0x10, 4, 5)
    assert block.FIRST.value == 5
    assert bar.read(0x18, 8) == 0x1122334455667788
    assert bar.region().areas == [] and bar.region().fd == -1
    with pytest.raises(DeclarationError, match="no shared memory"):
        bar.view(0, 1)


@pytest.mark.conformance("R4.4.1-7")
@pytest.mark.parametrize("policy", [PagePolicy.DIRECT, PagePolicy.MEMORY])
def test_shared_pages_are_memory(policy: PagePolicy) -> None:
    bar = Bar(1, 4 * PAGE, pages=[Pages(PAGE, PAGE, policy)])
    bar.write(PAGE, 8, 0x0102030405060708)
    assert bytes(bar.view(PAGE, 8)) == bytes(range(8, 0, -1))
    bar.view(2 * PAGE - 1, 1)[0] = 0xEE
    assert bar.read(2 * PAGE - 1, 1) == 0xEE
    assert bar.read(2 * PAGE - 1, 2) == 0xEE  # and a byte that nobody answers
    assert os.pread(bar.region().fd, 2, PAGE) == b"\x08\x07"
    bar.reset()
    assert bytes(bar.view(PAGE, PAGE)) == bytes(PAGE)
    bar.close()


@pytest.mark.conformance("R4.4.1-5")
def test_registers_in_write_intercepted_pages_appear_in_memory() -> None:
    bar = Bar(0, 2 * PAGE, pages=[Pages(PAGE, PAGE, PagePolicy.WRITE_INTERCEPTED)])
    block = Block()
    bar.place(PAGE + 0x10, block)
    assert bytes(bar.view(PAGE + 0x18, 8)) == 0x1122334455667788.to_bytes(8, "little")
    bar.write(PAGE + 0x10, 4, 7)
    block.FIXED.value = 9
    assert bar.view(PAGE + 0x10, 1)[0] == 7 == bar.read(PAGE + 0x10, 4)
    assert bar.view(PAGE + 0x14, 1)[0] == 9
    bar.write(PAGE + 0x14, 4, 3)  # read-only
    bar.write(PAGE, 4, 0xFF)  # no register: Python takes the write, and nothing comes of it
    assert (bar.read(PAGE + 0x14, 4), bar.read(PAGE, 4)) == (9, 0)
    bar.reset()
    assert bar.read(PAGE + 0x10, 8) == 0xF1 << 32
    assert bar.read(PAGE + 0x18, 8) == 0x1122334455667788
    bar.close()


def test_neighbours_are_offered_as_one_area() -> None:
    bar = Bar(
        2,
        8 * PAGE,
        pages=[
            Pages(3 * PAGE, PAGE, PagePolicy.WRITE_INTERCEPTED),
            Pages(2 * PAGE, PAGE, PagePolicy.MEMORY),
            Pages(PAGE, PAGE, PagePolicy.DIRECT),
            Pages(6 * PAGE, PAGE, PagePolicy.DIRECT),
        ],
    )
    region = bar.region()
    assert region.areas == [Area(PAGE, 2 * PAGE), Area(6 * PAGE, PAGE)]
    assert region.read_only == [Area(3 * PAGE, PAGE)]
    assert [pages.offset // PAGE for pages in bar.pages] == [1, 2, 3, 6]
    bar.close()


@pytest.mark.conformance("R2.4-2", "R2.4-6", "R4.4.1-6")
@pytest.mark.parametrize(
    ("pages", "message"),
    [
        ([(0x10, PAGE)], "multiples of"),
        ([(0, PAGE - 1)], "multiples of"),
        ([(0, 0)], "multiples of"),
        ([(0, -PAGE)], "multiples of"),
        ([(-PAGE, PAGE)], "overlap"),
        ([(0, 2 * PAGE), (PAGE, PAGE)], "one policy"),
        ([(15 * PAGE, 2 * PAGE)], "beyond the BAR"),
    ],
)
def test_pages_that_cannot_be(pages: list[tuple[int, int]], message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        Bar(0, 16 * PAGE, pages=[Pages(at, size, PagePolicy.DIRECT) for at, size in pages])


def test_stores_for_c_are_one_range_of_intercepted_pages() -> None:
    bar = Bar(0, 4 * PAGE, pages=[Pages(PAGE, PAGE, PagePolicy.WRITE_INTERCEPTED)])
    for offset, size in ((0, 2 * PAGE), (PAGE, 8), (4 * PAGE, 8), (3 * PAGE, 2 * PAGE), (8, 0)):
        with pytest.raises(DeclarationError, match="stores at"):
            bar.give_stores(offset, size, 0x1000, 0)
    assert bar.region().stores is None
    bar.give_stores(2 * PAGE + 8, PAGE, 0x1000, 0x2000)
    assert bar.region().stores == Stores(2 * PAGE + 8, PAGE, 0x1000, 0x2000)
    with pytest.raises(DeclarationError, match="one range"):
        bar.give_stores(0, 8, 0x1000, 0)
    bar.close()


def test_other_bars_that_cannot_be() -> None:
    with pytest.raises(DeclarationError, match="an I/O BAR has no pages"):
        Bar(0, 256, BarKind.IO, [Pages(0, PAGE, PagePolicy.MEMORY)])
    with pytest.raises(DeclarationError, match="power of two"):
        Bar(0, 0x3000)
    with pytest.raises(DeclarationError, match="too many"):
        Bar(0, 1 << 32, BarKind.MEMORY64)
    stripes = [Pages(2 * i * PAGE, PAGE, PagePolicy.DIRECT) for i in range(17)]
    with pytest.raises(DeclarationError, match="17 separate mappable areas, at most 16"):
        Bar(0, 64 * PAGE, pages=stripes)


def test_areas_are_counted_as_a_client_is_told_of_them() -> None:
    """Pages of two policies side by side are two areas, since one is mapped read-only."""
    policies = (PagePolicy.DIRECT, PagePolicy.WRITE_INTERCEPTED)
    stripes = [Pages(i * PAGE, PAGE, policies[i % 2]) for i in range(17)]
    Bar(0, 32 * PAGE, pages=stripes[:16]).close()
    with pytest.raises(DeclarationError, match="17 separate mappable areas, at most 16"):
        Bar(0, 32 * PAGE, pages=stripes)


@pytest.mark.conformance("R2.4-6", "R4.4.1-6")
def test_registers_lie_where_python_sees_their_writes() -> None:
    bar = Bar(
        0,
        4 * PAGE,
        pages=[
            Pages(PAGE, PAGE, PagePolicy.DIRECT),
            Pages(2 * PAGE, PAGE, PagePolicy.WRITE_INTERCEPTED),
        ],
    )
    with pytest.raises(DeclarationError, match="lies in direct pages"):
        bar.place(PAGE - 4, Block())
    with pytest.raises(DeclarationError, match="straddles"):
        bar.place(3 * PAGE - 4, Block())
    with pytest.raises(DeclarationError, match="not inside"):
        bar.place(4 * PAGE - 4, Block())
    bar.place(0, Block())
    with pytest.raises(DeclarationError, match="overlaps"):
        bar.place(0x8, Block())
    bar.close()


@pytest.mark.parametrize("keep_view", [False, True])
def test_closing_gives_the_descriptor_back_whatever_the_model_keeps(keep_view: bool) -> None:
    bar = Bar(0, PAGE, pages=[Pages(0, PAGE, PagePolicy.MEMORY)])
    fd = bar.region().fd
    kept = bar.view(0, 4) if keep_view else None
    bar.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    if kept is not None:
        kept[0] = 1  # no fault: the mapping goes with the last view
    bar.close()
    with pytest.raises(DeclarationError):
        bar.view(0, 4)


def test_a_client_cannot_shrink_the_memory() -> None:
    bar = Bar(0, 4 * PAGE, pages=[Pages(0, PAGE, PagePolicy.MEMORY)])
    for size in (0, PAGE, 8 * PAGE):
        with pytest.raises(PermissionError):
            os.ftruncate(bar.region().fd, size)
    bar.close()


def test_a_large_bar_takes_no_memory_for_what_nobody_touched() -> None:
    size = 1 << 30
    bar = Bar(0, size, BarKind.MEMORY64_PREFETCHABLE, [Pages(0, size, PagePolicy.MEMORY)])
    bar.view(size // 2, 1)[0] = 1
    assert os.fstat(bar.region().fd).st_blocks * 512 <= 4 << 20
    bar.reset()
    assert bar.read(size // 2, 1) == 0
    assert os.fstat(bar.region().fd).st_blocks * 512 <= 4 << 20
    bar.close()


policies_of_pages = st.lists(st.sampled_from(list(PagePolicy)), min_size=4, max_size=4)
accesses = st.lists(
    st.tuples(
        st.integers(-9, 4 * PAGE + 1) | st.sampled_from([n * PAGE - 3 for n in range(1, 5)]),
        st.sampled_from([1, 2, 4, 8]),
        st.none() | st.integers(0, (1 << 64) - 1),
    )
)


@settings(deadline=None)
@given(policies_of_pages, accesses)
def test_every_access_has_an_answer(
    policies: list[PagePolicy], steps: list[tuple[int, int, int | None]]
) -> None:
    """Model: bytes of direct and memory pages are stored, the others ignore writes and read 0.

    An access that leaves an intercepted BAR reads as all ones.
    """
    pages = [Pages(i * PAGE, PAGE, p) for i, p in enumerate(policies) if p.shared]
    bar = Bar(0, 4 * PAGE, pages=pages)
    model = bytearray(4 * PAGE)
    try:
        for offset, width, value in steps:
            inside = offset >= 0 and offset + width <= 4 * PAGE
            if value is None:
                got = bar.read(offset, width)
                assert 0 <= got < 1 << 8 * width
                if inside:
                    assert got == int.from_bytes(model[offset : offset + width], "little")
            else:
                bar.write(offset, width, value)
                for i in range(width):
                    at = offset + i
                    stored = (PagePolicy.DIRECT, PagePolicy.MEMORY)
                    if 0 <= at < 4 * PAGE and policies[at // PAGE] in stored:
                        model[at] = value >> 8 * i & 0xFF
        for page in pages:
            assert bar.view(page.offset, page.size) == model[page.offset : page.end]
    finally:
        bar.close()
