"""The vfio-user layouts: sizes, flags, and what a hostile peer's text and capabilities do."""

from __future__ import annotations

import contextlib
import json
from struct import Struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdcm import protocol
from vdcm.errors import ProtocolError
from vdcm.protocol import Area, Header, MessageFlags, RegionFlags


@pytest.mark.parametrize(
    ("layout", "size"),
    [
        (protocol.HEADER, 16),
        (protocol.VERSION, 4),
        (protocol.DMA_MAP, 32),
        (protocol.DMA_UNMAP, 24),
        (protocol.BITMAP, 16),
        (protocol.DEVICE_INFO, 16),
        (protocol.REGION_INFO, 32),
        (protocol.REGION_IO_FDS, 16),
        (protocol.IRQ_INFO, 16),
        (protocol.IRQ_SET, 20),
        (protocol.REGION_ACCESS, 16),
        (protocol.DMA_ACCESS, 16),
        (protocol.DIRTY_PAGES, 8),
        (protocol.WRITE_ONE, 24),
        (protocol.CAP_HEADER, 8),
        (protocol.SPARSE_AREA, 16),
    ],
)
def test_layouts_have_the_sizes_of_the_specification(layout: Struct, size: int) -> None:
    assert layout.size == size


def test_message_is_header_and_payload() -> None:
    data = protocol.message(protocol.Command.REGION_READ, b"abc", message_id=0x1234)
    assert data == bytes.fromhex("3412 0900 13000000 00000000 00000000") + b"abc"


@given(
    st.integers(0, 0xFFFF),
    st.integers(0, 0xFFFF),
    st.integers(16, 0xFFFFFFFF),
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 0xFFFFFFFF),
)
def test_header_round_trip(identifier: int, command: int, size: int, flags: int, err: int) -> None:
    header = Header(identifier, command, size, flags, err)
    assert Header.parse(protocol.HEADER.pack(*header)) == header


@pytest.mark.parametrize("size", [0, 1, 15])
def test_header_smaller_than_itself_is_refused(size: int) -> None:
    with pytest.raises(ProtocolError, match="less than the header's own 16"):
        Header.parse(protocol.HEADER.pack(1, 1, size, 0, 0))


@pytest.mark.parametrize(
    ("flags", "is_command", "is_reply", "is_error", "wants_reply"),
    [
        (0, True, False, False, True),
        (MessageFlags.NO_REPLY, True, False, False, False),
        (MessageFlags.REPLY, False, True, False, False),
        (MessageFlags.REPLY | MessageFlags.ERROR, False, True, True, False),
        (0x2, False, False, False, False),
    ],
)
def test_header_flags(
    flags: int, is_command: bool, is_reply: bool, is_error: bool, wants_reply: bool
) -> None:
    header = Header(0, 1, 16, flags, 0)
    got = (header.is_command, header.is_reply, header.is_error, header.wants_reply)
    assert got == (is_command, is_reply, is_error, wants_reply)


def test_values_that_do_not_fit_are_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="do not fit"):
        protocol.pack(protocol.REGION_ACCESS, -1, 0, 4)
    with pytest.raises(ProtocolError, match="too short"):
        protocol.unpack(protocol.REGION_ACCESS, bytes(15), "REGION_READ")


def test_command_name_of_known_and_unknown_numbers() -> None:
    assert protocol.command_name(13) == "DEVICE_RESET"
    assert protocol.command_name(99) == "command 99"


def version_payload(text: bytes) -> bytes:
    return protocol.VERSION.pack(0, 1) + text


def test_version_without_data_has_the_defaults_of_the_specification() -> None:
    version = protocol.parse_version(version_payload(b""))
    assert (version.major, version.minor) == (0, 1)
    assert (version.max_msg_fds, version.max_data_xfer_size) == (1, 1 << 20)
    assert not version.read_only_areas
    assert version.read_only == {}


def test_version_round_trip_keeps_unknown_capabilities() -> None:
    version = protocol.parse_version(
        protocol.pack_version(
            {
                "max_msg_fds": 7,
                "max_data_xfer_size": 4096,
                "twin_socket": {"supported": True},
                "vdcm": {"read_only_areas": True},
            }
        )
    )
    assert (version.max_msg_fds, version.max_data_xfer_size) == (7, 4096)
    assert version.read_only_areas
    assert version.capabilities["twin_socket"] == {"supported": True}


def test_read_only_areas_round_trip() -> None:
    areas = {0: [(0x1000, 0x2000)], 4: [(0, 0x1000), (0x3000, 0x1000)]}
    version = protocol.parse_version(
        protocol.pack_version({"vdcm": protocol.pack_read_only(areas)})
    )
    assert version.read_only == {
        0: (Area(0x1000, 0x2000),),
        4: (Area(0, 0x1000), Area(0x3000, 0x1000)),
    }


