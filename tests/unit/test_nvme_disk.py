"""Disks under a store that fail, hang or lose power: what guests are told of it, and that what they
were told is on the disk is there. By io_uring and by threads."""

from __future__ import annotations

import asyncio
import errno
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fault_file import FaultFile
from loop_device import loop_device
from nvme_host import DELETE_SQ, FORMAT
from nvme_host import WRITE as HOST_WRITE
from nvme_machine import (
    CAPACITY,
    COMPARE,
    DSM,
    FLUSH,
    FUA,
    PATIENCE,
    READ,
    READ_ERROR,
    SUCCESS,
    VERIFY,
    WRITE,
    WRITE_FAULT,
    WRITE_PROTECTED,
    ZEROES,
    Machine,
    command,
)
from nvme_vdev import Machine as Guest

from vdcm.parent import build
from vdcm_devices.nvme import Nvme
from vdcm_devices.nvme._fastpath import ffi, lib
from vdcm_devices.nvme.datapath import NativeStore
from vdcm_devices.nvme.slices import TABLE_SIZE

A = 0x800000
SIZE = 1 << 20
ENGINES = pytest.mark.parametrize("flags", [0, lib.NVME_STORE_THREADS], ids=["uring", "threads"])


@contextmanager
def machine(disk: FaultFile | Path, flags: int, **options: Any) -> Iterator[Machine]:
    path = disk if isinstance(disk, Path) else disk.path
    fd = os.open(path, os.O_RDWR)
    store = lib.nvme_store_file(fd, SIZE, flags)
    os.close(fd)
    assert store != ffi.NULL
    m = Machine(store=store, size=SIZE, **options)
    m.map(A, 1 << 16)
    m.write_memory(A, b"new!" * 1024)
    try:
        yield m
    finally:
        if isinstance(disk, FaultFile):
            disk.fail.clear()
            disk.let_go()
        m.close()


@ENGINES
def test_after_a_flush_it_is_on_the_disk_and_not_before(flags: int, tmp_path: Path) -> None:
    with FaultFile(tmp_path / "disk", SIZE) as disk, machine(disk, flags) as m:
        assert m.one(command(WRITE, prp1=A, slba=8, blocks=8)) == 0
        assert not any(disk.content), "it is in the cache of the system"
        assert m.one(command(FLUSH)) == 0
        assert disk.content[4096:8192] == b"new!" * 1024
        assert disk.done["fsync"] == 1
        assert m.one(command(WRITE, prp1=A, slba=32, blocks=8)) == 0
        assert m.one(command(FLUSH, nsid=0xFFFFFFFF)) == 0
        assert disk.content[32 << 9 : 40 << 9] == b"new!" * 1024
        assert lib.nvme_store_sync(m.store) == 0
        assert disk.done["fsync"] == 3


