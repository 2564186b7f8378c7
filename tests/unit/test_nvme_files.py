"""Stores in files: the same disk, by io_uring and by threads; what is on disk, what is sparse, and
what a file that is full, short or not writable comes to."""

from __future__ import annotations

import os
import resource
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from guest_machine import PAGE
from hypothesis import given, settings
from nvme_machine import (
    CAPACITY,
    COMPARE,
    DATA_TRANSFER,
    DSM,
    FLUSH,
    FUA,
    PATIENCE,
    READ,
    READ_ERROR,
    VERIFY,
    WRITE,
    WRITE_PROTECTED,
    ZEROES,
    Machine,
    command,
)
from test_nvme_commands import OPERATIONS, run_model

from vdcm_devices.nvme._fastpath import ffi, lib

A = 0x800000
ENGINES = pytest.mark.parametrize("flags", [0, lib.NVME_STORE_THREADS], ids=["uring", "threads"])


@contextmanager
def machine(file: Any, flags: int, size: int = 1 << 20, **options: Any) -> Iterator[Machine]:
    store = lib.nvme_store_file(file.fileno(), size, flags)
    assert store != ffi.NULL
    m = Machine(store=store, size=size, **options)
    m.map(A, 1 << 20)
    try:
        yield m
    finally:
        m.close()


def lists(m: Machine, pages: int) -> int:
    """A PRP list of all pages of the buffer but the first."""
    m.map(0x400000, PAGE, pasid=m.secondary)
    entries = [A + PAGE * i for i in range(1, pages)]
    m.write_memory(0x400000, struct.pack(f"<{len(entries)}Q", *entries), m.secondary)
    return 0x400000


@ENGINES
def test_the_engine_is_what_was_asked_for(flags: int) -> None:
    with tempfile.TemporaryFile() as file, machine(file, flags) as m:
        found = ffi.string(lib.nvme_store_engine(m.store))
        assert found in ((b"threads",) if flags else (b"threads", b"io_uring"))
        assert lib.nvme_store_memory(m.store) == 0


@pytest.mark.parametrize("shift", [9, 12])
@pytest.mark.parametrize("flags", [0, lib.NVME_STORE_THREADS])
@settings(max_examples=15)
@given(operations=OPERATIONS)
def test_a_store_in_a_file_is_a_disk(
    flags: int, shift: int, operations: list[tuple[int, int, int, int, int]]
) -> None:
    with tempfile.TemporaryFile() as file:
        m = Machine(
            store=lib.nvme_store_file(file.fileno(), 320 << shift, flags),
            size=320 << shift,
            shift=shift,
        )
        run_model(m, operations, 1 << 16)
        m.close()


@ENGINES
def test_many_commands_are_under_way_at_once(flags: int) -> None:
    """More than there are tasks for, of more than a chunk."""
    with tempfile.TemporaryFile() as file, machine(file, flags, entries=64) as m:
        m.write_memory(A, os.urandom(1 << 20))
        prp2 = lists(m, 64)
        entries = [
            command(WRITE, prp1=A, prp2=prp2, slba=512 * (i % 4), blocks=512) for i in range(60)
        ]
        assert [c.status for c in m.execute(*entries)] == [0] * 60
        content = os.pread(file.fileno(), 1 << 20, 0)
        assert content == m.read(A, 1 << 18) * 4
        assert m.look().in_files == 0


@ENGINES
def test_a_file_is_thin_and_what_it_lacks_is_zero(flags: int) -> None:
    with tempfile.TemporaryFile() as file, machine(file, flags, size=1 << 30) as m:
        m.write_memory(A, b"x" * (1 << 20))
        last = (1 << 30 >> 9) - 8
        assert m.one(command(READ, prp1=A, slba=last, blocks=8)) == 0
        assert m.read(A, 4096) == bytes(4096)
        assert m.one(command(WRITE, prp1=A + PAGE, slba=last - 8, blocks=8)) == 0
        assert m.one(command(READ, prp1=A, prp2=A + PAGE, slba=last - 8, blocks=16)) == 0
        assert m.read(A, 8192) == b"x" * 4096 + bytes(4096)
        status = os.fstat(file.fileno())
        assert status.st_size == (1 << 30) - 4096
        assert status.st_blocks * 512 < 1 << 20
        assert m.one(command(ZEROES, slba=last - 8, blocks=8)) == 0
        assert os.pread(file.fileno(), 4096, status.st_size - 4096) == bytes(4096)


