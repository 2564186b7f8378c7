"""The file of a recorded session, and what is made of a hostile one; pages; the stepped loop."""

from __future__ import annotations

import asyncio
import json
import zlib
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vdcm.errors import DmaError, RecordingError
from vdcm.pasid import Page
from vdcm.recording import replay
from vdcm.recording.format import (
    BLOCK,
    FIELDS,
    START,
    Kind,
    Reader,
    Record,
    Writer,
    decode,
    encode,
)
from vdcm.recording.pages import Pages
from vdcm.recording.stepper import SteppedLoop
from vdcm.transport import DmaRange, GuestMemory

HEADER = {
    "clock": 1_000_000,
    "vdev": {"name": "gpio0", "type": "pcie-idio-16", "parents": ["idio16"]},
    "parents": [{"name": "idio16", "model": "idio16", "properties": {}}],
}
NUMBERS = st.integers(0, (1 << 64) - 1)
VALUES = {int: NUMBERS, str: st.text(max_size=40), bytes: st.binary(max_size=200)}
RECORDS = st.sampled_from(sorted(FIELDS)).flatmap(
    lambda kind: st.tuples(*(VALUES[one] for one in FIELDS[kind].values())).map(
        lambda values: Record(kind, values)
    )
)


def write(path: Path, *records: Record, header: dict[str, object] | None = None) -> Path:
    path.unlink(missing_ok=True)
    writer = Writer(path, header or HEADER, 1 << 30)
    for record in records:
        writer.add(record)
        writer.flush()
    writer.close()
    return path


SESSION = (
    Record(Kind.ATTACH, (10,)),
    Record(Kind.WRITE, (20, 2, 0, 1, 0x20)),
    Record(Kind.READ, (30, 2, 0, 1)),
    Record(Kind.ANSWER, (0x20,)),
    Record(Kind.DETACH, (40,)),
    Record(Kind.END, (50, "ended")),
)


@given(st.lists(RECORDS, max_size=20))
def test_records_are_read_as_they_were_written(records: list[Record]) -> None:
    data = b"".join(map(encode, records))
    assert list(decode(data, len(records))) == records


@given(st.binary(max_size=300), st.integers(0, 40))
def test_what_is_no_record_is_refused(data: bytes, count: int) -> None:
    try:
        found = list(decode(data, count))
    except ValueError:
        return
    assert len(found) == count


def test_a_session_is_replayed(tmp_path: Path) -> None:
    outcome = replay(write(tmp_path / "one", *SESSION))
    assert outcome.difference is None
    assert outcome.good == len(SESSION) + 1 and outcome.counts["write"] == 1


def test_the_first_difference_is_said_by_name(tmp_path: Path) -> None:
    changed = [*SESSION[:3], Record(Kind.ANSWER, (0x30,)), *SESSION[4:]]
    outcome = replay(write(tmp_path / "one", *changed))
    assert outcome.difference is not None
    said = str(outcome.difference)
    assert "the answer differs at record 4" in said
    assert "the guest reads BAR2+0x00 OUT_LOW" in said
    assert "recorded  0x30" in said and "now       0x20" in said
    assert "the guest writes BAR2+0x00 OUT_LOW = 0x20" in said


def test_an_interrupt_that_is_missing_is_a_difference(tmp_path: Path) -> None:
    changed = [*SESSION[:2], Record(Kind.INTERRUPT, ("INTX", 0, "delivered")), *SESSION[2:]]
    outcome = replay(write(tmp_path / "one", *changed))
    assert outcome.difference is not None
    assert outcome.difference.what == "an interrupt"
    assert outcome.difference.recorded == "INTX 0 delivered" and outcome.difference.now == "nothing"


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_file_that_is_cut_short_says_where(tmp_path: Path, data: st.DataObject) -> None:
    whole = write(tmp_path / "one", *SESSION).read_bytes()
    size = data.draw(st.integers(0, len(whole) - 1))
    cut = tmp_path / "cut"
    cut.write_bytes(whole[:size])
    with pytest.raises(RecordingError) as refused:
        replay(cut)
    if size >= START.size:
        assert f"ends at byte {size}" in str(refused.value)
        assert "records" in str(refused.value)


def test_of_a_file_that_is_cut_short_the_good_part_can_be_replayed(tmp_path: Path) -> None:
    whole = write(tmp_path / "one", *SESSION).read_bytes()
    cut = tmp_path / "cut"
    cut.write_bytes(whole[:-1])
    outcome = replay(cut, partial=True)
    assert outcome.difference is None and outcome.good == len(SESSION)


