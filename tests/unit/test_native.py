"""The native module without a socket: guest memory, its limits, and readers of it."""

from __future__ import annotations

import errno
import fcntl
import gc
import mmap
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from native_reader import Reader

from vdcm._native import ffi, lib
from vdcm.dma import SecondLevel
from vdcm.errors import DmaError
from vdcm.pasid import PASIDS
from vdcm.transport import GuestMemory
from vdcm.transport.memory import maps_privately

PAGE = os.sysconf("SC_PAGESIZE")


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 8 * PAGE)
    yield fd
    os.close(fd)


def test_what_is_written_is_read_and_is_in_the_file(memfd: int) -> None:
    memory = GuestMemory()
    memory.map(0x10000, 2 * PAGE, memfd, PAGE)
    memory.write(0x10000 + PAGE - 2, b"abcd")
    assert memory.read(0x10000 + PAGE - 2, 4) == b"abcd"
    assert os.pread(memfd, 4, 2 * PAGE - 2) == b"abcd"


def test_an_access_may_span_neighbouring_ranges(memfd: int) -> None:
    memory = GuestMemory()
    memory.map(PAGE, PAGE, memfd, 4 * PAGE)
    memory.map(2 * PAGE, PAGE, memfd, 0)
    memory.write(2 * PAGE - 1, b"xy")
    assert os.pread(memfd, 1, 5 * PAGE - 1) == b"x"
    assert os.pread(memfd, 1, 0) == b"y"
    assert memory.read(2 * PAGE - 1, 2) == b"xy"


@pytest.mark.parametrize("address", [0, 0x10000 - 1, 0x10000 + PAGE, 2**64 - 1])
def test_outside_the_map_nothing_is_reached(memfd: int, address: int) -> None:
    memory = GuestMemory()
    memory.map(0x10000, PAGE, memfd)
    with pytest.raises(DmaError, match="not mapped"):
        memory.read(address, 1)
    with pytest.raises(DmaError, match="not mapped"):
        memory.write(address, b"x")


def test_an_access_that_leaves_the_map_writes_nothing(memfd: int) -> None:
    memory = GuestMemory()
    memory.map(0x10000, PAGE, memfd)
    with pytest.raises(DmaError, match=f"failed at {0x10000 + PAGE:#x}"):
        memory.write(0x10000 + PAGE - 4, b"12345678")
    assert memory.read(0x10000 + PAGE - 4, 4) == bytes(4)


def test_a_read_only_range_refuses_writes(memfd: int) -> None:
    memory = GuestMemory()
    memory.map(0, PAGE, memfd, writable=False)
    assert memory.read(0, 1) == b"\0"
    with pytest.raises(DmaError, match="without permission"):
        memory.write(0, b"x")


def test_memory_that_is_not_shared_names_the_fix() -> None:
    memory = GuestMemory()
    memory.map(0, PAGE, -1)
    with pytest.raises(DmaError, match=r"memory-backend-memfd.*share=on"):
        memory.read(0, 1)


def test_a_file_that_shrinks_is_an_error_not_a_crash(memfd: int) -> None:
    memory = GuestMemory()
    memory.map(0, 2 * PAGE, memfd)
    os.ftruncate(memfd, PAGE)
    with pytest.raises(DmaError, match="shrunk"):
        memory.read(PAGE, 8)
    with pytest.raises(DmaError, match="shrunk"):
        memory.write(PAGE, b"x")
    assert memory.read(0, 1) == b"\0"  # what is left still works


def test_what_cannot_be_mapped_is_refused(memfd: int) -> None:
    memory = GuestMemory()
    memory.map(4 * PAGE, 2 * PAGE, memfd)
    for iova, size, fd, offset in (
        (4 * PAGE, 2 * PAGE, memfd, 0),  # again
        (5 * PAGE, 4 * PAGE, memfd, 0),  # overlaps the end
        (3 * PAGE, 2 * PAGE, memfd, 0),  # overlaps the beginning
        (0, 0, memfd, 0),
        (1, PAGE, memfd, 0),
        (0, PAGE + 1, memfd, 0),
        (0, PAGE, memfd, 1),
        (0, 9 * PAGE, memfd, 0),  # longer than the file
        (0, PAGE, memfd, 2**64 - PAGE),
        (2**64 - PAGE, 2 * PAGE, memfd, 0),  # wraps
    ):
        with pytest.raises(DmaError, match="cannot map"):
            memory.map(iova, size, fd, offset)
    reader, writer = os.pipe()
    with pytest.raises(DmaError):
        memory.map(0, PAGE, reader)
    os.close(reader)
    os.close(writer)
    assert [(r.iova, r.size) for r in memory.ranges] == [(4 * PAGE, 2 * PAGE)]


def test_the_last_page_of_the_address_space_can_be_mapped(memfd: int) -> None:
    memory = GuestMemory()
    memory.map(2**64 - PAGE, PAGE, memfd)
    memory.write(2**64 - 1, b"z")
    assert memory.read(2**64 - 1, 1) == b"z"
    with pytest.raises(DmaError):
        memory.read(2**64 - 1, 2)


