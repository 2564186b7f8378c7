"""NVMe VDEVs through the native client: every I/O command with equal results in both doorbell modes
and both kinds of store, interrupts, resets under load, guests that go, hostile ones, neighbours."""

from __future__ import annotations

import os
import random
import struct
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from nvme_client import RAM, NvmeClient
from nvme_host import (
    COMPARE,
    DATASET,
    EVENT,
    FLUSH,
    FORMAT,
    GET,
    PAGE,
    READ,
    SET,
    VERIFY,
    WRITE,
    WRITE_ZEROES,
    NvmeFailure,
    Pair,
)
from nvme_lab import MODES, STORES, Lab

from vdcm.testing import Server

MIB = 1 << 20
FUA = 1 << 30
Outcome = tuple[Any, ...]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.close()


@pytest.fixture(params=MODES)
def nvme(request: pytest.FixtureRequest, lab: Lab) -> NvmeClient:
    return lab.started(doorbells=request.param)


# Every command, against a model of a disk


class Model:
    """What a namespace of ``blocks`` blocks does."""

    def __init__(self, blocks: int, size: int) -> None:
        self.blocks, self.size = blocks, size
        self.data = bytearray(blocks * size)

    def part(self, block: int, count: int) -> slice:
        return slice(block * self.size, (block + count) * self.size)