@ENGINES
@pytest.mark.parametrize("through", [False, True])
def test_what_forces_unit_access_is_on_the_disk(flags: int, through: bool, tmp_path: Path) -> None:
    """By FUA, or with the write cache off (feature 06h)."""
    forced = 0 if through else FUA
    disk = FaultFile(tmp_path / "disk", SIZE)
    disk.content[:] = b"old!" * (SIZE // 4)
    with disk, machine(disk, flags, write_through=through) as m:
        for slba in (0, 1000, 2040):
            syncs = disk.done["fsync"]
            assert m.one(command(WRITE, prp1=A, slba=slba, blocks=8, cdw12=forced)) == 0
            assert disk.content[slba << 9 : slba + 8 << 9] == b"new!" * 1024
            assert disk.done["fsync"] > syncs
        for cannot in (0, errno.EOPNOTSUPP):  # with holes, and by writing
            disk.fail["fallocate"] = cannot
            slba, syncs = 100 + 8 * bool(cannot), disk.done["fsync"]
            assert m.one(command(ZEROES, slba=slba, blocks=8, cdw12=forced)) == 0
            assert disk.content[slba << 9 : slba + 8 << 9] == bytes(4096)
            assert disk.done["fsync"] > syncs
        if not through:
            syncs = disk.done["fsync"]
            assert m.one(command(WRITE, prp1=A, slba=50, blocks=8)) == 0
            assert disk.done["fsync"] == syncs
            assert disk.content[50 << 9 : 58 << 9] == b"old!" * 1024


@ENGINES
@pytest.mark.parametrize(
    ("operation", "error", "entry", "status"),
    [
        ("read", errno.EIO, command(READ, prp1=A), READ_ERROR),
        ("read", errno.ENODEV, command(READ, prp1=A), READ_ERROR),
        ("write", errno.EIO, command(WRITE, prp1=A), WRITE_FAULT),
        ("write", errno.EIO, command(WRITE, prp1=A, cdw12=FUA), WRITE_FAULT),
        ("write", errno.ENOSPC, command(WRITE, prp1=A), CAPACITY),
        ("write", errno.EDQUOT, command(WRITE, prp1=A), CAPACITY),
        ("write", errno.EFBIG, command(WRITE, prp1=A), CAPACITY),
        ("write", errno.EROFS, command(WRITE, prp1=A), WRITE_PROTECTED),
        ("write", errno.EPERM, command(WRITE, prp1=A), WRITE_PROTECTED),
        ("fsync", errno.EIO, command(FLUSH), WRITE_FAULT),
        ("fsync", errno.ENOSPC, command(FLUSH), CAPACITY),
        ("fsync", errno.EIO, command(WRITE, prp1=A, cdw12=FUA), WRITE_FAULT),
        ("fallocate", errno.EIO, command(ZEROES), WRITE_FAULT),
        ("fallocate", errno.ENOSPC, command(ZEROES), CAPACITY),
        ("fallocate", errno.EIO, command(DSM, prp1=A, cdw10=0, cdw11=4), WRITE_FAULT),
        ("fallocate", errno.EOPNOTSUPP, command(ZEROES), SUCCESS),
        ("fallocate", errno.EOPNOTSUPP, command(DSM, prp1=A, cdw10=0, cdw11=4), SUCCESS),
    ],
)
def test_an_error_of_the_disk_is_the_right_status(
    flags: int, operation: str, error: int, entry: bytes, status: int, tmp_path: Path
) -> None:
    with (
        FaultFile(tmp_path / "disk", SIZE, cached=False) as disk,
        machine(disk, flags) as m,
    ):
        if entry[0] == DSM:
            m.write_memory(A, (0).to_bytes(4, "little") + (8).to_bytes(4, "little") + bytes(8))
        disk.fail[operation] = error
        assert m.one(entry) == status
        media = status in (READ_ERROR, WRITE_FAULT)
        assert (m.counters().media_errors, m.counters().errors) == (media, status != 0)
        disk.fail.clear()
        assert m.one(entry) == 0 or operation == "fsync"  # the loss itself is told of once more
        assert m.one(entry) == 0


@ENGINES
def test_what_was_taken_and_lost_fails_the_flush_of_every_namespace(
    flags: int, tmp_path: Path
) -> None:
    """The system says it once, to whoever asks first, who need not be whose data it was."""
    with FaultFile(tmp_path / "disk", SIZE) as disk, machine(disk, flags) as m:
        half = SIZE >> 10
        for nsid in (1, 2):
            at = (nsid - 1) * SIZE // 2
            assert lib.nvme_namespace_set(m.controller, nsid, m.store, at, half, 9, False) == 0
        assert m.one(command(WRITE, prp1=A, nsid=2, blocks=8)) == 0
        disk.fail["write"] = errno.EIO
        assert m.one(command(FLUSH, nsid=1)) == WRITE_FAULT
        disk.fail.clear()
        assert m.one(command(FLUSH, nsid=2)) == WRITE_FAULT
        for nsid in (1, 2, 0xFFFFFFFF):
            assert m.one(command(FLUSH, nsid=nsid)) == 0


# Block devices


@ENGINES
def test_a_block_device_is_a_disk(flags: int, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"old!" * (SIZE // 4))
    with loop_device(file) as path, machine(path, flags) as m:
        assert m.one(command(READ, prp1=A + 4096, slba=16, blocks=8)) == 0
        assert m.read(A + 4096, 4096) == b"old!" * 1024
        assert m.one(command(WRITE, prp1=A, slba=8, blocks=8)) == 0
        assert m.one(command(FLUSH)) == 0
        assert m.one(command(WRITE, prp1=A, slba=33, cdw12=FUA)) == 0
        assert m.one(command(ZEROES, slba=64, blocks=8, cdw12=FUA)) == 0
        m.write_memory(A, struct.pack("<IIQ", 0, 8, 128))
        assert m.one(command(DSM, prp1=A, cdw10=0, cdw11=4)) == 0
        assert m.one(command(READ, prp1=A, slba=128, blocks=8)) == 0
        assert m.read(A, 4096) == bytes(4096), "blocks without data read as zeros"
        assert lib.nvme_store_erase(m.store, 512 << 10, 4096) == 0
        assert lib.nvme_store_sync(m.store) == 0
    found = file.read_bytes()
    for block, count, text in ((8, 8, b"new!"), (33, 1, b"new!"), (64, 8, b"\0"), (1024, 8, b"\0")):
        size = count << 9
        assert found[block << 9 :][:size] == text * (size // len(text))
    assert found[32 << 9 : 33 << 9] == b"old!" * 128


@ENGINES
def test_a_block_device_that_fails(flags: int, tmp_path: Path) -> None:
    """What is under it has been cut short: it cannot be read there."""
    file = tmp_path / "file"
    file.write_bytes(bytes(SIZE))
    with loop_device(file) as path, machine(path, flags) as m:
        os.truncate(file, SIZE // 2)
        assert m.one(command(READ, prp1=A, slba=1536)) == READ_ERROR
        assert m.one(command(VERIFY, slba=1536)) == READ_ERROR
        assert m.one(command(COMPARE, prp1=A, slba=1536)) == READ_ERROR
        assert m.counters().media_errors == 3
        assert m.one(command(READ, prp1=A)) == 0


@ENGINES
def test_a_block_device_that_turns_out_to_be_full(flags: int, tmp_path: Path) -> None:
    """It takes the writes, and loses them when they are to be on the disk."""
    with (
        FaultFile(tmp_path / "disk", SIZE, cached=False) as disk,
        loop_device(disk.path) as path,
        machine(path, flags) as m,
    ):
        assert m.one(command(WRITE, prp1=A, slba=8, blocks=8)) == 0
        disk.fail["write"] = errno.ENOSPC
        lost = m.one(command(FLUSH))
        assert lost in (WRITE_FAULT, CAPACITY)
        assert m.one(command(WRITE, prp1=A, slba=16, blocks=8, cdw12=FUA)) == lost
        disk.fail.clear()
        assert m.one(command(WRITE, prp1=A, slba=8, blocks=8, cdw12=FUA)) == 0
        assert disk.content[4096:8192] == b"new!" * 1024


# A disk that hangs


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


def hung(flags: int, folder: Path, test: Callable[[FaultFile, Nvme, Guest], Any]) -> None:
    """``test`` of a guest whose write of block 0 hangs; when it is over nothing hangs any more."""
    with (
        pytest.MonkeyPatch.context() as patch,
        FaultFile(folder / "disk", TABLE_SIZE + 4 * SIZE, cached=False) as disk,
    ):
        native = lib.nvme_store_file
        patch.setattr(
            NativeStore, "file", lambda fd, size: NativeStore(native(fd, size, flags), "a file")
        )

        async def run() -> None:
            parent = build(Nvme, "nvme0", {"store": f"file:{disk.path}"})
            guest = Guest(parent, "a")
            guest.enable()
            queue = guest.create_queue(1)
            address = guest.take(4096)
            guest.poke(address, b"old!" * 128)
            await until(lambda: not parent.driver.store._keeping)  # its table is no guest's write
            disk.held.add("write")
            guest.submit(queue, HOST_WRITE, nsid=1, prp1=address)
            await until(lambda: disk.hanging > 0)
            try:
                await test(disk, parent, guest)
            finally:
                disk.let_go()
                if guest.vdev.session is not None:
                    guest.close()
                parent.close()

        asyncio.run(run())


@ENGINES
def test_a_queue_whose_disk_hangs_is_deleted_when_it_does_not(flags: int, tmp_path: Path) -> None:
    async def test(disk: FaultFile, _parent: Nvme, guest: Guest) -> None:
        cid = guest.submit(guest.admin_queue, DELETE_SQ, cdw10=1)
        guest.identify(1)  # all else goes on
        assert not guest.completed(guest.admin_queue, cid)
        with pytest.raises(Exception, match="0x101"):
            guest.create_queue(1, cqid=1)
        disk.let_go()
        await until(lambda: guest.completed(guest.admin_queue, cid))
        assert disk.content[TABLE_SIZE : TABLE_SIZE + 4] == b"old!"
        queue = guest.create_queue(1, cqid=1)
        assert queue.sqid == 1

    hung(flags, tmp_path, test)


@ENGINES
def test_a_controller_is_not_ready_before_old_writes_are_over(flags: int, tmp_path: Path) -> None:
    async def test(disk: FaultFile, _parent: Nvme, guest: Guest) -> None:
        guest.set_register(0x14, 0)
        assert guest.register(0x1C) & 1 == 0, "a reset does not wait for the disk"
        for _ in range(3):
            guest.set_register(0x14, 4 << 20 | 6 << 16 | 1)
            await asyncio.sleep(0.02)
            assert guest.register(0x1C) & 3 == 0
            guest.set_register(0x14, 0)
        guest.set_register(0x14, 4 << 20 | 6 << 16 | 1)
        disk.let_go()
        await until(lambda: guest.register(0x1C) & 3 == 1)
        assert disk.content[TABLE_SIZE : TABLE_SIZE + 4] == b"old!"
        guest.disable()
        guest.enable()
        guest.write(guest.create_queue(1), 0, b"new!" * 128)
        assert disk.content[TABLE_SIZE : TABLE_SIZE + 4] == b"new!"

    hung(flags, tmp_path, test)


@ENGINES
def test_a_vdev_whose_disk_hangs_is_stopped_and_nobody_finds_what_it_wrote(
    flags: int, tmp_path: Path
) -> None:
    async def test(disk: FaultFile, parent: Nvme, guest: Guest) -> None:
        guest.close()
        assert not parent.driver.drained("a")
        hanging = disk.hanging
        parent.forget("a")
        await asyncio.sleep(0.05)
        assert disk.hanging == hanging
        assert parent.driver.store.slices.free < parent.driver.store.slices.room
        disk.let_go()
        store = parent.driver.store.slices
        await until(lambda: store.free == store.room)
        assert not any(disk.content[TABLE_SIZE:])

    hung(flags, tmp_path, test)


@ENGINES
def test_a_vdev_that_is_started_again_waits_for_the_writes_before(
    flags: int, tmp_path: Path
) -> None:
    async def test(disk: FaultFile, parent: Nvme, guest: Guest) -> None:
        guest.close()
        again = Guest(parent, "a")
        again.set_register(0x24, 15 << 16 | 15)
        again.set_register(0x28, again.take(4096), 8)
        again.set_register(0x30, again.take(4096), 8)
        again.set_register(0x14, 4 << 20 | 6 << 16 | 1)
        await asyncio.sleep(0.02)
        assert again.register(0x1C) & 3 == 0
        disk.let_go()
        await until(lambda: again.register(0x1C) & 3 == 1)
        again.disable()
        again.enable()
        queue = again.create_queue(1)
        assert again.read(queue, 0, 1) == b"old!" * 128
        again.close()

    hung(flags, tmp_path, test)


def test_a_table_that_hangs_hinders_nobody(tmp_path: Path) -> None:
    """Format has it written; meanwhile the event loop and other VDEVs go on."""

    async def run() -> None:
        with FaultFile(tmp_path / "disk", TABLE_SIZE + 4 * SIZE, cached=False) as disk:
            parent = build(Nvme, "nvme0", {"store": f"file:{disk.path}"})
            guest, other = Guest(parent, "a"), Guest(parent, "b")
            for one in (guest, other):
                one.enable()
            queue = other.create_queue(1)
            other.write(queue, 0, b"x" * 512)
            await until(lambda: not parent.driver.store._keeping)
            disk.held.add("fsync")
            cid = guest.submit(guest.admin_queue, FORMAT, nsid=1, cdw10=1)
            await until(lambda: disk.hanging > 0)
            assert other.read(queue, 0, 1) == b"x" * 512
            assert not guest.completed(guest.admin_queue, cid)
            disk.let_go()
            await until(lambda: guest.completed(guest.admin_queue, cid))
            assert guest.wait(guest.admin_queue, cid).status == 0
            for one in (guest, other):
                one.close()
            parent.close()

    asyncio.run(run())