@ENGINES
def test_deallocated_blocks_go_back_to_the_file_system(flags: int) -> None:
    with tempfile.TemporaryFile(dir="/dev/shm") as file, machine(file, flags) as m:
        os.pwrite(file.fileno(), b"x" * (1 << 20), 0)
        m.write_memory(A, struct.pack("<IIQIIQ", 0, 1024, 0, 0, 8, 1032))
        assert m.one(command(DSM, prp1=A, cdw10=1, cdw11=4)) == 0
        content = os.pread(file.fileno(), 1 << 20, 0)
        assert content[: 1 << 19] == bytes(1 << 19)
        assert content[1 << 19 : 1032 << 9] == b"x" * 4096
        assert os.fstat(file.fileno()).st_blocks * 512 <= (1 << 19) - PAGE


@ENGINES
def test_a_slice_ends_where_it_ends(flags: int) -> None:
    with tempfile.TemporaryFile() as file, machine(file, flags, size=64 << 10) as m:
        os.pwrite(file.fileno(), b"x" * (64 << 10), 0)
        assert lib.nvme_namespace_set(m.controller, 1, m.store, 16 << 10, 32, 9, False) == 0
        for slba in range(40):
            m.one(command(WRITE, prp1=A, slba=slba))
            m.one(command(ZEROES, slba=slba + 24, blocks=16))
        content = os.pread(file.fileno(), 64 << 10, 0)
        assert content == b"x" * (16 << 10) + bytes(16 << 10) + b"x" * (32 << 10)


@ENGINES
def test_a_file_cut_short_under_us_reads_as_zeros(flags: int) -> None:
    with tempfile.TemporaryFile() as file, machine(file, flags) as m:
        m.write_memory(A, b"x" * 8192)
        assert m.one(command(WRITE, prp1=A, prp2=A + PAGE, blocks=16)) == 0
        os.ftruncate(file.fileno(), 1000)
        assert m.one(command(READ, prp1=A, prp2=A + PAGE, blocks=16)) == 0
        assert m.read(A, 8192) == b"x" * 1000 + bytes(7192)
        assert m.one(command(VERIFY, blocks=16)) == 0
        assert m.one(command(COMPARE, prp1=A, prp2=A + PAGE, blocks=16)) == 0


@ENGINES
def test_a_file_that_cannot_be_written(flags: int, tmp_path: Path) -> None:
    path = tmp_path / "store"
    path.write_bytes(b"x" * 4096)
    with path.open("rb") as file, machine(file, flags) as m:
        assert m.one(command(WRITE, prp1=A)) == WRITE_PROTECTED
        assert m.one(command(ZEROES)) == WRITE_PROTECTED
        assert m.one(command(READ, prp1=A)) == 0
        assert m.read(A, 512) == b"x" * 512


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with (tmp_path / "store").open("wb") as file, machine(file, 0) as m:
        assert m.one(command(READ, prp1=A)) == READ_ERROR
        assert m.one(command(WRITE, prp1=A)) == 0