@given(st.data())
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60
)
def test_a_hostile_session_is_replayed_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever its records say, the model's process does not suffer by it."""
    small = st.sampled_from([0, 1, 2, 3, 4, 6, 8, 0x10, 0xFFF, 1 << 32, (1 << 64) - 1])
    records = []
    for at in range(data.draw(st.integers(0, 12))):
        kind = data.draw(st.sampled_from([kind for kind in FIELDS if kind is not Kind.HEADER]))
        values = [data.draw(small if one is int else VALUES[one]) for one in FIELDS[kind].values()]
        if "time" in FIELDS[kind]:
            values[0] = at
        if kind is Kind.LOOP:
            values[2] = 0  # what other threads are to do is waited for
        records.append(Record(kind, tuple(values)))
    path = write(tmp_path / "one", SESSION[0], *records)
    with suppress(RecordingError):
        replay(path, partial=data.draw(st.booleans()))


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({}, "makes no sense"),
        ({**HEADER, "clock": -1}, "makes no sense"),
        ({**HEADER, "parents": 7}, "makes no sense"),
        ({**HEADER, "parents": [{"name": "a", "model": "no", "properties": {}}]}, "no device"),
        ({**HEADER, "vdev": {"name": "x", "type": "no", "parents": ["idio16"]}}, "no type"),
        (
            {
                "clock": 1,
                "vdev": {"name": "x", "type": "nvme", "parents": ["nvme"]},
                "parents": [
                    {
                        "name": "nvme",
                        "model": "nvme",
                        "properties": {"store": "file:/dev/shm/vdcm-test.img"},
                    }
                ],
            },
            "touches no files",
        ),
    ],
)
def test_a_header_that_cannot_be_is_refused(
    tmp_path: Path, header: dict[str, object], said: str
) -> None:
    path = tmp_path / "one"
    writer = Writer(path, header, 1 << 30)
    writer.add(Record(Kind.END, (0, "")))
    writer.close()
    with pytest.raises(RecordingError, match=said):
        replay(path)
    assert not Path("/dev/shm/vdcm-test.img").exists()


def test_a_foreign_file_and_one_of_another_version_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "one"
    path.write_text(json.dumps(HEADER))
    with pytest.raises(RecordingError, match="is no record of a session"):
        replay(path)
    path.write_bytes(START.pack(b"vdcmrec\n", 7, 0))
    with pytest.raises(RecordingError, match="a record of version 7"):
        replay(path)
    with pytest.raises(RecordingError, match="No such file"):
        replay(tmp_path / "none")


def test_a_block_that_grows_beyond_what_it_says_is_refused(tmp_path: Path) -> None:
    data = zlib.compress(bytes(1 << 24))
    path = tmp_path / "one"
    path.write_bytes(
        START.pack(b"vdcmrec\n", 1, 0) + BLOCK.pack(len(data), 100, 1, zlib.crc32(data)) + data
    )
    with pytest.raises(RecordingError, match="0 records"):
        Reader(path).check()


class Guest:
    """Two pages of memory."""

    def __init__(self) -> None:
        self.memory = bytearray(2 * Page.SIZE)
        self.put_at: list[int] = []
        self.native = GuestMemory().native
        self.ranges: list[DmaRange] = []

    def read(self, iova: int, length: int) -> bytes:
        return bytes(self.memory[iova : iova + length])

    def write(self, iova: int, data: bytes) -> None:
        self.memory[iova : iova + len(data)] = data

    def page(self, address: int, *, write: bool) -> bytes:
        if address >= len(self.memory):
            raise DmaError(f"nothing at {address:#x}, to be {'written' if write else 'read'}")
        return self.read(address, Page.SIZE)

    def put(self, iova: int, data: bytes) -> None:
        self.put_at.append(iova)
        self.write(iova, data)


def test_what_a_step_changes_comes_to_the_guest_completion_last() -> None:
    guest, pages = Guest(), Pages()
    pages.backing = guest
    record = pages.reach(0, write=True)
    data = pages.reach(Page.SIZE, write=True)
    data.data[0:4096] = bytes([7]) * 4096
    pages.reach(0, write=True)  # again: it is what was written last
    record.data[64:88] = bytes([1]) * 24
    assert guest.memory == bytes(2 * Page.SIZE)
    guest.memory[100] = 9  # the guest's own, meanwhile
    pages.flush()
    assert guest.put_at == [Page.SIZE, 80, 72, 64]
    assert guest.memory[Page.SIZE :] == bytes([7]) * 4096
    assert guest.memory[64:88] == bytes([1]) * 24 and guest.memory[100] == 9
    with pytest.raises(DmaError):
        pages.reach(5 * Page.SIZE, write=False)


def test_the_stepped_loop_runs_what_is_due_in_order() -> None:
    woken: list[int] = []
    loop = SteppedLoop(woken.append)
    seen: list[str] = []
    with loop.running(1_000):
        running = asyncio.get_running_loop()
        running.call_later(1.0, seen.append, "late")
        running.call_later(0.5, seen.append, "later").cancel()
        running.call_soon(seen.append, "soon")
        running.call_soon_threadsafe(seen.append, "thread")
    assert woken == [1_000_000_000, 500_000_000, 0, 0]
    assert loop.due(2_000) == (1, 1)
    assert loop.run(1, 1) and seen == ["soon", "thread"]
    assert loop.due(2_000_000_000) == (2, 0)
    assert not loop.run(3, 0)
    assert loop.run(2, 0) and seen == ["soon", "thread", "late"]
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
