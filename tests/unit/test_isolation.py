"""No sequence of operations lets a PASID reach memory of another VDEV (Scalable IOV, 2.6 and 3.1).

Two ways to show it: a model in plain Python that agrees after every step, and readers in threads of
their own while memory changes hands (isolation_stress.c).
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from native_reader import Reader

from vdcm._native import lib
from vdcm.dma import SecondLevel
from vdcm.errors import DmaError, StateError
from vdcm.pasid import GuestPasids, PasidTable
from vdcm.transport import GuestMemory

ROOT = Path(__file__).resolve().parents[2]
PAGE = os.sysconf("SC_PAGESIZE")
WINDOW = range(0xE003E, 0xE0044)
"""Few PASIDs, so that each soon stands for something else; they cross a directory entry."""
PAGES = 5
NO_PASID = 2**32 - 1

VDEVS = st.integers(0, 2)
PAGE_NUMBERS = st.integers(0, PAGES - 1)
PASID_NUMBERS = st.sampled_from(WINDOW)
GUEST_NUMBERS = st.integers(0, 3)


class ModelVdev:
    """A VDEV's memory as it is, and ``pages``: what is where in it, as the model has it."""

    def __init__(self, number: int, table: PasidTable) -> None:
        self.space = SecondLevel()
        self.guests = GuestPasids(self.space, limit=3, table=table)
        self.bindings: dict[int, int] = {}
        self.memory: GuestMemory | None = None
        self.pages: dict[int, int] = {}  # page of the address space -> page of the file
        self.writable: set[int] = set()
        self.fd = os.memfd_create(f"vdev{number}")
        self.file = bytearray(b"".join(bytes([16 * number + i]) * PAGE for i in range(PAGES)))
        os.pwrite(self.fd, self.file, 0)


