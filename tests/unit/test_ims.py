"""Interrupt Message Storage: entries, their masks and routes, and signals that nobody can block."""

from __future__ import annotations

import gc
import mmap
import os
import platform
import select
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vdcm._native import lib
from vdcm.errors import DeclarationError, ResourceError, StateError, VdcmError
from vdcm.ims import MAX_ENTRIES, ImsEntry, ImsStorage
from vdcm.interrupts import Interrupts
from vdcm.protocol import Irq
from vdcm.registers import RegisterSpace
from vdcm.transport import IrqAction

DEADLINE = 30.0
FULL = 0xFFFFFFFFFFFFFFFE


class Eventfds:
    """A client's end: one eventfd per MSI-X vector that it has bound."""

    def __init__(self, interrupts: Interrupts) -> None:
        self.interrupts = interrupts
        self.fds: dict[int, int] = {}
        interrupts.attach(self)

    def trigger(self, kind: Irq, vector: int) -> bool:
        if vector not in self.fds:
            return False
        os.eventfd_write(self.fds[vector], 1)
        return kind is Irq.MSIX

    def eventfd(self, kind: Irq, vector: int) -> int:
        return self.fds.get(vector, -1) if kind is Irq.MSIX else -1

    def bind(self, vector: int) -> None:
        self._close(vector)
        self.fds[vector] = os.eventfd(0, os.EFD_NONBLOCK)
        self.do(IrqAction.BOUND, vector)

    def unbind(self, vector: int) -> None:
        self._close(vector)
        self.do(IrqAction.UNBOUND, vector)

    def do(self, action: IrqAction, vector: int) -> None:
        self.interrupts.irqs_changed(Irq.MSIX, action, vector, 1)

    def taken(self, vector: int) -> int:
        """Signals since the last look."""
        try:
            return os.eventfd_read(self.fds[vector])
        except (KeyError, BlockingIOError):
            return 0

    def disconnect(self) -> None:
        self.interrupts.detach()
        self.close()

    def close(self) -> None:
        for vector in list(self.fds):
            self._close(vector)

    def _close(self, vector: int) -> None:
        if vector in self.fds:
            os.close(self.fds.pop(vector))


def routed(vectors: int = 1) -> tuple[Interrupts, Eventfds, ImsEntry]:
    """An entry that is routed to vector 0, which is bound."""
    interrupts = Interrupts(msix=vectors)
    client = Eventfds(interrupts)
    client.bind(0)
    entry = ImsStorage(4, "parent").allocate()
    entry.route(interrupts, 0)
    return interrupts, client, entry


@pytest.mark.conformance("R2.5.1-5")
def test_entries_are_allocated_until_there_are_none() -> None:
    storage = ImsStorage(130, "parent")
    entries = [storage.allocate() for _ in range(130)]
    assert sorted(entry.index for entry in entries) == list(range(130))
    assert storage.free == 0
    with pytest.raises(ResourceError, match=r"all 130 IMS entries are in use.*release ADIs"):
        storage.allocate()
    entries[77].release()
    assert storage.free == 1
    assert storage.allocate().index == 77


@pytest.mark.conformance("R2.5.1-1")
def test_the_largest_storage_takes_memory_only_for_what_is_used() -> None:
    storage = ImsStorage(MAX_ENTRIES, "parent")
    entries = [storage.allocate() for _ in range(MAX_ENTRIES)]
    assert entries[-1].index == MAX_ENTRIES - 1
    entries[-1].raise_()
    assert entries[-1].pending
    for wrong in (0, MAX_ENTRIES + 1):
        with pytest.raises(DeclarationError, match="1 to 65536"):
            ImsStorage(wrong, "parent")


@pytest.mark.conformance("R2.5.1-5", "R2.5.2-3")
def test_a_former_owner_raises_nothing() -> None:
    storage = ImsStorage(1, "parent")
    old = storage.allocate()
    old.release()
    new = storage.allocate()
    assert old.index == new.index and old.handle != new.handle
    with pytest.raises(StateError, match="has been released"):
        old.raise_()
    with pytest.raises(StateError, match="has been released"):
        old.release()
    assert lib.vdcm_ims_raise(storage.native, old.handle) < 0
    assert not new.pending and new.raised == 0


@pytest.mark.conformance("R2.5.2-3")
def test_only_an_entry_that_there_is_can_be_raised() -> None:
    storage = ImsStorage(65, "parent")
    entry = storage.allocate()
    for handle in (
        entry.index,  # without its generation
        entry.handle + 1,  # not allocated yet
        entry.handle + 64,  # its memory neither
        entry.handle + 65,  # beyond the end
        0xFFFFFFFF,
    ):
        assert lib.vdcm_ims_raise(storage.native, handle) < 0
    assert entry.raised == 0