def test_unmap_takes_whole_ranges_only(memfd: int) -> None:
    memory = GuestMemory()
    for page in (1, 2, 4):
        memory.map(page * PAGE, PAGE, memfd)
    memory.map(8 * PAGE, 2 * PAGE, memfd)
    with pytest.raises(DmaError):
        memory.unmap(8 * PAGE, PAGE)  # cuts one
    with pytest.raises(DmaError):
        memory.unmap(16 * PAGE, PAGE)  # nothing there
    memory.unmap(0, 8 * PAGE)
    assert [r.iova for r in memory.ranges] == [8 * PAGE]
    with pytest.raises(DmaError, match="not mapped"):
        memory.read(2 * PAGE, 1)


def test_one_client_cannot_map_without_end() -> None:
    memory = GuestMemory()
    for page in range(512):
        memory.map(page * 2 * PAGE, PAGE, -1)
    with pytest.raises(DmaError, match="No space"):
        memory.map(4096 * PAGE, PAGE, -1)
    memory.unmap(0, PAGE)
    memory.map(4096 * PAGE, PAGE, -1)


def test_a_private_mapping_is_told_from_a_shared_one(memfd: int) -> None:
    status = os.fstat(memfd)
    file = (status.st_dev, status.st_ino)
    assert not maps_privately(os.getpid(), file)  # no mapping: it cannot be known
    private = mmap.mmap(memfd, PAGE, flags=mmap.MAP_PRIVATE)
    assert maps_privately(os.getpid(), file)
    shared = mmap.mmap(memfd, PAGE, flags=mmap.MAP_SHARED)
    assert not maps_privately(os.getpid(), file)
    assert not maps_privately(2**31 - 1, file)  # nobody
    private.close()
    shared.close()


def test_the_descriptor_is_not_kept(memfd: int) -> None:
    gc.collect()  # what other tests have left
    before = len(list(Path("/proc/self/fd").iterdir()))
    memory = GuestMemory()
    memory.map(0, PAGE, memfd)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert fcntl.fcntl(memfd, fcntl.F_GETFD) >= 0


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 15), st.integers(1, 5)), min_size=1, max_size=60
    )
)
def test_any_sequence_of_maps_agrees_with_a_page_table(
    steps: list[tuple[bool, int, int]],
) -> None:
    """A dictionary of pages is the reference: same successes, same contents, same holes."""
    memory = GuestMemory()
    fds = [os.memfd_create("a") for _ in range(4)]
    for number, fd in enumerate(fds):
        os.ftruncate(fd, 32 * PAGE)
        for page in range(32):
            os.pwrite(fd, bytes([number * 32 + page]), page * PAGE)
    pages: dict[int, int] = {}
    ranges: dict[int, int] = {}
    for turn, (is_map, first, count) in enumerate(steps):
        wanted = range(first, first + count)
        if is_map:
            fd = fds[turn % 4]
            if any(page in pages for page in wanted):
                with pytest.raises(DmaError):
                    memory.map(first * PAGE, count * PAGE, fd, first * PAGE)
                continue
            memory.map(first * PAGE, count * PAGE, fd, first * PAGE)
            ranges[first] = count
            pages.update({page: turn % 4 * 32 + page for page in wanted})
        else:
            touched = {s: n for s, n in ranges.items() if s < first + count and first < s + n}
            whole = all(first <= s and s + n <= first + count for s, n in touched.items())
            if not touched or not whole:
                with pytest.raises(DmaError):
                    memory.unmap(first * PAGE, count * PAGE)
                continue
            memory.unmap(first * PAGE, count * PAGE)
            for start, length in touched.items():
                del ranges[start]
                for page in range(start, start + length):
                    del pages[page]
        for page in range(24):
            if page in pages:
                assert memory.read(page * PAGE, 1)[0] == pages[page]
            else:
                with pytest.raises(DmaError):
                    memory.read(page * PAGE, 1)
    for fd in fds:
        os.close(fd)


# Readers, by PASID


@pytest.fixture
def reader() -> Iterator[Reader]:
    reader = Reader()
    yield reader
    reader.close()


@pytest.fixture
def pasids(reader: Reader) -> Iterator[list[int]]:
    """Of three VDEVs, the memory of each one page long: its number, from address 0 on."""
    pasids = []
    for number in range(3):
        memory, space = GuestMemory(), SecondLevel()
        fd = os.memfd_create("guest")
        os.write(fd, bytes([number]) * PAGE)
        memory.map(0, PAGE, fd)
        os.close(fd)
        space.attach(memory)
        pasids.append(PASIDS.allocate(space))
    yield pasids
    reader.leave()  # a release waits for it
    for pasid in pasids:
        PASIDS.release(pasid)


