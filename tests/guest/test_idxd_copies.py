"""Copies by the kernel's dmaengine through Linux's own idxd: none lost, none wrong.

VDCM_SOAK in the environment (``ci/test --soak``) asks for the long run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.guest import idxd
from tests.guest.copies import copy, insmod
from vdcm.testing import Machine, Server, address_of, vfio_user

Boot = Callable[..., Machine]
SOAK = "VDCM_SOAK" in os.environ
COPIES = 100_000 if SOAK else 8_000
THREADS = 16
ENTRIES = 32
ACCEPTED = re.compile(r"WQ 0 .*: accepted")
ADVERTISED = 2 << 30  # bytes of the largest transfer that the device says it can do
IN_ONE_PIECE = (4 << 20) - (16 << 10)  # of an x86 kernel's largest, with room to look around
OCCUPIED = ENTRIES - 1  # a thread that has to wait for idxd's entry 0 takes it and forgets it


@pytest.fixture(scope="module")
def machine(idxd_lab: idxd.IdxdLab) -> Iterator[Machine]:
    """The shared guest with ``wq0.0``, ``wq0.1`` and ``wq1.0`` enabled for dmaengine; the last
    takes transfers of any size that the device does."""
    machine = idxd_lab.machine
    idxd.load(machine)
    devices = [idxd.IdxdDevice(machine, 0), idxd.IdxdDevice(machine, 1)]
    for device, wqs in zip(devices, (2, 1), strict=True):
        for number in range(wqs):
            device.configure(number, engine=number, group_id=number, size=ENTRIES)
        if device.index:
            device.set(f"{device.wq(0)}/max_transfer_size", ADVERTISED)
        device.enable()
        for number in range(wqs):
            device.enable_wq(number)
    yield machine
    for device in devices:
        device.disable()
    idxd.unload(machine)


def completions(machine: Machine) -> int:
    """Interrupts of all work queues on all CPUs."""
    lines = machine.check("cat /proc/interrupts").splitlines()
    counted = [re.findall(r"\d+", line.split("PCI")[0])[1:] for line in lines if "portal" in line]
    assert counted, "\n".join(lines)
    return sum(int(count) for counts in counted for count in counts)


@pytest.mark.timeout(900 if SOAK else 120)
def test_many_threads(machine: Machine) -> None:
    """The completions are interrupts: an idxd of that API has no other way to tell."""
    before = completions(machine)
    counts = copy(machine, threads=THREADS, copies=COPIES, max_size=16384, limit=600.0)
    print(counts)
    assert counts.flawless(COPIES)
    assert completions(machine) > before


def test_looking_for_completions_all_the_time(machine: Machine) -> None:
    counts = copy(machine, threads=THREADS, copies=COPIES // 8, max_size=16384, polled=1)
    assert counts.flawless(COPIES // 8)


def test_a_full_work_queue(machine: Machine) -> None:
    counts = copy(machine, depth=OCCUPIED, copies=COPIES // 4, max_size=4096)
    assert counts.flawless(COPIES // 4)


def test_work_queues_of_two_devices_at_once(machine: Machine) -> None:
    counts = copy(machine, threads=12, channels=3, copies=COPIES // 4, max_size=16384, seed=2)
    assert counts.flawless(COPIES // 4)
    taken = re.findall(r"dmacopy: (\S+) of (\S+)", machine.check("dmesg"))[-3:]
    assert len({channel for channel, _ in taken}) == 3
    assert len({device for _, device in taken}) == 2


def test_guests_of_one_parent(
    idxd_lab: idxd.IdxdLab, machine: Machine, boot: Boot, idxd_options: dict[str, Any]
) -> None:
    """They copy at once; then one is reset and killed in the middle of it, and the other copies."""
    server = idxd_lab.server
    other = boot(vfio_user(server.socket("spare0")), cpus=2, **idxd_options)
    idxd.load(other)
    device = idxd.IdxdDevice(other)
    device.configure(size=ENTRIES)
    device.enable()
    device.enable_wq()
    run = partial(copy, threads=THREADS, copies=COPIES // 8, max_size=16384)
    with ThreadPoolExecutor() as pool:
        for counts in pool.map(run, [machine, other]):
            assert counts.flawless(COPIES // 8)
        since = len(server.log)
        other.check(f"{insmod({'copies': 4_000_000_000, 'threads': THREADS})} >/dev/null 2>&1 &")
        server.wait_for(
            "it copies", lambda: any(map(ACCEPTED.search, server.trace("spare0", since)))
        )
        meanwhile = pool.submit(run, machine)
        other.check(f"echo 1 >/sys/bus/pci/devices/{address_of(other, idxd.DSA)}/reset")
        other.kill()
        assert meanwhile.result().flawless(COPIES // 8)
    server.wait_for("the VDEV is free", lambda: server.show("spare0")["state"] == "ready")


def test_a_guest_with_an_iommu(
    idxd_lab: idxd.IdxdLab, boot: Boot, idxd_options: dict[str, Any]
) -> None:
    """Each buffer is mapped for one copy. SVA needs more than that: ATS and page requests."""
    iommu = ["-device", "intel-iommu,scalable-mode=on,caching-mode=on"]
    socket = idxd_lab.server.socket("spare0")
    guest = boot(
        [*iommu, *vfio_user(socket)],
        cpus=2,
        kernel_arguments="intel_iommu=on,sm_on",
        **idxd_options,
    )
    idxd.load(guest)
    assert "Unable to turn on user SVA" in guest.check("dmesg")
    device = idxd.IdxdDevice(guest)
    device.configure(size=ENTRIES)
    device.enable()
    device.enable_wq()
    assert copy(guest, threads=THREADS, copies=COPIES // 8, max_size=16384).flawless(COPIES // 8)


def test_up_to_the_largest_transfer_and_not_beyond(machine: Machine) -> None:
    largest = int(idxd.read(machine, "dsa0/wq0.0/max_transfer_size"))
    assert largest == 2 << 20
    assert copy(machine, copies=100, threads=4, max_size=largest).flawless(100)
    assert copy(machine, copies=8, min_size=largest, max_size=largest).flawless(8)
    beyond = copy(machine, copies=8, min_size=largest + 1, max_size=largest + 1)
    assert (beyond.done, beyond.failed) == (8, 8)


def test_the_largest_piece_of_memory_that_the_kernel_gives(machine: Machine) -> None:
    path = machine.check(f"readlink -f {idxd.DEVICES}/dsa1/..").strip()
    assert int(idxd.read(machine, "dsa1/wq1.0/max_transfer_size")) == ADVERTISED
    size = IN_ONE_PIECE
    counts = copy(machine, device=path.split("/")[-1], copies=12, min_size=size, max_size=size)
    assert counts.flawless(12)


def test_without_a_trace_descriptors_go_past_python(
    tmp_path: Path, boot: Boot, idxd_options: dict[str, Any]
) -> None:
    """The other tests' server traces, for which Python is given every store."""
    with Server(tmp_path / "quiet", {"dsa0": {"type": "dsa-1dwq"}}, trace=False) as server:
        quiet = boot(vfio_user(server.socket("dsa0")), cpus=4, **idxd_options)
        idxd.load(quiet)
        device = idxd.IdxdDevice(quiet)
        device.configure(size=ENTRIES)
        device.enable()
        device.enable_wq()
        assert copy(quiet, threads=THREADS, copies=COPIES // 2, max_size=4096).flawless(COPIES // 2)
        assert copy(quiet, depth=OCCUPIED, copies=COPIES // 2, max_size=64).flawless(COPIES // 2)
        device.disable()
        quiet.stop()


@pytest.mark.parametrize("method", [1, 2])
def test_copies_of_the_guests_own_cpus(machine: Machine, method: int) -> None:
    """What the benchmark compares with does what the device does."""
    assert copy(machine, method=method, copies=400, threads=4, depth=2).flawless(400)
    assert copy(machine, method=method, copies=400, threads=4, every=16).flawless(400)
    assert copy(machine, method=method, copies=4, fault=1).wrong == 1


def test_copies_of_which_a_few_are_compared(machine: Machine) -> None:
    assert copy(machine, copies=400, threads=4, every=16).flawless(400)
    assert copy(machine, copies=4, every=4, fault=1).wrong == 1


@pytest.mark.parametrize(
    ("fault", "found"),
    [(1, "wrong"), (2, "wrong"), (3, "wrong"), (4, "stray"), (5, "stray"), (6, "lost")],
)
def test_what_is_spoiled_is_found(machine: Machine, fault: int, found: str) -> None:
    """Or else the other tests would say nothing."""
    counts = copy(machine, fault=fault, copies=4, timeout=1)
    assert not counts.flawless(4)
    flaws = {name for name in ("wrong", "stray", "lost") if getattr(counts, name)}
    assert flaws == {found}


@pytest.mark.parametrize(
    ("parameters", "why"),
    [
        ({"device": "none"}, "No such device"),
        ({"channels": 4, "threads": 4}, "No such device"),  # the guest has three
        ({"threads": 257}, "Invalid argument"),
        ({"max_size": 1 << 22}, "Invalid argument"),
    ],
)
def test_without_a_run_the_module_does_not_stay(
    machine: Machine, parameters: dict[str, int | str], why: str
) -> None:
    assert why in machine.run(insmod(parameters)).output
    assert copy(machine, copies=1).flawless(1)


def test_a_run_can_be_killed(machine: Machine) -> None:
    endless = insmod({"copies": 4_000_000_000, "threads": THREADS})
    machine.check(f"""
        {endless} & process=$!
        until grep -q ^dmacopy /proc/modules; do usleep 10000; done
        kill -9 $process
        wait $process
        ! grep dmacopy /proc/modules
    """)
    assert copy(machine, copies=100).flawless(100)
