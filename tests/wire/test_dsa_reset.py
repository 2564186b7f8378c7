"""Resets of a virtual DSA with work in flight: they have an end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from dsa_client import MOVE, NOOP, DsaClient
from dsa_lab import PORTALS, Lab

from vdcm.client import Client

MIB = 1 << 20


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.close()


def function_level_reset(client: Client) -> None:
    at = client.config.find(0x10)
    assert at is not None
    client.config.write(at + 8, 2, 0x8000)


def moves(dsa: DsaClient, count: int, size: int) -> tuple[list[int], int, int]:
    """Completion records of moves under way, and their common source and destination."""
    source, target = dsa.memory.put(b"\1" * size), dsa.memory.take(size)
    records = []
    for _ in range(count):
        data, record = dsa.prepare(MOVE, source=source, destination=target, size=size, pasid=1)
        assert dsa.submit(0, data)
        records.append(record)
    return records, source, target


@pytest.mark.conformance("R2.7-5", "R2.7-6")
@pytest.mark.parametrize("portals", PORTALS)
def test_nothing_is_read_or_written_once_a_reset_has_returned(lab: Lab, portals: str) -> None:
    dsa, other = lab.started(portals=portals), lab.started()
    for turn in range(10):
        records, source, target = moves(dsa, 8, MIB)
        function_level_reset(dsa.client)
        # A read to come would find other bytes, and its write would show them.
        dsa.memory.write(source, b"\2" * MIB)
        dsa.memory.write(target, b"\3" * MIB)
        done = [dsa.completion(record).status for record in records]
        assert other.run(0, NOOP).status == 1  # the sweep has gone round meanwhile
        assert dsa.memory.read(target, MIB) == b"\3" * MIB, f"turn {turn}"
        assert [dsa.completion(record).status for record in records] == done
        dsa.memory.rewind()
        dsa.start()
