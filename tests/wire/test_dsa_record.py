"""What somebody sees who looks at completion records all the time: the status comes last."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from dsa_client import ARENA, BATCH, LIMITED, REQUEST, TIMEOUT, VALID, DsaClient
from dsa_lab import Lab
from dsa_machine import descriptor

from vdcm_devices.dsa._fastpath import lib

MIB = 1 << 20
RECORD = 32
SIZE = 64
MEMBERS = 256
LOOKS = 20_000  # at records of which some are there


@pytest.fixture
def dsa(tmp_path: Path) -> Iterator[DsaClient]:
    """Its portals are direct, and its engine has another CPU than the test: it works while
    somebody looks."""
    cpus = os.sched_getaffinity(0)
    if len(cpus) < 2:
        pytest.skip("needs two CPUs")
    lab = Lab(tmp_path)
    dsa = lab.client(lab.vdev(portals="direct"), arena=MIB)
    dsa.start()
    mine = threading.get_native_id()
    threads = [int(path.name) for path in Path("/proc/self/task").iterdir()]
    for thread in threads:
        with suppress(ProcessLookupError):
            os.sched_setaffinity(thread, {min(cpus)} if thread == mine else cpus - {min(cpus)})
    yield dsa
    lab.close()
    os.sched_setaffinity(0, cpus)


def test_all_of_a_record_is_there_when_its_status_is(dsa: DsaClient) -> None:
    """The records of a batch lie side by side and are read in one go, forwards, again and again: up
    to the first one without a status all must be complete. A CRC is in a record's last half."""
    memory = dsa.memory
    source = memory.put(bytes(range(SIZE)))
    records = memory.take(MEMBERS * RECORD)
    listed = memory.put(
        b"".join(
            descriptor(
                lib.DSA_OP_CRC,
                VALID | REQUEST,
                completion=records + RECORD * member,
                source=source,
                size=SIZE,
                specific=struct.pack("<I", 0),
            )
            for member in range(MEMBERS)
        )
    )
    batch, record = dsa.prepare(BATCH, source=listed, size=MEMBERS)
    view = memory.buffer.view[records - ARENA : records - ARENA + MEMBERS * RECORD]
    assert dsa.submit(0, batch) and dsa.wait(record).status == 1
    complete = view.tobytes()
    assert complete == complete[:RECORD] * MEMBERS
    assert complete[0] == 1 and complete[16:20] != bytes(4)

    looks = 0
    deadline = time.monotonic() + TIMEOUT
    while looks < LOOKS and time.monotonic() < deadline:
        view[:] = bytes(len(view))
        memory.write(record, bytes(RECORD))
        dsa.rings[0, LIMITED].post(batch)
        there = 0
        while there < MEMBERS and time.monotonic() < deadline:
            seen = view.tobytes()
            there = (seen[::RECORD] + b"\0").find(0)
            assert seen[: there * RECORD] == complete[: there * RECORD]
            looks += 0 < there < MEMBERS
        dsa.wait(record)
    assert looks, "the engine was never seen at work"