class Isolation(RuleBasedStateMachine):
    """VDEVs, clients, maps, PASIDs and guest PASIDs that come and go in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.table = PasidTable(WINDOW)
        self.reader = Reader()
        self.vdevs = [ModelVdev(number, self.table) for number in range(3)]
        self.owners: dict[int, ModelVdev] = {}
        self.written = 0

    def teardown(self) -> None:
        for vdev in self.vdevs:
            vdev.guests.clear()
            os.close(vdev.fd)
        for pasid in self.owners:
            self.table.release(pasid)
        self.reader.close()

    @initialize()
    def begin(self) -> None:
        """Everybody has a client and a PASID, so that there is something to reach."""
        for number in range(3):
            self.connect(number)
            self.allocate(number)

    @rule(number=VDEVS)
    def connect(self, number: int) -> None:
        vdev = self.vdevs[number]
        if vdev.memory is None:
            vdev.memory = GuestMemory()
            vdev.space.attach(vdev.memory)

    @rule(number=VDEVS, orderly=st.booleans())
    def disconnect(self, number: int, orderly: bool) -> None:
        """The client goes; its memory is freed whether or not the VDEV let go of it before."""
        vdev = self.vdevs[number]
        if vdev.memory is not None:
            if orderly:
                vdev.space.detach()
            vdev.memory.disconnect()
            vdev.memory = None
            vdev.pages.clear()

    @rule(number=VDEVS, other=VDEVS)
    def steal(self, number: int, other: int) -> None:
        """The memory of one cannot become that of another as well."""
        memory = self.vdevs[other].memory
        attached = self.vdevs[number].memory
        if memory is not None and number != other:
            with pytest.raises(StateError, match="another address space"):
                self.vdevs[number].space.attach(memory)
            assert self.vdevs[number].memory is attached

    @rule(number=VDEVS, page=PAGE_NUMBERS, at=PAGE_NUMBERS, writable=st.booleans())
    def map(self, number: int, page: int, at: int, writable: bool) -> None:
        vdev = self.vdevs[number]
        if vdev.memory is None:
            return
        if at in vdev.pages:
            with pytest.raises(DmaError):
                vdev.memory.map(at * PAGE, PAGE, vdev.fd, page * PAGE)
            return
        vdev.memory.map(at * PAGE, PAGE, vdev.fd, page * PAGE, writable=writable)
        vdev.pages[at] = page
        (vdev.writable.add if writable else vdev.writable.discard)(at)

    @rule(number=VDEVS, at=PAGE_NUMBERS, count=st.integers(1, PAGES))
    def unmap(self, number: int, at: int, count: int) -> None:
        vdev = self.vdevs[number]
        gone = vdev.pages.keys() & range(at, at + count)
        if vdev.memory is None:
            return
        if not gone:
            with pytest.raises(DmaError):
                vdev.memory.unmap(at * PAGE, count * PAGE)
            return
        vdev.memory.unmap(at * PAGE, count * PAGE)
        for page in gone:
            del vdev.pages[page]

    @rule(number=VDEVS)
    def allocate(self, number: int) -> None:
        if len(self.owners) == len(WINDOW):
            with pytest.raises(StateError):
                self.table.allocate(self.vdevs[number].space)
            return
        pasid = self.table.allocate(self.vdevs[number].space)
        assert pasid not in self.owners
        self.owners[pasid] = self.vdevs[number]

    @rule(pasid=PASID_NUMBERS)
    def release(self, pasid: int) -> None:
        if pasid not in self.owners or pasid in self.owners[pasid].bindings.values():
            with pytest.raises(StateError):
                self.table.release(pasid)
            return
        self.table.release(pasid)
        del self.owners[pasid]

    @rule(number=VDEVS)
    def replace(self, number: int) -> None:
        """The VDEV goes with its PASIDs and its client, and another one takes its place."""
        old = self.vdevs[number]
        old.guests.clear()
        for pasid in [pasid for pasid, owner in self.owners.items() if owner is old]:
            self.table.release(pasid)
            del self.owners[pasid]
        os.close(old.fd)
        self.vdevs[number] = ModelVdev(number, self.table)

    @rule(number=VDEVS, guest=GUEST_NUMBERS, host=PASID_NUMBERS)
    def bind(self, number: int, guest: int, host: int) -> None:
        vdev = self.vdevs[number]
        possible = self.owners.get(host) is vdev and guest not in vdev.bindings
        if possible and len(vdev.bindings) < 3:
            vdev.guests.bind(guest, host)
            vdev.bindings[guest] = host
        else:
            with pytest.raises(StateError):
                vdev.guests.bind(guest, host)

    @precondition(lambda self: any(vdev.bindings for vdev in self.vdevs))
    @rule(number=VDEVS, guest=GUEST_NUMBERS)
    def unbind(self, number: int, guest: int) -> None:
        vdev = self.vdevs[number]
        if vdev.bindings.pop(guest, None) is None:
            with pytest.raises(StateError):
                vdev.guests.unbind(guest)
        else:
            vdev.guests.unbind(guest)

    @rule(
        pasid=PASID_NUMBERS, at=PAGE_NUMBERS, offset=st.integers(0, PAGE - 8), swept=st.booleans()
    )
    def write(self, pasid: int, at: int, offset: int, swept: bool) -> None:
        """Through a reader, as the sweep does, or by Python; what is written is nowhere else."""
        self.written += 1
        data = self.written.to_bytes(8, "big")
        vdev = self.owners.get(pasid)
        done = False
        if swept:
            done = not self.reader.write(pasid, at * PAGE + offset, data)
        else:
            with suppress(DmaError):
                self.table.space(pasid).write(at * PAGE + offset, data)
                done = True
        assert done == (vdev is not None and at in vdev.pages and at in vdev.writable)
        if done and vdev is not None:
            start = vdev.pages[at] * PAGE + offset
            vdev.file[start : start + 8] = data

    @invariant()
    def every_pasid_reaches_its_own(self) -> None:
        for pasid in (*WINDOW, 0, NO_PASID):
            vdev = self.owners.get(pasid)
            for at in range(PAGES):
                code, found = self.reader.read(pasid, at * PAGE, PAGE)
                if vdev is None:
                    assert code == -errno.EPERM
                    with pytest.raises(DmaError):
                        self.table.space(pasid)
                elif at not in vdev.pages:
                    assert code == -errno.EFAULT
                    with pytest.raises(DmaError):
                        self.table.space(pasid).read(at * PAGE, 1)
                else:
                    start = vdev.pages[at] * PAGE
                    assert found == vdev.file[start : start + PAGE]
                    assert self.table.space(pasid).read(at * PAGE, PAGE) == found
            self.reader.leave()

    @invariant()
    def every_file_holds_what_its_own_vdev_wrote(self) -> None:
        for vdev in self.vdevs:
            assert os.pread(vdev.fd, len(vdev.file), 0) == vdev.file

    @invariant()
    def guest_pasids_lead_to_pasids_of_their_own_vdev(self) -> None:
        for vdev in self.vdevs:
            assert dict(vdev.guests.bindings) == vdev.bindings
            for guest in range(4):
                host = lib.vdcm_pasid_map_translate(vdev.guests.native, guest)
                assert host == vdev.bindings.get(guest, NO_PASID)
                assert host == NO_PASID or self.owners[host] is vdev


TestIsolation = Isolation.TestCase
TestIsolation.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


@pytest.mark.conformance("R2.6-2", "R2.6-5")
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_readers_in_threads_never_see_what_is_not_theirs(sanitizer: str, tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    assert compiler is not None, "no C compiler: run ci/bootstrap"
    unit, native = ROOT / "tests" / "unit", ROOT / "native"
    program = tmp_path / "isolation_stress"
    # Not under the sanitizer that the tests themselves may be running under.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    flags = ["-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread", f"-I{native}"]
    perturbed = ["-include", unit / "perturbed_atomics.h"]
    memory = (native / f"{name}.c" for name in ("aspace", "faults", "pasid"))
    sources = [unit / "isolation_stress.c", *memory]
    build = [compiler, *flags, f"-fsanitize={sanitizer}", *perturbed, *sources, "-o", program]
    subprocess.run(build, check=True, env=environment)
    for seed in range(1, 4):
        result = subprocess.run(
            [program, "10000", str(seed)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert result.returncode == 0, f"seed {seed}:\n{result.stdout}{result.stderr}"
        assert result.stdout.startswith("10000 changes; ")
        assert "Sanitizer" not in result.stderr