def test_generations_do_not_end() -> None:
    storage = ImsStorage(1, "parent")
    seen = set()
    for _ in range(65535):
        entry = storage.allocate()
        seen.add(entry.handle)
        entry.release()
    assert len(seen) == 65535
    assert storage.allocate().handle in seen  # only now one comes again


@pytest.mark.conformance("R2.5.1-4", "R2.5.1-12", "R4.4.2-7")
def test_a_route_programs_an_interrupt_message() -> None:
    _, client, entry = routed()
    assert entry.address == 0xFEE00010 and entry.data == 0  # remappable format, handle 0
    entry.program(0xFEE0_1234, 0xFFFF_FFFF)
    assert (entry.address, entry.data) == (0xFEE0_1234, 0xFFFF_FFFF)
    client.close()


@pytest.mark.conformance("R2.5.1-4")
@pytest.mark.parametrize(
    ("address", "data"),
    [(0, 0), (0xFEE00002, 0), (0xFEF00000, 0), (1 << 64, 0), (0xFEE00000, 1 << 32), (-4, 0)],
)
def test_what_is_no_interrupt_message_is_refused(address: int, data: int) -> None:
    entry = ImsStorage(1, "parent").allocate()
    with pytest.raises(DeclarationError, match="no interrupt message"):
        entry.program(address, data)
    assert entry.address == 0


def test_a_raise_is_delivered_at_once() -> None:
    interrupts, client, entry = routed()
    entry.raise_()
    entry.raise_()
    assert client.taken(0) == 2
    assert (entry.raised, entry.delivered, entry.pending) == (2, 2, False)
    assert interrupts.delivered == 2
    client.close()


@pytest.mark.conformance("R2.5.1-6")
def test_a_masked_entry_is_delivered_once_on_unmask() -> None:
    _, client, entry = routed()
    entry.mask(True)
    entry.raise_()
    entry.raise_()
    assert entry.masked and entry.pending and client.taken(0) == 0
    entry.mask(False)
    assert not entry.pending and client.taken(0) == 1
    entry.mask(False)
    assert client.taken(0) == 0
    client.close()


def test_an_entry_without_a_route_is_pending_until_it_has_one() -> None:
    storage = ImsStorage(1, "parent")
    entry = storage.allocate()
    entry.raise_()
    assert entry.pending
    interrupts = Interrupts(msix=1)
    client = Eventfds(interrupts)
    client.bind(0)
    entry.unroute()  # forgets it
    entry.route(interrupts, 0)
    assert client.taken(0) == 0
    entry.raise_()
    assert client.taken(0) == 1
    client.close()


def test_what_is_pending_follows_to_another_vector_but_not_to_another_vdev() -> None:
    interrupts, client, entry = routed(vectors=2)
    client.unbind(0)
    entry.raise_()
    entry.route(interrupts, 1)
    assert entry.vector == 1 and entry.pending
    client.bind(1)
    assert client.taken(1) == 1
    client.unbind(1)
    entry.raise_()
    stranger = Interrupts(msix=1)
    other = Eventfds(stranger)
    other.bind(0)
    entry.route(stranger, 0)
    assert other.taken(0) == 0 and not entry.pending
    assert interrupts.delivered == 1  # what was delivered remains counted where it was
    entry.raise_()
    assert (other.taken(0), stranger.delivered, interrupts.delivered) == (1, 1, 1)
    client.close()
    other.close()


def test_a_vector_that_there_is_not_is_refused() -> None:
    entry = ImsStorage(1, "parent").allocate()
    for interrupts, vector in (
        (Interrupts(msix=2), 2),
        (Interrupts(msix=2), -1),
        (Interrupts(), 0),
    ):
        with pytest.raises(VdcmError, match="out of range"):
            entry.route(interrupts, vector)
    assert entry.vector is None


def test_a_released_entry_has_let_go_of_its_vector() -> None:
    interrupts, client, entry = routed()
    entry.raise_()
    entry.release()
    assert interrupts.delivered == 1 and client.taken(0) == 1
    client.unbind(0)
    client.bind(0)
    assert client.taken(0) == 0
    client.close()


def test_no_descriptor_is_kept() -> None:
    def count() -> int:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    lib.vdcm_signal_never_blocks()
    before = count()
    interrupts, client, entry = routed()
    for _ in range(3):
        client.bind(0)
    entry.raise_()
    client.unbind(0)
    client.bind(0)
    entry.release()
    client.disconnect()
    assert count() == before
    interrupts, client, entry = routed()
    client.close()
    del interrupts, client, entry  # storage and all
    assert count() == before