@pytest.mark.parametrize(
    "text",
    [
        b"{}",  # no NUL
        b"{\0",
        b"\xff\0",
        b"[]\0",
        b"1" * 5000 + b"\0",  # more digits than Python converts
        b"[" * 100_000 + b"\0",  # deeper than the parser goes
        b'{"capabilities": []}\0',
        b'{"capabilities": {"max_msg_fds": "8"}}\0',
        b'{"capabilities": {"max_msg_fds": true}}\0',
        b'{"capabilities": {"max_msg_fds": -1}}\0',
        b'{"capabilities": {"max_msg_fds": 1.5}}\0',
        b'{"capabilities": {"max_data_xfer_size": 0}}\0',
        b'{"capabilities": {"max_data_xfer_size": 9223372036854775808}}\0',
        b'{"capabilities": {"vdcm": 1}}\0',
        b'{"capabilities": {"vdcm": {"read_only_areas": 1}}}\0',
        b'{"capabilities": {"write_multiple": 1}}\0',
        b'{"capabilities": {"vdcm": {"read_only": []}}}\0',
        b'{"capabilities": {"vdcm": {"read_only": {"x": []}}}}\0',
        b'{"capabilities": {"vdcm": {"read_only": {"0": [1]}}}}\0',
        b'{"capabilities": {"vdcm": {"read_only": {"0": [[0]]}}}}\0',
        b'{"capabilities": {"vdcm": {"read_only": {"0": [[-1, 4096]]}}}}\0',
        b'{"capabilities": {"vdcm": {"read_only": {"0": [[0, 0]]}}}}\0',
        b'{"capabilities": {"vdcm": {"read_only": {"0": [[0, Infinity]]}}}}\0',
    ],
)
def test_bad_version_data_is_a_protocol_error(text: bytes) -> None:
    with pytest.raises(ProtocolError, match="VERSION"):
        protocol.parse_version(version_payload(text))


def test_null_says_as_much_as_a_missing_member() -> None:
    text = b'{"capabilities": {"max_msg_fds": null, "vdcm": null}}\0'
    assert protocol.parse_version(version_payload(text)).max_msg_fds == 1


@given(st.binary(max_size=200))
def test_arbitrary_version_payload_parses_or_is_refused(payload: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        protocol.parse_version(payload)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "0", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["0", "read_only", "read_only_areas"]), inner)
    ),
    max_leaves=5,
)


@given(
    st.dictionaries(
        st.sampled_from(["max_msg_fds", "max_data_xfer_size", "vdcm", "migration"]), json_values
    )
)
def test_arbitrary_capabilities_parse_or_are_refused(capabilities: dict[str, object]) -> None:
    text = json.dumps({"capabilities": capabilities}).encode() + b"\0"
    try:
        version = protocol.parse_version(version_payload(text))
    except ProtocolError:
        return
    assert version.max_msg_fds >= 0
    assert version.max_data_xfer_size > 0


def region_info(
    flags: int, size: int, chain: bytes = b"", cap_offset: int = 32, index: int = 2
) -> bytes:
    head = protocol.REGION_INFO.pack(32 + len(chain), flags, index, cap_offset, size, 0x8000)
    return head + chain


MAPPABLE = RegionFlags.READ | RegionFlags.WRITE | RegionFlags.MMAP


def test_region_without_mmap_has_no_areas() -> None:
    reply = protocol.parse_region_info(region_info(RegionFlags.READ, 0x1000))
    assert reply.areas == ()
    assert (reply.index, reply.size, reply.offset) == (2, 0x1000, 0x8000)


def test_mappable_region_without_capability_is_one_area() -> None:
    assert protocol.parse_region_info(region_info(MAPPABLE, 0x2000)).areas == (Area(0, 0x2000),)


def test_sparse_areas_are_found_behind_other_capabilities() -> None:
    other = protocol.CAP_HEADER.pack(2, 1, 32 + 16) + bytes(8)
    chain = other + protocol.pack_sparse_areas([(0, 0x1000), (0x3000, 0x1000)])
    reply = protocol.parse_region_info(region_info(MAPPABLE | RegionFlags.CAPS, 0x4000, chain))
    assert reply.areas == (Area(0, 0x1000), Area(0x3000, 0x1000))


@pytest.mark.parametrize(
    ("chain", "cap_offset", "fault"),
    [
        (protocol.CAP_HEADER.pack(2, 1, 32), 32, "loops"),
        (protocol.CAP_HEADER.pack(2, 1, 4000), 32, "too short"),
        (b"", 40, "too short"),
        (protocol.CAP_HEADER.pack(1, 1, 0), 32, "too short"),
        (protocol.CAP_HEADER.pack(1, 1, 0) + protocol.SPARSE_MMAP.pack(1 << 31, 0), 32, "claims"),
        (protocol.pack_sparse_areas([(0x4000, 1)]), 32, "ends at"),
        (protocol.pack_sparse_areas([((1 << 64) - 1, (1 << 64) - 1)]), 32, "ends at"),
    ],
)
def test_bad_capability_chains_are_refused(chain: bytes, cap_offset: int, fault: str) -> None:
    payload = region_info(MAPPABLE | RegionFlags.CAPS, 0x4000, chain, cap_offset)
    with pytest.raises(ProtocolError, match=fault):
        protocol.parse_region_info(payload)


@given(st.binary(max_size=128))
def test_arbitrary_region_info_parses_or_is_refused(payload: bytes) -> None:
    try:
        reply = protocol.parse_region_info(payload)
    except ProtocolError:
        return
    assert all(area.end <= reply.size for area in reply.areas)
