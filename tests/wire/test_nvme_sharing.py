"""Two NVMe VDEVs of one parent, while both have work, move bytes in the ratio of their weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from nvme_client import NvmeClient
from nvme_host import READ, Pair
from nvme_lab import MODES, STORES, Lab

ENTRIES = 2048
MIB = 1 << 20
ATTEMPTS = 5


def load(nvme: NvmeClient, qid: int, size: int) -> Pair:
    """A new queue, full of reads of ``size`` bytes that it has not been told of."""
    pair = nvme.create_queue(qid, ENTRIES)
    where = nvme.prps(nvme.take(MIB), size)
    for _ in range(ENTRIES - 1):
        nvme.put(pair, READ, nsid=1, cdw10=0, cdw12=size // 512 - 1, **where)
    return pair


def completed(nvme: NvmeClient, pair: Pair) -> int:
    """Entries of the completion queue that have been written, in its first lap."""
    at = pair.cq - nvme.bus.base
    phases = nvme.bus.memory[at + 14 : at + 16 * ENTRIES : 16]
    return sum(byte & 1 for byte in bytes(phases))


def shares(clients: list[NvmeClient], qid: int, sizes: tuple[int, int]) -> float | None:
    """Bytes of the first for one of the second, seen while both had work; None if it was not
    seen."""
    pairs = [load(nvme, qid, size) for nvme, size in zip(clients, sizes, strict=True)]
    begun: tuple[int, int] | None = None
    for nvme, pair in zip(clients, pairs, strict=True):
        nvme.ring(2 * pair.sqid, pair.tail)
    while True:
        before = completed(clients[0], pairs[0])
        second = completed(clients[1], pairs[1])
        first = completed(clients[0], pairs[0])
        if max(first, second) == ENTRIES - 1:
            return None
        if begun is None:
            begun = (first, second) if first and second else None
            continue
        moved = ((first - begun[0]) * sizes[0], (second - begun[1]) * sizes[1])
        # Long enough for turns not to matter, and one glance for both.
        if min(moved) > 400 * MIB and (first - before) * sizes[0] < moved[0] * 0.02:
            return moved[0] / moved[1]


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("weights", "sizes"),
    [((16, 16), (MIB, MIB)), ((48, 16), (MIB, MIB)), ((16, 16), (MIB, MIB // 4))],
)
def test_bytes_are_shared_as_weights_are(
    tmp_path: Path, store: str, mode: str, weights: tuple[int, int], sizes: tuple[int, int]
) -> None:
    lab = Lab(tmp_path, store)
    clients = []
    for weight in weights:
        vdev = lab.vdev(doorbells=mode, weight=weight)
        clients.append(lab.client(vdev, 32 * MIB))
        clients[-1].start()
    found = None
    for attempt in range(ATTEMPTS):
        found = shares(clients, 2 + attempt, sizes)
        if found is not None:
            break
        for nvme in clients:
            nvme.start()
    assert found is not None, "they were never both seen at work"
    assert found == pytest.approx(weights[0] / weights[1], rel=0.1)
    lab.close()