@pytest.mark.conformance("R2.5.1-7", "R2.5.1-9")
def test_storage_describes_what_is_in_use() -> None:
    storage = ImsStorage(8, "parent")
    storage.allocate()
    entry = storage.allocate()
    interrupts = Interrupts(msix=4)
    entry.route(interrupts, 3)
    entry.raise_()
    entry.mask(True)
    described = storage.describe()
    assert (described["size"], described["free"]) == (8, 6)
    assert described["entries"][1] == {
        "index": 1,
        "address": 0xFEE00030,
        "data": 0,
        "vector": 3,
        "masked": True,
        "pending": True,
        "raised": 1,
        "delivered": 0,
    }


def test_no_descriptor_left_is_an_error_with_a_remedy() -> None:
    script = """if True:
        import os, resource
        from vdcm.errors import StateError
        from vdcm.ims import ImsStorage
        from vdcm._native import lib
        storage = ImsStorage(1, "parent")
        entry = storage.allocate()
        fd = os.eventfd(0)
        resource.setrlimit(resource.RLIMIT_NOFILE, (fd + 1, fd + 1))
        try:
            entry.bind(fd)
        except StateError as error:
            print(error)
        entry.block(False)
        entry.raise_()
        print(entry.pending)
    """
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "raise the limit of open files" in done.stdout and "True" in done.stdout


class Storage(RuleBasedStateMachine):
    """Four messages of two parents on two vectors, against a model in plain Python.

    What a raise or a signal of the VDCM leaves behind is exactly one of: one delivery now, one
    pending bit that becomes one delivery, nothing after a reset.
    """

    VECTORS = 3

    def __init__(self) -> None:
        super().__init__()
        self.interrupts = Interrupts(msix=self.VECTORS)
        self.client = Eventfds(self.interrupts)
        self.space = RegisterSpace("BAR0", 0x1000)
        assert self.interrupts.msix is not None
        self.space.place(0, self.interrupts.msix.table)
        self.space.place(0x800, self.interrupts.msix.pending_bits)
        self.storages = [ImsStorage(2, "one"), ImsStorage(2, "two")]
        self.entries: list[ImsEntry] = []
        self.vector = [0, 0, 1, 0]
        for i in range(4):
            self.entries.append(self.storages[i % 2].allocate())
            self.entries[i].route(self.interrupts, self.vector[i])
        # The model.
        self.bound: set[int] = set()
        self.client_masked: set[int] = set()
        self.guest_masked = set(range(self.VECTORS))
        self.enabled = self.all_masked = False
        self.entry_masked: set[int] = set()
        self.entry_pending: set[int] = set()
        self.signal_pending: set[int] = set()
        self.expected: Counter[int] = Counter()
        self.raised: Counter[int] = Counter()

    def blocked(self, vector: int) -> bool:
        return (
            self.all_masked
            or vector not in self.bound
            or vector in self.client_masked
            or vector in self.guest_masked
        )

    def look(self) -> None:
        for vector in range(self.VECTORS):
            if self.blocked(vector):
                continue
            ready = {i for i in self.entry_pending - self.entry_masked if self.vector[i] == vector}
            self.expected[vector] += bool(ready) or vector in self.signal_pending
            self.entry_pending -= ready
            self.signal_pending.discard(vector)

    entry = st.integers(0, 3)
    vectors = st.integers(0, VECTORS - 1)

    @rule(i=entry)
    def raise_entry(self, i: int) -> None:
        self.entries[i].raise_()
        self.raised[i] += 1
        if self.blocked(self.vector[i]) or i in self.entry_masked:
            self.entry_pending.add(i)
        else:
            self.expected[self.vector[i]] += 1

    @rule(vector=vectors)
    def signal(self, vector: int) -> None:
        self.interrupts.signal(vector)
        if not self.blocked(vector):
            self.expected[vector] += 1
        elif self.enabled or self.bound:
            self.signal_pending.add(vector)

    @rule(i=entry, masked=st.booleans())
    def mask_entry(self, i: int, masked: bool) -> None:
        self.entries[i].mask(masked)
        (self.entry_masked.add if masked else self.entry_masked.discard)(i)
        self.look()

    @rule(vector=vectors)
    def bind(self, vector: int) -> None:
        self.check()
        self.client.bind(vector)
        self.bound.add(vector)
        self.client_masked.discard(vector)
        self.guest_masked.discard(vector)
        self.look()

    @rule(vector=vectors)
    def unbind(self, vector: int) -> None:
        self.check()
        self.client.unbind(vector)
        self.bound.discard(vector)
        self.client_masked.discard(vector)
        self.guest_masked.add(vector)

    @rule(vector=vectors, masked=st.booleans())
    def client_masks(self, vector: int, masked: bool) -> None:
        self.client.do(IrqAction.MASKED if masked else IrqAction.UNMASKED, vector)
        (self.client_masked.add if masked else self.client_masked.discard)(vector)
        self.look()

    @rule(vector=vectors, masked=st.booleans())
    def guest_masks(self, vector: int, masked: bool) -> None:
        self.space.write(16 * vector + 12, 4, int(masked))
        (self.guest_masked.add if masked else self.guest_masked.discard)(vector)
        self.look()

    @rule(enabled=st.booleans(), all_masked=st.booleans())
    def guest_controls(self, enabled: bool, all_masked: bool) -> None:
        self.interrupts.set_enabled(Irq.MSIX, enabled=enabled, all_masked=all_masked)
        self.enabled, self.all_masked = enabled, all_masked
        self.look()

    @rule()
    def reset(self) -> None:
        self.interrupts.reset()
        self.entry_pending.clear()
        self.signal_pending.clear()
        self.enabled = self.all_masked = False
        self.guest_masked = set(range(self.VECTORS)) - self.bound

    @rule()
    def next_client(self) -> None:
        self.check()
        self.client.disconnect()
        self.client = Eventfds(self.interrupts)
        self.bound.clear()
        self.client_masked.clear()

    @rule(i=entry, vector=vectors)
    def route(self, i: int, vector: int) -> None:
        self.entries[i].route(self.interrupts, vector)
        self.vector[i] = vector
        self.look()

    @rule(i=entry, vector=vectors)
    def replace(self, i: int, vector: int) -> None:
        self.entries[i].release()
        self.entries[i] = self.storages[i % 2].allocate()
        self.entries[i].route(self.interrupts, vector)
        self.vector[i] = vector
        self.entry_pending.discard(i)
        self.entry_masked.discard(i)
        self.raised[i] = 0

    @invariant()
    def check(self) -> None:
        for vector in range(self.VECTORS):
            assert self.client.taken(vector) == self.expected[vector], f"vector {vector}"
        self.expected.clear()
        pending = self.signal_pending | {self.vector[i] for i in self.entry_pending}
        assert self.interrupts.pending(Irq.MSIX) == pending
        assert self.space.read(0x800, 8) == sum(1 << vector for vector in pending)
        for i, entry in enumerate(self.entries):
            assert entry.pending == (i in self.entry_pending)
            assert entry.raised == self.raised[i]

    def teardown(self) -> None:
        self.client.close()