def run_program(nvme: NvmeClient, seed: int, steps: int) -> list[Outcome]:
    """Random commands, each checked against the model; what came of each."""
    rng = random.Random(seed)
    model = Model(nvme.namespace_blocks(), nvme.block_size)
    outcomes: list[Outcome] = []
    buffer = nvme.take(64 * PAGE)
    lists = nvme.take(PAGE)
    for step in range(steps):
        if step % 16 == 0:
            nvme.log(1, 64)  # 16 errors at most wait to be logged
        opcode = rng.choice(
            [WRITE] * 4 + [READ] * 3 + [COMPARE, WRITE_ZEROES, DATASET, VERIFY, FLUSH]
        )
        count = min(rng.choice([1, 1, 2, 7, 8, 16, 31]), 60 * PAGE // model.size)
        block = rng.randrange(model.blocks + 2 * count) - count // 2
        block = max(block, 0) if rng.random() < 0.9 else rng.choice([1 << 63, (1 << 64) - 1])
        nsid = 1 if rng.random() < 0.95 else rng.choice([0, 2, 33, 1 << 31])
        address = buffer + 4 * rng.randrange(PAGE // 4)
        fields: dict[str, int] = {
            "nsid": nsid,
            "cdw10": block & 0xFFFF_FFFF,
            "cdw11": block >> 32,
            "cdw12": count - 1 | rng.choice([0, FUA]),
        }
        data = rng.randbytes(count * model.size)
        if opcode == COMPARE and rng.random() < 0.5:
            data = bytes(model.data[model.part(block, count)]).ljust(len(data), b"\0")
        if opcode in (READ, WRITE, COMPARE):
            nvme.poke(address, data)
            size = count * model.size
            first = min(size, PAGE - address % PAGE)
            rest = list(range(address + first, address + size, PAGE))
            nvme.poke(lists, struct.pack(f"<{len(rest)}Q", *rest))
            fields["prp1"], fields["prp2"] = address, (rest or [0])[0] if len(rest) < 2 else lists
        elif opcode == DATASET:
            ranges = [
                (rng.randrange(model.blocks - 40), rng.choice([0, 1, 8, 33]))
                for _ in range(rng.choice([1, 3, 20]))
            ]
            nvme.poke(lists, b"".join(struct.pack("<IIQ", 0, n, at) for at, n in ranges))
            fields.update(prp1=lists, cdw10=len(ranges) - 1, cdw11=1 << 2, cdw12=0)
        elif opcode == FLUSH:
            fields = {"nsid": nsid}
        status = nvme.io(nvme.queue, opcode, **fields).status
        outcome: Outcome = (opcode, status)
        if nsid != 1:
            assert status == 0x00B, outcome
        elif opcode not in (FLUSH, DATASET) and block + count > model.blocks:
            assert status == 0x080, outcome
        elif opcode == COMPARE:
            same = data == model.data[model.part(block, count)]
            assert status == (0 if same else 0x285), outcome
        else:
            assert status == 0, outcome
            if opcode == READ:
                found = nvme.peek(address, count * model.size)
                assert found == model.data[model.part(block, count)]
            elif opcode == WRITE:
                model.data[model.part(block, count)] = data
            elif opcode == WRITE_ZEROES:
                model.data[model.part(block, count)] = bytes(len(data))
            elif opcode == DATASET:
                for at, n in ranges:
                    model.data[model.part(at, n)] = bytes(n * model.size)
        outcomes.append(outcome)
    for block in range(0, model.blocks, 240 * 512 // model.size):
        count = min(240 * 512 // model.size, model.blocks - block)
        with nvme.borrowed():
            assert nvme.read(nvme.queue, block, count) == model.data[model.part(block, count)]
    return outcomes


@pytest.mark.parametrize("block_size", [512, 4096])
def test_every_command_has_equal_results_everywhere(tmp_path: Path, block_size: int) -> None:
    results: list[list[Outcome]] = []
    for store in STORES:
        folder = tmp_path / store
        folder.mkdir()
        with closing(Lab(folder, store)) as lab:
            for mode in MODES:
                nvme = lab.started(doorbells=mode, size="1M", block_size=block_size)
                assert nvme.direct == (mode == "direct")
                results.append(run_program(nvme, seed=block_size, steps=400))
                failed = sum(status != 0 for _, status in results[-1])
                assert nvme.log(1, 64)[:8] == struct.pack("<Q", failed)
    assert len({tuple(result) for result in results}) == 1


def submit_many(
    nvme: NvmeClient, pair: Pair, opcode: int, count: int, rng: random.Random
) -> list[int]:
    """Commands of one page each, rung for all at once; their identifiers."""
    blocks = nvme.namespace_blocks() - 8
    address = nvme.take(PAGE)
    nvme.poke(address, rng.randbytes(PAGE))
    cids = [
        nvme.put(pair, opcode, nsid=1, prp1=address, cdw10=rng.randrange(blocks), cdw12=7)
        for _ in range(count)
    ]
    nvme.ring(2 * pair.sqid, pair.tail)
    return cids


def test_many_commands_at_once_on_many_queues(lab: Lab) -> None:
    rng = random.Random(1)
    for mode in MODES:
        nvme = lab.started(doorbells=mode, queues=8)
        nvme.use_interrupts(9)
        pairs = [nvme.queue, *(nvme.create_queue(qid, 64, vector=qid) for qid in range(2, 9))]
        for _ in range(20):
            with nvme.borrowed():
                waiting = [
                    (pair, cid)
                    for pair in pairs
                    for cid in submit_many(nvme, pair, rng.choice([READ, WRITE]), 63, rng)
                ]
                assert all(nvme.wait(pair, cid).status == 0 for pair, cid in waiting)
        for vector in (0, *range(2, 9)):
            assert nvme.events[vector].wait(5.0)
        counters = lab.run(
            lambda: lab.parent.driver.counters(next(iter(lab.parent.driver.adis.values())))
        )
        assert counters["read_commands"] + counters["write_commands"] >= 20 * 8 * 63
        nvme.client.close()


def test_a_busy_guest_of_shadow_doorbells_rings_few(lab: Lab) -> None:
    nvme = lab.started(doorbells="shadow")
    address, before = nvme.take(PAGE), nvme.doorbell_writes
    cids = []
    for _ in range(40):
        cids += [nvme.submit(nvme.queue, READ, nsid=1, prp1=address, cdw12=7) for _ in range(50)]
        for cid in cids:
            assert nvme.wait(nvme.queue, cid).status == 0
        cids.clear()
    assert nvme.doorbell_writes - before < 2000


def test_io_doorbells_need_python_only_while_somebody_watches(lab: Lab) -> None:
    vdev = lab.vdev(doorbells="shadow")
    nvme = lab.client(vdev)
    nvme.start(shadow=False)  # so that each command rings
    python: list[int] = []
    ring = vdev._ring
    vdev.bars[0]._ring = lambda doorbell, value: (python.append(doorbell), ring(doorbell, value))
    nvme.write(nvme.queue, 5, b"z" * 512)
    assert nvme.read(nvme.queue, 5, 1) == b"z" * 512
    nvme.expect(GET, cdw10=8)
    assert set(python) == {0, 1}, "the admin queue's are Python's"
    lines: list[str] = []
    lab.host.run(vdev.observe, lambda event: lines.append(str(event)))
    assert nvme.read(nvme.queue, 5, 1) == b"z" * 512
    lab.host.run(vdev.observe, None)
    assert {2, 3} <= set(python)
    assert sum("doorbell of submission queue 1" in line for line in lines) == 1
    python.clear()
    nvme.ring(2, 64)
    nvme.ring(2 * 9, 1)
    assert nvme.read(nvme.queue, 5, 1) == b"z" * 512
    assert set(python) == {2, 18}, "and those that make events"


# Interrupts


def test_interrupts_of_an_io_queue(nvme: NvmeClient) -> None:
    nvme.use_interrupts(9)
    pair = nvme.create_queue(2, vector=7)
    nvme.write(pair, 0, bytes(512))
    assert nvme.events[7].wait(5.0)
    nvme.read(nvme.queue, 0, 1)  # its vector is 0, as the admin queue's
    assert nvme.events[0].wait(5.0)


def test_a_completion_queue_without_interrupts(nvme: NvmeClient) -> None:
    nvme.use_interrupts(9)
    entries = 16
    completion = nvme.create_cq(2, entries, vector=3, flags=1)
    pair = nvme.create_queue(2, entries, cqid=2)
    pair.cq = completion
    nvme.write(pair, 0, bytes(512))
    assert not nvme.events[3].wait(0.2)


# Resets, and guests that go


def test_resets_under_load(nvme: NvmeClient, lab: Lab) -> None:
    rng = random.Random(2)
    vdev_adis = lab.parent.driver.adis
    nvme.write(nvme.queue, nvme.namespace_blocks() - 1, b"\x5a" * 512)
    last = nvme.namespace_blocks() - 1
    for round_ in range(12):
        submit_many(nvme, nvme.queue, WRITE if round_ % 2 else READ, 63, rng)
        if round_ % 3 == 0:
            nvme.disable()
        elif round_ % 3 == 1:
            nvme.client.reset()
        else:
            express = nvme.client.config.find(0x10)
            assert express is not None
            nvme.client.config.write(express + 8, 2, 1 << 15)
        assert len(vdev_adis) == 1
        nvme.start()
        assert nvme.read(nvme.queue, last, 1) == b"\x5a" * 512
        assert nvme.register(0x1C) & 3 == 1


def test_queues_deleted_under_load(nvme: NvmeClient) -> None:
    rng = random.Random(3)
    for _ in range(10):
        with nvme.borrowed():
            pair = nvme.create_queue(2, 64)
            submit_many(nvme, pair, rng.choice([READ, WRITE]), 63, rng)
            nvme.delete_queue(pair)
    assert nvme.read(nvme.queue, 0, 1)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("mode", MODES)
def test_a_guest_that_goes_under_load(tmp_path: Path, store: str, mode: str) -> None:
    lab, rng = Lab(tmp_path, store), random.Random(4)
    vdev = lab.vdev(doorbells=mode)
    for _ in range(8):
        nvme = lab.client(vdev)
        nvme.start()
        nvme.write(nvme.queue, 8000, b"kept" * 128)
        submit_many(nvme, nvme.queue, READ, 63, rng)
        nvme.client.close()
    nvme = lab.client(vdev)
    nvme.start()
    assert len(lab.parent.driver.adis) == 2
    assert nvme.read(nvme.queue, 8000, 1) == b"kept" * 128
    lab.close()


def test_format_under_load(nvme: NvmeClient) -> None:
    rng = random.Random(5)
    nvme.write(nvme.queue, 0, b"\xff" * 4096)
    cids = submit_many(nvme, nvme.queue, READ, 60, rng)
    nvme.expect(FORMAT, nsid=1, cdw10=1)
    for cid in cids:
        # Before the format, or in it, when there is no such namespace; or beyond its end after it.
        assert nvme.wait(nvme.queue, cid).status in (0x000, 0x002, 0x00B, 0x080, 0x082)
    nvme.block_size = 4096
    assert nvme.read(nvme.queue, 0, 8) == bytes(8 * 4096)
    assert nvme.namespace_blocks() == 1024


def test_a_namespace_that_is_made_read_only(nvme: NvmeClient, lab: Lab) -> None:
    nvme.write(nvme.queue, 0, b"a" * 512)
    vdev = nvme_vdev(lab)
    lab.run(lambda: setattr(vdev, "read_only", True))
    with pytest.raises(NvmeFailure) as refused:
        nvme.write(nvme.queue, 0, b"b" * 512)
    assert refused.value.status == 0x020
    assert nvme.read(nvme.queue, 0, 1) == b"a" * 512
    lab.run(lambda: setattr(vdev, "read_only", False))
    nvme.write(nvme.queue, 0, b"b" * 512)


def nvme_vdev(lab: Lab) -> Any:
    """The VDEV that is served."""
    return next(iter(lab.host.transport.endpoints.values())).device


# Features that the data path has to know


def test_write_cache_and_coalescing(nvme: NvmeClient) -> None:
    nvme.expect(SET, cdw10=6, cdw11=0)
    nvme.write(nvme.queue, 0, b"x" * 512)
    nvme.expect(SET, cdw10=6, cdw11=1)
    assert nvme.expect(GET, cdw10=6) == 1
    nvme.use_interrupts(2)
    pair = nvme.create_queue(2, 64, vector=1)
    nvme.expect(SET, cdw10=8, cdw11=255 | 200 << 8)  # 256 of them, or 20 ms
    address = nvme.take(512)
    for _ in range(2):
        # Who looks for a completion by himself and says that he has seen it is not called for it.
        cid = nvme.submit(pair, READ, nsid=1, prp1=address)
        assert nvme.events[1].wait(5.0)
        assert nvme.wait(pair, cid).status == 0 and nvme.peek(address, 512) == b"x" * 512
        nvme.expect(SET, cdw10=9, cdw11=1 << 16 | 1)


# Hostile guests


def test_an_io_queue_out_of_reach_is_fatal_until_a_reset(nvme: NvmeClient) -> None:
    entries = 16
    nvme.create_cq(2, entries)
    nvme.expect(1, prp1=RAM + (1 << 30), cdw10=2 | (entries - 1) << 16, cdw11=1 | 2 << 16)
    pair = Pair(2, 2, 0, 0, entries)
    nvme.ring(2 * pair.sqid, 1)
    if nvme.direct is False:
        nvme.bus.write(0x1000 + 8 * 2, 4, 1)
    assert nvme.wait_status(2, 2)
    nvme.start()
    nvme.write(nvme.queue, 0, b"y" * 512)


def test_memory_that_is_taken_away_under_load(nvme: NvmeClient, lab: Lab) -> None:
    other = lab.started()
    other.write(other.queue, 0, b"other" * 100 + bytes(12))
    submit_many(nvme, nvme.queue, READ, 63, random.Random(6))
    nvme.unmap_memory()
    nvme.bus.write(0x1000, 4, 1)
    assert nvme.wait_status(2, 2)
    assert other.read(other.queue, 0, 1) == b"other" * 100 + bytes(12)


def test_a_bad_doorbell_of_an_io_queue_is_told_of(nvme: NvmeClient) -> None:
    request = nvme.submit(nvme.admin_queue, EVENT)
    nvme.bus.write(0x1000 + 4 * 2, 4, 64)
    assert nvme.wait(nvme.admin_queue, request).result == 0 | 1 << 8 | 1 << 16
    assert nvme.log(1, 64) is not None


def test_neighbours_have_disks_of_their_own(tmp_path: Path) -> None:
    for store in STORES:
        folder = tmp_path / store
        folder.mkdir()
        lab = Lab(folder, store, workers=2)
        all_of_them = [lab.started(doorbells=mode, namespaces=2, size="1M") for mode in MODES * 2]
        for index, nvme in enumerate(all_of_them):
            for nsid in (1, 2):
                for block in (0, nvme.namespace_blocks() - 8):
                    nvme.write(nvme.queue, block, bytes([index + 1, nsid]) * 2048, nsid)
                with pytest.raises(NvmeFailure) as refused:
                    nvme.write(nvme.queue, nvme.namespace_blocks() - 7, bytes(4096), nsid)
                assert refused.value.status == 0x080
        for index, nvme in enumerate(all_of_them):
            for nsid in (1, 2):
                for block in (0, nvme.namespace_blocks() - 8):
                    found = nvme.read(nvme.queue, block, 8, nsid)
                    assert found == bytes([index + 1, nsid]) * 2048
        lab.close()


# The server


def test_what_was_flushed_is_there_after_a_kill(tmp_path: Path) -> None:
    store = tmp_path / "store.img"
    parents = {"nvme0": {"model": "nvme", "store": f"file:{store}", "size": "64M"}}
    vdevs = {"disk0": {"type": "nvme", "size": "16M"}}
    data = os.urandom(128 << 10)
    with Server(tmp_path, vdevs, parents, trace=False) as daemon:
        with NvmeClient(daemon.socket("disk0")) as nvme:
            nvme.start()
            serial = nvme.identify(1)[4:24]
            nvme.write(nvme.queue, 1000, data)
            assert nvme.io(nvme.queue, FLUSH).status == 0
            daemon.kill()
        assert data in store.read_bytes()
        daemon.start()
        with NvmeClient(daemon.socket("disk0")) as nvme:
            nvme.start()
            assert nvme.identify(1)[4:24] == serial
            assert nvme.read(nvme.queue, 1000, 256) == data
            begin = time.monotonic()
            nvme.shut_down()
            assert time.monotonic() - begin < 20
