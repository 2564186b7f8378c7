"""Admin commands of the virtual NVMe controller, each with what it refuses (NVM Express 1.4, 5)."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nvme_host import (
    ABORT,
    CREATE_CQ,
    CREATE_SQ,
    DBBUF,
    DELETE_CQ,
    DELETE_SQ,
    EVENT,
    FORMAT,
    GET,
    IDENTIFY,
    LOG,
    PAGE,
    READ,
    SET,
    WRITE,
)
from nvme_vdev import RAM, SIZE, Machine

OUTSIDE = RAM + SIZE
ALL = 0xFFFF_FFFF


@pytest.fixture(scope="module")
def started() -> Iterator[Machine]:
    """For tests that leave it as it was: ready, with completion queue 5 and submission queue 6."""
    machine = Machine(namespaces=2)
    machine.enable()
    machine.create_cq(5)
    machine.create_queue(6, cqid=5)
    yield machine
    machine.close()


@pytest.fixture
def shared(started: Machine) -> Iterator[Machine]:
    with started.borrowed():
        yield started


@pytest.fixture
def nvme() -> Iterator[Machine]:
    machine = Machine()
    machine.enable()
    yield machine
    machine.close()


# Status codes: opcode, fields, status type and code. ``prp1`` is good where none is given.

REFUSED: dict[str, tuple[int, dict[str, Any], int]] = {
    "opcode": (0x7F, {}, 0x001),
    "namespace management": (0x0D, {}, 0x001),
    "firmware commit": (0x10, {}, 0x001),
    "firmware download": (0x11, {}, 0x001),
    "self-test": (0x14, {}, 0x001),
    "namespace attachment": (0x15, {}, 0x001),
    "keep alive": (0x18, {}, 0x001),
    "security receive": (0x82, {}, 0x001),
    "sanitize": (0x84, {}, 0x001),
    "fused": (IDENTIFY, {"cdw10": 1, "flags": 1}, 0x002),
    "SGL": (IDENTIFY, {"cdw10": 1, "flags": 0x40}, 0x002),
    "PRP1 offset": (IDENTIFY, {"cdw10": 1, "prp1": RAM + 2}, 0x013),
    "PRP2 offset": (IDENTIFY, {"cdw10": 1, "prp1": RAM + 8, "prp2": RAM + 8}, 0x013),
    "no memory": (IDENTIFY, {"cdw10": 1, "prp1": OUTSIDE}, 0x004),
    "no memory for the rest": (IDENTIFY, {"cdw10": 1, "prp1": RAM + 8, "prp2": OUTSIDE}, 0x004),
    "identify what": (IDENTIFY, {"cdw10": 0x04}, 0x002),
    "identify no namespace": (IDENTIFY, {"cdw10": 0, "nsid": 0}, 0x00B),
    "identify namespace 3": (IDENTIFY, {"cdw10": 0, "nsid": 3}, 0x00B),
    "identify all": (IDENTIFY, {"cdw10": 0, "nsid": ALL}, 0x00B),
    "descriptors of namespace 3": (IDENTIFY, {"cdw10": 3, "nsid": 3}, 0x00B),
    "list after the last": (IDENTIFY, {"cdw10": 2, "nsid": ALL - 1}, 0x00B),
    "controllers of namespace 3": (IDENTIFY, {"cdw10": 0x12, "nsid": 3}, 0x00B),
    "CQ 0": (CREATE_CQ, {"cdw10": 15 << 16, "cdw11": 1}, 0x101),
    "CQ beyond the last": (CREATE_CQ, {"cdw10": 9 | 15 << 16, "cdw11": 1}, 0x101),
    "CQ in use": (CREATE_CQ, {"cdw10": 5 | 15 << 16, "cdw11": 1}, 0x101),
    "CQ of one entry": (CREATE_CQ, {"cdw10": 1, "cdw11": 1}, 0x102),
    "CQ too long": (CREATE_CQ, {"cdw10": 1 | 4096 << 16, "cdw11": 1}, 0x102),
    "CQ in pieces": (CREATE_CQ, {"cdw10": 1 | 15 << 16}, 0x002),
    "CQ not aligned": (CREATE_CQ, {"cdw10": 1 | 15 << 16, "cdw11": 1, "prp1": RAM + 64}, 0x013),
    "CQ of no vector": (CREATE_CQ, {"cdw10": 1 | 15 << 16, "cdw11": 1 | 9 << 16}, 0x108),
    "SQ 0": (CREATE_SQ, {"cdw10": 15 << 16, "cdw11": 1 | 5 << 16}, 0x101),
    "SQ beyond the last": (CREATE_SQ, {"cdw10": 9 | 15 << 16, "cdw11": 1 | 5 << 16}, 0x101),
    "SQ in use": (CREATE_SQ, {"cdw10": 6 | 15 << 16, "cdw11": 1 | 5 << 16}, 0x101),
    "SQ of one entry": (CREATE_SQ, {"cdw10": 1, "cdw11": 1 | 5 << 16}, 0x102),
    "SQ too long": (CREATE_SQ, {"cdw10": 1 | 4096 << 16, "cdw11": 1 | 5 << 16}, 0x102),
    "SQ in pieces": (CREATE_SQ, {"cdw10": 1 | 15 << 16, "cdw11": 5 << 16}, 0x002),
    "SQ not aligned": (
        CREATE_SQ,
        {"cdw10": 1 | 15 << 16, "cdw11": 1 | 5 << 16, "prp1": RAM + 64},
        0x013,
    ),
    "SQ of CQ 0": (CREATE_SQ, {"cdw10": 1 | 15 << 16, "cdw11": 1}, 0x101),
    "SQ of CQ beyond": (CREATE_SQ, {"cdw10": 1 | 15 << 16, "cdw11": 1 | 9 << 16}, 0x101),
    "SQ of no CQ": (CREATE_SQ, {"cdw10": 1 | 15 << 16, "cdw11": 1 | 4 << 16}, 0x100),
    "delete SQ 0": (DELETE_SQ, {}, 0x101),
    "delete no SQ": (DELETE_SQ, {"cdw10": 5}, 0x101),
    "delete CQ 0": (DELETE_CQ, {}, 0x101),
    "delete no CQ": (DELETE_CQ, {"cdw10": 6}, 0x101),
    "delete a CQ in use": (DELETE_CQ, {"cdw10": 5}, 0x10C),
    "log of what": (LOG, {"cdw10": 0x07 | 0x7F << 16}, 0x109),
    "log of a namespace": (LOG, {"cdw10": 0x02 | 0x7F << 16, "nsid": 1}, 0x002),
    "log from beyond its end": (LOG, {"cdw10": 0x02 | 0x7F << 16, "cdw12": 516}, 0x002),
    "log from an odd place": (LOG, {"cdw10": 0x02 | 0x7F << 16, "cdw12": 2}, 0x002),
    "log from far beyond": (LOG, {"cdw10": 0x02 | 0x7F << 16, "cdw13": 1}, 0x002),
    "log too long": (LOG, {"cdw10": 0x02 | 0xFFFF << 16, "cdw11": 0xFFFF}, 0x002),
    "log of a UUID": (LOG, {"cdw10": 0x02 | 0x7F << 16, "cdw14": 1}, 0x002),
    "get what": (GET, {"cdw10": 0x7F}, 0x002),
    "get which": (GET, {"cdw10": 0x02 | 4 << 8}, 0x002),
    "get of namespace 3": (GET, {"cdw10": 0x02, "nsid": 3}, 0x00B),
    "get recovery of all": (GET, {"cdw10": 0x05, "nsid": ALL}, 0x00B),
    "get of no vector": (GET, {"cdw10": 0x09, "cdw11": 9}, 0x002),
    "get of no sensor": (GET, {"cdw10": 0x04, "cdw11": 1 << 16}, 0x002),
    "get timestamp nowhere": (GET, {"cdw10": 0x0E, "prp1": OUTSIDE}, 0x004),
    "set what": (SET, {"cdw10": 0x7F}, 0x002),
    "set and save": (SET, {"cdw10": 1 << 31 | 0x02}, 0x10D),
    "set of a namespace": (SET, {"cdw10": 0x02, "nsid": 1}, 0x10F),
    "set of namespace 3": (SET, {"cdw10": 0x02, "nsid": 3}, 0x00B),
    "set of a UUID": (SET, {"cdw10": 0x02, "cdw14": 1}, 0x002),
    "set recovery of none": (SET, {"cdw10": 0x05}, 0x00B),
    "set DULBE": (SET, {"cdw10": 0x05, "nsid": 1, "cdw11": 1 << 16}, 0x002),
    "set power state 1": (SET, {"cdw10": 0x02, "cdw11": 1}, 0x002),
    "set no sensor": (SET, {"cdw10": 0x04, "cdw11": 1 << 16}, 0x002),
    "set no threshold": (SET, {"cdw10": 0x04, "cdw11": 2 << 20}, 0x002),
    "set queues too late": (SET, {"cdw10": 0x07, "cdw11": 1}, 0x00C),
    "set no vector": (SET, {"cdw10": 0x09, "cdw11": 9}, 0x002),
    "set timestamp nowhere": (SET, {"cdw10": 0x0E, "prp1": OUTSIDE}, 0x004),
    "abort in no queue": (ABORT, {"cdw10": 5}, 0x002),
    "format nothing": (FORMAT, {}, 0x00B),
    "format namespace 3": (FORMAT, {"nsid": 3}, 0x00B),
    "format 2": (FORMAT, {"nsid": 1, "cdw10": 2}, 0x10A),
    "format with metadata": (FORMAT, {"nsid": 1, "cdw10": 1 << 4}, 0x10A),
    "format with protection": (FORMAT, {"nsid": 1, "cdw10": 1 << 5}, 0x10A),
    "cryptographic erase": (FORMAT, {"nsid": 1, "cdw10": 2 << 9}, 0x002),
    "doorbells nowhere": (DBBUF, {"prp1": 0, "prp2": RAM}, 0x002),
    "doorbells not aligned": (DBBUF, {"prp1": RAM, "prp2": RAM + 64}, 0x002),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(shared: Machine, name: str) -> None:
    opcode, fields, status = REFUSED[name]
    before = len(shared.vdev.adis), shared.vdev.controller.errors.count
    fields = {"prp1": shared.take(2 * PAGE), **fields}
    completion = shared.admin(opcode, **fields)
    assert hex(completion.status) == hex(status)
    assert completion.more and completion.final
    assert (len(shared.vdev.adis), shared.vdev.controller.errors.count - 1) == before
    # The log has it first.
    entry = struct.unpack_from("<QHHHHQI", shared.log(1, 64))
    count, sqid, _, logged, location, lba, nsid = entry
    assert count == shared.vdev.controller.errors.count
    assert (sqid, logged >> 1 & 0x7FF, lba, nsid) == (0, status, 0, fields.get("nsid", 0))
    assert location == 0xFFFF or location & 0xFF < 64


def test_doorbell_buffers_are_for_the_shadow_mode_only() -> None:
    machine = Machine(doorbells="direct")
    machine.enable()
    assert machine.admin(DBBUF, prp1=machine.take(PAGE), prp2=machine.take(PAGE)).status == 0x001
    assert not struct.unpack_from("<H", machine.identify(1), 256)[0] >> 8 & 1
    assert not machine.log(5, 4096)[4 * DBBUF]
    machine.close()


# Identify


def test_identify_controller(shared: Machine) -> None:
    data = shared.identify(1)
    vendor, _ = struct.unpack_from("<HH", data)
    assert vendor == shared.vdev.config.space.read(0, 2)
    assert data[4:24] == shared.vdev.facts().serial.encode().ljust(20)
    assert data[24:64].rstrip() == b"vdcm NVMe controller"
    assert struct.unpack_from("<I", data, 80)[0] == shared.register(8) == 0x10400
    assert data[77] == 8  # 1 MiB
    assert data[111] == 1
    oacs, abort_limit, event_limit = struct.unpack_from("<HBB", data, 256)
    assert oacs == 1 << 1 | 1 << 8
    assert (abort_limit, event_limit) == (3, 3)
    assert data[512:514] == b"\x66\x44"
    assert struct.unpack_from("<I", data, 516)[0] == 2
    assert data[525] & 1  # a volatile write cache
    name = data[768:1024].rstrip(b"\0").decode()
    assert name.startswith("nqn.2014-08.org.nvmexpress:uuid:")
    # What is said to be there is there, and nothing else is.
    effects = struct.unpack("<256I", shared.log(5, 4096)[:1024])
    for opcode, effect in enumerate(effects):
        if not effect & 1:
            assert shared.admin(opcode).status == 0x001
    assert effects[FORMAT] & 0b110 == 0b110


def test_identify_namespaces(shared: Machine) -> None:
    for nsid in (1, 2):
        data = shared.identify(0, nsid)
        assert struct.unpack_from("<QQQ", data) == (2048, 2048, 2048)
        assert data[25:27] == b"\x01\x00"
        assert struct.unpack_from("<II", data, 128) == (9 << 16, 12 << 16)
        assert shared.identify(0x11, nsid) == data
        kind, length, uuid = struct.unpack_from("<BBxx16s", shared.identify(3, nsid))
        assert (kind, length) == (3, 16)
        assert uuid == shared.vdev.all_namespaces.facts(nsid).uuid.bytes
    for cns in (0x02, 0x10):
        assert struct.unpack_from("<3I", shared.identify(cns)) == (1, 2, 0)
        assert struct.unpack_from("<2I", shared.identify(cns, 1)) == (2, 0)
        assert not any(shared.identify(cns, 2))
    for nsid, cns in ((1, 0x12), (0, 0x13)):
        assert struct.unpack_from("<HH", shared.identify(cns, nsid)) == (1, 1)
        assert not any(shared.identify(cns, nsid, 2 << 16))


# Features


@pytest.mark.parametrize(
    ("feature", "value", "default", "kept"),
    [
        (0x01, 0x1234_5602, 7, 0x1234_5602),
        (0x02, 0x20, 0, 0x20),
        (0x04, 0x140, 343, 0x140),
        (0x04, 1 << 20 | 0x111, 0, 0x111),
        (0x06, 0, 1, 0),
        (0x08, 0x0A03, 0, 0x0A03),
        (0x09, 1 << 16 | 3, 3, 1 << 16 | 3),
        (0x0A, 1, 0, 1),
        (0x0B, 0xFFFF_FFFF, 0, 0x11F),
    ],
)
def test_a_feature(nvme: Machine, feature: int, value: int, default: int, kept: int) -> None:
    which = value if feature in (4, 9) else 0  # a part of the question

    def get(select: int) -> int:
        return nvme.expect(GET, cdw10=feature | select << 8, cdw11=which)

    assert [get(select) for select in range(4)] == [default, default, default, 4]
    nvme.expect(SET, cdw10=feature, cdw11=value)
    assert [get(select) for select in range(3)] == [kept, default, default]
    nvme.disable()
    nvme.enable()
    assert get(0) == default


def test_error_recovery_is_of_a_namespace() -> None:
    nvme = Machine(namespaces=2)
    nvme.enable()

    def get(nsid: int) -> int:
        return nvme.expect(GET, cdw10=5, nsid=nsid)

    assert nvme.expect(GET, cdw10=5 | 3 << 8) == 4 | 2
    nvme.expect(SET, cdw10=5, cdw11=10, nsid=2)
    assert (get(1), get(2)) == (0, 10)
    nvme.expect(SET, cdw10=5, cdw11=20, nsid=ALL)
    assert (get(1), get(2)) == (20, 20)
    nvme.close()


def test_the_number_of_queues_is_what_there_is(nvme: Machine) -> None:
    for wanted in (0, 0x0003_0003, 0x0040_0040, 0x0004_0000):
        assert nvme.expect(SET, cdw10=7, cdw11=wanted) == 7 << 16 | 7
    for wanted in (0xFFFF, 0xFFFF_0000):
        assert nvme.admin(SET, cdw10=7, cdw11=wanted).status == 0x002
    assert nvme.expect(GET, cdw10=7) == 7 << 16 | 7


def test_the_timestamp_goes_on(nvme: Machine) -> None:
    data = nvme.data_in(GET, 8, cdw10=0x0E)
    assert int.from_bytes(data[:6], "little") < 60_000 and data[6] == 0
    address = nvme.take(8)
    nvme.poke(address, struct.pack("<Q", 1_700_000_000_000))
    nvme.expect(SET, cdw10=0x0E, prp1=address)
    data = nvme.data_in(GET, 8, cdw10=0x0E)
    assert 0 <= int.from_bytes(data[:6], "little") - 1_700_000_000_000 < 60_000
    assert data[6] == 1 << 1


@pytest.mark.parametrize("size", [8, 16])
def test_the_host_identifier(nvme: Machine, size: int) -> None:
    address = nvme.take(16)
    nvme.poke(address, bytes(range(1, 17)))
    nvme.expect(SET, cdw10=0x81, cdw11=size == 16, prp1=address)
    data = nvme.data_in(GET, 16, cdw10=0x81, cdw11=1)
    assert data == bytes(range(1, size + 1)).ljust(16, b"\0")


# Log pages


SIZES = {1: 4096, 2: 512, 3: 512, 4: 4096, 5: 4096}


@settings(max_examples=60)
@given(data=st.data())
def test_any_part_of_a_log_page(started: Machine, data: st.DataObject) -> None:
    page = data.draw(st.sampled_from(sorted(SIZES)))
    offset = 4 * data.draw(st.integers(0, SIZES[page] // 4))
    size = 4 * data.draw(st.integers(1, 2048))
    with started.borrowed():
        whole = started.log(page, SIZES[page], retain=True)
        part = started.log(page, size, offset, retain=True)
    assert part == whole[offset : offset + size].ljust(size, b"\0")


@settings(max_examples=60)
@given(
    offset=st.integers(0, PAGE // 4 - 1),
    size=st.integers(1, 64 * 1024 // 4),
    at=st.integers(0, 511),
)
def test_data_goes_where_the_prps_say(started: Machine, offset: int, size: int, at: int) -> None:
    """A log page of any length to any dword, with a list that begins anywhere in its page."""
    with started.borrowed():
        _check_prps(started, offset, size, at)


def _check_prps(shared: Machine, offset: int, size: int, at: int) -> None:
    offset, size = 4 * offset, 4 * size
    pages = [shared.take(PAGE) for _ in range(-(-(offset + size) // PAGE))][::-1]
    for page in pages:
        shared.poke(page, b"\xee" * PAGE)
    rest = pages[1:]
    prp2 = rest[0] if rest else 0
    if len(rest) > 1:
        lists = [shared.take(PAGE), shared.take(PAGE)]
        prp2 = lists[0] + 8 * at
        room = 512 - at
        first, second = (rest, []) if len(rest) <= room else (rest[: room - 1], rest[room - 1 :])
        shared.poke(prp2, struct.pack(f"<{len(first)}Q", *first))
        if second:
            shared.poke(prp2 + 8 * len(first), struct.pack("<Q", lists[1]))
            shared.poke(lists[1], struct.pack(f"<{len(second)}Q", *second))
    dwords = size // 4 - 1
    shared.expect(
        LOG, prp1=pages[0] + offset, prp2=prp2, cdw10=5 | 1 << 15 | dwords << 16, nsid=ALL
    )
    written = b"".join(shared.peek(page, PAGE) for page in pages)
    effects = shared.log(5, 4096, retain=True)
    assert written[:offset] == b"\xee" * offset
    assert written[offset : offset + size] == effects[:size].ljust(size, b"\0")
    assert not written[offset + size :].strip(b"\xee")


def test_the_health_log_counts(nvme: Machine) -> None:
    def numbers() -> list[int]:
        data = nvme.log(2, 512)
        return [int.from_bytes(data[at : at + 16], "little") for at in range(32, 192, 16)]

    assert nvme.log(2, 512)[:6] == b"\0" + struct.pack("<HBBB", 300, 100, 10, 0)
    assert numbers() == [0, 0, 0, 0, 0, 1, 0, 0, 0, 0]
    nvme.admin(0x7F)
    nvme.vdev.detached()  # without a shutdown
    nvme.attach()
    nvme.enable()
    assert numbers()[5:] == [2, 0, 1, 0, 1]
    nvme.shut_down()
    nvme.vdev.detached()
    nvme.attach()
    nvme.enable()
    assert numbers()[5:] == [3, 0, 1, 0, 1]


def test_the_firmware_log(shared: Machine) -> None:
    data = shared.log(3, 512)
    assert data[0] == 1 and data[8:16] == shared.identify(1)[64:72] and not any(data[16:])


# Asynchronous events, abort


def test_events_wait_for_requests_and_are_masked_until_their_log_is_read(nvme: Machine) -> None:
    queue = nvme.admin_queue
    nvme.expect(SET, cdw10=0x0B, cdw11=0x1FF)
    requests = [nvme.submit(queue, EVENT) for _ in range(4)]
    assert nvme.admin(EVENT).status == 0x105
    nvme.expect(SET, cdw10=4, cdw11=200)  # it is warmer than that
    completion = nvme.wait(queue, requests[0])
    assert completion.result == 1 | 1 << 8 | 2 << 16
    assert nvme.log(2, 512, retain=True)[0] == 1 << 1
    # Normal again, and too warm again: nobody hears of it, because the log has not been read.
    nvme.expect(SET, cdw10=4, cdw11=340)
    nvme.expect(SET, cdw10=4, cdw11=200)
    assert not nvme.completed(queue, requests[1])
    nvme.log(2, 512)
    assert not nvme.completed(queue, requests[1])
    nvme.expect(SET, cdw10=4, cdw11=340)
    nvme.expect(SET, cdw10=4, cdw11=200)
    assert nvme.wait(queue, requests[1]).result == 1 | 1 << 8 | 2 << 16
    # An event of another type is not held back by that.
    nvme.ring(2 * 8, 1)
    assert nvme.wait(queue, requests[2]).result == 0 | 0 << 8 | 1 << 16
    assert not nvme.completed(queue, requests[3])


def test_an_event_that_came_before_its_request(nvme: Machine) -> None:
    nvme.ring(0, 16)  # no such entry
    assert nvme.admin(EVENT).result == 0 | 1 << 8 | 1 << 16


def test_events_that_are_not_wanted(nvme: Machine) -> None:
    request = nvme.submit(nvme.admin_queue, EVENT)
    nvme.expect(SET, cdw10=4, cdw11=200)
    nvme.vdev.read_only = True
    assert not nvme.completed(nvme.admin_queue, request)


def test_a_namespace_that_changes_is_told_of(nvme: Machine) -> None:
    nvme.expect(SET, cdw10=0x0B, cdw11=0x100)
    request = nvme.submit(nvme.admin_queue, EVENT)
    nvme.bus.turn()
    assert not nvme.completed(nvme.admin_queue, request)
    nvme.vdev.read_only = True
    assert nvme.wait(nvme.admin_queue, request).result == 2 | 0 << 8 | 4 << 16
    assert nvme.identify(0, 1)[99] == 1
    assert struct.unpack_from("<2I", nvme.log(4, 4096, retain=True)) == (1, 0)
    assert struct.unpack_from("<2I", nvme.log(4, 4096)) == (1, 0)
    assert not any(nvme.log(4, 4096))
    assert nvme.admin(FORMAT, nsid=1).status == 0x020


def test_abort(nvme: Machine) -> None:
    request = nvme.submit(nvme.admin_queue, EVENT)
    assert nvme.expect(ABORT, cdw10=(request + 1) << 16) == 1
    assert nvme.expect(ABORT, cdw10=request << 16) == 0
    assert nvme.wait(nvme.admin_queue, request).status == 0x007
    assert nvme.expect(ABORT, cdw10=request << 16) == 1


# Format


def test_format_changes_the_block_size() -> None:
    nvme = Machine(namespaces=2)
    nvme.enable()
    nvme.expect(FORMAT, nsid=2, cdw10=1 | 1 << 9)
    assert nvme.identify(0, 1)[26] == 0
    assert nvme.identify(0, 2)[26] == 1
    assert struct.unpack_from("<Q", nvme.identify(0, 2))[0] == 256
    nvme.expect(FORMAT, nsid=ALL, cdw10=1)
    assert [nvme.identify(0, nsid)[26] for nsid in (1, 2)] == [1, 1]
    nvme.close()


# Whatever the guest sends


@settings(max_examples=200)
@given(
    entry=st.binary(min_size=64, max_size=64),
    opcode=st.sampled_from([*range(0x20), 0x7C, 0x80]),
)
def test_any_command_is_answered(fuzzed: Machine, entry: bytes, opcode: int) -> None:
    queue = fuzzed.admin_queue
    cid = struct.unpack_from("<H", entry, 2)[0]
    with fuzzed.borrowed():
        fuzzed.poke(queue.sq + 64 * queue.tail, bytes([opcode]) + entry[1:])
        queue.tail = (queue.tail + 1) % queue.entries
        fuzzed.ring(0, queue.tail)
        if opcode == EVENT and not fuzzed.completed(queue, cid):
            fuzzed.expect(ABORT, cdw10=cid << 16)
        fuzzed.wait(queue, cid)
        assert fuzzed.register(0x1C) == 1
        assert fuzzed.identify(1)[4:24].strip()


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[Machine]:
    machine = Machine()
    machine.enable()
    yield machine
    machine.close()


def test_memory_that_the_guest_lets_be_read_only_is_not_written(nvme: Machine) -> None:
    """Neither by an admin command nor by a queue; and what is written from there is."""
    fd = os.memfd_create("read-only")
    os.write(fd, b"mine" * (PAGE // 4))
    nvme.session.memory.map(OUTSIDE, PAGE, fd, writable=False)
    for opcode, fields in ((IDENTIFY, {"cdw10": 1}), (LOG, {"cdw10": 2 | 127 << 16})):
        assert nvme.admin(opcode, prp1=OUTSIDE, **fields).status == 0x004
    queue = nvme.create_queue(1)
    assert nvme.io(queue, READ, prp1=OUTSIDE, cdw12=7).status == 0x004
    assert nvme.io(queue, WRITE, prp1=OUTSIDE, cdw12=7).status == 0
    assert os.pread(fd, PAGE, 0) == b"mine" * (PAGE // 4)
    assert nvme.read(queue, 0, 8) == b"mine" * (PAGE // 4)
    os.close(fd)