TestStorage = Storage.TestCase
TestStorage.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_no_raise_is_lost_while_the_control_thread_masks() -> None:
    """Each thread waits for its interrupt before it raises the next one: as many signals come as
    there were raises, whatever the masks do in between."""
    turns, threads = 900, 3
    storage = ImsStorage(threads, "parent")
    interrupts = Interrupts(msix=threads)
    client = Eventfds(interrupts)
    entries = [storage.allocate() for _ in range(threads)]
    for vector, entry in enumerate(entries):
        client.bind(vector)
        entry.route(interrupts, vector)
    signals = [0] * threads
    stop = threading.Event()

    def work(vector: int) -> None:
        while not stop.is_set():
            entries[vector].raise_()
            ready, _, _ = select.select([client.fds[vector]], [], [], DEADLINE)
            if not ready:
                return  # lost
            signals[vector] += os.eventfd_read(client.fds[vector])

    workers = [threading.Thread(target=work, args=(vector,)) for vector in range(threads)]
    for worker in workers:
        worker.start()
    for turn in range(turns):
        vector = turn % threads
        entries[vector].mask(True)
        entries[vector].mask(False)
        client.do(IrqAction.MASKED, vector)
        client.do(IrqAction.UNMASKED, vector)
        client.do(IrqAction.BOUND, vector)  # a new duplicate of the same eventfd
    stop.set()
    for worker in workers:
        worker.join()
    assert min(signals) > 0
    assert signals == [entry.raised for entry in entries]
    assert [client.taken(vector) for vector in range(threads)] == [0] * threads
    assert interrupts.delivered == sum(signals)
    client.close()