def test_a_reader_gets_a_piece_at_a_time(reader: Reader, memfd: int) -> None:
    space, memory = SecondLevel(), GuestMemory()
    pasid = PASIDS.allocate(space)
    assert reader.reach(pasid, PAGE, 1) == (-errno.EFAULT, 0)  # no client
    space.attach(memory)
    memory.map(PAGE, 2 * PAGE, memfd)
    memory.map(3 * PAGE, PAGE, memfd, 4 * PAGE, writable=False)
    memory.map(4 * PAGE, PAGE, -1)
    assert reader.reach(pasid, PAGE + 8, 100) == (0, 100)
    assert reader.reach(pasid, PAGE + 8, 2**64 - 1, write=True) == (0, 2 * PAGE - 8)
    assert reader.reach(pasid, 4 * PAGE - 1, 2) == (0, 1)
    assert reader.reach(pasid, 3 * PAGE, 1, write=True) == (-errno.EACCES, 0)
    assert reader.reach(pasid, 4 * PAGE, 1) == (-errno.ENXIO, 0)
    for address in (0, PAGE - 1, 5 * PAGE, 2**64 - 1):
        assert reader.reach(pasid, address, 1) == (-errno.EFAULT, 0)
    assert reader.reach(pasid, PAGE, 0) == (-errno.EINVAL, 0)
    reader.leave()
    PASIDS.release(pasid)
    assert reader.reach(pasid, PAGE, 1) == (-errno.EPERM, 0)


@pytest.mark.conformance("R2.6-2")
def test_without_a_pasid_nothing_is_reached(reader: Reader, pasids: list[int]) -> None:
    """Scalable IOV, 2.6: every memory request includes the PASID."""
    for pasid in (0, max(pasids) + 64, 2**20 - 1, 2**20, 2**20 + pasids[0], 2**32 - 1):
        assert reader.reach(pasid, 0, 1) == (-errno.EPERM, 0)


def test_a_reader_is_in_two_domains_at_most(reader: Reader, pasids: list[int]) -> None:
    first, second, third = pasids
    assert reader.read(first, 0, 1) == (0, b"\0")
    assert reader.read(second, 0, 1) == (0, b"\1")
    assert reader.read(third, 0, 1) == (-errno.EBUSY, b"")
    assert reader.read(first, 0, 2) == (0, b"\0\0")  # still inside
    reader.leave()
    assert reader.read(third, 0, 1) == (0, b"\2")


def test_an_unmap_waits_for_the_reader_inside(reader: Reader, memfd: int) -> None:
    space, memory = SecondLevel(), GuestMemory()
    pasid = PASIDS.allocate(space)
    space.attach(memory)
    memory.map(0, PAGE, memfd)
    done = threading.Event()

    def unmap() -> None:
        memory.unmap(0, PAGE)
        done.set()

    assert reader.read(pasid, 0, 1) == (0, b"\0")
    thread = threading.Thread(target=unmap)
    thread.start()
    for _ in range(1000):
        # Whether or not the change has begun to wait: who is inside may look again.
        assert reader.read(pasid, 8, 1) == (0, b"\0")
    assert not done.is_set()
    reader.leave()
    assert done.wait(60)
    thread.join()
    assert reader.reach(pasid, 0, 1) == (-errno.EFAULT, 0)
    PASIDS.release(pasid)


def test_a_release_waits_for_the_reader_inside(reader: Reader, memfd: int) -> None:
    space, memory = SecondLevel(), GuestMemory()
    pasid = PASIDS.allocate(space)
    space.attach(memory)
    memory.map(0, PAGE, memfd)
    done = threading.Event()

    def release() -> None:
        PASIDS.release(pasid)
        done.set()

    assert reader.read(pasid, 0, 1) == (0, b"\0")
    thread = threading.Thread(target=release)
    thread.start()
    while reader.reach(pasid, 0, 1) == (0, 1):
        assert not done.is_set()  # nothing is reached by it any more, though it is mapped
    assert not done.is_set()
    reader.leave()
    assert done.wait(60)
    thread.join()


def test_memory_that_goes_leaves_its_domain_empty(reader: Reader, memfd: int) -> None:
    """A session frees its memory itself; the PASID outlives it."""
    native = lib.vdcm_aspace_new()
    domain = lib.vdcm_domain_new(lib.VDCM_SECOND_LEVEL)
    assert lib.vdcm_aspace_map(native, 0, PAGE, memfd, 0, True, True) == 0
    assert lib.vdcm_domain_attach(domain, native) == 0
    pasid = 0xDFFFF
    assert lib.vdcm_pasid_set(pasid, domain) == 0
    assert reader.reach(pasid, 0, 1) == (0, 1)
    reader.leave()
    lib.vdcm_aspace_free(native)
    assert reader.reach(pasid, 0, 1) == (-errno.EFAULT, 0)
    reader.leave()
    lib.vdcm_domain_free(domain)
    assert reader.reach(pasid, 0, 1) == (-errno.EPERM, 0)


def test_there_is_an_end_to_readers() -> None:
    others = []
    while (native := lib.vdcm_reader_new()) != ffi.NULL:
        others.append(native)
        assert len(others) <= lib.VDCM_READERS
    assert ffi.errno == errno.EAGAIN
    for native in others:
        lib.vdcm_reader_free(native)
    Reader().close()
