"""One of every operation on known data, and what it leaves behind: for comparing ways to submit."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass
from typing import Any

from dsa_client import OPERATIONS, DsaClient
from dsa_machine import Completion, descriptor

PASID = 9
SIZE = 5000
_DIF_TAGS = struct.pack("<IHH", 0x1000, 0xFFFF, 0)


@dataclass(frozen=True)
class Outcome:
    """Of one operation: its completion record, and the memory that it may have written."""

    name: str
    completion: Completion
    written: tuple[bytes, ...]


def run_program(dsa: DsaClient, wq: int) -> list[Outcome]:
    """All operations, in the same places of the arena each time, with the same data."""
    memory, known = dsa.memory, random.Random(7)
    memory.rewind()
    memory.take(4096)
    outcomes: list[Outcome] = []

    def run(name: str, *written: tuple[int, int], specific: bytes = b"", **fields: Any) -> None:
        flags = fields.pop("flags", 0)
        completion = dsa.run(wq, OPERATIONS[name], flags, pasid=PASID, specific=specific, **fields)
        outcomes.append(
            Outcome(name, completion, tuple(memory.read(at, size) for at, size in written))
        )

    data = known.randbytes(SIZE)
    source = memory.put(data)
    other = memory.put(data[:4000] + bytes([data[4000] ^ 1]) + data[4001:])
    target = memory.take(SIZE)
    twin = memory.take(SIZE, 4096) + (target & 0xFFF)
    memory.take(8192)

    run("NOOP")
    run("MEMORY_MOVE", (target, SIZE), source=source, destination=target, size=SIZE)
    run("FILL", (target, 1000), source=0x1122334455667788, destination=target, size=1000)
    run("COMPARE", source=source, destination=other, size=SIZE)
    run("COMPARE", source=source, destination=other, size=4000)
    run("COMPARE_PATTERN", source=target, destination=0x1122334455667788, size=1000)
    run("COMPARE_PATTERN", source=target, destination=0x1122334455667788, size=1001)

    record = memory.take(4096)
    create = struct.pack("<QII", record, 800, 0)
    run(
        "CREATE_DELTA",
        (record, 800),
        source=source,
        destination=other,
        size=4992,
        specific=create,
    )
    length = struct.unpack("<I", outcomes[-1].completion.specific[:4])[0]
    patched = memory.put(data)
    run(
        "APPLY_DELTA",
        (patched, SIZE),
        source=record,
        destination=patched,
        size=4992,
        specific=struct.pack("<I", length),
    )
    run(
        "DUALCAST",
        (target, SIZE),
        (twin, SIZE),
        source=source,
        destination=target,
        size=SIZE,
        specific=struct.pack("<Q", twin),
    )
    run("CRC", source=source, size=SIZE, specific=struct.pack("<I", 0))
    run("COPY_CRC", (target, SIZE), source=other, destination=target, size=SIZE)

    protected, again = memory.take(2 * 520), memory.take(2 * 520)
    run(
        "DIF_INSERT",
        (protected, 2 * 520),
        source=source,
        destination=protected,
        size=1024,
        specific=bytes(16) + _DIF_TAGS,
    )
    run("DIF_CHECK", source=protected, size=1040, specific=bytes(8) + _DIF_TAGS)
    run(
        "DIF_UPDATE",
        (again, 2 * 520),
        source=protected,
        destination=again,
        size=1040,
        specific=bytes(8) + _DIF_TAGS + struct.pack("<IHH", 0x2000, 0, 0x77),
    )
    run(
        "DIF_STRIP",
        (target, 1024),
        source=protected,
        destination=target,
        size=1040,
        specific=bytes(8) + _DIF_TAGS,
    )
    memory.write(protected + 100, b"\xff\xfe")
    run("DIF_CHECK", source=protected, size=1040, specific=bytes(8) + _DIF_TAGS)

    records = [memory.take(32, 32) for _ in range(3)]
    places = [memory.take(700) for _ in range(3)]
    batch = b"".join(
        descriptor(
            OPERATIONS["MEMORY_MOVE"],
            0xC,
            completion=record,
            source=source + 10 * index,
            destination=place,
            size=700,
        )
        for index, (record, place) in enumerate(zip(records, places, strict=True))
    )
    run(
        "BATCH",
        *((place, 700) for place in places),
        *((record, 32) for record in records),
        source=memory.put(batch),
        size=3,
    )
    run("CACHE_FLUSH", destination=target, size=SIZE)
    run("DRAIN")
    run("MEMORY_MOVE", flags=0x800000, source=source, destination=target, size=SIZE)
    return outcomes


def check_program(outcomes: list[Outcome]) -> None:
    """What can be said of it without a DSA."""
    data = random.Random(7).randbytes(SIZE)
    by_name: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_name.setdefault(outcome.name, []).append(outcome)
    assert set(by_name) == set(OPERATIONS)
    move, refused = by_name["MEMORY_MOVE"]
    assert move.written == (data,)
    assert refused.completion.status == 0x11, "a flag that there is not"
    assert by_name["FILL"][0].written == ((0x1122334455667788).to_bytes(8, "little") * 125,)
    differs, equal = by_name["COMPARE"]
    assert (differs.completion.result, differs.completion.completed) == (1, 4000)
    assert equal.completion.result == 0
    assert [outcome.completion.result for outcome in by_name["COMPARE_PATTERN"]] == [0, 1]
    other = data[:4000] + bytes([data[4000] ^ 1]) + data[4001:]
    assert by_name["APPLY_DELTA"][0].written == (other,)
    assert by_name["DUALCAST"][0].written == (data, data)
    assert by_name["COPY_CRC"][0].written == (other,)
    inserted = by_name["DIF_INSERT"][0].written[0]
    assert inserted[:512] + inserted[520:1032] == data[:1024]
    assert by_name["DIF_STRIP"][0].written == (data[:1024],)
    right, wrong = by_name["DIF_CHECK"]
    assert (right.completion.status, wrong.completion.status) == (1, 9)
    batch = by_name["BATCH"][0]
    assert batch.written[:3] == tuple(data[10 * i : 10 * i + 700] for i in range(3))
    assert [record[0] for record in batch.written[3:]] == [1, 1, 1]
    good = [o for o in outcomes if o not in (wrong, refused)]
    assert [(o.name, o.completion.status) for o in good] == [(o.name, 1) for o in good]
