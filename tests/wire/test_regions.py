"""Region access and the page policies, as a client meets them."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

import pytest
from wire_registers import ID, PAGE, Bar, Page, Reg
from wire_server import Server

from vdcm import protocol
from vdcm.client import Client, Region
from vdcm.errors import ProtocolError
from vdcm.protocol import Area, Command


@pytest.fixture
def client(serve: Callable[..., Server]) -> Iterator[Client]:
    with serve(count=1).connect() as client:
        yield client


def intercepted(client: Client) -> int:
    return client.read(Bar.REGISTERS, Reg.INTERCEPTED, 4)


def peek(client: Client, offset: int) -> int:
    """What the server sees at ``offset`` of the paged BAR."""
    client.write(Bar.REGISTERS, Reg.PEEK_OFFSET, 4, offset)
    return client.read(Bar.REGISTERS, Reg.PEEK, 4)


def poke(client: Client, offset: int, value: int) -> None:
    client.write(Bar.REGISTERS, Reg.PEEK_OFFSET, 4, offset)
    client.write(Bar.REGISTERS, Reg.PEEK, 4, value)


@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("region", [Bar.REGISTERS, Bar.PORTS, Bar.PAGES, Region.CONFIG])
def test_every_width_reaches_every_kind_of_region(client: Client, region: int, width: int) -> None:
    at = Reg.BUFFER if region == Bar.REGISTERS else 16
    value = 0x8877665544332211 & ((1 << 8 * width) - 1)
    client.write(region, at, width, value)
    assert client.read(region, at, width) == value
    assert client.read(region, at, 1) == 0x11


def test_posted_writes_arrive_in_order(client: Client) -> None:
    for number in range(200):
        client.post_write(Bar.REGISTERS, Reg.SCRATCH, 4, number)
        client.post_write(Bar.REGISTERS, Reg.SCRATCH + 4, 4, ~number)
    assert client.read(Bar.REGISTERS, Reg.SCRATCH, 4) == 199
    assert client.read(Bar.REGISTERS, Reg.SCRATCH + 4, 4) == ~199 & 0xFFFFFFFF


@pytest.mark.parametrize("post", [False, True])
def test_several_writes_in_one_message_arrive_in_order(client: Client, post: bool) -> None:
    """More of them than fit into one message, of every width."""
    assert client.version.write_multiple
    writes = [
        (int(Bar.REGISTERS), Reg.BUFFER + at, width, number * 0x0101010101010101 + number)
        for number in range(1000)
        for at, width in ((8, 8), (4, 4), (2, 2), (1, 1))
    ]
    assert client.write_multi(writes, post=post) == len(writes)
    for at, width in ((8, 8), (4, 4), (2, 2), (1, 1)):
        expected = (999 * 0x0101010101010101 + 999) & ((1 << 8 * width) - 1)
        assert client.read(Bar.REGISTERS, Reg.BUFFER + at, width) == expected


def test_of_several_writes_a_wrong_one_is_told_by_the_count(client: Client) -> None:
    right = (int(Bar.REGISTERS), int(Reg.SCRATCH), 4, 1)
    wrong = (int(Bar.REGISTERS), 4096, 4, 0)
    after = (int(Bar.REGISTERS), int(Reg.SCRATCH), 4, 2)
    assert client.write_multi([right, wrong, after]) == 1
    assert client.read(Bar.REGISTERS, Reg.SCRATCH, 4) == 1
    with pytest.raises(ProtocolError) as caught:
        client.write_multi([wrong, after])
    assert caught.value.errno == errno.EINVAL
    assert client.read(Bar.REGISTERS, Reg.SCRATCH, 4) == 1
    client.write_multi([wrong, after], post=True)
    assert client.read(Bar.REGISTERS, Reg.SCRATCH, 4) == 2
    assert client.write_multi([]) == 0


def test_blocks_of_any_length_and_alignment_arrive_whole(client: Client) -> None:
    for start, length in ((0, 256), (1, 255), (3, 17), (7, 1), (5, 9)):
        data = bytes((start + length + i) & 0xFF for i in range(length))
        client.write_bytes(Bar.REGISTERS, Reg.BUFFER + start, data)
        assert client.read_bytes(Bar.REGISTERS, Reg.BUFFER + start, length) == data


@pytest.mark.parametrize(
    ("region", "offset", "count"),
    [
        (Bar.REGISTERS, 4096, 1),
        (Bar.REGISTERS, 4093, 4),
        (Bar.PORTS, 64, 1),
        (Bar.PORTS, 1 << 63, 4),
        (Region.BAR5, 0, 4),
        (Region.ROM, 0, 4),
        (Region.CONFIG, 4096, 1),
        (9, 0, 4),
    ],
)
def test_access_outside_a_region_is_an_error(
    client: Client, region: int, offset: int, count: int
) -> None:
    with pytest.raises(ProtocolError) as caught:
        client.read_bytes(region, offset, count)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(ProtocolError) as caught:
        client.write_bytes(region, offset, bytes(count))
    assert caught.value.errno == errno.EINVAL
    assert client.read(Bar.REGISTERS, Reg.ID, 4) == ID


def test_only_mappable_pages_are_offered(client: Client) -> None:
    assert [region.index for region in client.regions if region.areas] == [Bar.PAGES]
    covered = client.regions[Bar.PAGES].areas
    pages = {at for area in covered for at in range(area.offset, area.end, PAGE)}
    assert pages == {Page.DIRECT, Page.MEMORY, Page.WRITE_INTERCEPTED}


def test_direct_and_memory_pages_are_shared_both_ways(client: Client) -> None:
    areas = {area.offset: area for area in client.map(Bar.PAGES)}
    before = intercepted(client)
    for page in (Page.DIRECT, Page.MEMORY):
        area = next(a for at, a in areas.items() if at <= page < at + a.size)
        at = page - area.offset + 0x80
        assert area.writable
        area.write(at, 4, 0xD00B0000 | page)
        assert peek(client, page + 0x80) == 0xD00B0000 | page
        poke(client, page + 0x84, 0x12345678)
        assert area.read(at + 4, 4) == 0x12345678
    assert intercepted(client) == before


def test_write_intercepted_page_is_read_as_memory_and_written_by_message(client: Client) -> None:
    area = next(a for a in client.map(Bar.PAGES) if not a.writable)
    assert (area.offset, area.size) == (Page.WRITE_INTERCEPTED, PAGE)
    before = intercepted(client)
    poke(client, Page.WRITE_INTERCEPTED + 8, 0xAB)
    assert area.read(8, 4) == 0xAB
    assert intercepted(client) == before
    client.write(Bar.PAGES, Page.WRITE_INTERCEPTED + 8, 4, 0xCD)
    assert intercepted(client) == before + 1
    assert area.read(8, 4) == 0xCD


def test_intercepted_page_is_answered_by_the_device(client: Client) -> None:
    before = intercepted(client)
    assert client.read(Bar.PAGES, Page.INTERCEPTED + 0x24, 4) == Page.INTERCEPTED + 0x24
    assert intercepted(client) == before + 1


def test_mapped_pages_can_be_accessed_by_message_too(client: Client) -> None:
    (first, *_) = client.map(Bar.PAGES)
    client.write(Bar.PAGES, Page.DIRECT + 0x10, 4, 77)
    assert first.read(0x10, 4) == 77
    first.write(0x14, 4, 78)
    assert client.read(Bar.PAGES, Page.DIRECT + 0x14, 4) == 78


def test_client_that_maps_nothing_read_only_is_not_offered_it(
    serve: Callable[..., Server],
) -> None:
    with serve(count=1).connect(capabilities={"vdcm": None}) as client:
        assert client.version.read_only == {}
        covered = client.regions[Bar.PAGES].areas
        assert all(area.end <= Page.WRITE_INTERCEPTED for area in covered)
        assert all(area.writable for area in client.map(Bar.PAGES))
        client.write(Bar.PAGES, Page.WRITE_INTERCEPTED, 4, 5)
        assert client.read(Bar.PAGES, Page.WRITE_INTERCEPTED, 4) == 5
        assert intercepted(client) == 2


def test_client_that_takes_no_descriptor_gets_none(serve: Callable[..., Server]) -> None:
    with serve(count=1).connect(capabilities={"max_msg_fds": 0}) as client:
        assert client.map(Bar.PAGES) == []
        client.write(Bar.PAGES, Page.DIRECT, 4, 6)
        assert client.read(Bar.PAGES, Page.DIRECT, 4) == 6


def test_short_argsz_tells_what_the_full_answer_needs(client: Client) -> None:
    request = protocol.REGION_INFO.pack(32, 0, Bar.PAGES, 0, 0, 0)
    reply = protocol.parse_region_info(client.call(Command.DEVICE_GET_REGION_INFO, request))
    assert reply.argsz > 32
    request = protocol.REGION_INFO.pack(reply.argsz, 0, Bar.PAGES, 0, 0, 0)
    full = protocol.parse_region_info(client.call(Command.DEVICE_GET_REGION_INFO, request))
    assert full.argsz == reply.argsz
    assert Area(Page.DIRECT, PAGE) in full.areas or full.areas[0].size > PAGE