def test_a_limit_of_the_file_size_is_capacity_exceeded() -> None:
    """Of threads: io_uring's own limits are the process's when it was set up."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with tempfile.TemporaryFile() as file, machine(file, lib.NVME_STORE_THREADS) as m:
        prp2 = lists(m, 16)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10000, before[1]))
            entry = command(WRITE, prp1=A, prp2=prp2, blocks=128)
            assert m.one(entry) == CAPACITY
            assert m.one(command(WRITE, prp1=A, slba=100)) == CAPACITY
            assert m.one(command(WRITE, prp1=A, slba=1)) == 0
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert m.one(entry) == 0


@ENGINES
def test_a_full_file_system_is_capacity_exceeded(flags: int, tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "vdcm-test", str(tmp_path)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        with (tmp_path / "store").open("w+b") as file, machine(file, flags) as m:
            prp2 = lists(m, 32)
            entry = command(WRITE, prp1=A, prp2=prp2, blocks=256)
            assert m.one(entry) == CAPACITY
            assert m.one(command(ZEROES, blocks=256)) == 0
            assert m.one(command(WRITE, prp1=A)) == 0
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@ENGINES
def test_fua_and_flush_wait_for_the_disk(flags: int) -> None:
    """What an interrupted machine would have is not to be had here: that they ask for it is."""
    with tempfile.TemporaryFile() as file, machine(file, flags, write_through=True) as m:
        assert m.one(command(WRITE, prp1=A)) == 0
        m.configure()
        assert m.one(command(WRITE, prp1=A, cdw12=FUA)) == 0
        assert m.one(command(ZEROES, cdw12=FUA)) == 0
        assert m.one(command(FLUSH)) == 0
        assert m.one(command(FLUSH, nsid=0xFFFFFFFF)) == 0
        assert lib.nvme_store_sync(m.store) == 0


@ENGINES
def test_abort_drops_what_is_under_way_and_nobody_writes_into_freed_memory(flags: int) -> None:
    for _ in range(30):
        with tempfile.TemporaryFile() as file, machine(file, flags, entries=64) as m:
            prp2 = lists(m, 64)
            m.submit(*[command(WRITE, prp1=A, prp2=prp2, blocks=512)] * 40)
            m.take()
            m.run(1)
            m.abort()
            assert not m.pending
            assert m.completions() == []
            assert lib.nvme_namespace_set(m.controller, 1, m.store, 0, 0, 9, False) in (-16, 0)
        assert m.sq is None


@ENGINES
def test_a_queue_that_rests_is_kicked(flags: int) -> None:
    with tempfile.TemporaryFile() as file, machine(file, flags) as m:
        deadline = time.monotonic() + PATIENCE
        while m.kicks < 30:
            kicks = m.kicks
            m.submit(command(WRITE, prp1=A, cdw12=FUA))
            m.take()
            while m.ready:
                m.run()
            # It may be done already. If not, it can rest, or is done meanwhile.
            rests = m.pending and m.rest()
            while rests and m.kicks == kicks:
                assert time.monotonic() < deadline, "nobody kicks it"
                os.sched_yield()
            while not (done := m.completions()):
                m.step()
            assert [c.status for c in done] == [0]
            assert time.monotonic() < deadline, "it never rests"


def test_stores_that_cannot_be(tmp_path: Path) -> None:
    for fd, size in ((-1, 4096), (0x7FFFFFFF, 4096)):
        assert lib.nvme_store_file(fd, size, 0) == ffi.NULL
        assert ffi.errno == 9
    with (tmp_path / "a").open("w+b") as file:
        for size, flags in ((0, 0), (1 << 63, 0), (4096, 2)):
            assert lib.nvme_store_file(file.fileno(), size, flags) == ffi.NULL
            assert ffi.errno == 22
    ends = os.pipe()
    assert lib.nvme_store_file(ends[0], 4096, 0) == ffi.NULL
    assert ffi.errno == 22
    for end in ends:
        os.close(end)


def test_erase_gives_back_what_it_can(tmp_path: Path) -> None:
    with (tmp_path / "a").open("w+b") as file:
        os.pwrite(file.fileno(), b"x" * 16384, 0)
        store = lib.nvme_store_file(file.fileno(), 16384, 0)
        assert lib.nvme_store_erase(store, 4096, 8000) == 0
        assert os.pread(file.fileno(), 16384, 0) == b"x" * 4096 + bytes(8000) + b"x" * 4288
        lib.nvme_store_free(store)


def test_pages_of_the_guest_may_go_while_a_request_is_under_way() -> None:
    with tempfile.TemporaryFile() as file, machine(file, lib.NVME_STORE_THREADS) as m:
        os.pwrite(file.fileno(), b"x" * 4096, 0)
        m.submit(command(READ, prp1=A, blocks=8))
        m.take()
        m.run(1)  # it has been asked for, and is not looked at before the next run
        m.unmap(A)
        while not (done := m.completions()):
            m.step()
        assert done[0].status == DATA_TRANSFER
