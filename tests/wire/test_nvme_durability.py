"""What a guest was told is on the disk is there: after the server is killed, and after the power
has failed, whatever was under way at the time."""

from __future__ import annotations

import os
import random
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_file import FaultFile
from nvme_client import NvmeClient
from nvme_host import FLUSH

from vdcm.testing import Server

MIB = 1 << 20
BLOCK = 4096
BLOCKS = 64
VDEVS = 3
FUA = 1 << 30
ROUNDS = 20 if "VDCM_SOAK" in os.environ else 2


def serving(folder: Path, store: Path) -> Server:
    vdevs = {
        f"disk{number}": {
            "type": "nvme",
            "size": "1M",
            "block_size": BLOCK,
            "doorbells": ("shadow", "direct")[number % 2],
        }
        for number in range(VDEVS)
    }
    parents = {"nvme0": {"model": "nvme", "store": f"file:{store}", "size": "8M"}}
    return Server(folder, vdevs, parents, trace=False)


class Writer(threading.Thread):
    """A guest that writes numbers, ever larger ones, all over its disk; ``acknowledged`` has of
    each block the largest that it was told is on the disk, by a flush or because of FUA."""

    def __init__(self, path: Path, seed: int, begin: int) -> None:
        super().__init__(daemon=True)
        self.acknowledged: dict[int, int] = {}
        self.number = begin
        self.wrong: list[BaseException] = []
        self._rng = random.Random(seed)
        self._nvme = NvmeClient(path)
        self._nvme.start()
        self._over = threading.Event()

    def run(self) -> None:
        try:
            while not self._over.is_set():
                with self._nvme.borrowed():
                    self._write()
        except BaseException as error:  # as it must come to when the server is killed
            self.wrong.append(error)

    def _write(self) -> None:
        pair, written = self._nvme.queue, {}
        for _ in range(self._rng.randrange(1, 5)):
            self.number += 1
            block, forced = self._rng.randrange(BLOCKS), self._rng.random() < 0.3
            data = content(block, self.number)
            self._nvme.write(pair, block, data, cdw12=FUA if forced else 0)
            (self.acknowledged if forced else written)[block] = self.number
        if self._rng.random() < 0.7:
            assert self._nvme.io(pair, FLUSH).status == 0
            for block, number in written.items():
                self.acknowledged[block] = max(number, self.acknowledged.get(block, 0))

    def end(self) -> None:
        self._over.set()
        self.join(30)
        self._nvme.client.close()


def content(block: int, number: int) -> bytes:
    return struct.pack("<QQ", block, number) * (BLOCK // 16)


def check(disk: bytes, acknowledged: dict[int, int]) -> None:
    """Every block is whole, and as new as it was told to be, or newer."""
    assert len(acknowledged) > 10
    for block, number in acknowledged.items():
        found = disk[block * BLOCK : (block + 1) * BLOCK]
        newest = struct.unpack_from("<QQ", found)[1]
        assert found == content(block, newest), f"block {block} is torn"
        assert newest >= number, f"block {block}: {newest} and not {number}"


def work(server: Server, seed: int, begin: int) -> list[Writer]:
    """Guests that have been at work for a while."""
    writers = [
        Writer(server.socket(f"disk{number}"), seed + number, begin) for number in range(VDEVS)
    ]
    for writer in writers:
        writer.start()
    least = random.Random(seed).uniform(0.1, 0.5)
    time.sleep(least)
    deadline = time.monotonic() + 20
    while any(len(writer.acknowledged) < 12 for writer in writers):
        assert time.monotonic() < deadline, [writer.wrong for writer in writers]
        time.sleep(0.01)
    return writers


def places_of(server: Server) -> list[Callable[[bytes], bytes]]:
    """Where in the store each VDEV's disk is."""
    places = []
    for number in range(VDEVS):
        at = MIB + server.show(f"disk{number}")["namespaces"][0]["offset"]
        places.append(lambda data, at=at: data[at : at + MIB])
    return places


def test_what_was_flushed_is_in_the_file_after_a_kill(tmp_path: Path) -> None:
    store = tmp_path / "store.img"
    with serving(tmp_path, store) as server:
        places, begin = places_of(server), 1
        for seed in range(ROUNDS):
            writers = work(server, seed, begin)
            server.kill()
            for writer in writers:
                writer.end()
                assert writer.wrong
            data = store.read_bytes()
            for writer, place in zip(writers, places, strict=True):
                check(place(data), writer.acknowledged)
            begin = max(writer.number for writer in writers)
            server.start()


def test_what_was_flushed_is_on_the_disk_after_a_power_failure(tmp_path: Path) -> None:
    """The disk says what it has at that moment; what is in the system's cache would be lost."""
    with (
        FaultFile(tmp_path / "disk") as disk,
        serving(tmp_path, disk.path) as server,
    ):
        places, begin = places_of(server), 1
        for seed in range(ROUNDS):
            writers = work(server, seed, begin)
            told = [dict(writer.acknowledged) for writer in writers]
            data = bytes(disk.content)
            for acknowledged, place in zip(told, places, strict=True):
                check(place(data), acknowledged)
            for writer in writers:
                writer.end()
                assert not writer.wrong
            begin = max(writer.number for writer in writers)


@pytest.mark.parametrize("how", ["flush", "fua"])
def test_what_was_not_flushed_is_lost_by_such_a_failure(tmp_path: Path, how: str) -> None:
    """Or the tests above would say nothing."""
    with (
        FaultFile(tmp_path / "disk") as disk,
        serving(tmp_path, disk.path) as server,
        NvmeClient(server.socket("disk0")) as nvme,
    ):
        place = places_of(server)[0]
        nvme.start()
        nvme.write(nvme.queue, 3, content(3, 1))
        assert not any(place(bytes(disk.content)))
        if how == "flush":
            assert nvme.io(nvme.queue, FLUSH).status == 0
        else:
            nvme.write(nvme.queue, 3, content(3, 1), cdw12=FUA)
        assert place(bytes(disk.content))[3 * BLOCK : 4 * BLOCK] == content(3, 1)