def test_a_released_entry_is_not_raised_while_a_thread_tries() -> None:
    """The next owner of an entry hears nothing of a former one that goes on raising it."""
    storage = ImsStorage(1, "parent")
    handles = [storage.allocate().handle]
    stop = threading.Event()
    tried = threading.Event()

    def work() -> None:
        while not stop.is_set():
            lib.vdcm_ims_raise(storage.native, handles[0])
            tried.set()

    worker = threading.Thread(target=work)
    worker.start()
    try:
        entry = storage._entries[0]
        for _ in range(200):
            assert tried.wait(DEADLINE)
            tried.clear()
            entry.release()
            entry = storage.allocate()
            assert tried.wait(DEADLINE)
            assert entry.raised == 0
            handles[0] = entry.handle
    finally:
        stop.set()
        worker.join()


def signalled(fd: int) -> int:
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def test_signals_are_counted_and_a_full_counter_stays_full() -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    for _ in range(1000):  # more than the kernel keeps completions of
        assert lib.vdcm_signal(fd) == 0
    assert signalled(fd) == 1000
    os.eventfd_write(fd, FULL)
    os.set_blocking(fd, True)
    for _ in range(3):
        assert lib.vdcm_signal(fd) == 0
    assert os.eventfd_read(fd) >= FULL
    os.close(fd)
    assert lib.vdcm_signal(fd) < 0


HOSTILE = """
import mmap, os, select, sys, time
fd, shared, rounds = map(int, sys.argv[1:])
progress = memoryview(mmap.mmap(shared, mmap.PAGESIZE)).cast("Q")
def drain():
    if select.select([fd], [], [], 0)[0]:
        os.eventfd_read(fd)
turn = 0
while turn < rounds:
    drain()
    for _ in range(turn % 50):
        pass
    os.set_blocking(fd, False)
    try:
        os.eventfd_write(fd, 0xFFFFFFFFFFFFFFFE)
    except BlockingIOError:  # the server was quicker
        continue
    os.set_blocking(fd, True)
    before, deadline = progress[0], time.monotonic() + 20
    while progress[0] < before + 3:
        if time.monotonic() > deadline:
            drain()  # lets the server go on, to say so
            sys.exit("the server is stuck")
        os.sched_yield()
    turn += 1
"""


def test_a_client_that_fills_its_counter_at_any_moment_stops_nobody() -> None:
    if not lib.vdcm_signal_never_blocks():
        pytest.skip("no asynchronous I/O here (io_setup): a signal may block for a hostile client")
    fd = os.eventfd(0)
    shared = os.memfd_create("progress")
    os.ftruncate(shared, mmap.PAGESIZE)
    progress = memoryview(mmap.mmap(shared, mmap.PAGESIZE)).cast("Q")
    hostile = subprocess.Popen(
        [sys.executable, "-c", HOSTILE, str(fd), str(shared), "300"], pass_fds=(fd, shared)
    )
    while hostile.poll() is None:
        for _ in range(100):
            assert lib.vdcm_signal(fd) == 0
            progress[0] += 1
    assert hostile.returncode == 0
    os.close(fd)
    os.close(shared)


WITHOUT_AIO = """
import ctypes, os, struct, sys
number = int(sys.argv[1])
ALLOW, ENOSYS = 0x7FFF0000, 0x00050000 | 38
code = b"".join(struct.pack("HBBI", *step) for step in (
    (0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, ENOSYS), (0x06, 0, 0, ALLOW)))
keep = ctypes.create_string_buffer(code, len(code))
program = struct.pack("HxxxxxxP", 4, ctypes.addressof(keep))
libc = ctypes.CDLL(None, use_errno=True)
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
assert libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0) == 0, ctypes.get_errno()
from vdcm._native import lib
assert not lib.vdcm_signal_never_blocks()
fd = os.eventfd(0)
for _ in range(1000):
    assert lib.vdcm_signal(fd) == 0
assert os.eventfd_read(fd) == 1000
os.eventfd_write(fd, 0xFFFFFFFFFFFFFFFE)
assert lib.vdcm_signal(fd) == 0
assert os.eventfd_read(fd) == 0xFFFFFFFFFFFFFFFE
os.close(fd)
assert lib.vdcm_signal(fd) < 0
print("signalled")
"""


def test_where_the_sandbox_refuses_asynchronous_io_signals_still_arrive() -> None:
    io_setup = {"x86_64": 206, "aarch64": 0}.get(platform.machine())
    if io_setup is None:
        pytest.skip(f"the number of io_setup on {platform.machine()} is not known here")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_AIO, str(io_setup)], capture_output=True, text=True
    )
    assert done.stdout == "signalled\n", done.stderr
